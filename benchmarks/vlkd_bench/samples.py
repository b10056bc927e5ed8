"""One labelled image of an evaluation set, named so that two runs can be paired image by image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ABSENT = -1
"""Label of an image that shows none of the classes."""


@dataclass(frozen=True, slots=True)
class Sample:
    """An image on disk with the domain and the class it belongs to.

    Attributes:
        path: Where the image lies.
        image: Its identity, ``<domain>/<class>/<file>``; the same image has the same identity in every run
            and on every machine.
        domain: The domain it was taken from.
        label: Index of its class in the class names, or `ABSENT`.
        source: For a view made from another image, the identity of that image; "" for an image of its own.
    """

    path: Path
    image: str
    domain: str
    label: int
    source: str = ""


def same_content(samples: Iterable[Sample], others: Iterable[Sample]) -> Iterator[tuple[Sample, Sample]]:
    """Find images of two sets whose files are the same, byte by byte, whatever their names; no image is decoded."""
    by_size: dict[int, list[Sample]] = {}
    for sample in others:
        by_size.setdefault(sample.path.stat().st_size, []).append(sample)
    for sample in samples:
        alike = by_size.get(sample.path.stat().st_size)
        if alike:
            data = sample.path.read_bytes()
            yield from ((sample, other) for other in alike if other.path.read_bytes() == data)
