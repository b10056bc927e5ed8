"""Logits read as labels and probabilities: few classes and many, against one plain computation."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest

from vlkd_runtime.prediction import FEW, Prediction, Reading, read_logits

SCALE = 50.0


def read(rows: npt.NDArray[np.float32], **options: float) -> list[Prediction]:
    names = [f"class {index}" for index in range(rows.shape[1])]
    return read_logits(rows, names, SCALE, Reading(**options))  # type: ignore[arg-type]


@pytest.mark.parametrize("classes", [1, 2, 5, FEW, FEW + 1, 1000])
def test_probabilities_are_the_softmax_and_the_largest_come_first(classes: int) -> None:
    rows = np.random.default_rng(classes).normal(0, 20, (40, classes)).astype(np.float32)
    for row, found in zip(rows, read(rows), strict=True):
        weights = [math.exp(float(logit) - float(row.max())) for logit in row]
        best = sorted(range(classes), key=lambda index: -row[index])[:5]
        assert found.index == best[0] and found.label == f"class {best[0]}" and found.known
        assert [name for name, _ in found.top] == [f"class {index}" for index in best]
        assert [share for _, share in found.top] == pytest.approx(
            [weights[index] / math.fsum(weights) for index in best], rel=1e-12
        )
        assert found.probability == found.top[0][1]
        assert found.similarity == pytest.approx(float(row.max()) / SCALE, rel=1e-12)


@pytest.mark.parametrize("classes", [FEW, FEW + 1])
def test_of_equal_logits_the_first_class_wins_and_nothing_overflows(classes: int) -> None:
    rows = np.zeros((3, classes), np.float32)
    rows[1, [3, 7]] = 1e30
    rows[2] = -1e30
    equal, two, low = read(rows, top=3)
    assert [name for name, _ in equal.top] == ["class 0", "class 1", "class 2"]
    assert equal.probability == pytest.approx(1 / classes)
    assert two.top[:2] == (("class 3", 0.5), ("class 7", 0.5))
    assert low.index == 0 and low.probability == pytest.approx(1 / classes)
