from __future__ import annotations

import numpy as np
import pytest

from vlkd_compress.ranges import BINS, entropy_cut, percentile_cut


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
