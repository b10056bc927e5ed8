"""Which classes and which images an experiment learns from: pure functions, stable when images are added.

Letters used in shapes: N images, C classes.

Every choice ranks names by a hash of the seed and the name, as `data.split_of` does, and takes the lowest
ranks; no choice depends on the order of its input.

References:
    Zhou et al., "Conditional Prompt Learning for Vision-Language Models", CVPR 2022 (base and novel classes);
    Li et al., "PromptKD", CVPR 2024 (the same halves, learned from without labels);
    Li et al., "Distilling Large Vision-Language Model with Out-of-Distribution Generalizability", ICCV 2023
    (disjoint classes, few-shot images).
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vlkd_bench.samples import Sample
from vlkd_runtime.errors import ConfigError, DataError
from vlkd_runtime.vectors import ClassVectors

from .data import NO_LABEL


@dataclass(frozen=True, slots=True)
class Shots:
    """A few images of each class.

    Attributes:
        samples: the images, in the order in which they were given.
        short: how many images there are of each class that has fewer than asked for; all of them are taken.
    """

    samples: tuple[Sample, ...]
    short: Mapping[str, int]


def class_disjoint(
    names: Sequence[str], unseen: int | float | Sequence[str], seed: int = 0
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Divide classes into those to learn from and those met only when measured.

    Args:
        names: class names in label order (C,).
        unseen: how many classes are unseen, or their share (a float between 0 and 1, rounded half up to
            whole classes, at least one), or their names.
        seed: of the choice; without effect where names are given.

    Returns:
        Seen and unseen names, each in label order; at least two are seen and one is unseen.

    Raises:
        ConfigError: a name is unknown or named twice, or the numbers leave too few classes.
    """
    _check_names(names, least=3)
    if isinstance(unseen, str) or (isinstance(unseen, Sequence) and not unseen):
        msg = f"Expected a number, a share or a list of unseen class names, found {unseen!r}."
        raise ConfigError(msg)
    if isinstance(unseen, Sequence):
        _check_known(names, unseen)
        chosen = set(unseen)
    else:
        ranked = sorted(names, key=lambda name: _rank(seed, "unseen", name))
        chosen = set(ranked[: _unseen_count(len(names), unseen)])
    if len(names) - len(chosen) < 2:
        msg = f"Expected at least two of the {len(names)} classes to be seen, found {len(chosen)} unseen: name fewer."
        raise ConfigError(msg)
    return tuple(name for name in names if name not in chosen), tuple(
        name for name in names if name in chosen
    )


def base_novel(names: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The first half of the classes and the second; of an odd number, base has one more.

    Args:
        names: class names in label order (C,).

    Returns:
        Base and novel names, in label order.

    Raises:
        ConfigError: fewer than two classes, or a name twice.
    """
    _check_names(names, least=2)
    half = math.ceil(len(names) / 2)
    return tuple(names[:half]), tuple(names[half:])


def restrict(samples: Sequence[Sample], classes: Sequence[str], kept: Sequence[str]) -> tuple[Sample, ...]:
    """The images of some classes, labelled by their position among these.

    Args:
        samples: labelled by ``classes`` (N,).
        classes: class names in label order (C,).
        kept: the classes to keep, in their new label order.

    Raises:
        ConfigError: a kept class is unknown or named twice.
        DataError: a kept class has no image, or a label is none of ``classes``.
    """
    _check_names(classes, least=1)
    _check_known(classes, kept)
    _check_labels(samples, len(classes))
    position = {classes.index(name): index for index, name in enumerate(kept)}
    result = tuple(
        dataclasses.replace(sample, label=position[sample.label])
        for sample in samples
        if sample.label in position
    )
    _check_all_present(result, kept)
    return result


def slice_vectors(vectors: ClassVectors, kept: Sequence[str]) -> ClassVectors:
    """The vectors of some classes, in the order in which these are given.

    Raises:
        ConfigError: a class has no vector or is named twice.
    """
    _check_known(vectors.names, kept)
    rows = [vectors.names.index(name) for name in kept]
    prompts = tuple(vectors.prompts[row] for row in rows)
    return dataclasses.replace(vectors, names=tuple(kept), vectors=vectors.vectors[rows], prompts=prompts)


def k_shot(samples: Sequence[Sample], classes: Sequence[str], k: int, seed: int = 0) -> Shots:
    """K images of each class, whatever their domains.

    Adding an image to a class replaces at most one of its chosen images.

    Args:
        samples: labelled images (N,).
        classes: class names in label order (C,).
        k: images a class; a class with fewer gives all it has and is named in ``short``.
        seed: of the choice.

    Raises:
        ConfigError: ``k`` is below one.
        DataError: a class has no image at all, or a label is none of ``classes``.
    """
    if k < 1:
        msg = f"Expected at least one image a class, found k = {k}."
        raise ConfigError(msg)
    _check_labels(samples, len(classes))
    _check_all_present(samples, classes)
    of_class: defaultdict[int, list[str]] = defaultdict(list)
    for sample in samples:
        of_class[sample.label].append(sample.image)
    chosen: set[str] = set()
    for images in of_class.values():
        chosen.update(sorted(images, key=lambda image: _rank(seed, "shot", image))[:k])
    short = {name: len(of_class[label]) for label, name in enumerate(classes) if len(of_class[label]) < k}
    return Shots(tuple(sample for sample in samples if sample.image in chosen), short)


def unlabelled(samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """The same images with the label `NO_LABEL`, so that a loss that reads labels fails at once.

    An image's id still spells its class, as it must to pair runs; nothing that learns may read ids.
    """
    return tuple(dataclasses.replace(sample, label=NO_LABEL) for sample in samples)


def source_holdout(
    samples: Sequence[Sample], share: float = 0.2, seed: int = 0
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Keep some images of the source domains back, to choose a checkpoint or a setting by.

    Divides each class of each domain: ``share`` of its images, rounded half up, at least one and never all.
    The only image of a class in a domain stays in training: what was not learned cannot be selected for.
    Adding an image to a class moves at most one other image of that class and domain.

    Args:
        samples: train images of the source domains (N,).
        share: part kept back, above 0 and at most one half.
        seed: of the choice.

    Returns:
        Images to train on and images to select by, each in the given order.

    Raises:
        ConfigError: the share is out of range.
        DataError: no image can be kept back.
    """
    if not 0 < share <= 0.5:
        msg = f"Expected a share for selection above 0 and at most 0.5, found {share!r}."
        raise ConfigError(msg)
    groups: defaultdict[tuple[str, int], list[str]] = defaultdict(list)
    for sample in samples:
        groups[sample.domain, sample.label].append(sample.image)
    kept_back: set[str] = set()
    for images in groups.values():
        count = min(len(images) - 1, max(1, math.floor(share * len(images) + 0.5)))
        kept_back.update(sorted(images, key=lambda image: _rank(seed, "selection", image))[:count])
    if not kept_back:
        msg = (
            f"Expected a class with two images or more in some source domain, found {len(samples)} images of "
            f"{len(groups)} classes and domains: there is nothing to select by. Add images."
        )
        raise DataError(msg)
    train = tuple(sample for sample in samples if sample.image not in kept_back)
    return train, tuple(sample for sample in samples if sample.image in kept_back)


def _rank(seed: int, purpose: str, name: str) -> bytes:
    # The purpose keeps one seed from choosing the same images for two different ends.
    return hashlib.sha256(f"{purpose}\0{seed}\0{name}".encode()).digest()


def _unseen_count(classes: int, unseen: int | float) -> int:
    if isinstance(unseen, bool) or (isinstance(unseen, float) and not 0 < unseen < 1):
        msg = f"Expected unseen classes as a number from 1 or a share between 0 and 1, found {unseen!r}."
        raise ConfigError(msg)
    count = max(1, math.floor(unseen * classes + 0.5)) if isinstance(unseen, float) else unseen
    if not 1 <= count <= classes - 2:
        msg = (
            f"Expected from 1 to {classes - 2} of the {classes} classes to be unseen, found {count}: at least "
            "two must be left to learn from."
        )
        raise ConfigError(msg)
    return count


def _check_names(names: Sequence[str], least: int) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice or len(names) < least:
        found = f"'{twice[0]}' twice" if twice else f"{len(names)}"
        msg = f"Expected at least {least} different class names, found {found}."
        raise ConfigError(msg)


def _check_known(names: Sequence[str], chosen: Sequence[str]) -> None:
    unknown = [name for name in chosen if name not in names]
    if unknown:
        msg = f"Expected classes out of {', '.join(names)}, found '{unknown[0]}'."
        raise ConfigError(msg)
    _check_names(chosen, least=1)


def _check_labels(samples: Sequence[Sample], classes: int) -> None:
    wrong = [sample for sample in samples if not 0 <= sample.label < classes]
    if wrong:
        msg = (
            f"Expected labels from 0 to {classes - 1}, found {wrong[0].label} for {wrong[0].image}: the images "
            "belong to other classes, or their labels were taken away."
        )
        raise DataError(msg)


def _check_all_present(samples: Sequence[Sample], classes: Sequence[str]) -> None:
    present = {sample.label for sample in samples}
    missing = [name for label, name in enumerate(classes) if label not in present]
    if missing:
        msg = f"Expected images of every class, found none of {', '.join(missing[:5])}. Add images or drop the class."
        raise DataError(msg)
