"""Whether synthetic images show their class and differ from each other, as the teacher sees them.

Letters used in shapes: N images, C classes, D embedding size.

References:
    Friedman and Dieng, "The Vendi Score: A Diversity Evaluation Metric for Machine Learning", TMLR 2023.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from vlkd_bench.samples import Sample
from vlkd_runtime.errors import ConfigError, DataError
from vlkd_runtime.preprocess import decode
from vlkd_runtime.vectors import ClassVectors

from .teachers import FloatArray, Teacher

_BATCH = 32


@dataclass(frozen=True, slots=True)
class ConsistencyJudge:
    """Accepts an image that the teacher takes for its class.

    Images made to please a teacher please it more than they should: for inversion its verdict is generous.

    Attributes:
        teacher: who looks.
        vectors: its class vectors.
        least: least probability of the class, besides being the most probable.
    """

    teacher: Teacher
    vectors: ClassVectors
    least: float = 0.0

    @property
    def fingerprint(self) -> str:
        """Hash of teacher, class vectors and threshold."""
        digest = hashlib.sha256(f"{self.teacher.fingerprint} {self.least} {self.vectors.names}".encode())
        digest.update(self.vectors.vectors.tobytes())
        return digest.hexdigest()

    def __call__(self, images: Sequence[Image.Image], class_names: Sequence[str]) -> list[bool]:
        """One verdict per image.

        Raises:
            ConfigError: a class has no vector.
        """
        for name in class_names:
            if name not in self.vectors.names:
                msg = f"Expected a class of {', '.join(self.vectors.names)}, found {name!r}: embed it first."
                raise ConfigError(msg)
        labels = np.array([self.vectors.names.index(name) for name in class_names], dtype=np.int64)
        probabilities = class_probabilities(embed_all(self.teacher, images), self.vectors)
        own = probabilities[np.arange(len(labels)), labels]
        return [bool(ok) for ok in (probabilities.argmax(axis=1) == labels) & (own >= self.least)]


def embed_all(teacher: Teacher, images: Sequence[Image.Image]) -> FloatArray:
    """Embed images batch by batch: unit rows ``(N, D)``."""
    parts = [teacher.embed_images(images[k : k + _BATCH]) for k in range(0, len(images), _BATCH)]
    return np.concatenate(parts) if parts else np.zeros((0, teacher.dim), np.float32)


def class_probabilities(rows: FloatArray, vectors: ClassVectors) -> npt.NDArray[np.float64]:
    """Softmax over the scaled cosines: unit rows ``(N, D)`` to ``(N, C)``."""
    logits = vectors.logit_scale * rows.astype(np.float64) @ vectors.vectors.astype(np.float64).T
    weights: npt.NDArray[np.float64] = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
    shares: npt.NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return shares


def pairwise_distance(rows: FloatArray) -> float:
    """Mean cosine distance over all pairs of different rows ``(N, D)``; 0 for fewer than two."""
    count = len(rows)
    if count < 2:
        return 0.0
    total = rows.astype(np.float64).sum(axis=0)
    own = float((rows.astype(np.float64) ** 2).sum())
    return 1 - (float(total @ total) - own) / (count * (count - 1))


def vendi_score(rows: FloatArray) -> float:
    """Effective number of different images: exp of the entropy of the eigenvalues of the cosines over N.

    1 when all rows ``(N, D)`` are equal, N when all are orthogonal (Friedman and Dieng, definition 3.1).
    """
    if not len(rows):
        return 0.0
    singular = np.linalg.svd(rows.astype(np.float64), compute_uv=False) ** 2 / len(rows)
    shares = singular[singular > 1e-12]
    return float(np.exp(-(shares * np.log(shares)).sum()))


@dataclass(frozen=True, slots=True)
class ClassCheck:
    """One class's row of the report.

    Attributes:
        class_name: the class.
        images: how many there are.
        consistency: share that the teacher takes for the class.
        distance: mean cosine distance of two of its images.
        vendi: effective number of different images.
    """

    class_name: str
    images: int
    consistency: float
    distance: float
    vendi: float


@dataclass(frozen=True, slots=True)
class SyntheticReport:
    """What the teacher says of a synthetic set. Vendi scores compare only between sets of equal size.

    Attributes:
        domain: the set.
        teacher: who was asked.
        classes: one row per class.
        regenerated: images drawn again because a judge refused them.
        dropped: images given up.
    """

    domain: str
    teacher: str
    classes: tuple[ClassCheck, ...]
    regenerated: int = 0
    dropped: int = 0

    @property
    def images(self) -> int:
        """Images of all classes."""
        return sum(row.images for row in self.classes)

    @property
    def accepted(self) -> float:
        """Share of all images drawn, those drawn again and those dropped included, that were kept."""
        return self.images / max(1, self.images + self.regenerated + self.dropped)

    @property
    def consistency(self) -> float:
        """Share of all images that the teacher takes for their class."""
        return sum(row.consistency * row.images for row in self.classes) / max(1, self.images)

    @property
    def distance(self) -> float:
        """Mean over classes of the mean pairwise distance."""
        return float(np.mean([row.distance for row in self.classes]))

    @property
    def vendi(self) -> float:
        """Mean over classes of the Vendi score."""
        return float(np.mean([row.vendi for row in self.classes]))

    def as_json(self) -> dict[str, Any]:
        """Plain values, the totals included."""
        totals = {
            name: getattr(self, name) for name in ("images", "accepted", "consistency", "distance", "vendi")
        }
        return dataclasses.asdict(self) | totals

    def markdown(self) -> str:
        """A table, classes in label order, and what was left out."""
        lines = [
            f"Synthetic images `{self.domain}` as the teacher `{self.teacher}` sees them",
            "",
            "| class | images | of their class | distance within | Vendi score |",
            "|---|---:|---:|---:|---:|",
        ]
        lines += [_row(row.class_name, row) for row in self.classes]
        lines += [
            _row("**all**", self),
            "",
            f"{self.regenerated} drawn again, {self.dropped} dropped; {self.accepted:.1%} of all drawn were kept.",
            "",
        ]
        return "\n".join(lines)


def _row(name: str, row: ClassCheck | SyntheticReport) -> str:
    return f"| {name} | {row.images} | {row.consistency:.1%} | {row.distance:.3f} | {row.vendi:.2f} |"


def check(
    teacher: Teacher,
    vectors: ClassVectors,
    samples: Sequence[Sample],
    *,
    regenerated: int = 0,
    dropped: int = 0,
) -> SyntheticReport:
    """Look at a synthetic domain through the teacher.

    Args:
        teacher: who looks; for inverted images best another one than they were made with.
        vectors: its class vectors, in the samples' label order.
        samples: images of one domain.
        regenerated: images drawn again, for the report.
        dropped: images given up, for the report.

    Raises:
        DataError: no samples, or of several domains.
        ImageError: an image cannot be decoded.
    """
    domains = sorted({sample.domain for sample in samples})
    if len(domains) != 1:
        msg = f"Expected images of one synthetic domain, found {len(domains)} ({', '.join(domains)}): choose one."
        raise DataError(msg)
    rows = np.concatenate(
        [
            teacher.embed_images([decode(sample.path) for sample in samples[k : k + _BATCH]])
            for k in range(0, len(samples), _BATCH)
        ]
    )
    labels = np.array([sample.label for sample in samples])
    right = class_probabilities(rows, vectors).argmax(axis=1) == labels
    classes = []
    for label, name in enumerate(vectors.names):
        own = labels == label
        share = float(right[own].mean()) if own.any() else 0.0
        some = rows[own]
        classes.append(ClassCheck(name, len(some), share, pairwise_distance(some), vendi_score(some)))
    return SyntheticReport(domains[0], teacher.name, tuple(classes), regenerated, dropped)


def contact_sheet(rows: Mapping[str, Sequence[Image.Image]], *, cell: int = 64) -> Image.Image:
    """Images on one sheet to look at: a labelled row each.

    Args:
        rows: label to images.
        cell: side of an image in pixels.

    Raises:
        ConfigError: there is no image.
    """
    columns = max((len(images) for images in rows.values()), default=0)
    if not columns:
        msg = "Expected images for a contact sheet, found none: name a set that holds some."
        raise ConfigError(msg)
    gap, margin = 4, 96
    pitch = cell + gap
    sheet = Image.new("RGB", (margin + columns * pitch + gap, len(rows) * pitch + gap), (250, 250, 250))
    pen = ImageDraw.Draw(sheet)
    for row, (label, images) in enumerate(rows.items()):
        top = gap + row * pitch
        pen.text((gap, top + cell // 2 - 6), label[:14], fill=(20, 20, 20))
        for column, image in enumerate(images):
            sheet.paste(image.convert("RGB").resize((cell, cell)), (margin + column * pitch, top))
    return sheet
