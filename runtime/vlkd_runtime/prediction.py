"""From logits to what an application reads: labels, probabilities, and *unknown* where nothing fits.

Letters: N images, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .errors import UsageError

UNKNOWN = "unknown"
FEW = 64
"""Up to so many numbers are read one by one, which is quicker than numpy just after a network has run."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the classifier says of one image.

    Attributes:
        label: Name of the most likely class, or ``unknown`` where it does not reach a threshold.
        index: Its position among the classes; -1 where unknown.
        probability: Share of the most likely class in the softmax of the logits.
        similarity: Cosine between the image's embedding and that class's vector; low for all classes alike
            where the image shows none of them.
        top: The most likely classes with their probabilities, best first.
        known: Whether the most likely class reaches the thresholds.
    """

    label: str
    index: int
    probability: float
    similarity: float
    top: tuple[tuple[str, float], ...]
    known: bool = True


@dataclass(frozen=True, slots=True)
class Reading:
    """How logits are read.

    Attributes:
        top: How many of the most likely classes to list.
        threshold: Least probability of a known class.
        min_similarity: Least cosine of a known class.
    """

    top: int = 5
    threshold: float | None = None
    min_similarity: float | None = None

    def __post_init__(self) -> None:
        if type(self.top) is not int or self.top < 1:
            msg = f"top: expected an integer of at least 1, found {self.top!r}; ask for at least one class"
            raise UsageError(msg)
        for name, low in (("threshold", 0.0), ("min_similarity", -1.0)):
            value = getattr(self, name)
            # Written so that NaN is refused.
            if value is not None and not (isinstance(value, (int, float)) and low <= value <= 1):
                msg = (
                    f"{name}: expected a number from {low:g} to 1, found {value!r}; leave it out to know all"
                )
                raise UsageError(msg)


def read_logits(
    logits: npt.NDArray[np.float32], names: Sequence[str], logit_scale: float, reading: Reading
) -> list[Prediction]:
    """Give one prediction for each row of logits, (N, C)."""
    if logits.shape[1] <= FEW:
        return [
            _read(*_sorted_plainly(row, reading.top), names, logit_scale, reading) for row in logits.tolist()
        ]
    return [_read(*_sorted(row, reading.top), names, logit_scale, reading) for row in logits]


def _sorted(row: npt.NDArray[np.float32], top: int) -> tuple[list[int], list[float], float]:
    """The most likely classes, their probabilities, and the largest logit."""
    # The largest is taken off first, so that no exponential overflows.
    logits = row.astype(np.float64)
    weights = np.exp(logits - logits.max())
    order = (-logits).argsort(kind="stable")[:top].tolist()
    return order, (weights[order] / float(weights.sum())).tolist(), float(logits[order[0]])


def _sorted_plainly(logits: list[float], top: int) -> tuple[list[int], list[float], float]:
    """The same without numpy's machinery, which a network that has just run has pushed out of the caches."""
    largest = max(logits)
    weights = [math.exp(logit - largest) for logit in logits]
    total = math.fsum(weights)
    order = sorted(range(len(logits)), key=logits.__getitem__, reverse=True)[:top]
    return order, [weights[index] / total for index in order], largest


def _read(
    order: list[int],
    shares: list[float],
    largest: float,
    names: Sequence[str],
    logit_scale: float,
    reading: Reading,
) -> Prediction:
    best = order[0]
    similarity = largest / logit_scale
    known = (reading.threshold is None or shares[0] >= reading.threshold) and (
        reading.min_similarity is None or similarity >= reading.min_similarity
    )
    return Prediction(
        label=names[best] if known else UNKNOWN,
        index=best if known else -1,
        probability=shares[0],
        similarity=similarity,
        top=tuple(zip([names[index] for index in order], shares, strict=True)),
        known=known,
    )
