from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from vlkd_bench.discordance import Discordance, DropBound, DropBounds, bound_drops
from vlkd_bench.paired import GuardBudget, GuardVerdict, compare, judge
from vlkd_bench.predictions import PredictionRow
from vlkd_bench.sample_size import images_needed, scale
from vlkd_runtime.errors import ConfigError, DataError

Rows = tuple[PredictionRow, ...]


def pair(domain: str, n: int, lost: int = 0, won: int = 0, swapped: int = 0) -> tuple[Rows, Rows]:
    """Reference and candidate on `n` images: lost, won, wrong in another way, and the rest right."""
    truth = [(0, 1)] * lost + [(1, 0)] * won + [(1, 2)] * swapped + [(0, 0)] * (n - lost - won - swapped)
    reference, candidate = (
        tuple(
            PredictionRow(f"{domain}/c/{i}.png", domain, 0, both[side], 0.9, 0.3)
            for i, both in enumerate(truth)
        )
        for side in (0, 1)
    )
    return reference, candidate


def join(*pairs: tuple[Rows, Rows]) -> tuple[Rows, Rows]:
    return tuple(r for one, _ in pairs for r in one), tuple(r for _, two in pairs for r in two)


def test_counts_and_drop() -> None:
    reference, candidate = join(pair("art", 200, lost=6, won=2, swapped=3), pair("sketch", 100, won=1))
    result = compare(reference, tuple(reversed(candidate)))
    art = result.domains["art"]
    assert (art.n, art.lost, art.won, art.flips) == (200, 6, 2, 11)
    assert art.drop == pytest.approx(2.0)
    # 2 * (C(8,0) + C(8,1) + C(8,2)) / 2**8
    assert art.p_value == pytest.approx(2 * 37 / 256)
    assert art.lower < art.drop < art.upper
    assert result.mean.drop == pytest.approx((2.0 - 1.0) / 2)
    assert result.flip_rate == pytest.approx(12 / 300)
    assert result.worst_domain == "art"
    assert result.worst.upper == art.upper


def test_calibration_change_is_candidate_minus_reference() -> None:
    reference, candidate = pair("art", 100, lost=10)
    # All 100 right at 0.9 is a gap of 0.1; 90 right at 0.9 is none.
    assert compare(reference, candidate).ece_change == pytest.approx(-0.1)


def test_the_bound_is_the_more_conservative_of_bootstrap_and_exact() -> None:
    for counts in (Discordance(300, 0, 0, 0), Discordance(300, 9, 2, 11), Discordance(2000, 300, 280, 580)):
        both = bound_drops({"a": counts}, upper_confidence=0.95, lower_confidence=0.95, seed=0)
        exact = bound_drops({"a": counts}, upper_confidence=0.95, lower_confidence=0.95, seed=None)
        images = np.array([1] * counts.lost + [-1] * counts.won + [0] * (counts.n - counts.lost - counts.won))
        brute = np.random.default_rng(3).choice(images, size=(2000, counts.n)).mean(axis=1) * 100
        slack = 100 / counts.n + 0.15 * brute.std()
        assert both.domains["a"].upper >= exact.domains["a"].upper
        assert both.domains["a"].upper >= np.quantile(brute, 0.95) - slack
        assert both.domains["a"].upper <= max(exact.domains["a"].upper, np.quantile(brute, 0.95) + slack)
        assert both.domains["a"].lower <= min(exact.domains["a"].lower, np.quantile(brute, 0.05) + slack)


def test_mean_bound_matches_the_normal_limit_for_many_images() -> None:
    counts = {name: Discordance(20_000, 800, 700, 1500) for name in "abc"}
    bounds = bound_drops(counts, upper_confidence=0.95, lower_confidence=0.95, seed=0)
    variance = (0.04 + 0.035 - 0.005**2) / 20_000 / 3
    assert bounds.mean.upper == pytest.approx(0.5 + 100 * 1.645 * math.sqrt(variance), abs=0.01)
    assert bounds.mean.lower == pytest.approx(0.5 - 100 * 1.645 * math.sqrt(variance), abs=0.01)


def test_mean_bound_is_not_zero_without_discordance() -> None:
    counts = {name: Discordance(300, 0, 0, 0) for name in "abcd"}
    upper = bound_drops(counts, upper_confidence=0.95, lower_confidence=0.95, seed=0).mean.upper
    # Four equal distances of 0.99 points add like standard deviations: halved in the mean of four.
    assert upper == pytest.approx(100 * (1 - 0.05 ** (1 / 300)) / 2, rel=1e-3)
    # Clopper and Pearson's bound for the 1200 images pooled is the sharpest honest one.
    assert upper > 100 * (1 - 0.05 ** (1 / 1200))


@pytest.mark.parametrize(("names", "criteria"), [("a", 1), ("ab", 3), ("abcd", 5)])
def test_only_a_fail_pays_for_the_number_of_domains(names: str, criteria: int) -> None:
    """Upper bounds stay at 95 %; lower bounds share the risk among the domains and their mean."""
    result = compare(*join(*(pair(name, 400) for name in names)))
    for item in result.domains.values():
        assert item.upper == pytest.approx(100 * (1 - 0.05 ** (1 / 400)), rel=1e-3)
        assert item.lower == pytest.approx(-100 * (1 - (0.05 / criteria) ** (1 / 400)), rel=1e-3)


@pytest.mark.parametrize(
    ("pairs", "verdict", "reason"),
    [
        pytest.param(
            [pair("a", 400)], "pass", "At 95 % confidence no held-out domain drops more", id="same, many"
        ),
        pytest.param([pair("a", 40)], "inconclusive", "About 299 images", id="same, few"),
        pytest.param(
            [pair("a", 3000, lost=40)], "inconclusive", "probably show a failure", id="over, unproven"
        ),
        pytest.param([pair("a", 3000, lost=90)], "fail", "a drops 3.00 points, at least", id="over, proven"),
        pytest.param([pair("a", 3000, 90), pair("b", 3000)], "fail", "a drops 3.00", id="one of two fails"),
        pytest.param([pair("a", 900), pair("b", 900)], "pass", "their mean no more than", id="two pass"),
        pytest.param([pair("a", 900), pair("b", 40)], "inconclusive", "b drops perhaps", id="a small domain"),
        pytest.param(
            [pair("a", 9000, 72), pair("b", 9000, 72)],
            "fail",
            "the mean over domains drops 0.80",
            id="mean only",
        ),
        pytest.param([pair("a", 5000, won=200)], "pass", "no more than|drops more", id="a gain passes"),
    ],
)
def test_verdict(pairs: Sequence[tuple[Rows, Rows]], verdict: str, reason: str) -> None:
    result = judge(*join(*pairs), GuardBudget())
    assert result.verdict == verdict
    assert result.passed == (verdict == "pass")
    assert any(part in result.reason for part in reason.split("|"))


def test_single_domain_does_not_judge_the_mean_twice() -> None:
    reference, candidate = pair("sketch", 500, lost=1)
    result = judge(reference, candidate, GuardBudget(worst_points=1.0, mean_points=0.1))
    assert result.verdict == "pass"
    assert "sketch as the only held-out domain the mean is the worst domain" in result.reason
    assert "not judged separately" in result.reason


def judged_at(result: GuardVerdict, images: int, failing: bool = False) -> GuardVerdict:
    """Judge again on that many images per domain with the discordance observed."""
    pairs = []
    for name, item in result.domains.items():
        bigger = scale(Discordance(item.n, item.lost, item.won, item.flips), images, failing)
        pairs.append(pair(name, bigger.n, bigger.lost, bigger.won))
    return judge(*join(*pairs), result.budget, seed=result.seed)


@pytest.mark.parametrize(
    "pairs",
    [
        pytest.param([pair("a", 20)], id="tiny, identical"),
        pytest.param([pair("a", 150, 2, 2)], id="some discordance"),
        pytest.param([pair("a", 200, 3, 2), pair("b", 60), pair("c", 500, 4, 4)], id="three domains"),
    ],
)
def test_images_needed_would_decide(pairs: Sequence[tuple[Rows, Rows]]) -> None:
    result = judge(*join(*pairs), GuardBudget())
    assert result.verdict == "inconclusive"
    assert result.images_needed is not None
    assert f"About {result.images_needed} images" in result.reason
    assert judged_at(result, result.images_needed).verdict == "pass"
    assert judged_at(result, int(result.images_needed * 0.9)).verdict == "inconclusive"


def test_images_needed_satisfies_the_bootstrap_as_well() -> None:
    """A bootstrap more cautious than the exact bound, made up here, has the last word."""

    def bound(counts: Mapping[str, Discordance], bootstrap: bool) -> DropBounds:
        upper = 2.0 if counts["a"].n < (130 if bootstrap else 100) else 0.0
        return DropBounds({"a": DropBound(0.0, 0.0, upper)}, DropBound(0.0, 0.0, upper))

    needed = images_needed({"a": Discordance(7, 0, 0, 0)}, bound, [], GuardBudget(), failing=False)
    assert needed is not None
    assert 130 <= needed <= 132


@pytest.mark.parametrize(
    "pairs",
    [
        pytest.param([pair("a", 50, 1)], id="one domain"),
        pytest.param([pair("a", 1500, 20, 2), pair("b", 800, 3)], id="two domains"),
    ],
)
def test_images_needed_would_show_a_failure(pairs: Sequence[tuple[Rows, Rows]]) -> None:
    result = judge(*join(*pairs), GuardBudget())
    assert result.verdict == "inconclusive"
    assert result.images_needed is not None
    assert f"About {result.images_needed} images per held-out domain, " in result.reason
    assert (
        "more than now, would probably show a failure" in result.reason and "Compress less" in result.reason
    )
    assert judged_at(result, result.images_needed, failing=True).verdict == "fail"
    assert judged_at(result, int(result.images_needed * 0.85), failing=True).verdict == "inconclusive"


@pytest.mark.parametrize(
    ("n", "lost", "won"),
    [
        pytest.param(100, 1, 0, id="exactly at the budget"),
        pytest.param(10_000, 2549, 2450, id="a hair below, half discordant"),
    ],
)
def test_images_needed_is_none_where_more_would_not_help(n: int, lost: int, won: int) -> None:
    result = judge(*pair("a", n, lost, won), GuardBudget())
    assert result.verdict == "inconclusive"
    assert result.images_needed is None
    assert "no practical number of images" in result.reason


@pytest.mark.parametrize("rate_won", [0.0, 0.01, 0.08], ids=["losses only", "few wins", "many wins"])
@pytest.mark.parametrize("n", [300, 1200])
def test_a_drop_at_the_budget_passes_no_more_often_than_allowed(n: int, rate_won: float) -> None:
    simulations, budget = 300, 1.0
    rate_lost = rate_won + budget / 100
    counts = np.random.default_rng(n).multinomial(
        n, [rate_lost, rate_won, 1 - rate_lost - rate_won], simulations
    )
    cases, times = np.unique(counts[:, :2], axis=0, return_counts=True)
    passes = 0
    for (lost, won), repeated in zip(cases.tolist(), times.tolist(), strict=True):
        item = {"a": Discordance(n, lost, won, lost + won)}
        bounds = bound_drops(item, upper_confidence=0.95, lower_confidence=0.95, seed=0, draws=1000)
        passes += repeated * (bounds.domains["a"].upper <= budget)
    slack = 3 * math.sqrt(0.05 * 0.95 / simulations)
    assert passes / simulations <= 0.05 + slack


def test_worst_of_several_domains_is_covered_without_correction() -> None:
    """One domain at the budget, three without any loss: the guard may pass it in 5 % of cases at most."""
    simulations, n = 400, 600
    passes = 0
    rng = np.random.default_rng(5)
    clean = {name: Discordance(n, 0, 0, 0) for name in "bcd"}
    for lost in rng.binomial(n, 0.01, simulations).tolist():
        bounds = bound_drops(
            {"a": Discordance(n, lost, 0, lost), **clean},
            upper_confidence=0.95,
            lower_confidence=0.95,
            seed=None,
        )
        passes += all(bound.upper <= 1.0 for bound in bounds.domains.values())
    assert passes / simulations <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / simulations)


def test_a_share_of_the_risk_widens_the_bounds() -> None:
    reference, candidate = pair("a", 320)
    assert judge(reference, candidate, GuardBudget()).verdict == "pass"
    shared = judge(reference, candidate, GuardBudget(share=0.2))
    assert shared.verdict == "inconclusive"
    assert shared.worst.upper == pytest.approx(100 * (1 - 0.01 ** (1 / 320)), rel=1e-3)
    assert "(20 % of the risk spent here)" in shared.reason


def test_same_seed_same_verdict_and_order_does_not_matter() -> None:
    reference, candidate = join(pair("b", 200, 3, 1), pair("a", 150, 2, 2))
    first = judge(reference, candidate, GuardBudget(), seed=3)
    assert judge(tuple(reversed(reference)), candidate, GuardBudget(), seed=3) == first
    assert list(first.domains) == ["a", "b"]


def _wrong(kind: str) -> tuple[Rows, Rows]:
    reference, candidate = pair("a", 8)
    changed = {
        "shorter candidate": (reference, candidate[:-2]),
        "shorter reference": (reference[1:], candidate),
        "other label": (reference, (replace(candidate[0], label=1), *candidate[1:])),
        "other domain": (reference, (replace(candidate[0], domain="b"), *candidate[1:])),
        "duplicate": (reference, (*candidate, candidate[0])),
        "nothing": ((), ()),
    }
    return changed[kind]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("shorter candidate", r"2 missing from the candidate: a/c/6.png, a/c/7.png"),
        ("shorter reference", r"1 missing from the reference: a/c/0.png"),
        ("other label", "found class 0 in a for the reference, class 1 in a"),
        ("other domain", "found class 0 in a for the reference, class 0 in b"),
        ("duplicate", "each image once in the candidate's predictions, found 'a/c/0.png' twice"),
        ("nothing", "predictions of the reference, found none"),
    ],
)
def test_unpaired_rows_are_refused(kind: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        judge(*_wrong(kind), GuardBudget())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"worst_points": -1.0}, "worst_points between 0 and 100 points, found -1"),
        ({"mean_points": float("nan")}, "mean_points between 0 and 100 points, found nan"),
        ({"confidence": 95}, "confidence between 0.5 and 1, found 95"),
        ({"share": 0}, "share of the risk above 0 and at most 1, found 0"),
        ({"ece_points": 101}, "ece_points between 0 and 100 points, found 101"),
    ],
)
def test_impossible_budgets_are_refused(fields: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GuardBudget(**fields)  # type: ignore[arg-type]
