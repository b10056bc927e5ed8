from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from vlkd_bench.latency import LatencyStats, measure, percentile, percentile_interval, summarise_latency
from vlkd_runtime.errors import DataError

MS = 1_000_000


class FakeTime:
    """A clock that only calls move; `durations_ms` gives each call's length."""

    def __init__(self, durations_ms: Callable[[int], float]) -> None:
        self.now, self.calls, self.durations_ms = 0, 0, durations_ms

    def clock(self) -> int:
        return self.now

    def call(self) -> None:
        self.now += round(self.durations_ms(self.calls) * MS)
        self.calls += 1


def test_a_steady_call() -> None:
    time = FakeTime(lambda _: 2.0)
    stats = measure(time.call, clock=time.clock)
    assert stats.warmup_calls == 100  # 200 ms
    assert stats.n == 1000  # 2 s, more than the one second asked for
    assert (stats.min_ms, stats.p50_ms, stats.p99_ms, stats.max_ms) == (2.0, 2.0, 2.0, 2.0)
    assert not (stats.truncated or stats.unsteady or stats.notes)


def test_a_fast_call_is_measured_for_a_second() -> None:
    time = FakeTime(lambda _: 0.5)
    stats = measure(time.call, min_samples=10, clock=time.clock)
    assert stats.n == 2000


def test_warm_up_lasts_until_the_time_settles() -> None:
    # Ten milliseconds slower at first, halving every fifty calls.
    time = FakeTime(lambda i: 1.0 + 10.0 * 0.5 ** (i / 50))
    stats = measure(time.call, clock=time.clock)
    assert stats.warmup_calls > 200
    assert stats.p50_ms == pytest.approx(1.0, rel=0.02)


def test_time_that_never_settles_is_said() -> None:
    time = FakeTime(lambda i: 1.2 ** (i // 10 % 40))
    stats = measure(time.call, max_seconds=20, clock=time.clock)
    assert stats.truncated
    assert stats.unsteady
    assert any("did not settle" in note for note in stats.notes)
    assert any("stopped by the time limit" in note for note in stats.notes)


def test_a_slow_call_is_cut_by_the_limit_and_has_no_p99() -> None:
    time = FakeTime(lambda _: 100.0)
    stats = measure(time.call, max_seconds=10, clock=time.clock)
    assert stats.truncated
    assert stats.n == pytest.approx(75, abs=10)
    assert stats.p99_ms is None
    assert stats.p99_interval_ms is None
    assert time.now <= 10.1e9
    assert "wanted 1000 and 1 s" in stats.notes[-1]


@pytest.mark.parametrize(
    ("name", "least"), [("p90", 100), ("p95", 200), ("p99", 1000)], ids=["p90", "p95", "p99"]
)
def test_a_percentile_needs_ten_calls_beyond_it(name: str, least: int) -> None:
    for n, there in ((least - 1, False), (least, True)):
        stats = summarise_latency([MS] * n)
        assert (getattr(stats, f"{name}_ms") is not None) == there
        assert (getattr(stats, f"{name}_interval_ms") is not None) == there
        assert stats.p50_ms == 1.0


@pytest.mark.parametrize(
    ("samples_ms", "note"),
    [
        pytest.param([1.0, 1.2] * 50, "spread", id="spread"),
        pytest.param([1.0] * 50 + [1.1] * 50, "drift", id="drift"),
    ],
)
def test_unsteady_series_are_flagged(samples_ms: list[float], note: str) -> None:
    stats = summarise_latency([round(value * MS) for value in samples_ms])
    assert stats.unsteady
    assert any(note in text for text in stats.notes)


def test_outliers_stay() -> None:
    stats = summarise_latency([MS] * 99 + [500 * MS])
    assert stats.max_ms == 500.0
    assert stats.mean_ms == pytest.approx(5.99)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("n", [1, 10, 100, 1001])
def test_percentile_is_the_smallest_value_covering_its_share(share: float, n: int) -> None:
    values = np.arange(1.0, n + 1)
    expected = next(v for v in values if np.count_nonzero(values <= v) >= share * n - 1e-9)
    assert percentile(values, share) == expected


def binomial_terms(n: int, share: float) -> Iterator[float]:
    return (math.comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(n + 1))


@pytest.mark.parametrize(("n", "share"), [(50, 0.5), (1000, 0.99), (200, 0.9)])
def test_interval_covers_with_its_confidence_and_no_narrower_one_does(n: int, share: float) -> None:
    low, high = (int(end) for end in percentile_interval(np.arange(1.0, n + 1), share))
    terms = list(binomial_terms(n, share))
    assert math.fsum(terms[:low]) <= 0.025 < math.fsum(terms[: low + 1])
    if high < n:
        assert math.fsum(terms[high:]) <= 0.025 < math.fsum(terms[high - 1 :])


def test_interval_is_the_limit_of_the_bootstrap() -> None:
    values = np.sort(np.random.default_rng(0).gamma(4, 1, 400))
    resampled = np.random.default_rng(1).choice(values, size=(4000, 400))
    medians = np.sort(resampled, axis=1)[:, 199]
    low, high = percentile_interval(values, 0.5)
    # The bootstrap's ends lie within a few order statistics of the exact ones.
    ranks = np.searchsorted(values, np.quantile(medians, (0.025, 0.975)))
    assert ranks == pytest.approx(np.searchsorted(values, (low, high)), abs=4)


def test_json_holds_plain_values() -> None:
    stats = summarise_latency([MS, 2 * MS, 3 * MS])
    loaded = json.loads(json.dumps(stats.to_json(), allow_nan=False))
    assert loaded["p50_ms"] == 2.0
    assert loaded["p99_ms"] is None
    assert len(loaded["quantiles_ms"]) == 201
    assert LatencyStats.from_json(loaded) == stats
    del loaded["cov"]
    with pytest.raises(DataError, match="Expected the fields n, warmup_calls"):
        LatencyStats.from_json(loaded)
