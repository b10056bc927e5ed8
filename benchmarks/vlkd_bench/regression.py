"""Is this run worse than its baseline? Latency against noise and floors, accuracy by the guard's bounds.

A gate that cries wolf is switched off, so a latency regresses only if all four hold:

1. the ratio of medians is above the relative floor;
2. the difference is above the absolute floor;
3. the ratio is above what an A/A run shows: the same thing measured twice;
4. the confidence interval of the ratio excludes 1.

How times are compared is in `runchange`, and how accuracies are in `accuracychange`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from .accuracychange import compare_accuracies
from .benchrecord import BenchRecord
from .jsonvalues import encode
from .metrics import Metric, Tolerance
from .runchange import compare_series

OverallVerdict = Literal["ok", "regression", "incomparable"]


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
        *compare_accuracies(now, baseline, tolerance, seed),
        *compare_series(now, baseline, more_runs, tolerance, seed),
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
        others = f"; {len(worse) - 1} more got worse" if len(worse) > 1 else ""
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


def _energy(now: BenchRecord, baseline: BenchRecord) -> tuple[Metric, ...]:
    """Show energy beside the rest; one measurement has no noise to be judged against."""
    first, last = baseline.power.joule_per_image, now.power.joule_per_image
    if first is None:
        return ()
    ratio = last / first if last is not None and first > 0 else None
    reason = now.power.reason or f"one measurement each ({now.power.covers}); shown, not judged by"
    return (Metric("energy per image", "J", first, last, ratio, None, "not judged", reason),)
