"""Pairs two models' answers image by image and finds what the guard counts.

Letters used in shapes: N images of known classes, A images of absent classes, K domains, U units. A *unit* is what was
drawn independently: an image, or all the views that were made from one source image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vlkd_runtime.errors import DataError

from .discordance import Discordance
from .predictions import PredictionRow
from .samples import ABSENT

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """What one model answered; NaN where a file recorded no number.

    Attributes:
        correct: Whether it was right, ``(N,)``.
        prediction: Class index, ``(N,)``.
        probability: Of the predicted class, ``(N,)``.
        similarity: To the predicted class vector, ``(N,)``.
        unknown_similarity: The same on images of absent classes, ``(A,)``.
    """

    correct: npt.NDArray[np.bool_]
    prediction: npt.NDArray[np.int64]
    probability: Floats
    similarity: Floats
    unknown_similarity: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Two models on the same images, in order of the images' names.

    Attributes:
        domains: Names of the domains, sorted (K,).
        domain: Index of each image's domain, ``(N,)``.
        unit: Index of each image's unit, ``(N,)``.
        units: Number of units, U.
        virtual: Whether images are views made from other images.
        reference: The reference's answers.
        candidate: The candidate's.
    """

    domains: tuple[str, ...]
    domain: npt.NDArray[np.int64]
    unit: npt.NDArray[np.int64]
    units: int
    virtual: bool
    reference: Answers
    candidate: Answers

    @property
    def delta(self) -> npt.NDArray[np.int64]:
        """1 for an image lost, -1 for one won, 0 for the rest, ``(N,)``."""
        return self.reference.correct.astype(np.int64) - self.candidate.correct.astype(np.int64)

    @property
    def flipped(self) -> npt.NDArray[np.bool_]:
        """Whether the two predict different classes, ``(N,)``."""
        return np.not_equal(self.reference.prediction, self.candidate.prediction)

    def counts(self) -> Mapping[str, Discordance]:
        """Discordant images per domain."""
        k = len(self.domains)

        def per_domain(chosen: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
            return np.bincount(self.domain[chosen], minlength=k)

        every = np.ones(len(self.domain), dtype=np.bool_)
        columns = (per_domain(part) for part in (every, self.delta > 0, self.delta < 0, self.flipped))
        rows = np.stack(tuple(columns), axis=1).tolist()
        return {name: Discordance(*row) for name, row in zip(self.domains, rows, strict=True)}

    def deltas_by_unit(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Return each unit's delta in each domain and whether it has an image there, ``(U, K)`` both."""
        delta = np.zeros((self.units, len(self.domains)), dtype=np.int64)
        present = np.zeros(delta.shape, dtype=np.bool_)
        delta[self.unit, self.domain] = self.delta
        present[self.unit, self.domain] = True
        return delta, present


def pair(
    reference: Sequence[PredictionRow], candidate: Sequence[PredictionRow], names: Sequence[str] = ()
) -> Pairs:
    """Pair the rows by image.

    Args:
        reference: The reference's predictions.
        candidate: The candidate's, in any order.
        names: Class names for messages, where known.

    Raises:
        DataError: The two did not answer the same images, disagree about an image's class, domain or source, or
            no image of a known class is among them.
    """
    first, second = _by_image(reference, "reference"), _by_image(candidate, "candidate")
    for missing_from, missing in (("candidate", first.keys() - second), ("reference", second.keys() - first)):
        if missing:
            shown = ", ".join(sorted(missing)[:5]) + (", ..." if len(missing) > 5 else "")
            msg = (
                f"Expected both models to answer the same images; {len(missing)} missing from the "
                f"{missing_from}: {shown}. Evaluate both on the same folder."
            )
            raise DataError(msg)
    images = sorted(first)
    for image in images:
        _refuse_disagreement(first[image], second[image], names)
    known = [image for image in images if first[image].label != ABSENT]
    absent = [image for image in images if first[image].label == ABSENT]
    if not known:
        msg = f"Expected images of known classes, found {len(absent)} of absent classes alone: no accuracy to judge."
        raise DataError(msg)
    rows = [first[image] for image in known]
    domains = tuple(sorted({row.domain for row in rows}))
    place = {name: index for index, name in enumerate(domains)}
    sources = [row.source or row.image for row in rows]
    _refuse_repeats(rows, sources)
    unit_of = {source: index for index, source in enumerate(dict.fromkeys(sources))}
    return Pairs(
        domains=domains,
        domain=np.array([place[row.domain] for row in rows], dtype=np.int64),
        unit=np.array([unit_of[source] for source in sources], dtype=np.int64),
        units=len(unit_of),
        virtual=any(row.source for row in rows),
        reference=_answers(first, known, absent),
        candidate=_answers(second, known, absent),
    )


def _answers(rows: Mapping[str, PredictionRow], known: Sequence[str], absent: Sequence[str]) -> Answers:
    chosen = [rows[image] for image in known]
    return Answers(
        correct=np.array([row.correct for row in chosen], dtype=np.bool_),
        prediction=np.array([row.prediction for row in chosen], dtype=np.int64),
        probability=np.array([row.probability for row in chosen], dtype=np.float64),
        similarity=np.array([row.similarity for row in chosen], dtype=np.float64),
        unknown_similarity=np.array([rows[image].similarity for image in absent], dtype=np.float64),
    )


def _refuse_disagreement(one: PredictionRow, two: PredictionRow, names: Sequence[str]) -> None:
    if (one.label, one.domain, one.source) == (two.label, two.domain, two.source):
        return

    def described(row: PredictionRow) -> str:
        label = "no class" if row.label == ABSENT else f"class {row.label}"
        if 0 <= row.label < len(names):
            label = f"class {names[row.label]!r}"
        return f"{label} in {row.domain}" + (f", made from {row.source}" if row.source else "")

    msg = (
        f"Expected one class and domain for {one.image}, found {described(one)} for the reference, {described(two)} "
        "for the candidate: same order of classes?"
    )
    raise DataError(msg)


def _refuse_repeats(rows: Sequence[PredictionRow], sources: Sequence[str]) -> None:
    """Refuse two views of one image in one domain: they are no two images for the domain's bound."""
    seen: dict[tuple[str, str], str] = {}
    for row, source in zip(rows, sources, strict=True):
        other = seen.setdefault((row.domain, source), row.image)
        if other != row.image:
            msg = (
                f"Expected at most one view of {source} in the domain {row.domain}, found {other} and {row.image}: "
                "views of one image are not independent. Put them into domains of their own."
            )
            raise DataError(msg)


def _by_image(rows: Sequence[PredictionRow], who: str) -> dict[str, PredictionRow]:
    """Index rows by image, refusing none at all and duplicates."""
    if not rows:
        msg = f"Expected predictions of the {who}, found none: give the guard held-out images."
        raise DataError(msg)
    indexed: dict[str, PredictionRow] = {}
    for row in rows:
        if row.image in indexed:
            msg = f"Expected each image once in the {who}'s predictions, found {row.image!r} twice."
            raise DataError(msg)
        indexed[row.image] = row
    return indexed
