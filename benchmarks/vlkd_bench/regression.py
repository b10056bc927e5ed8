"""Is this run worse than its baseline? Latency against noise and floors, accuracy by the guard's bounds.

A gate that cries wolf is switched off, so a latency regresses only if all four hold:

1. the ratio of medians is above the relative floor;
2. the difference is above the absolute floor;
3. the ratio is above what an A/A run shows: the same thing measured twice;
4. the confidence interval of the ratio excludes 1.

Both records time several processes. Differences between processes of one record are the A/A noise: nothing but
the process changed. A baseline log with more runs of the same bundle adds differences between whole runs.

Accuracy is paired image by image. A domain regresses if the guard's lower bound of its drop is above zero and the
drop itself above a floor; the risk is shared among domains and mean as the guard shares it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from vlkd_runtime.errors import ConfigError, DataError

from .benchrecord import BenchRecord
from .jsonvalues import encode
from .noise import RatioBounds, compare_runs
from .paired import GuardBudget, PairedComparison, compare

# A machine counts as busy from this share of interrupted calls on.
BUSY = 0.05
# On a busy machine a neighbour slows caches and clocks down by a third or so; what is slower than this is not that.
BUSY_RELATIVE = 0.5
MetricVerdict = Literal["ok", "improvement", "regression", "inconclusive", "incomparable", "not judged"]
OverallVerdict = Literal["ok", "regression", "incomparable"]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What counts as a regression.

    Attributes:
        relative: Relative floor of latencies; cold start and memory have twice this, and so have latencies
            measured apart on a busy machine, see `drifts`.
        latency_ms: Absolute floor of latencies.
        cold_start_ms: Absolute floor of the cold start.
        memory_bytes: Absolute floor of the peak memory.
        accuracy_points: Floor of a drop in accuracy.
        confidence: One-sided confidence of everything together: with no change, at most 1 - confidence of
            comparisons call a latency worse, and at most as many an accuracy.
    """

    relative: float = 0.05
    latency_ms: float = 0.01
    cold_start_ms: float = 20.0
    memory_bytes: float = 4e6
    accuracy_points: float = 0.5
    confidence: float = 0.95

    def __post_init__(self) -> None:
        for name in ("relative", "latency_ms", "cold_start_ms", "memory_bytes", "accuracy_points"):
            if getattr(self, name) < 0:
                msg = f"Expected the tolerance {name} to be 0 or more, found {getattr(self, name)}."
                raise ConfigError(msg)
        if not 0.5 < self.confidence < 1:
            msg = f"Expected a confidence between 0.5 and 1, found {self.confidence}; usual is 0.95."
            raise ConfigError(msg)


@dataclass(frozen=True, slots=True)
class Metric:
    """One number of the baseline against the same number now.

    Attributes:
        name: What it is, for example "latency call p50" or "accuracy sketch".
        unit: Of `baseline` and `now`: "ms", "MB", "J", or "share" for accuracies in [0, 1].
        baseline: The baseline's value; None where it has none.
        now: This run's value; None where it has none.
        change: Now over baseline for what is measured in time, memory or energy; for accuracies the
            difference now minus baseline, in points.
        interval: Confidence interval of `change`; None where there is none.
        verdict: What follows.
        reason: Why, in words.
    """

    name: str
    unit: str
    baseline: float | None
    now: float | None
    change: float | None
    interval: tuple[float, float] | None
    verdict: MetricVerdict
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RegressionReport:
    """The verdict on one run.

    Attributes:
        verdict: "ok", "regression" or "incomparable".
        headline: The verdict in one sentence.
        metrics: Every number compared: accuracies first, worst domain first, then latencies.
        notes: What to know before believing it.
        baseline: The baseline.
        now: This run.
        tolerance: What counts as a regression.
    """

    verdict: OverallVerdict
    headline: str
    metrics: tuple[Metric, ...]
    notes: tuple[str, ...]
    baseline: BenchRecord
    now: BenchRecord
    tolerance: Tolerance = field(default_factory=Tolerance)

    def to_json(self) -> dict[str, object]:
        """Return what programs read: `verdict` and `metrics` are a contract, keys may be added."""
        return {
            "verdict": self.verdict,
            "headline": self.headline,
            "metrics": [encode(metric) for metric in self.metrics],
            "notes": list(self.notes),
            "tolerance": encode(self.tolerance),
            "baseline": _identity(self.baseline),
            "now": _identity(self.now),
        }

    @property
    def regressions(self) -> tuple[Metric, ...]:
        """The metrics that got worse."""
        return tuple(metric for metric in self.metrics if metric.verdict == "regression")


def _identity(record: BenchRecord) -> dict[str, object]:
    return {
        "when": record.when,
        "bundle": encode(record.bundle),
        "setup": encode(record.setup),
        "fingerprint": record.fingerprint,
        "machine": record.machine.describe(),
    }


def assess(
    now: BenchRecord,
    baseline: BenchRecord,
    *,
    more_runs: Sequence[BenchRecord] = (),
    tolerance: Tolerance | None = None,
    across: bool = False,
    seed: int = 0,
) -> RegressionReport:
    """Judge a run against its baseline.

    Args:
        now: This run.
        baseline: What it is compared with.
        more_runs: Further runs of the baseline's bundle on its machine: the A/A runs.
        tolerance: What counts as a regression.
        across: Compare although machine, target or setup differ.
        seed: Seed of the bootstrap.
    """
    tolerance = tolerance or Tolerance()
    differences = differences_of(now, baseline)
    if differences and not across:
        return RegressionReport(
            verdict="incomparable",
            headline=f"Not comparable with this baseline: {differences[0]}",
            metrics=(),
            notes=(*differences, "Take a baseline of the same machine, or compare knowingly with --across."),
            baseline=baseline,
            now=now,
            tolerance=tolerance,
        )
    metrics = (
        *_accuracy(now, baseline, tolerance, seed),
        *_runs(now, baseline, more_runs, tolerance, seed),
        *_energy(now, baseline),
    )
    return RegressionReport(
        verdict=_overall(metrics),
        headline=_headline(metrics),
        metrics=metrics,
        notes=(*differences, *_notes(now, baseline, metrics)),
        baseline=baseline,
        now=now,
        tolerance=tolerance,
    )


def differences_of(now: BenchRecord, baseline: BenchRecord) -> tuple[str, ...]:
    """Say what makes two runs incomparable; a newer engine is no such thing, it is what a gate must catch."""
    found = []
    if now.bundle.target != baseline.bundle.target:
        found.append(f"the target is {now.bundle.target}, the baseline's {baseline.bundle.target}")
    if now.fingerprint != baseline.fingerprint:
        found.append(
            f"the machine or how it is set differs: {_machine(now)}; the baseline's: {_machine(baseline)}"
        )
    for name in ("engine", "provider", "threads", "batch"):
        first, last = getattr(baseline.setup, name), getattr(now.setup, name)
        if first != last:
            found.append(f"{name} is {last}, the baseline's {first}")
    return tuple(found)


def _machine(record: BenchRecord) -> str:
    state = record.before
    parts = [record.machine.describe().partition(", load ")[0]]
    parts += [f"power mode {state.power_mode}"] if state.power_mode else []
    parts += [f"governor {state.governor}"] if state.governor else []
    for name, value in (("CPU", state.cpu_max_mhz), ("GPU", state.gpu_max_mhz)):
        parts += [f"{name} up to {value:.0f} MHz"] if value else []
    return f"{', '.join(parts)} [{record.fingerprint}]"


def _overall(metrics: Sequence[Metric]) -> OverallVerdict:
    verdicts = {metric.verdict for metric in metrics}
    if "regression" in verdicts:
        return "regression"
    return "incomparable" if "incomparable" in verdicts else "ok"


def _headline(metrics: Sequence[Metric]) -> str:
    worse = [metric for metric in metrics if metric.verdict == "regression"]
    if worse:
        others = f", and {len(worse) - 1} more" if len(worse) > 1 else ""
        return f"{worse[0].name} got worse: {worse[0].reason}{others}"
    broken = [metric for metric in metrics if metric.verdict == "incomparable"]
    if broken:
        return f"{broken[0].name} cannot be compared: {broken[0].reason}"
    better = sum(metric.verdict == "improvement" for metric in metrics)
    undecided = sum(metric.verdict == "inconclusive" for metric in metrics)
    text = "No regression against the baseline"
    text += f"; {better} of {len(metrics)} better" if better else ""
    return text + (f"; {undecided} undecided, see their reasons" if undecided else "")


def _notes(now: BenchRecord, baseline: BenchRecord, metrics: Sequence[Metric]) -> tuple[str, ...]:
    notes = [f"this run: {text}" for text in now.disturbances]
    notes += [f"baseline: {text}" for text in baseline.disturbances]
    first, last = baseline.setup.version, now.setup.version
    if first != last:
        notes.append(f"the engine is {now.setup.engine} {last}, the baseline's {first}")
    if now.accuracy is not None and baseline.accuracy is None:
        notes.append("the baseline has no accuracy, so accuracy was not compared; accept a run with --data")
    notes += list(dict.fromkeys(text for record in (now, baseline) if (text := record.bundle.stand_in)))
    return tuple(notes)


def _accuracy(now: BenchRecord, baseline: BenchRecord, tolerance: Tolerance, seed: int) -> tuple[Metric, ...]:
    """Compare accuracies image by image, worst domain first, then the mean, flips and calibration."""
    if baseline.accuracy is None:
        return ()
    if now.accuracy is None:
        reason = "the baseline has accuracies and this run has none; run bench with --data"
        mean = baseline.accuracy.mean
        return (Metric("accuracy", "share", mean, None, None, None, "incomparable", reason),)
    budget = GuardBudget(confidence=tolerance.confidence)
    try:
        if now.accuracy.classes != baseline.accuracy.classes:
            msg = "the classes, or their order, differ from the baseline's"
            raise DataError(msg)
        paired = compare(
            baseline.accuracy.rows("the baseline"),
            now.accuracy.rows("this run"),
            budget=budget,
            seed=seed,
        )
    except DataError as error:
        return (
            Metric(
                "accuracy",
                "share",
                baseline.accuracy.mean,
                now.accuracy.mean,
                None,
                None,
                "incomparable",
                str(error),
            ),
        )
    return _paired_metrics(now, baseline, paired, budget, tolerance)


def _paired_metrics(
    now: BenchRecord,
    baseline: BenchRecord,
    paired: PairedComparison,
    budget: GuardBudget,
    tolerance: Tolerance,
) -> tuple[Metric, ...]:
    assert now.accuracy is not None and baseline.accuracy is not None
    first, last = baseline.accuracy, now.accuracy
    rows = []
    worst_first = sorted(
        paired.domains, key=lambda name: (-paired.domains[name].upper, -paired.domains[name].drop, name)
    )
    for name in worst_first:
        drop = paired.domains[name]
        verdict, reason = _judge_drop(drop.drop, drop.lower, drop.upper, budget.worst_points, tolerance)
        values = first.domains[name].accuracy, last.domains[name].accuracy
        reason = f"{reason}; {drop.lost} images lost, {drop.won} won of {drop.n}"
        interval = (-drop.upper, -drop.lower)
        rows.append(Metric(f"accuracy {name}", "share", *values, -drop.drop, interval, verdict, reason))
    if len(paired.domains) > 1:
        mean = paired.mean
        verdict, reason = _judge_drop(mean.drop, mean.lower, mean.upper, budget.mean_points, tolerance)
        interval = (-mean.upper, -mean.lower)
        rows.append(
            Metric("accuracy mean", "share", first.mean, last.mean, -mean.drop, interval, verdict, reason)
        )
    shown = f"{100 * paired.flip_rate:.2f} % of images are answered differently; shown, not judged by"
    rows.append(
        Metric(
            "calibration error",
            "share",
            first.ece,
            last.ece,
            paired.ece.drop if paired.ece else None,
            (paired.ece.lower, paired.ece.upper) if paired.ece else None,
            "not judged",
            shown,
        )
    )
    return tuple(rows)


def _judge_drop(
    drop: float, lower: float, upper: float, budget: float, tolerance: Tolerance
) -> tuple[MetricVerdict, str]:
    """Return the verdict on one drop and why; drops in points, positive is worse."""
    if lower > 0 and drop > tolerance.accuracy_points:
        return "regression", f"drops {drop:.2f} points, surely at least {lower:.2f}"
    if upper < 0:
        return "improvement", f"gains {-drop:.2f} points, surely at least {-upper:.2f}"
    if upper <= budget:
        return "ok", f"drops at most {upper:.2f} points (allowed {budget:.2f})"
    if drop <= tolerance.accuracy_points and lower > 0:
        return "ok", f"drops {drop:.2f} points, which is below the floor of {tolerance.accuracy_points:.2f}"
    return "inconclusive", f"drop {drop:.2f} points, may be up to {upper:.2f}: too few images to tell"


def _runs(
    now: BenchRecord,
    baseline: BenchRecord,
    more_runs: Sequence[BenchRecord],
    tolerance: Tolerance,
    seed: int,
) -> tuple[Metric, ...]:
    """Compare what every process of a bench measured once."""
    first, last = process_series(baseline), process_series(now)
    others = [process_series(record) for record in more_runs]
    obstacles = {name: _obstacle(series, last[name]) for name, series in first.items()}
    # Only what is judged can raise a false alarm, so the risk is shared among that alone.
    risk = (1 - tolerance.confidence) / sum(not obstacle for obstacle in obstacles.values())
    relative = tolerance.relative * (2 if drifts(now, baseline) and not more_runs else 1)
    metrics = []
    for number, (name, series) in enumerate(first.items()):
        floors = {
            "cold start": (2 * tolerance.relative, tolerance.cold_start_ms),
            "peak memory": (2 * tolerance.relative, tolerance.memory_bytes / 1e6),
        }.get(name, (BUSY_RELATIVE if series.fallback else relative, tolerance.latency_ms))
        bounds = compare_runs(
            series.values,
            last[name].values,
            [other[name].values for other in others],
            risk=risk,
            seed=seed + number,
        )
        metrics.append(_judge_ratio(name, series.unit, bounds, floors, obstacles[name]))
    return tuple(metrics)


def _obstacle(first: ProcessSeries, last: ProcessSeries) -> str:
    """Say why a number is not judged, or nothing."""
    busy = max(first.busy, last.busy) > 1
    if first.fallback:
        return "" if busy else "judged only where other processes disturb the medians"
    return (
        "other processes interrupted too many calls: the machine's number, not the bundle's" if busy else ""
    )


def drifts(now: BenchRecord, baseline: BenchRecord) -> bool:
    """Tell whether the machine may have changed between two runs by more than their processes show.

    A machine that others use drifts from minute to minute: recorded A/A runs at a load of eight tasks a core
    differed by up to 9 % while processes of one run differed by 3 %. Runs whose processes took turns do not.
    """
    together = (now.interleaved_with, baseline.interleaved_with) == (
        baseline.bundle.digest,
        now.bundle.digest,
    ) and now.when == baseline.when
    busy = max((record.latency["call"].interrupted or 0.0) for record in (now, baseline))
    return busy > BUSY and not together


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


def _judge_ratio(
    name: str, unit: str, bounds: RatioBounds, floors: tuple[float, float], obstacle: str
) -> Metric:
    """Judge one ratio of medians by the four criteria at the top of this module, unless something is in the way."""
    relative, absolute = floors
    values = (bounds.baseline, bounds.now, bounds.ratio)
    if bounds.interval is None or bounds.noise is None:
        reason = "at least 3 processes of each run are needed to know the noise; bench with --processes 8"
        return Metric(name, unit, *values, None, "inconclusive", reason)
    ratio, difference = bounds.ratio, bounds.now - bounds.baseline
    low, high = bounds.interval
    change = f"{100 * (ratio - 1):+.1f} % ({difference:+.3g} {unit})"
    against = f"interval {low:.3f} to {high:.3f}, A/A noise {100 * bounds.noise:.1f} %"
    if obstacle:
        verdict: MetricVerdict = "not judged" if name.endswith(" p5") else "inconclusive"
        return Metric(name, unit, *values, bounds.interval, verdict, f"{change}; {obstacle}")
    small = []
    if ratio <= 1 + relative:
        small.append(f"below the relative floor of {100 * relative:.0f} %")
    if difference <= absolute:
        small.append(f"below the absolute floor of {absolute:g} {unit}")
    unsure = []
    if ratio <= 1 + bounds.noise:
        unsure.append("within the noise of A/A runs")
    if low <= 1:
        unsure.append("its interval includes 1")
    if not small:
        verdict = "inconclusive" if unsure else "regression"
        reason = f"{change}, {' and '.join(unsure)}; {against}" if unsure else f"{change}; {against}"
        return Metric(name, unit, *values, bounds.interval, verdict, reason)
    if 1 / ratio > 1 + max(relative, bounds.noise) and -difference > absolute and high < 1:
        return Metric(name, unit, *values, bounds.interval, "improvement", f"{change}; {against}")
    reason = f"{change}: {small[0]}; {against}"
    return Metric(name, unit, *values, bounds.interval, "ok", reason)


def _energy(now: BenchRecord, baseline: BenchRecord) -> tuple[Metric, ...]:
    """Show energy beside the rest; one measurement has no noise to be judged against."""
    first, last = baseline.power.joule_per_image, now.power.joule_per_image
    if first is None:
        return ()
    ratio = last / first if last is not None and first > 0 else None
    reason = now.power.reason or f"one measurement each ({now.power.covers}); shown, not judged by"
    return (Metric("energy per image", "J", first, last, ratio, None, "not judged", reason),)
