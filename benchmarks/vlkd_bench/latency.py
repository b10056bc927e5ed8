"""How long one call takes, measured so that the number can be repeated.

Times are wall time of the whole call by a monotonic clock. Nothing is clipped: an outlier is part of what a
user of the device will see.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from .jsonvalues import decode, encode

WARMUP_MS = 200.0
WARMUP_WINDOW = 10
WARMUP_TOLERANCE = 0.02
# Ten calls beyond a percentile, or it rests on too few of them to mean anything.
MIN_SAMPLES_FOR_P90, MIN_SAMPLES_FOR_P95, MIN_SAMPLES_FOR_P99 = 100, 200, 1000
UNSTEADY_COV = 0.025
UNSTEADY_DRIFT = 0.05
QUANTILES = 201


@dataclass(frozen=True, slots=True)
class LatencyStats:
    """Percentiles of a call's duration in milliseconds, and whether to trust them.

    Attributes:
        n: Timed calls.
        warmup_calls: Calls made before, not counted.
        min_ms: Fastest call.
        mean_ms: Mean.
        p50_ms: Median.
        p90_ms: 90th percentile; None below 100 calls, where it would rest on fewer than ten of them.
        p95_ms: 95th percentile; None below 200 calls.
        p99_ms: 99th percentile; None below 1000 calls.
        max_ms: Slowest call.
        p50_interval_ms: 95 % interval of the median.
        p90_interval_ms: 95 % interval of the 90th percentile; None where that is.
        p95_interval_ms: 95 % interval of the 95th percentile; None where that is.
        p99_interval_ms: 95 % interval of the 99th percentile; None where that is.
        cov: Coefficient of variation, standard deviation over mean.
        truncated: Whether the time limit came before the wanted number of calls.
        unsteady: Whether the spread or the drift says that the machine was not quiet.
        notes: Why, in words.
        quantiles_ms: Durations at 201 evenly spaced shares from 0 to 1, enough to draw the distribution.
    """

    n: int
    warmup_calls: int
    min_ms: float
    mean_ms: float
    p50_ms: float
    p90_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    max_ms: float
    p50_interval_ms: tuple[float, float]
    p90_interval_ms: tuple[float, float] | None
    p95_interval_ms: tuple[float, float] | None
    p99_interval_ms: tuple[float, float] | None
    cov: float
    truncated: bool
    unsteady: bool
    notes: tuple[str, ...]
    quantiles_ms: tuple[float, ...]

    def to_json(self) -> dict[str, object]:
        """Return the fields as JSON values."""
        return encode(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LatencyStats:
        """Take back what `to_json` gave.

        Raises:
            DataError: A field is missing or no number.
        """
        return decode(cls, data)


@dataclass(frozen=True, slots=True)
class Series:
    """Durations of several calls timed in turn.

    Attributes:
        samples_ns: Durations of each call, in the order measured; equally many of each.
        interrupted: How many of them the system took the processor away from; None where it does not tell.
        warmup_calls: Rounds before, not counted.
        settled: Whether warm-up ended because all times were stable.
        truncated: Whether the time limit came before the wanted number of rounds.
    """

    samples_ns: Mapping[str, list[int]]
    interrupted: Mapping[str, int] | None
    warmup_calls: int
    settled: bool
    truncated: bool


def measure(
    call: Callable[[], object],
    *,
    min_samples: int = 1000,
    min_seconds: float = 1.0,
    max_seconds: float = 60.0,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> LatencyStats:
    """Time a call until there are enough samples, after warming up until the time settles.

    Args:
        call: What to time; called with nothing, its result is dropped.
        min_samples: Timed calls wanted.
        min_seconds: Time to spend on timed calls at least.
        max_seconds: Time after which to stop in any case, warm-up included; one call is always timed.
        clock: Monotonic time in nanoseconds.
    """
    series = measure_together(
        {"call": call},
        min_samples=min_samples,
        min_seconds=min_seconds,
        max_seconds=max_seconds,
        clock=clock,
    )
    return summarise_latency(
        series.samples_ns["call"],
        warmup_calls=series.warmup_calls,
        settled=series.settled,
        wanted=(min_samples, min_seconds) if series.truncated else None,
    )


def measure_together(
    calls: Mapping[str, Callable[[], object]],
    *,
    min_samples: int = 1000,
    min_seconds: float = 0.0,
    max_seconds: float = 60.0,
    clock: Callable[[], int] = time.perf_counter_ns,
    before: Callable[[int], None] | None = None,
    after: Callable[[Mapping[str, list[int]]], None] | None = None,
) -> Series:
    """Time several calls in turn, one of each per round, after warming up until all their times settle.

    In turn, so that a slow moment of the machine falls on all of them alike. The arguments are `measure`'s, and
    `after` is called with the durations so far after each round, outside what is timed; so is `before`, with the
    number of rounds so far before each, and what it takes is not taken off the limit.
    """
    started = clock()
    limit = started + int(max_seconds * 1e9)
    warmup_calls, settled = _warm_up(calls, clock, started, started + int(max_seconds * 1e9 / 4))
    samples: dict[str, list[int]] = {name: [] for name in calls}
    interrupted: dict[str, int] = dict.fromkeys(calls, 0)
    first = clock()
    for rounds in itertools.count(1):
        if before is not None:
            paused = clock()
            before(rounds - 1)
            limit += clock() - paused
        for name, call in calls.items():
            switches = _switches()
            began = clock()
            call()
            done = clock()
            interrupted[name] += _switches() > switches
            samples[name].append(done - began)
        if after is not None:
            after(samples)
        now = clock()
        enough = rounds >= min_samples and now - first >= min_seconds * 1e9
        if enough or now >= limit:
            told = interrupted if _switches() >= 0 else None
            return Series(samples, told, warmup_calls, settled, not enough)
    raise AssertionError


def _switches() -> int:
    """Return how often the system took the processor from this process so far; -1 where it does not tell."""
    try:
        import resource
    except ImportError:
        return -1
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _warm_up(
    calls: Mapping[str, Callable[[], object]], clock: Callable[[], int], started: int, limit: int
) -> tuple[int, bool]:
    """Call until 200 ms have passed and two successive windows of calls have the same median within 2 %.

    Returns:
        The number of rounds and whether all times settled before the limit.
    """
    durations: dict[str, list[int]] = {name: [] for name in calls}
    for rounds in itertools.count(1):
        for name, call in calls.items():
            before = clock()
            call()
            durations[name].append(clock() - before)
        now = clock()
        if (
            rounds >= 2 * WARMUP_WINDOW
            and now - started >= WARMUP_MS * 1e6
            and all(_level(series) for series in durations.values())
        ):
            return rounds, True
        if now >= limit:
            return rounds, False
    raise AssertionError


def _level(durations: list[int]) -> bool:
    """Tell whether the medians of the last two windows agree."""
    last = median(durations[-WARMUP_WINDOW:])
    previous = median(durations[-2 * WARMUP_WINDOW : -WARMUP_WINDOW])
    return abs(last - previous) <= WARMUP_TOLERANCE * previous


def summarise_latency(
    samples_ns: list[int],
    *,
    warmup_calls: int = 0,
    settled: bool = True,
    wanted: tuple[int, float] | None = None,
) -> LatencyStats:
    """Turn durations into statistics.

    Args:
        samples_ns: Durations in nanoseconds, in the order measured.
        warmup_calls: Calls made before.
        settled: Whether warm-up ended because the time was stable.
        wanted: If the measurement was cut short: the samples and seconds it should have had.
    """
    in_order = np.asarray(samples_ns, dtype=np.float64) / 1e6
    ordered = np.sort(in_order)
    n = len(ordered)
    mean = float(ordered.mean())
    cov = float(ordered.std(ddof=1) / mean) if n > 1 and mean > 0 else 0.0
    notes = _steadiness(in_order, cov, settled)
    unsteady = bool(notes)
    if wanted is not None:
        notes = (
            *notes,
            f"stopped by the time limit after {n} calls (wanted {wanted[0]} and {wanted[1]:g} s)",
        )
    least = {0.90: MIN_SAMPLES_FOR_P90, 0.95: MIN_SAMPLES_FOR_P95, 0.99: MIN_SAMPLES_FOR_P99}
    tails = {share: percentile(ordered, share) if n >= count else None for share, count in least.items()}
    around = {
        share: percentile_interval(ordered, share) if n >= count else None for share, count in least.items()
    }
    return LatencyStats(
        n=n,
        warmup_calls=warmup_calls,
        min_ms=float(ordered[0]),
        mean_ms=mean,
        p50_ms=percentile(ordered, 0.50),
        p90_ms=tails[0.90],
        p95_ms=tails[0.95],
        p99_ms=tails[0.99],
        max_ms=float(ordered[-1]),
        p50_interval_ms=percentile_interval(ordered, 0.50),
        p90_interval_ms=around[0.90],
        p95_interval_ms=around[0.95],
        p99_interval_ms=around[0.99],
        cov=cov,
        truncated=wanted is not None,
        unsteady=unsteady,
        notes=notes,
        quantiles_ms=tuple(float(v) for v in np.quantile(ordered, np.linspace(0, 1, QUANTILES))),
    )


def _steadiness(in_order: npt.NDArray[np.float64], cov: float, settled: bool) -> tuple[str, ...]:
    """Return the reasons to distrust the numbers; trtexec's limit for the spread, 2.5 %, is used."""
    notes = []
    if not settled:
        notes.append("the time did not settle during warm-up")
    if cov > UNSTEADY_COV:
        notes.append(
            f"spread: standard deviation {100 * cov:.1f} % of the mean "
            f"(steady is below {100 * UNSTEADY_COV:.1f} %)"
        )
    half = len(in_order) // 2
    if half >= WARMUP_WINDOW:
        first, second = float(np.median(in_order[:half])), float(np.median(in_order[half:]))
        drift = second / first - 1 if first > 0 else 0.0
        if abs(drift) > UNSTEADY_DRIFT:
            notes.append(
                f"drift: the median of the second half differs by {100 * drift:+.1f} % from the first"
            )
    return tuple(notes)


def percentile(ordered: npt.NDArray[np.float64], share: float) -> float:
    """Return the smallest measured value that at least this share of the values do not exceed."""
    return float(ordered[max(0, int(np.ceil(share * len(ordered) - 1e-9)) - 1)])


def percentile_interval(
    ordered: npt.NDArray[np.float64], share: float, confidence: float = 0.95
) -> tuple[float, float]:
    """Return the bootstrap percentile interval of a percentile, without resampling.

    The number of values below the true percentile is binomial, so the interval's ends are order statistics
    whose ranks are quantiles of that binomial; resampling would only approximate them.

    References:
        H. A. David and H. N. Nagaraja, "Order statistics", 3rd edition (2003), section 7.1.
    """
    n = len(ordered)
    log_factorial = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, n + 1)))))
    k = np.arange(n + 1)
    log_mass = log_factorial[n] - log_factorial - log_factorial[::-1]
    below = np.cumsum(np.exp(log_mass + k * np.log(share) + (n - k) * np.log1p(-share)))
    risk = (1 - confidence) / 2
    low = int(np.searchsorted(below, risk, side="left"))
    high = int(np.searchsorted(below, 1 - risk, side="left"))
    return float(ordered[max(0, low - 1)]), float(ordered[min(n - 1, high)])
