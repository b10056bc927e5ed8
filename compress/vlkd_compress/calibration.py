"""Chooses the images that INT8 scales are measured on, from the domains that may be seen and from no other.

Letters used in shapes: N images, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from vlkd_bench.samples import Sample
from vlkd_runtime.errors import CalibrationError
from vlkd_runtime.preprocess import PreprocessSpec, prepare

MINIMUM_IMAGES = 32

T = TypeVar("T")


def select_calibration(
    samples: Sequence[Sample], count: int, *, seed: int, forbidden_domains: Collection[str]
) -> tuple[Sample, ...]:
    """Return ``count`` samples spread evenly over domains and, within a domain, over classes.

    Args:
        samples: what may be used; their order does not matter.
        count: how many to take; all of them when there are fewer.
        seed: the same seed takes the same samples.
        forbidden_domains: held-out domains, on which the guard will judge.

    Raises:
        CalibrationError: there are too few samples, too few were asked for, or one is from a held-out domain.
    """
    leaked = sorted({sample.domain for sample in samples} & set(forbidden_domains))
    if leaked:
        example = min(sample.image for sample in samples if sample.domain == leaked[0])
        msg = (
            f"Expected calibration samples from source domains only, found the held-out {leaked} (such as "
            f"{example}): the guard's verdict would be about images the compression has seen. Leave them out."
        )
        raise CalibrationError(msg)
    for what, number in (("samples to choose from", len(samples)), ("calibration images asked for", count)):
        if number < MINIMUM_IMAGES:
            msg = (
                f"Expected at least {MINIMUM_IMAGES} {what}, found {number}: fewer do not show how large "
                "activations get. Add images or ask for more of them."
            )
            raise CalibrationError(msg)
    order = np.random.default_rng(seed)
    groups: dict[str, dict[int, list[Sample]]] = {}
    for sample in sorted(samples, key=lambda sample: sample.image):
        groups.setdefault(sample.domain, {}).setdefault(sample.label, []).append(sample)
    domains = [
        _interleave([_shuffled(classes[label], order) for label in _shuffled(sorted(classes), order)])
        for _, classes in sorted(groups.items())
    ]
    return tuple(_interleave(domains)[:count])


@dataclass(frozen=True, slots=True, eq=False)
class CalibrationImages:
    """Prepared calibration images, as the graph's input wants them.

    Attributes:
        images: ``(N, H, W, 3)`` uint8.
        samples: where each came from, in the same order.
    """

    images: npt.NDArray[np.uint8]
    samples: tuple[Sample, ...]

    @classmethod
    def load(cls, samples: Sequence[Sample], spec: PreprocessSpec) -> CalibrationImages:
        """Decode and resize the samples exactly as the device will.

        Raises:
            CalibrationError: there is no sample, or the images show no variation.
            ImageError: a file cannot be decoded.
        """
        if not samples:
            msg = "Expected calibration samples, found none: activation ranges cannot be made up."
            raise CalibrationError(msg)
        images = np.stack([prepare(sample.path, spec) for sample in samples])
        _refuse_constant(images, samples)
        return cls(images, tuple(samples))

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield one image at a time, ``(1, H, W, 3)``."""
        for index in range(len(self.images)):
            yield self.images[index : index + 1]


def _refuse_constant(images: npt.NDArray[np.uint8], samples: Sequence[Sample]) -> None:
    flat = images.reshape(len(images), -1)
    if np.all(flat.min(axis=1) == flat.max(axis=1)):
        found = "each of them one flat colour"
    elif len(images) > 1 and np.all(images == images[0]):
        found = "all of them the same picture"
    else:
        return
    msg = (
        f"Expected calibration images that vary, found {len(images)}, {found} (first: {samples[0].path}): "
        "check the data folder."
    )
    raise CalibrationError(msg)


def _shuffled(items: Sequence[T], order: np.random.Generator) -> list[T]:
    return [items[index] for index in order.permutation(len(items))]


def _interleave(queues: Sequence[Sequence[T]]) -> list[T]:
    """Take one item from each queue in turn until all are empty."""
    longest = max((len(queue) for queue in queues), default=0)
    return [queue[index] for index in range(longest) for queue in queues if index < len(queue)]
