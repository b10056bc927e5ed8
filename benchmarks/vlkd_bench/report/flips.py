"""Which images a model answers otherwise than its reference: a few of each domain, with thumbnails where they lie.

Most telling first: images that only the reference got right, those that the model is surest of before the others.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vlkd_runtime.decoding import decode
from vlkd_runtime.errors import ImageError

from ..predictions import PredictionRow
from ..samples import ABSENT

PER_DOMAIN, IN_ALL = 9, 54
SIDE_PX = 96
JPEG_QUALITY = 72
MOST_BYTES = 16_384
NOTHING = "none of the classes"
FlipKind = Literal["lost", "won", "other"]
_ORDER: Mapping[str, int] = {"lost": 0, "other": 1, "won": 2}


@dataclass(frozen=True, slots=True)
class Flip:
    """One image with two answers.

    Attributes:
        image: Its name, ``<domain>/<class>/<file>``.
        kind: "lost" if only the reference is right, "won" if only the model is, "other" if neither.
        label: What it shows.
        before: The reference's answer.
        after: The model's answer.
        before_probability: How sure the reference was, in [0, 1]; None if not recorded.
        after_probability: How sure the model is.
        jpeg: A thumbnail, base64; "" where the file is missing or cannot be read.
    """

    image: str
    kind: FlipKind
    label: str
    before: str
    after: str
    before_probability: float | None
    after_probability: float | None
    jpeg: str


@dataclass(frozen=True, slots=True)
class DomainFlips:
    """The flips of one domain: how many there are of each kind, and those that are shown."""

    domain: str
    images: int
    lost: int
    won: int
    other: int
    shown: tuple[Flip, ...]


def find_flips(
    reference: Sequence[PredictionRow],
    candidate: Sequence[PredictionRow],
    names: Sequence[str],
    paths: Mapping[str, Path],
    *,
    first: Sequence[str] = (),
) -> tuple[DomainFlips, ...]:
    """Compare two models' answers image by image; images that only one of them answered are left out.

    Args:
        reference: The reference's answers.
        candidate: The model's.
        names: Class names in label order.
        paths: Where images lie, by name; those that are missing are shown by their names alone.
        first: Domains that come first, such as held-out ones; the others follow by name.
    """
    before = {row.image: row for row in reference}
    pairs: dict[str, list[tuple[PredictionRow, PredictionRow]]] = {}
    for row in candidate:
        if row.image in before:
            pairs.setdefault(row.domain, []).append((before[row.image], row))
    order = sorted(pairs, key=lambda name: (name not in first, name))
    with_flips = sum(any(_kind(*pair) for pair in pairs[name]) for name in order)
    share = min(PER_DOMAIN, max(1, IN_ALL // max(with_flips, 1)))
    left, found = IN_ALL, []
    for name in order:
        flips = [(kind, *pair) for pair in pairs[name] if (kind := _kind(*pair))]
        flips.sort(key=lambda item: (_ORDER[item[0]], -(item[2].probability or 0.0), item[2].image))
        chosen = flips[: min(share, left)]
        left -= len(chosen)
        counts = {kind: sum(item[0] == kind for item in flips) for kind in _ORDER}
        shown = tuple(_flip(kind, one, two, names, paths) for kind, one, two in chosen)
        found.append(
            DomainFlips(name, len(pairs[name]), counts["lost"], counts["won"], counts["other"], shown)
        )
    return tuple(found)


def _kind(before: PredictionRow, after: PredictionRow) -> FlipKind | None:
    if before.prediction == after.prediction:
        return None
    return "lost" if before.correct else "won" if after.correct else "other"


def _flip(
    kind: FlipKind,
    before: PredictionRow,
    after: PredictionRow,
    names: Sequence[str],
    paths: Mapping[str, Path],
) -> Flip:
    path = paths.get(after.image)
    return Flip(
        image=after.image,
        kind=kind,
        label=NOTHING if after.label == ABSENT else names[after.label],
        before=names[before.prediction],
        after=names[after.prediction],
        before_probability=before.probability,
        after_probability=after.probability,
        jpeg="" if path is None else thumbnail(path),
    )


def thumbnail(path: Path) -> str:
    """Return a small JPEG of an image file as base64, or nothing where it is missing, damaged or too dear."""
    try:
        image = decode(path)
    except ImageError:
        return ""
    image.thumbnail((SIDE_PX, SIDE_PX))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=JPEG_QUALITY)
    data = buffer.getvalue()
    return base64.b64encode(data).decode() if len(data) <= MOST_BYTES else ""
