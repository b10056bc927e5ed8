"""How near the class vectors lie to each other: near ones are hard to tell apart for every student of them.

Letters: C classes, D dimensions, S shown classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..predictions import PredictionRow

MOST_CLASSES, MOST_PAIRS = 24, 8


@dataclass(frozen=True, slots=True)
class ClosePair:
    """Two classes, the cosine between their vectors, and how often the model took one for the other."""

    first: str
    second: str
    cosine: float
    confused: int


@dataclass(frozen=True, slots=True)
class ClassSimilarity:
    """Cosines between class vectors.

    Attributes:
        classes: How many classes there are (C).
        names: Those shown, neighbours beside each other (S).
        cosines: Rows of cosines between them (S, S).
        pairs: The closest pairs of all classes, closest first.
        images: Images that the confusions were counted on.
    """

    classes: int
    names: tuple[str, ...]
    cosines: tuple[tuple[float, ...], ...]
    pairs: tuple[ClosePair, ...]
    images: int


def class_similarity(
    names: Sequence[str], vectors: npt.NDArray[np.float32], rows: Sequence[PredictionRow] = ()
) -> ClassSimilarity | None:
    """Compare class vectors; None where there is but one class.

    Of more than `MOST_CLASSES` classes those are shown that have the closest neighbours.

    Args:
        names: Class names (C).
        vectors: Unit rows (C, D).
        rows: The model's answers, for the confusions.
    """
    count = len(names)
    if count < 2:
        return None
    cosines = np.clip(vectors.astype(np.float64) @ vectors.astype(np.float64).T, -1.0, 1.0)
    nearest = np.where(np.eye(count, dtype=bool), -np.inf, cosines).max(axis=1)
    shown = np.sort(np.argsort(-nearest, kind="stable")[:MOST_CLASSES])
    shown = shown[_neighbours(cosines[np.ix_(shown, shown)])]
    confused = Counter(frozenset((row.label, row.prediction)) for row in rows if not row.correct)
    upper = np.triu_indices(count, 1)
    closest = np.argsort(-cosines[upper], kind="stable")[:MOST_PAIRS]
    pairs = tuple(
        ClosePair(names[i], names[j], round(float(cosines[i, j]), 4), confused[frozenset((i, j))])
        for i, j in zip((int(i) for i in upper[0][closest]), (int(j) for j in upper[1][closest]), strict=True)
    )
    table = tuple(tuple(round(float(value), 4) for value in row) for row in cosines[np.ix_(shown, shown)])
    return ClassSimilarity(count, tuple(names[i] for i in shown), table, pairs, len(rows))


def _neighbours(cosines: npt.NDArray[np.float64]) -> list[int]:
    """Order classes so that each stands beside a near one: from the closest pair on, always the nearest to an end."""
    near = np.where(np.eye(len(cosines), dtype=bool), -np.inf, cosines)
    first, second = np.unravel_index(int(near.argmax()), near.shape)
    chain = [int(first), int(second)]
    left = [i for i in range(len(cosines)) if i not in chain]
    while left:
        head = max(left, key=lambda i: near[chain[0], i])
        tail = max(left, key=lambda i: near[chain[-1], i])
        if near[chain[0], head] > near[chain[-1], tail]:
            chain.insert(0, head)
            left.remove(head)
        else:
            chain.append(tail)
            left.remove(tail)
    return chain
