"""The teacher as a classifier: cosines with the class vectors, no training.

Letters used in shapes: N images, C classes, D embedding size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vlkd_bench.predictions import PredictionRow
from vlkd_bench.samples import Sample
from vlkd_runtime.vectors import ClassVectors

_AT_ONCE = 1024


def predict(
    embeddings: npt.NDArray[np.float32], vectors: ClassVectors, samples: Sequence[Sample]
) -> tuple[PredictionRow, ...]:
    """Classify images by their embeddings.

    Args:
        embeddings: unit rows ``(N, D)``.
        vectors: class vectors of the same teacher.
        samples: the images of the rows.
    """
    rows: list[PredictionRow] = []
    for start in range(0, len(samples), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        rows += _predict(embeddings[part], vectors, samples[part])
    return tuple(rows)


def _predict(
    embeddings: npt.NDArray[np.float32], vectors: ClassVectors, samples: Sequence[Sample]
) -> tuple[PredictionRow, ...]:
    cosines = embeddings.astype(np.float64) @ vectors.vectors.astype(np.float64).T
    scaled = vectors.logit_scale * cosines
    weights = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    probabilities = weights / weights.sum(axis=1, keepdims=True)
    best = cosines.argmax(axis=1)
    return tuple(
        PredictionRow(
            image=sample.image,
            domain=sample.domain,
            label=sample.label,
            prediction=int(choice),
            probability=float(probabilities[row, choice]),
            similarity=float(cosines[row, choice]),
        )
        for row, (sample, choice) in enumerate(zip(samples, best, strict=True))
    )
