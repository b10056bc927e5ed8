from __future__ import annotations

import numpy as np
import pytest

from vlkd_compress.cuts import (
    BINS,
    SHARES,
    entropy_cut,
    mse_cut,
    mse_interval,
    percentile_cut,
    percentile_interval,
)
from vlkd_compress.ranges import METHODS, Observed, RangeTable


def histogram(values: np.ndarray) -> np.ndarray:
    values = np.abs(values)
    return np.histogram(values, bins=BINS, range=(0.0, values.max()))[0].astype(np.int64)


RANDOM = np.random.default_rng(11)
CASES = {
    "gaussian": RANDOM.normal(size=100_000),
    "uniform": RANDOM.uniform(size=100_000),
    "outlier": np.append(RANDOM.normal(size=100_000), 60.0),
    "rectified": np.maximum(RANDOM.normal(size=100_000), 0.0),
    "sparse": np.append(np.zeros(5000), [1.0, 2.0, 3.0]),
}


def slow_entropy_cut(counts: list[float]) -> int:
    """The textbook loop: one candidate cut, one level, one bin at a time."""
    counts = [counts[1], *counts[1:]]
    best, best_cost = len(counts), np.inf
    for cut in range(128, len(counts) + 1, 16):
        reference = counts[:cut]
        reference[-1] += sum(counts[cut:])
        spread = [0.0] * cut
        for level in range(128):
            bins = range(level * cut // 128, (level + 1) * cut // 128)
            filled = [index for index in bins if counts[index] > 0]
            for index in filled:
                spread[index] = sum(counts[i] for i in bins) / len(filled)
        total, spread_total = sum(reference), sum(spread)
        if spread_total == 0:
            continue
        shares = [value / spread_total for value in spread]
        if any(p > 0 and q == 0 for p, q in zip(reference, shares, strict=True)):
            shares = [max(share, 1e-12) for share in shares]
        cost = sum(p / total * np.log(p / total / q) for p, q in zip(reference, shares, strict=True) if p > 0)
        if cost <= best_cost + 1e-12:
            best, best_cost = cut, cost
    return best


@pytest.mark.parametrize("name", ["outlier", "rectified"])
def test_entropy_cut_is_the_textbooks(name: str) -> None:
    counts = histogram(CASES[name])
    assert entropy_cut(counts) == slow_entropy_cut([float(count) for count in counts])


def test_entropy_cuts_an_outlier_off_and_leaves_a_flat_histogram_whole() -> None:
    assert entropy_cut(histogram(CASES["outlier"])) < BINS / 4
    assert entropy_cut(histogram(CASES["uniform"])) > 0.95 * BINS


def test_entropy_of_zeros_only_keeps_the_whole_range() -> None:
    counts = np.zeros(BINS, dtype=np.int64)
    counts[0] = 1000
    assert entropy_cut(counts) == BINS


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("percentile", [50.0, 99.0, 99.99, 100.0])
def test_percentile_cut_is_numpys_within_a_bin(name: str, percentile: float) -> None:
    values = np.abs(CASES[name])
    wanted = np.percentile(values, percentile, method="inverted_cdf") / values.max() * BINS
    assert abs(percentile_cut(histogram(values), percentile) - wanted) <= 1.0


def brute_force(values: np.ndarray, cuts: np.ndarray) -> float:
    """The cut with the least squared error of the values themselves, rounded one cut at a time."""
    costs = []
    for cut in cuts:
        step = cut / 127
        costs.append(float(((values - np.clip(np.rint(values / step), -127, 127) * step) ** 2).sum()))
    return float(cuts[int(np.argmin(costs))])


@pytest.mark.parametrize("name", ["gaussian", "uniform", "outlier"])
def test_the_cut_of_least_squared_error_is_the_values_own(name: str) -> None:
    values = CASES[name]
    wanted = brute_force(values, np.abs(values).max() * SHARES)
    assert mse_cut(histogram(values)) / BINS * np.abs(values).max() == pytest.approx(wanted, rel=0.1)


def signed(values: np.ndarray) -> np.ndarray:
    peak = np.abs(values).max()
    return np.histogram(values, bins=2 * BINS, range=(-peak, peak))[0].astype(np.int64)


def test_an_interval_follows_each_side_of_its_own() -> None:
    values = np.concatenate([RANDOM.uniform(-0.4, 0, 20_000), RANDOM.exponential(1.0, 20_000)])
    peak, counts = np.abs(values).max(), signed(values)
    for find in (percentile_interval, mse_interval):
        first, last = ((end - BINS) * peak / BINS for end in find(counts))
        assert first == pytest.approx(-0.4, abs=0.02)
        assert 4.0 < last <= peak * 1.001
    low, high = ((end - BINS) * peak / BINS for end in percentile_interval(counts, 99.0))
    assert low == pytest.approx(np.percentile(values, 1.0), abs=2 * peak / BINS)
    assert high == pytest.approx(np.percentile(values, 99.0), abs=2 * peak / BINS)


def test_a_rectified_tensor_keeps_zero_at_its_lower_end() -> None:
    seen = Observed(0.0, 4.0, signed(np.abs(RANDOM.normal(size=50_000)) * 1.0))
    table = RangeTable({"x": seen})
    for method in METHODS:
        low, high = table.asymmetric("x", method)
        assert low == 0.0 and 0.0 < high <= 4.0
