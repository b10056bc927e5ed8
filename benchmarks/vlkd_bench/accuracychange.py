"""Accuracies of two runs compared image by image by the guard's bounds, worst domain first.

A domain regresses if the guard's lower bound of its drop is above zero and the drop itself above a floor; the risk
is shared among domains and mean as the guard shares it.
"""

from __future__ import annotations

from vlkd_runtime.errors import DataError

from .accuracydetail import AccuracyRecord
from .benchrecord import BenchRecord
from .metrics import Metric, MetricVerdict, Tolerance
from .paired import GuardBudget, PairedComparison, compare
from .predictions import PredictionRow


def compare_accuracies(
    now: BenchRecord, baseline: BenchRecord, tolerance: Tolerance, seed: int
) -> tuple[Metric, ...]:
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
        before = _own_rows(baseline.accuracy, "the baseline")
        after = _own_rows(now.accuracy, "this run")
        paired = compare(before, after, budget=budget, seed=seed)
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


def _own_rows(accuracy: AccuracyRecord, who: str) -> tuple[PredictionRow, ...]:
    """Unpack predictions; refuse accuracies that are of other domains than these."""
    rows = accuracy.rows(who)
    found = {row.domain for row in rows}
    if found != set(accuracy.domains):
        msg = (
            f"Expected accuracies of the domains that {who} has predictions for, {', '.join(sorted(found)) or 'none'}, "
            f"found {', '.join(sorted(accuracy.domains))}: measure again."
        )
        raise DataError(msg)
    return rows


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
