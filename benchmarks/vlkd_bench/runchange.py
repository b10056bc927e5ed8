"""Times and memory of two runs compared: a change must clear two floors, the noise of A/A runs and its own interval.

Both records time several processes. Differences between processes of one record are the A/A noise: nothing but
the process changed. A baseline log with more runs of the same bundle adds differences between whole runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .benchrecord import BenchRecord
from .metrics import Metric, MetricVerdict, Tolerance
from .noise import RatioBounds, compare_runs, compare_turns

# A machine counts as busy from this share of interrupted calls on.
BUSY = 0.02
# A busy machine drifts: on the worst of the recorded ones, benches of one bundle minutes apart differed by up to this;
# a core runs at less than half its speed while the other thread of it, its caches and its clock are others' as well.
DRIFT = 1.5
# What even the 5th percentiles of processes that took turns must differ by where others disturb the medians.
DISTURBED = 0.5
# Further runs of the baseline that are needed to know the drift of its machine.
LEAST_RUNS = 3


def compare_series(
    now: BenchRecord,
    baseline: BenchRecord,
    more_runs: Sequence[BenchRecord],
    tolerance: Tolerance,
    seed: int,
) -> tuple[Metric, ...]:
    """Compare what every process of a bench measured once.

    Processes that took turns are compared pair by pair, if there are enough of them for the exact test to decide.
    """
    first, last = process_series(baseline), process_series(now)
    others = [process_series(record) for record in more_runs]
    obstacles = {name: _obstacle(series, last[name]) for name, series in first.items()}
    # Only what is judged can raise a false alarm, so the risk is shared among that alone.
    risk = (1 - tolerance.confidence) / sum(not obstacle for obstacle in obstacles.values())
    in_turn = took_turns(now, baseline)
    busy = max((record.latency["call"].interrupted or 0.0) for record in (now, baseline)) > BUSY
    drifts = busy and not in_turn and len(more_runs) < LEAST_RUNS
    twice = 2 * tolerance.relative
    metrics = []
    for number, (name, series) in enumerate(first.items()):
        if name == "peak memory":
            limits = Limits(twice, tolerance.memory_bytes / 1e6)
        elif name == "cold start":
            limits = Limits(twice, tolerance.cold_start_ms, drifts)
        else:
            relative = DISTURBED if series.fallback else tolerance.relative
            limits = Limits(relative, tolerance.latency_ms, drifts)
        before, after = series.values, last[name].values
        if in_turn and len(before) == len(after) and 0.5 ** len(before) <= risk:
            bounds = compare_turns(before, after, risk=risk)
        else:
            further = [other[name].values for other in others]
            bounds = compare_runs(before, after, further, risk=risk, seed=seed + number)
        metrics.append(_judge_ratio(name, series.unit, bounds, limits, obstacles[name]))
    return tuple(metrics)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one number must clear: two floors, and whether the machine may have drifted between the runs."""

    relative: float
    absolute: float
    drifts: bool = False


def _obstacle(first: ProcessSeries, last: ProcessSeries) -> str:
    """Say why a number is not judged, or nothing."""
    busy = max(first.busy, last.busy) > 1
    if first.fallback:
        return "" if busy else "judged only where other processes disturb the medians"
    return (
        "other processes interrupted too many calls: the machine's number, not the bundle's" if busy else ""
    )


def took_turns(now: BenchRecord, baseline: BenchRecord) -> bool:
    """Tell whether the processes of the two runs took turns."""
    digests = baseline.bundle.digest, now.bundle.digest
    return (now.interleaved_with, baseline.interleaved_with) == digests and now.when == baseline.when


@dataclass(frozen=True, slots=True)
class ProcessSeries:
    """One number of every process of a run.

    Attributes:
        unit: Of the values.
        values: One per process.
        busy: Share of interrupted calls over the share that this number stands: above 1 it is the machine's
            number and not the bundle's.
        fallback: Whether it is judged only where the medians are not.
    """

    unit: str
    values: tuple[float, ...]
    busy: float = 0.0
    fallback: bool = False


def process_series(record: BenchRecord) -> Mapping[str, ProcessSeries]:
    """Return what every process of a run measured once, by the name of the metric.

    A percentile stands interruptions as long as they are at most half of the calls beyond it. Where medians do
    not stand them, the 5th percentile still tells a large change: it misses most interruptions, but not that a
    busy neighbour slows caches and clocks down.
    """
    found: dict[str, ProcessSeries] = {}
    for kind, timing in record.latency.items():
        title, runs, interrupted = kind.replace("_", " "), timing.runs, timing.interrupted or 0.0
        if kind != "engine":
            quick = tuple(run.p05_ms for run in runs)
            found[f"latency {title} p5"] = ProcessSeries("ms", quick, interrupted / 0.25, fallback=True)
        medians = tuple(run.p50_ms for run in runs)
        found[f"latency {title} p50"] = ProcessSeries("ms", medians, interrupted / 0.25)
    call = record.latency["call"]
    tail = (call.interrupted or 0.0) / 0.025
    found["latency call p95"] = ProcessSeries("ms", tuple(run.p95_ms for run in call.runs), tail)
    found["cold start"] = ProcessSeries("ms", record.cold_start.total_ms, tail)
    memory = tuple(value / 1e6 for value in record.memory.peak_resident_bytes)
    found["peak memory"] = ProcessSeries("MB", memory)
    return found


def _judge_ratio(name: str, unit: str, bounds: RatioBounds, limits: Limits, obstacle: str) -> Metric:
    """Judge one ratio of medians by the four criteria of `regression`, unless something is in the way."""
    values = (bounds.baseline, bounds.now, bounds.ratio)
    if bounds.interval is None or bounds.noise is None:
        reason = "at least 3 processes of each run are needed to know the noise; bench with --processes 8"
        return Metric(name, unit, *values, None, "inconclusive", reason)
    ratio, difference = bounds.ratio, bounds.baseline * (bounds.ratio - 1)
    low, high = bounds.interval
    change = f"{100 * (ratio - 1):+.1f} % ({difference:+.3g} {unit})"
    against = f"interval {low:.3f} to {high:.3f}, A/A noise {100 * bounds.noise:.1f} %"
    if obstacle:
        verdict: MetricVerdict = "not judged" if name.endswith(" p5") else "inconclusive"
        return Metric(name, unit, *values, bounds.interval, verdict, f"{change}; {obstacle}")
    small = []
    if ratio <= 1 + limits.relative:
        small.append(f"below the relative floor of {100 * limits.relative:.0f} %")
    if difference <= limits.absolute:
        small.append(f"below the absolute floor of {limits.absolute:g} {unit}")
    unsure = []
    if ratio <= 1 + bounds.noise:
        unsure.append("within the noise of A/A runs")
    if low <= 1:
        unsure.append("its interval includes 1")
    if limits.drifts and ratio <= 1 + DRIFT:
        unsure.append(
            "measured apart on a machine that others use, which drifts by as much: let both bundles take turns with "
            "bench --against"
        )
    if not small:
        verdict = "inconclusive" if unsure else "regression"
        reason = f"{change}, {' and '.join(unsure)}; {against}" if unsure else f"{change}; {against}"
        return Metric(name, unit, *values, bounds.interval, verdict, reason)
    least = max(limits.relative, DRIFT if limits.drifts else 0.0)
    if 1 / ratio > 1 + max(least, bounds.noise) and -difference > limits.absolute and high < 1:
        return Metric(name, unit, *values, bounds.interval, "improvement", f"{change}; {against}")
    reason = f"{change}: {small[0]}; {against}"
    return Metric(name, unit, *values, bounds.interval, "ok", reason)
