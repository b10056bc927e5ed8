from __future__ import annotations

import numpy as np
import pytest

from vlkd_bench.accuracy import expected_calibration_error, summarise
from vlkd_bench.bounds import wilson
from vlkd_bench.predictions import PredictionRow
from vlkd_runtime.errors import DataError


def rows(domain: str, right: int, wrong: int, probability: float = 0.8) -> list[PredictionRow]:
    return [
        PredictionRow(f"{domain}/{i}", domain, 0, 0 if i < right else 1, probability, 0.1)
        for i in range(right + wrong)
    ]


def test_summary_by_hand() -> None:
    summary = summarise(rows("photo", 9, 1) + rows("art", 60, 40))
    assert list(summary.domains) == ["art", "photo"]
    art = summary.domains["art"]
    assert (art.n, art.correct, art.accuracy) == (100, 60, 0.6)
    assert (art.lower, art.upper) == wilson(60, 100)
    assert summary.mean == pytest.approx((0.6 + 0.9) / 2)
    assert (summary.worst, summary.worst_domain) == (0.6, "art")
    # All of the 110 images lie in one bin: |69/110 - 0.8|.
    assert summary.ece == pytest.approx(0.8 - 69 / 110)
    assert summary.only(["photo"]) == pytest.approx((0.9, 0.9))


def slow_calibration_error(data: list[PredictionRow], bins: int) -> float:
    """Walk over bins and images as the definition reads."""
    error = 0.0
    for k in range(bins):
        low, high = k / bins, (k + 1) / bins
        inside = [r for r in data if low < r.probability <= high or (k == 0 and r.probability == 0)]
        if inside:
            gap = sum(r.correct for r in inside) / len(inside) - sum(r.probability for r in inside) / len(
                inside
            )
            error += len(inside) / len(data) * abs(gap)
    return error


@pytest.mark.parametrize("seed", [0, 1])
def test_calibration_error_against_its_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = [
        PredictionRow(str(i), "a", 0, int(rng.random() < 0.4), float(p), 0.0)
        for i, p in enumerate(rng.random(300))
    ]
    data += [PredictionRow("zero", "a", 0, 1, 0.0, 0.0), PredictionRow("one", "a", 0, 0, 1.0, 0.0)]
    assert expected_calibration_error(data) == pytest.approx(slow_calibration_error(data, 15), abs=1e-12)


def test_nothing_to_summarise() -> None:
    with pytest.raises(DataError, match="at least one prediction"):
        summarise([])


@pytest.mark.parametrize(("names", "message"), [(["sea"], "found sea"), ([], "found none")])
def test_only_refuses_unknown_domains(names: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        summarise(rows("art", 1, 1)).only(names)
