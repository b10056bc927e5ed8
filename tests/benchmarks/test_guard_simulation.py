"""The guard's promises by simulation: how often it passes what it must not, and how often what it should.

Rates of error are compared with their limit plus three standard errors of a simulated share (0.7 points at 5 % of
9000 runs), so a run fails by chance in about one of a thousand seeds; seeds are fixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from vlkd_bench.bounds import bootstrap_cdf, drop_p_value
from vlkd_bench.discordance import Discordance, bound_drops, share_sources
from vlkd_bench.ece_change import bound_ece_change
from vlkd_bench.pairing import pair
from vlkd_bench.power import DISCORDANT, images_for_power, pass_probability, passes, table
from vlkd_bench.predictions import PredictionRow
from vlkd_bench.rejection import bound_rejection_drop
from vlkd_bench.samples import ABSENT
from vlkd_bench.sequential import judge_in_looks, plan_looks
from vlkd_bench.spending import FRACTIONS, candidate_share, look_fractions, look_shares
from vlkd_bench.verdict import GuardBudget

Counts = npt.NDArray[np.int64]
ALPHA = 0.05
ROOT = Path(__file__).parents[2]


def slack(runs: int, rate: float = ALPHA) -> float:
    return 3 * math.sqrt(rate * (1 - rate) / runs)


def draw(rng: np.random.Generator, n: int, drop: float, discordant: float, runs: int) -> Counts:
    """Lost and won images ``(runs, 2)`` of a candidate with this true drop, both in points."""
    lost, won = (discordant + drop) / 200, (discordant - drop) / 200
    return rng.multinomial(n, [lost, won, 1 - lost - won], size=runs)[:, :2]


def share_of(counts: Counts, decide: Callable[[int, int], bool]) -> float:
    """The share of rows for which `decide` holds, each distinct row decided once."""
    cases, times = np.unique(counts, axis=0, return_counts=True)
    held = [decide(lost, won) for lost, won in cases.tolist()]
    return float((np.array(held) * times).sum() / times.sum())


@cache
def fails(n: int, lost: int, won: int, budget: float, confidence: float) -> bool:
    """The lower bound's mirror image of `power.passes`."""
    if drop_p_value(n, won, lost, -budget / 100) >= 1 - confidence:
        return False
    return bootstrap_cdf(n, won, lost, math.ceil(-budget / 100 * n - 1e-9) - 1) > confidence


@pytest.mark.parametrize("discordant", [1.0, 1.5, 4.0, 20.0])
@pytest.mark.parametrize("n", [150, 300, 1000, 3000])
def test_a_drop_at_the_budget_passes_in_five_of_a_hundred_at_most(n: int, discordant: float) -> None:
    counts = draw(np.random.default_rng(n), n, 1.0, discordant, 9000)
    rate = share_of(counts, lambda lost, won: passes(n, lost, won, 1.0))
    assert rate <= ALPHA + slack(9000)
    assert pass_probability(n, discordant, 1.0, 1.0) == pytest.approx(rate, abs=slack(9000) + 0.003)


@pytest.mark.parametrize("discordant", DISCORDANT)
@pytest.mark.parametrize("budget", [0.5, 1.0])
def test_without_a_drop_the_tables_number_of_images_passes_nine_of_ten(
    budget: float, discordant: float
) -> None:
    n = images_for_power(discordant, budget)
    counts = draw(np.random.default_rng(1), n, 0.0, discordant, 4000)
    rate = share_of(counts, lambda lost, won: passes(n, lost, won, budget))
    assert rate >= 0.9 - slack(4000, 0.1)
    fewer = share_of(
        draw(np.random.default_rng(2), n // 2, 0.0, discordant, 4000),
        lambda lost, won: passes(n // 2, lost, won, budget),
    )
    assert fewer < 0.87  # the number is needed, not merely enough


def test_the_documented_table_is_the_computed_one() -> None:
    assert table() in (ROOT / "docs" / "guard.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "item",
    [(300, 0, 0), (299, 0, 0), (298, 0, 0), (780, 3, 1), (1100, 6, 4), (2000, 22, 15), (500, 40, 38)],
    ids=str,
)
def test_passes_is_what_the_bound_says(item: tuple[int, int, int]) -> None:
    n, lost, won = item
    bounds = bound_drops(
        {"a": Discordance(n, lost, won, lost + won)}, upper_confidence=0.95, lower_confidence=0.95, seed=0
    )
    for budget in (0.5, 1.0, 2.0):
        upper = bounds.domains["a"].upper
        if abs(upper - budget) > 100 / n:  # Monte Carlo moves the bootstrap by one image at most
            assert passes(n, lost, won, budget) == (upper <= budget)
        assert fails(n, lost, won, budget, 0.95) == (bounds.domains["a"].lower > budget)


@pytest.mark.parametrize("shared", [False, True], ids=["own images", "views of the same images"])
def test_the_mean_at_its_budget_passes_in_five_of_a_hundred_at_most(shared: bool) -> None:
    """Three domains, each and so their mean half a point down; views of one image are mostly lost together."""
    runs, n, k = 250, 800, 3
    rng = np.random.default_rng(7)
    passed = 0
    for _ in range(runs):
        if shared:
            hit = rng.random((n, 1)) < 0.005
            delta = np.where(rng.random((n, k)) < 0.8, hit, rng.random((n, k)) < 0.005).astype(np.int64)
            delta -= np.where(rng.random((n, k)) < 0.01, rng.choice([-1, 1], (n, k)), 0) * (delta == 0)
        else:
            delta = rng.choice([1, -1, 0], (n, k), p=[0.01, 0.005, 0.985])
        counts = {
            name: Discordance(n, int((delta[:, j] > 0).sum()), int((delta[:, j] < 0).sum()), 0)
            for j, name in enumerate("abc")
        }
        tie = share_sources(delta, np.ones((n, k), dtype=np.bool_)) if shared else None
        bounds = bound_drops(
            counts, upper_confidence=0.95, lower_confidence=0.95, seed=1, draws=1000, shared=tie
        )
        passed += bounds.mean.upper <= 0.5
    assert passed / runs <= ALPHA + slack(runs)


def ladder(counts: Counts, n: int, closed: bool) -> int | None:
    """Which of the candidates ``(K, 2)`` ships, boldest first, by the rules of `spending` alone."""
    shares = [candidate_share(i + 1, len(counts) if closed else None) for i in range(len(counts))]

    def within(index: int, share: float) -> bool:
        lost, won = counts[index].tolist()
        return passes(n, lost, won, 1.0, 1 - ALPHA * share)

    for index, share in enumerate(shares):
        if within(index, share):
            while index and within(index - 1, share + shares[index - 1]):
                share, index = share + shares[index - 1], index - 1
            return index
    return None


@pytest.mark.parametrize("closed", [True, False], ids=["closed list", "open ladder"])
@pytest.mark.parametrize("over", [1, 2, 3, 5], ids=lambda k: f"{k} over budget")
@pytest.mark.parametrize("common", [0.0, 0.7], ids=["independent", "alike"])
def test_a_ladder_ships_something_over_budget_in_five_of_a_hundred_at_most(
    closed: bool, over: int, common: float
) -> None:
    """`over` candidates exactly at the budget, then one that is fine; answers on the same images are alike."""
    runs, n = 3000, 1000
    rng = np.random.default_rng(over)
    false = right = 0
    base = np.concatenate([draw(rng, n, 1.0 * common, 3.0 * common, runs)[:, None]] * over, axis=1)
    own = draw(rng, n, 1.0 * (1 - common), 3.0 * (1 - common), runs * over).reshape(runs, over, 2)
    good = draw(rng, n, -0.2, 0.2, runs)[:, None]
    for row in np.concatenate([base + own, good], axis=1):
        shipped = ladder(row, n, closed)
        false += shipped is not None and shipped < over
        right += shipped == over
    assert false / runs <= ALPHA + slack(runs)
    if over <= 2:
        assert right / runs >= 0.9  # the one that is fine is found


def test_a_pass_hands_its_share_to_the_bolder_candidate() -> None:
    """With two candidates and a clean second, the first is judged at all of the risk, not at half of it."""
    n = 299
    assert not passes(n, 0, 0, 1.0, 1 - ALPHA / 2) and passes(n, 0, 0, 1.0)
    clean_but_few = np.array([[0, 0], [0, 6]])
    assert passes(n, 0, 6, 1.0, 1 - ALPHA / 2)
    assert ladder(clean_but_few, n, closed=True) == 0


def grow(rng: np.random.Generator, n: int, drop: float, discordant: float, runs: int) -> list[Counts]:
    """Lost and won images at every look, ``(runs, 2)`` each."""
    ends = [math.ceil(part * n) for part in look_fractions(n)]
    steps = np.diff([0, *ends])
    return list(np.cumsum([draw(rng, size, drop, discordant, runs) for size in steps.tolist()], axis=0))


def in_looks(n: int, looks: Sequence[Counts]) -> tuple[float, float, float]:
    """Shares of passes and fails, and the mean share of images answered, by the looks' rules alone."""
    fractions = look_fractions(n)
    open_runs = np.ones(len(looks[0]), dtype=np.bool_)
    passed = failed = 0
    answered = 0.0
    for fraction, share, counts in zip(fractions, look_shares(fractions), looks, strict=True):
        if not open_runs.any():
            break
        size, confidence = math.ceil(fraction * n), 1 - ALPHA * share
        cases, inverse = np.unique(counts[open_runs], axis=0, return_inverse=True)
        good = np.array([passes(size, lost, won, 1.0, confidence) for lost, won in cases.tolist()])
        bad = np.array([fails(size, lost, won, 1.0, confidence) for lost, won in cases.tolist()])
        good, bad = good[inverse.reshape(-1)], bad[inverse.reshape(-1)]
        passed, failed = passed + int(good.sum()), failed + int(bad.sum())
        ended = (good | bad) if fraction < 1 else np.ones(len(good), dtype=np.bool_)
        answered += fraction * ended.sum()
        open_runs[np.flatnonzero(open_runs)[ended]] = False
    runs = len(looks[0])
    return passed / runs, failed / runs, answered / runs


@pytest.mark.parametrize("discordant", [1.0, 3.0, 10.0])
@pytest.mark.parametrize("n", [1000, 4800])
def test_stopping_early_keeps_both_error_rates(n: int, discordant: float) -> None:
    """A drop exactly at the budget is over for a pass and not over for a fail: neither more than 5 %."""
    passed, failed, _ = in_looks(n, grow(np.random.default_rng(3), n, 1.0, discordant, 4000))
    assert passed <= ALPHA + slack(4000)
    assert failed <= ALPHA + slack(4000)


@pytest.mark.parametrize(
    ("n", "drop", "discordant", "least_right", "most_answered"),
    [
        pytest.param(4800, 0.0, 0.1, 0.99, 0.30, id="nearly identical"),
        pytest.param(4800, 0.0, 2.0, 0.99, 0.60, id="no drop"),
        pytest.param(4800, 5.0, 7.0, 0.99, 0.26, id="clearly broken"),
        pytest.param(10_000, 0.0, 5.0, 0.99, 0.75, id="no drop, much discordance"),
        pytest.param(10_000, 3.0, 6.0, 0.99, 0.30, id="over budget"),
    ],
)
def test_what_is_clear_is_known_early(
    n: int, drop: float, discordant: float, least_right: float, most_answered: float
) -> None:
    passed, failed, answered = in_looks(n, grow(np.random.default_rng(4), n, drop, discordant, 1000))
    assert (failed if drop else passed) >= least_right
    print(f"drop {drop} points, {discordant} % discordant, {n} images: {answered:.1%} of them answered")
    assert answered <= most_answered


def rows(n: int, lost: int, won: int, seed: int) -> tuple[list[PredictionRow], list[PredictionRow]]:
    kinds = np.random.default_rng(seed).permutation([1] * lost + [2] * won + [0] * (n - lost - won))
    reference = [PredictionRow(f"a/{i}", "a", 0, int(kind == 2)) for i, kind in enumerate(kinds.tolist())]
    candidate = [PredictionRow(f"a/{i}", "a", 0, int(kind == 1)) for i, kind in enumerate(kinds.tolist())]
    return reference, candidate


@pytest.mark.parametrize(
    ("lost", "won", "verdict"),
    [(0, 0, "pass"), (8, 8, "pass"), (300, 10, "fail"), (30, 10, "inconclusive"), (18, 0, "inconclusive")],
    ids=str,
)
def test_the_looks_of_the_guard_itself_follow_the_simulated_rules(lost: int, won: int, verdict: str) -> None:
    n = 2100
    reference, candidate = rows(n, lost, won, seed=5)
    by_name = {row.image: row for row in candidate}
    asked: list[str] = []

    def answer(images: Sequence[str]) -> list[PredictionRow]:
        asked.extend(images)
        return [by_name[image] for image in images]

    found = judge_in_looks(reference, answer, GuardBudget(), seed=2)
    parts = plan_looks(reference, seed=2)
    assert len(asked) == len(set(asked)) == len(found.rows) == found.looks[-1].images
    order = [image for part in parts for image in part]
    assert order[: len(asked)] == asked and sorted(order) == sorted(by_name)
    delta = {row.image: int(not by_name[row.image].correct) - int(not row.correct) for row in reference}
    looks = []
    for index in range(len(parts)):
        values = [delta[image] for part in parts[: index + 1] for image in part]
        looks.append(np.array([[values.count(1), values.count(-1)]]))
    passed, failed, answered = in_looks(n, looks)
    assert found.verdict.verdict == verdict
    assert {"pass": (1, 0), "fail": (0, 1), "inconclusive": (0, 0)}[verdict] == (passed, failed)
    assert 1 - found.saved == pytest.approx(answered, abs=2 / n)


def test_every_look_holds_its_share_of_every_domain_and_keeps_views_together() -> None:
    views = [
        PredictionRow(f"{domain}/{i}", domain, 0, 0, source=f"photo/{i}")
        for domain in ("fog", "noise")
        for i in range(2000)
    ]
    absent = [PredictionRow(f"none/{i}", "none", ABSENT, 0) for i in range(80)]
    parts = plan_looks([*views, *absent], seed=1)
    assert [len(part) for part in parts] == [510, 510, 1020, 2040]
    for part in parts:
        fog, noise = ({name.split("/")[1] for name in part if name.startswith(d)} for d in ("fog", "noise"))
        assert fog == noise
    assert plan_looks(views, seed=1, early=False) == (tuple(row.image for row in _in_order(views, 1)),)
    assert plan_looks([*reversed(views), *absent], seed=1) == parts
    assert plan_looks([*views, *absent], seed=2) != parts


def _in_order(views: Sequence[PredictionRow], seed: int) -> list[PredictionRow]:
    sources = sorted({row.source for row in views})
    place = dict(zip(sources, np.random.default_rng(seed).permutation(len(sources)).tolist(), strict=True))
    return sorted(views, key=lambda row: (row.domain, place[row.source]))


def test_shares_of_candidates_and_looks_sum_to_the_whole() -> None:
    assert sum(candidate_share(i, 7) for i in range(1, 8)) == pytest.approx(1)
    assert sum(candidate_share(i) for i in range(1, 1000)) == pytest.approx(1, abs=1.1e-3)
    assert sum(look_shares(FRACTIONS)) == pytest.approx(1)
    assert look_fractions(300) == (1.0,) and look_fractions(2000) == FRACTIONS
    assert look_shares(look_fractions(700)) == pytest.approx((1 / 8, 7 / 8))


@pytest.mark.parametrize(
    ("n", "off", "expected"),
    [
        pytest.param(400, 0.0, None, id="a calibrated reference: the change as measured on that many images"),
        pytest.param(1000, 0.08, 4.0, id="both too sure: the true change"),
    ],
)
def test_the_bound_of_the_calibration_change_covers(n: int, off: float, expected: float | None) -> None:
    """The candidate states 4 points more than the reference; bounds miss on either side in 5 % of cases at most."""
    runs = 120
    rng = np.random.default_rng(6)
    bounds = []
    for _ in range(runs):
        true = rng.uniform(0.5, 0.87, n)
        right = (rng.random(n) < true).tolist()
        reference, candidate = (
            [
                PredictionRow(f"a/{i}", "a", 0, int(not right[i]), p)
                for i, p in enumerate((true + more).tolist())
            ]
            for more in (off, off + 0.04)
        )
        bound = bound_ece_change(
            pair(reference, candidate), upper_confidence=0.95, lower_confidence=0.95, seed=0, draws=300
        )
        assert bound is not None
        bounds.append(bound)
    value = expected or sum(bound.drop for bound in bounds) / runs
    assert sum(bound.upper < value for bound in bounds) / runs <= ALPHA + slack(runs)
    assert sum(bound.lower > value for bound in bounds) / runs <= ALPHA + slack(runs)


def test_the_bound_of_the_rejection_drop_covers() -> None:
    """Known and unknown scores one and two deviations apart; the true AUROCs follow from the normal distribution."""
    runs, n = 250, 200
    rng = np.random.default_rng(8)
    true = 100 * (_phi(2 / math.sqrt(2)) - _phi(1.5 / math.sqrt(2)))
    below = above = 0
    for _ in range(runs):
        both = rng.normal(size=(2, n)), rng.normal(size=(2, n))
        reference, candidate = [], []
        for i in range(n):
            for kind, label, base in ((0, 0, both[0]), (1, ABSENT, both[1])):
                shared = 0.8 * base[0, i]
                own = 0.6 * base[1, i]
                shift = (2.0, 1.5) if label == 0 else (0.0, 0.0)
                reference.append(
                    PredictionRow(f"{kind}/{i}", "a", label, 0, None, float(base[0, i] + shift[0]))
                )
                candidate.append(
                    PredictionRow(f"{kind}/{i}", "a", label, 0, None, float(shared + own + shift[1]))
                )
        bound = bound_rejection_drop(pair(reference, candidate), upper_confidence=0.95, lower_confidence=0.95)
        assert bound is not None
        below += bound.upper < true
        above += bound.lower > true
    assert below / runs <= ALPHA + slack(runs)
    assert above / runs <= ALPHA + slack(runs)


def test_identical_scores_are_no_proof_of_no_drop() -> None:
    same = [PredictionRow(f"k/{i}", "a", 0, 0, None, 0.5) for i in range(300)]
    same += [PredictionRow(f"u/{i}", "a", ABSENT, 0, None, 0.1) for i in range(100)]
    bound = bound_rejection_drop(pair(same, same), upper_confidence=0.95, lower_confidence=0.95)
    assert bound is not None and bound.drop == 0
    assert bound.upper == pytest.approx(100 * (1 - 0.05 ** (1 / 100)), rel=1e-3)


def _phi(z: float) -> float:
    return (1 + math.erf(z / math.sqrt(2))) / 2
