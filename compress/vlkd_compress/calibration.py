"""Chooses the images that INT8 scales are measured on, from the domains that may be seen and from no other.

Letters used in shapes: N images, D embedding size, H and W pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from vlkd_bench.samples import Sample, same_content
from vlkd_runtime.errors import CalibrationError
from vlkd_runtime.preprocess import PreprocessSpec, prepare

MINIMUM_IMAGES = 32
LEAST_CORRELATION = 0.15

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
    _check(samples, count, forbidden_domains)
    order = np.random.default_rng(seed)
    groups: dict[str, dict[int, list[Sample]]] = {}
    for sample in sorted(samples, key=lambda sample: sample.image):
        groups.setdefault(sample.domain, {}).setdefault(sample.label, []).append(sample)
    domains = [
        _interleave([_shuffled(classes[label], order) for label in _shuffled(sorted(classes), order)])
        for _, classes in sorted(groups.items())
    ]
    return tuple(_interleave(domains)[:count])


def select_by_coverage(
    samples: Sequence[Sample],
    embeddings: npt.NDArray[np.float32],
    count: int,
    *,
    seed: int,
    forbidden_domains: Collection[str],
) -> tuple[Sample, ...]:
    """Return ``count`` samples that leave no part of an embedding space far from all of them.

    Starting from one sample, the sample farthest from those taken is taken next; at most twice the best
    possible distance is left. Rare styles are taken early, where an even spread would take few of them.

    Args:
        samples: what may be used.
        embeddings: ``(N, D)`` unit rows, one a sample in the same order, as a rule the teacher's.
        count: how many to take; all of them when there are fewer.
        seed: picks the first sample.
        forbidden_domains: held-out domains, on which the guard will judge.

    Raises:
        CalibrationError: as `select_calibration`.

    References:
        T. F. Gonzalez, "Clustering to minimize the maximum intercluster distance", Theoretical Computer
        Science 38 (1985).
    """
    _check(samples, count, forbidden_domains)
    if len(embeddings) != len(samples):
        msg = f"Expected one embedding for each of {len(samples)} samples, found {len(embeddings)}."
        raise CalibrationError(msg)
    # By name, so that the order in which samples were given does not matter.
    order = sorted(range(len(samples)), key=lambda index: samples[index].image)
    rows = embeddings[order].astype(np.float64)
    taken = [int(np.random.default_rng(seed).integers(len(order)))]
    nearest = rows @ rows[taken[0]]
    while len(taken) < min(count, len(order)):
        nearest[taken] = np.inf  # never twice, not even among equal images
        taken.append(int(np.argmin(nearest)))
        nearest = np.maximum(nearest, rows @ rows[taken[-1]])
    return tuple(samples[order[index]] for index in taken)


def refuse_held_out(samples: Iterable[Sample], held_out: Iterable[Sample]) -> None:
    """Refuse calibration images that are held-out images by another name.

    Raises:
        CalibrationError: a file of the same content lies in both.
    """
    for sample, other in same_content(samples, held_out):
        msg = (
            f"Expected no held-out image among the calibration images, found {sample.image} with the same "
            f"content as {other.image}: remove one of them."
        )
        raise CalibrationError(msg)


def _check(samples: Sequence[Sample], count: int, forbidden_domains: Collection[str]) -> None:
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
                f"Expected at least {MINIMUM_IMAGES} {what}, found {number}{_by_domain(samples)}: fewer do not show "
                "how large activations get. Add images or ask for more of them."
            )
            raise CalibrationError(msg)


def _by_domain(samples: Sequence[Sample]) -> str:
    counts = Counter(sample.domain for sample in samples)
    return (
        f" ({', '.join(f'{number} in {name}' for name, number in sorted(counts.items()))})" if counts else ""
    )


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
            CalibrationError: there is no sample, the images show no variation, or nothing but noise.
            ImageError: a file cannot be decoded.
        """
        if not samples:
            msg = "Expected calibration samples, found none: activation ranges cannot be made up."
            raise CalibrationError(msg)
        images = np.stack([prepare(sample.path, spec) for sample in samples])
        _refuse_constant(images, samples)
        _refuse_noise(images, samples)
        return cls(images, tuple(samples))

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield one image at a time, ``(1, H, W, 3)``."""
        for index in range(len(self.images)):
            yield self.images[index : index + 1]


def _refuse_constant(images: npt.NDArray[np.uint8], samples: Sequence[Sample]) -> None:
    pixels = images.reshape(len(images), -1, images.shape[-1])
    if np.all(pixels.min(axis=1) == pixels.max(axis=1)):  # channel by channel: plain red is flat, too
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


def _refuse_noise(images: npt.NDArray[np.uint8], samples: Sequence[Sample]) -> None:
    """Refuse images whose neighbouring pixels have nothing to do with each other: no camera gives such."""
    grey = images.astype(np.float64).mean(axis=-1)
    left, right = (part - part.mean(axis=(1, 2), keepdims=True) for part in (grey[..., :-1], grey[..., 1:]))
    scale = np.sqrt((left**2).sum(axis=(1, 2)) * (right**2).sum(axis=(1, 2)))
    alike = np.divide((left * right).sum(axis=(1, 2)), scale, out=np.ones(len(grey)), where=scale > 0)
    if float(np.median(alike)) < LEAST_CORRELATION:
        msg = (
            f"Expected pictures to calibrate on, found random noise: the median correlation of neighbouring pixels is "
            f"{float(np.median(alike)):.2f} in {len(images)} images (first: {samples[0].path}), in pictures it is "
            f"above {LEAST_CORRELATION:g}. Scales from noise are wrong for pictures; give images of the task."
        )
        raise CalibrationError(msg)


def _shuffled(items: Sequence[T], order: np.random.Generator) -> list[T]:
    return [items[index] for index in order.permutation(len(items))]


def _interleave(queues: Sequence[Sequence[T]]) -> list[T]:
    """Take one item from each queue in turn until all are empty."""
    longest = max((len(queue) for queue in queues), default=0)
    return [queue[index] for index in range(longest) for queue in queues if index < len(queue)]
