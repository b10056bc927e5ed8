"""Judges a candidate on a growing part of the held-out images and stops as soon as the answer is clear.

The order of the images is a seeded permutation that no answer can influence, the looks are fixed beforehand, and
each look may spend its own part of the risk (`spending`), so the error rate is that of a single judgement.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .paired import judge
from .predictions import PredictionRow
from .samples import ABSENT
from .spending import look_fractions, look_shares
from .verdict import GuardBudget, GuardVerdict, Verdict

Answer = Callable[[Sequence[str]], Sequence[PredictionRow]]
"""Gives a candidate's predictions on images named as in `PredictionRow.image`."""


@dataclass(frozen=True, slots=True)
class Look:
    """One look at the answers so far.

    Attributes:
        images: Images answered by then.
        share: Share of the risk this look could spend.
        verdict: What it found.
    """

    images: int
    share: float
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class SequentialVerdict:
    """A verdict and how much had to be answered for it.

    Attributes:
        verdict: The last look's, with its numbers.
        rows: The candidate's answers up to there.
        looks: Every look taken.
        images: How many images there were in all.
    """

    verdict: GuardVerdict
    rows: tuple[PredictionRow, ...]
    looks: tuple[Look, ...]
    images: int

    @property
    def saved(self) -> float:
        """Share of the images that did not need an answer, in [0, 1)."""
        return 1 - len(self.rows) / self.images


def plan_looks(
    rows: Sequence[PredictionRow], *, seed: int = 0, early: bool = True
) -> tuple[tuple[str, ...], ...]:
    """Divide the images into the parts that are answered between one look and the next.

    Every part holds the same share of every domain, and the views of one source image lie in one part as far as
    the domains have equal numbers of images.

    Args:
        rows: One row an image, such as the reference's; only names, domains and sources are read.
        seed: Of the permutation.
        early: False gives one part with everything.
    """
    sources = sorted({row.source or row.image for row in rows})
    places = np.random.default_rng(seed).permutation(len(sources)).tolist()
    place = dict(zip(sources, places, strict=True))
    strata: dict[tuple[str, bool], list[PredictionRow]] = {}
    for row in sorted(rows, key=lambda row: (place[row.source or row.image], row.image)):
        strata.setdefault((row.domain, row.label == ABSENT), []).append(row)
    fractions = look_fractions(max(map(len, strata.values()))) if early else (1.0,)
    parts: list[tuple[str, ...]] = []
    start = 0.0
    for end in fractions:
        parts.append(
            tuple(
                row.image
                for _, members in sorted(strata.items())
                for row in members[math.ceil(start * len(members)) : math.ceil(end * len(members))]
            )
        )
        start = end
    return tuple(parts)


def judge_in_looks(
    reference: Sequence[PredictionRow],
    answer: Answer,
    budget: GuardBudget,
    *,
    seed: int = 0,
    early: bool = True,
) -> SequentialVerdict:
    """Judge a candidate, asking it for no more answers than a clear verdict needs.

    Args:
        reference: The reference's predictions on all images.
        answer: Asks the candidate.
        budget: What may be lost; its share of the risk is what all looks together spend.
        seed: Of the order of the images and of the bootstrap.
        early: False looks once, at everything.

    Raises:
        DataError: As `judge`.
    """
    parts = plan_looks(reference, seed=seed, early=early)
    shares = look_shares(look_fractions_of(parts))
    by_image = {row.image: row for row in reference}
    known: list[PredictionRow] = []
    rows: list[PredictionRow] = []
    looks: list[Look] = []
    for part, share in zip(parts, shares, strict=True):
        known += [by_image[image] for image in part]
        rows += answer(part)
        verdict = judge(known, rows, replace(budget, share=budget.share * share), seed=seed)
        looks.append(Look(len(rows), budget.share * share, verdict.verdict))
        if verdict.verdict != "inconclusive":
            break
    return SequentialVerdict(verdict, tuple(rows), tuple(looks), len(reference))


def look_fractions_of(parts: Sequence[Sequence[str]]) -> tuple[float, ...]:
    """Return which share of the images has been answered after each part."""
    total = sum(map(len, parts))
    ends = np.cumsum([len(part) for part in parts]) / total
    return tuple(ends.tolist())
