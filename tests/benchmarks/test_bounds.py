from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from vlkd_bench.bounds import bootstrap_drops, exact_lower, exact_upper, mcnemar_p, wilson


@pytest.mark.parametrize(
    ("correct", "n", "lower", "upper"),
    [
        # Solutions of |share - p| = 1.96 sqrt(p (1 - p) / n), computed by hand for round shares.
        pytest.param(0, 10, 0.0, 0.2775, id="none of ten"),
        pytest.param(10, 10, 0.7225, 1.0, id="ten of ten"),
        pytest.param(5, 10, 0.2366, 0.7634, id="half"),
        pytest.param(950, 1000, 0.9347, 0.9619, id="many"),
    ],
)
def test_wilson(correct: int, n: int, lower: float, upper: float) -> None:
    assert wilson(correct, n) == pytest.approx((lower, upper), abs=1e-4)


@pytest.mark.parametrize(("correct", "n"), [(3, 17), (90, 91), (400, 500)])
def test_wilson_ends_solve_the_score_equation(correct: int, n: int) -> None:
    for end in wilson(correct, n):
        z = (correct / n - end) / math.sqrt(end * (1 - end) / n)
        assert abs(z) == pytest.approx(1.959964, abs=1e-5)


def exact_mcnemar(lost: int, won: int) -> float:
    """Sum binomial terms as fractions."""
    pairs = lost + won
    tail = sum(Fraction(math.comb(pairs, k), 2**pairs) for k in range(min(lost, won) + 1))
    return float(min(Fraction(1), 2 * tail))


@pytest.mark.parametrize(
    ("lost", "won", "by_hand"),
    [
        pytest.param(0, 0, 1.0, id="no discordant image"),
        pytest.param(1, 0, 1.0, id="one: 2 * 1/2"),
        pytest.param(5, 0, 0.0625, id="five to none: 2/32"),
        pytest.param(6, 1, 0.125, id="six to one: 2 * 8/128"),
        pytest.param(1, 6, 0.125, id="symmetric"),
        pytest.param(4, 4, 1.0, id="even, capped at one"),
        pytest.param(300, 200, None, id="many"),
        pytest.param(2000, 1900, None, id="very many"),
    ],
)
def test_mcnemar(lost: int, won: int, by_hand: float | None) -> None:
    expected = exact_mcnemar(lost, won)
    if by_hand is not None:
        assert expected == by_hand
    assert mcnemar_p(lost, won) == pytest.approx(expected, rel=1e-9)


def enumerated_cdf(n: int, rate_lost: float, rate_won: float, at: int) -> float:
    """P(losses - wins <= at), summed over every pair of counts."""
    rest = 1 - rate_lost - rate_won
    return math.fsum(
        math.comb(n, lost)
        * math.comb(n - lost, won)
        * rate_lost**lost
        * rate_won**won
        * rest ** (n - lost - won)
        for lost in range(n + 1)
        for won in range(max(0, lost - at), n - lost + 1)
    )


def likeliest_won_rate(n: int, lost: int, won: int, drop: float) -> float:
    """The rate of wins under a given drop that makes the counts likeliest, by search on a fine grid."""
    grid = np.linspace(max(0.0, -drop), (1 - drop) / 2, 200_001)[1:-1]
    log = won * np.log(grid) + (n - lost - won) * np.log(1 - 2 * grid - drop)
    log = log + lost * np.log(np.maximum(grid + drop, 1e-300))
    return float(grid[np.argmax(log)])


@pytest.mark.parametrize(
    ("n", "lost", "won"),
    [(30, 0, 0), (30, 2, 0), (30, 2, 3), (40, 6, 1), (25, 0, 4), (12, 11, 1)],
    ids=str,
)
def test_exact_upper_solves_its_equation(n: int, lost: int, won: int) -> None:
    bound = exact_upper(n, lost, won, 0.95)
    assert bound > (lost - won) / n
    rate_won = likeliest_won_rate(n, lost, won, bound)
    assert enumerated_cdf(n, rate_won + bound, rate_won, lost - won) == pytest.approx(0.05, abs=2e-4)


@pytest.mark.parametrize("n", [10, 300, 5000])
@pytest.mark.parametrize("confidence", [0.95, 0.99])
def test_without_discordance_the_bound_is_clopper_pearson(n: int, confidence: float) -> None:
    expected = 1 - (1 - confidence) ** (1 / n)
    assert exact_upper(n, 0, 0, confidence) == pytest.approx(expected, rel=1e-3)
    assert exact_lower(n, 0, 0, confidence) == pytest.approx(-expected, rel=1e-3)


@pytest.mark.parametrize(("n", "lost"), [(50, 3), (200, 10)])
def test_without_wins_the_bound_is_clopper_pearson(n: int, lost: int) -> None:
    bound = exact_upper(n, lost, 0, 0.95)
    tail = math.fsum(math.comb(n, k) * bound**k * (1 - bound) ** (n - k) for k in range(lost + 1))
    assert tail == pytest.approx(0.05, abs=1e-4)


def test_all_lost_is_bounded_by_everything() -> None:
    assert exact_upper(7, 7, 0, 0.95) == 1.0


@pytest.mark.parametrize(("n", "lost", "won"), [(400, 30, 12), (150, 4, 4), (1000, 8, 1)])
def test_bootstrap_by_counts_is_the_bootstrap_over_images(n: int, lost: int, won: int) -> None:
    draws = 6000
    images = np.array([1] * lost + [-1] * won + [0] * (n - lost - won))
    brute = np.random.default_rng(1).choice(images, size=(draws, n)).mean(axis=1)
    fast = bootstrap_drops(n, lost, won, draws=draws, rng=np.random.default_rng(2))
    spread = brute.std()
    # Five standard errors of a simulated mean; quantiles of a lattice may differ by one image beside that.
    assert fast.mean() == pytest.approx(brute.mean(), abs=5 * spread * math.sqrt(2 / draws))
    assert fast.std() == pytest.approx(spread, rel=0.06)
    for share in (0.05, 0.5, 0.95):
        assert np.quantile(fast, share) == pytest.approx(np.quantile(brute, share), abs=1 / n + 0.15 * spread)
