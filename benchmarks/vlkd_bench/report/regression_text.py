"""A regression report for people: Markdown for a pull request, plain lines for a terminal."""

from __future__ import annotations

from ..metrics import Metric
from ..regression import RegressionReport
from . import wording
from .markdown_page import markdown_table, markdown_text

TITLES = {"ok": "No regression", "regression": "Regression", "incomparable": "Not comparable"}
MARKS = {
    "ok": "✓",
    "improvement": "✓",
    "regression": "✗",
    "inconclusive": "?",
    "incomparable": "✗",
    "not judged": "–",
}
HEADS = ("metric", "baseline", "now", "change", "interval", "verdict", "why")
REGRESSION_TERMS = {
    "baseline, now": "what the accepted run measured, and this one; for latencies medians over the processes",
    "change": "now over baseline for times, memory and energy; now minus baseline in points for accuracies",
    "interval": "confidence interval of the change; for accuracies the guard's paired bounds",
    "p5": "5th percentile: what the call takes when nothing disturbs it; p50 is the median, p95 the tail",
    "verdict": "what follows; the reason stands beside the metric's name",
    "regression": "clears the relative floor, the absolute floor and the noise of A/A runs, and the interval "
    "excludes no change; for accuracies the lower bound of the drop is above zero and the drop above its floor",
    "inconclusive": "too few images or processes, or too noisy a machine, to tell; not a pass",
}


def value(metric: Metric, number: float | None) -> str:
    """Return one of a metric's values with its unit."""
    if number is None:
        return wording.DASH
    if metric.unit == "share":
        return f"{100 * number:.2f} %"
    return f"{number:#.3g} {metric.unit}" if abs(number) < 100 else f"{number:.0f} {metric.unit}"


def change(metric: Metric, number: float | None) -> str:
    """Return a change: points for accuracies, percent for the rest."""
    return wording.DASH if number is None else f"{_number(metric, number)} {_unit(metric)}"


def _number(metric: Metric, number: float) -> str:
    """Return a change without its unit, never as a negative zero."""
    digits, value = (2, number) if metric.unit == "share" else (1, 100 * (number - 1))
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _unit(metric: Metric) -> str:
    return "points" if metric.unit == "share" else "%"


def cells(metric: Metric) -> tuple[str, ...]:
    """Return a metric's row, in the order of `HEADS`."""
    interval = wording.DASH
    if metric.interval:
        low, high = (_number(metric, number) for number in metric.interval)
        interval = f"{low} to {high} {_unit(metric)}"
    return (
        metric.name,
        value(metric, metric.baseline),
        value(metric, metric.now),
        change(metric, metric.change),
        interval,
        f"{MARKS[metric.verdict]} {metric.verdict}",
        metric.reason,
    )


def render_regression_markdown(report: RegressionReport) -> str:
    """Return the report as GitHub-flavoured Markdown."""
    parts = [
        f"## {MARKS[report.verdict]} {TITLES[report.verdict]}: {markdown_text(report.now.bundle.name)}",
        f"{markdown_text(report.headline)}.",
    ]
    if report.metrics:
        parts.append(markdown_table(HEADS, [cells(metric) for metric in report.metrics]))
    if report.notes:
        parts.append("\n".join(f"- {markdown_text(note)}" for note in report.notes))
    parts.append("\n".join(f"- {markdown_text(line)}" for line in provenance(report)))
    return "\n\n".join(parts) + "\n"


def provenance(report: RegressionReport) -> tuple[str, ...]:
    """Say what was compared with what, and where."""
    now, baseline = report.now, report.baseline
    lines = [
        f"now: bundle {now.bundle.digest[:12]}, measured {now.when}, {now.setup.describe()}",
        f"baseline: bundle {baseline.bundle.digest[:12]}, measured {baseline.when}, {baseline.setup.describe()}",
        f"machine: {now.machine.describe()}; {now.before.describe()}",
    ]
    if now.accuracy is not None:
        lines.append(f"images: {now.accuracy.dataset}, {now.accuracy.split}")
    return tuple(lines)


def render_regression_lines(report: RegressionReport) -> str:
    """Return the report as lines for a terminal."""
    lines = [f"{MARKS[report.verdict]} {TITLES[report.verdict].upper()}  {report.headline}", ""]
    rows = [cells(metric) for metric in report.metrics]
    widths = [max(len(row[i]) for row in [HEADS, *rows]) for i in range(5)]
    for row in [HEADS, *rows] if rows else []:
        numbers = "  ".join(f"{row[i]:>{widths[i]}}" for i in range(1, 5))
        lines.append(f"{row[0]:<{widths[0]}}  {numbers}  {row[5]}")
    reasons = [m for m in report.metrics if m.verdict in ("regression", "inconclusive", "incomparable")]
    lines += [f"{metric.verdict}: {metric.name}: {metric.reason}" for metric in reasons]
    lines += [f"note: {note}" for note in report.notes]
    return "\n".join(wording.plain(line) for line in lines)
