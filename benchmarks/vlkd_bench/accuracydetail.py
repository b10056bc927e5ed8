"""Everything a record says about accuracy: domains, classes, confusions, calibration, each with an interval.

Letters: N images, C classes.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from vlkd_runtime.errors import DataError

from .accuracy import ECE_BINS, DomainAccuracy, expected_calibration_error, summarise
from .bounds import wilson
from .predictions import PredictionRow, format_predictions, parse_predictions

DRAWS = 1_000
DIGITS = 6
LARGEST_PREDICTIONS = 1 << 30


@dataclass(frozen=True, slots=True)
class ClassAccuracy:
    """Top-1 accuracy on the images of one class, over all domains, with Wilson's 95 % interval."""

    name: str
    n: int
    correct: int
    accuracy: float
    lower: float
    upper: float


@dataclass(frozen=True, slots=True)
class Confusion:
    """How many images of one class were taken for another, what share of it that is, and Wilson's 95 % interval."""

    label: str
    prediction: str
    count: int
    share: float
    lower: float
    upper: float


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, DIGITS)


@dataclass(frozen=True, slots=True)
class PackedPredictions:
    """The answers image by image, so that two records can be paired: JSON lines, zlib, base64.

    Attributes:
        n: Images.
        data: What `PackedPredictions.unpack` reads.
    """

    n: int
    data: str

    @classmethod
    def pack(cls, rows: Sequence[PredictionRow], names: Sequence[str]) -> PackedPredictions:
        """Pack predictions; probabilities and similarities keep six digits."""
        short = [
            replace(row, probability=_short(row.probability), similarity=_short(row.similarity))
            for row in rows
        ]
        text = format_predictions(short, names)
        return cls(len(short), base64.b64encode(zlib.compress(text.encode(), 9)).decode())

    def unpack(self, names: Sequence[str], where: str = "the record") -> tuple[PredictionRow, ...]:
        """Return the predictions.

        Raises:
            DataError: They are damaged.
        """
        try:
            engine = zlib.decompressobj()
            text = engine.decompress(base64.b64decode(self.data, validate=True), LARGEST_PREDICTIONS)
            if not engine.eof:
                msg = f"Expected packed predictions of at most 1 GiB in {where}, found more or less: measure again."
                raise DataError(msg)
            rows = parse_predictions(text.decode(), names, f"the predictions in {where}")
        except (binascii.Error, zlib.error, UnicodeDecodeError, ValueError) as error:
            msg = f"Expected packed predictions in {where}, found: {error}. Measure again."
            raise DataError(msg) from error
        if len(rows) != self.n:
            msg = f"Expected {self.n} predictions in {where}, found {len(rows)}: measure again."
            raise DataError(msg)
        return rows


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyRecord:
    """How right a bundle is on a folder of domains; shares in [0, 1], 95 % intervals.

    Attributes:
        dataset: What the images are, for people.
        split: "all" images, or the "test" images that no build trains on.
        classes: Class names in label order (C).
        domains: Accuracy of each domain.
        mean: Plain mean over domains.
        mean_interval: Its interval.
        worst: Accuracy of the worst domain; its interval is that domain's.
        worst_domain: Its name.
        ece: Expected calibration error, 15 bins, over all images.
        ece_interval: Its bootstrap interval, images resampled within domains.
        per_class: Accuracy of each class, in label order; a class without images is left out.
        confusions: Pairs of classes that were confused, most frequent first: the confusion matrix off its
            diagonal; the diagonal is `ClassAccuracy.correct`.
        predictions: The answers image by image; None where they were dropped to save space.
    """

    dataset: str
    split: str
    classes: tuple[str, ...]
    domains: Mapping[str, DomainAccuracy]
    mean: float
    mean_interval: tuple[float, float]
    worst: float
    worst_domain: str
    ece: float
    ece_interval: tuple[float, float]
    per_class: tuple[ClassAccuracy, ...]
    confusions: tuple[Confusion, ...]
    predictions: PackedPredictions | None

    def rows(self, where: str = "the record") -> tuple[PredictionRow, ...]:
        """Return the answers image by image.

        Raises:
            DataError: The record keeps none, or they are damaged.
        """
        if self.predictions is None:
            msg = f"Expected predictions image by image in {where}, found none: an old entry keeps its numbers alone."
            raise DataError(msg)
        return self.predictions.unpack(self.classes, where)


def describe_accuracy(
    rows: Sequence[PredictionRow],
    classes: Sequence[str],
    *,
    dataset: str,
    split: str,
    seed: int = 0,
) -> AccuracyRecord:
    """Work out everything a record says about accuracy.

    Args:
        rows: The predictions.
        classes: Class names in label order.
        dataset: What the images are, for people.
        split: Which images these are.
        seed: Seed of the bootstrap.

    Raises:
        DataError: There are no rows.
    """
    summary = summarise(rows)
    per_class = []
    for index, name in enumerate(classes):
        right = [row.correct for row in rows if row.label == index]
        if right:
            n, correct = len(right), sum(right)
            per_class.append(ClassAccuracy(name, n, correct, correct / n, *wilson(correct, n)))
    confused = Counter((row.label, row.prediction) for row in rows if not row.correct)
    order = sorted(confused, key=lambda pair: (-confused[pair], pair))
    images = Counter(row.label for row in rows)

    def confusion(label: int, prediction: int) -> Confusion:
        count, n = confused[label, prediction], images[label]
        return Confusion(classes[label], classes[prediction], count, count / n, *wilson(count, n))

    return AccuracyRecord(
        dataset=dataset,
        split=split,
        classes=tuple(classes),
        domains=summary.domains,
        mean=summary.mean,
        mean_interval=mean_interval(list(summary.domains.values())),
        worst=summary.worst,
        worst_domain=summary.worst_domain,
        ece=summary.ece,
        ece_interval=_ece_interval(rows, seed),
        per_class=tuple(per_class),
        confusions=tuple(confusion(*pair) for pair in order),
        predictions=PackedPredictions.pack(rows, classes),
    )


def mean_interval(domains: Sequence[DomainAccuracy]) -> tuple[float, float]:
    """Return the 95 % interval of the plain mean over domains from the domains' own intervals.

    References:
        G. Y. Zou and A. Donner, "Construction of confidence limits about effect measures: a general
        approach", Statistics in Medicine 27 (2008), equation 4: distances add like standard deviations.
    """
    k = len(domains)
    centre = sum(item.accuracy for item in domains) / k
    down = sum((item.accuracy - item.lower) ** 2 for item in domains) ** 0.5 / k
    up = sum((item.upper - item.accuracy) ** 2 for item in domains) ** 0.5 / k
    return max(0.0, centre - down), min(1.0, centre + up)


def _ece_interval(rows: Sequence[PredictionRow], seed: int) -> tuple[float, float]:
    """Return the bootstrap's 95 % interval of the calibration error, images resampled within each domain.

    The error is a sum of absolute values, so resampling adds noise that only ever raises it; each resample's
    excess over the observed value is therefore laid around that value, the basic ("reversed") bootstrap,
    beside the plain percentiles, and the wider end is taken.

    References:
        A. C. Davison and D. V. Hinkley, "Bootstrap methods and their application" (1997), section 5.2.
    """
    rng = np.random.default_rng(seed)
    observed = expected_calibration_error(rows)
    groups: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(row.domain, []).append(index)
    probability = np.array([row.probability for row in rows], dtype=np.float64)
    gap = np.array([row.correct for row in rows], dtype=float) - probability
    bins = np.clip(np.ceil(probability * ECE_BINS).astype(int) - 1, 0, ECE_BINS - 1)
    members = [np.array(group) for group in groups.values()]
    draws = np.empty(DRAWS)
    for i in range(DRAWS):
        chosen = np.concatenate([group[rng.integers(0, len(group), len(group))] for group in members])
        draws[i] = np.abs(np.bincount(bins[chosen], gap[chosen], ECE_BINS)).sum() / len(rows)
    low, high = np.quantile(draws, (0.025, 0.975))
    return float(max(0.0, min(low, 2 * observed - high))), float(min(1.0, max(high, 2 * observed - low)))
