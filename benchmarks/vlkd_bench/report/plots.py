"""What the reports draw: accuracy by domain, the candidates' Pareto picture, latency, history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from ..accuracy import DomainAccuracy
from ..latency import LatencyStats
from .canvas import COLOUR, HALF_IN, Plot, draw, end_labels, label
from .history import Point
from .values import BuildReport, CandidateRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKER = {"teacher": "s", "erm": "D", "student": "o", "shipped": "o"}
_DASHES = (0, (4, 1.5))


@dataclass(frozen=True, slots=True)
class Series:
    """One model in a plot: the colour and marker of its role, and what it is drawn from."""

    key: str
    domains: Mapping[str, DomainAccuracy]


def draw_plots(report: BuildReport) -> dict[str, Plot]:
    """Return a build's plots that there is data for, by name."""
    plots = {}
    if report.accuracy:
        series = [Series(model.key, model.summary.domains) for model in report.accuracy]
        plots["accuracy"] = draw_accuracy(series, report.domains, report.held_out)
    plots |= draw_pareto(report)
    if report.latency:
        keys = ("shipped", "student", "erm", "teacher")
        rows = [(keys[index % 4], row.stats) for index, row in enumerate(report.latency)]
        plots["latency"] = draw_latency(rows)
    return plots | draw_history(report.history)


def draw_accuracy(series: Sequence[Series], domains: Sequence[str], held_out: Sequence[str]) -> Plot:
    """Draw a dot with its interval for each model, models grouped by domain."""
    rows = 0.85 * len(domains) * (len(series) + 1)
    paint = partial(_accuracy, series=series, domains=domains, held_out=held_out)
    return draw("accuracy", "Accuracy by domain and model", rows, paint)


def _accuracy(axes: Axes, series: Sequence[Series], domains: Sequence[str], held_out: Sequence[str]) -> None:
    step = len(series) + 1
    lowest = 1.0
    for group, domain in enumerate(domains):
        if domain in held_out:
            axes.axhspan(group * step - 0.75, (group + 1) * step - 1.25, color=COLOUR["band"], linewidth=0)
        for offset, model in enumerate(series):
            value = model.domains.get(domain)
            if value is None:
                continue
            y, colour = group * step + offset, COLOUR[model.key]
            lowest = min(lowest, value.lower)
            axes.plot((100 * value.lower, 100 * value.upper), (y, y), color=colour, linewidth=1.4, zorder=2)
            axes.plot(
                100 * value.accuracy,
                y,
                _MARKER[model.key],
                markersize=5.2,
                color=colour,
                markerfacecolor=COLOUR["paper"] if model.key == "student" else colour,
                markeredgewidth=1.3,
                zorder=3,
            )
    centres = [group * step + (len(series) - 1) / 2 for group in range(len(domains))]
    names = [f"{label(axes, name)}\nheld out" if name in held_out else label(axes, name) for name in domains]
    axes.set_yticks(centres, names)
    for text, name in zip(axes.get_yticklabels(), domains, strict=True):
        text.set_fontweight("bold" if name in held_out else "normal")
    axes.set_ylim(len(domains) * step - 1, -1)
    axes.set_xlim(max(0.0, 100 * lowest - 4), 101)
    axes.set_xlabel("top-1 accuracy, %", color=COLOUR["muted"])


def draw_pareto(report: BuildReport) -> dict[str, Plot]:
    """Draw the candidates' worst-domain drop against latency and against size, where these are known."""
    plots: dict[str, Plot] = {}
    if not report.candidates:
        return plots
    floating = report.floating
    timed = [(row.call_ms, row) for row in report.candidates if row.call_ms is not None]
    sized = [(row.size_bytes / 1e6, row) for row in report.candidates]
    start_ms = floating.call_ms if floating else None
    start_mb = floating.size_bytes / 1e6 if floating else None
    rows = max(9.0, 1.5 * (len(report.candidates) + 2))
    for name, unit, start, points in (
        ("latency", "milliseconds a call", start_ms, timed),
        ("size", "megabytes", start_mb, sized),
    ):
        if points:
            paint = partial(
                _pareto, points=points, start=start, budget=report.budget.worst_points, unit=unit, rows=rows
            )
            text = f"Worst-domain drop of each candidate against {name}"
            plots[f"pareto-{name}"] = draw(f"pareto-{name}", text, rows, paint, wide_in=HALF_IN)
    return plots


def _pareto(
    axes: Axes,
    points: Sequence[tuple[float, CandidateRow]],
    start: float | None,
    budget: float,
    unit: str,
    rows: float,
) -> None:
    """Draw a dot a candidate with a line up to its bound, the front of bounds, the float graph, the budget."""
    ends: list[tuple[float, float, str, str]] = [
        (x, row.worst_drop, row.name, row.verdict) for x, row in points
    ]
    ends += [(start, 0.0, "float", "muted")] if start is not None else []
    bounds = [(x, row.worst_upper) for x, row in points] + ([(start, 0.0)] if start is not None else [])
    front = pareto_front(bounds)
    axes.plot(*zip(*front, strict=True), color=COLOUR["muted"], linewidth=0.9, drawstyle="steps-post")
    axes.axhline(budget, color=COLOUR["ink"], linewidth=1, linestyle=(0, (3, 2)))
    if start is not None:
        axes.plot(start, 0, "s", color=COLOUR["muted"], markersize=5.2)
    for x, row in points:
        colour = COLOUR[row.verdict]
        axes.plot((x, x), (row.worst_drop, row.worst_upper), color=colour, linewidth=1.6)
        axes.plot(x, row.worst_upper, "_", color=colour, markersize=8, markeredgewidth=1.6)
        axes.plot(x, row.worst_drop, "o", color=colour, markersize=5.2)
    values = [x for x, _, _, _ in ends]
    room = max(max(values) - min(values), 0.2 * max(values))
    low = min(0.0, *(y for _, y, _, _ in ends))
    high = max(budget, *(y for _, y in bounds))
    axes.set_xlim(max(0.0, min(values) - 0.12 * room), max(values) + 0.12 * room)
    axes.set_ylim(low - 0.08 * (high - low), high + 0.08 * (high - low))
    axes.grid(axis="y", color=COLOUR["rule"], linewidth=0.6)
    axes.tick_params(axis="y", colors=COLOUR["muted"])
    axes.locator_params(axis="x", nbins=4)
    axes.locator_params(axis="y", nbins=6)
    end_labels(axes, [*ends, (axes.get_xlim()[1], budget, "budget", "ink")], 1.1 / rows)
    axes.set_xlabel(unit, color=COLOUR["muted"])


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that no other beats in both, by their first number: the lower the better in both."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if not front or y < front[-1][1]:
            front.append((x, y))
    return front


def draw_latency(rows: Sequence[tuple[str, LatencyStats]]) -> Plot:
    """Draw the share of calls done within a time, with the median and the 99th percentile marked."""
    return draw("latency", "Distribution of latency", 9, partial(_latency, rows=rows))


def _latency(axes: Axes, rows: Sequence[tuple[str, LatencyStats]]) -> None:
    ends = []
    for index, (key, stats) in enumerate(rows):
        colour, quantiles = COLOUR[key], stats.quantiles_ms
        shares = [100 * i / (len(quantiles) - 1) for i in range(len(quantiles))]
        axes.plot(quantiles, shares, color=colour, linewidth=1.8, linestyle="-" if index == 0 else _DASHES)
        axes.plot(stats.p50_ms, 50, "o", color=colour, markersize=4.8)
        if stats.p99_ms is not None:
            axes.plot(stats.p99_ms, 99, "D", color=colour, markersize=4)
        ends.append(quantiles[int(0.99 * (len(quantiles) - 1))])
    start = min(stats.min_ms for _, stats in rows)
    room = max(ends) - start
    axes.set_xlim(start - 0.04 * room - 1e-9, max(ends) + 0.06 * room + 1e-9)
    axes.set_ylim(0, 103)
    axes.set_yticks((0, 25, 50, 75, 100), ("0 %", "25 %", "50 %", "75 %", "100 %"))
    axes.grid(axis="y", color=COLOUR["rule"], linewidth=0.6)
    axes.set_xlabel("milliseconds for one image", color=COLOUR["muted"])


def draw_history(points: Sequence[Point]) -> dict[str, Plot]:
    """Draw latency and accuracy of earlier runs up to this one, where there are at least two of them."""
    numbered = list(enumerate(points, start=1))
    times = [(number, point.p50_ms, point) for number, point in numbered if point.p50_ms is not None]
    means = [(number, 100 * point.mean, point) for number, point in numbered if point.mean is not None]
    plots = {}
    for name, unit, known in (
        ("latency", "milliseconds, median", times),
        ("accuracy", "mean accuracy, %", means),
    ):
        if len(known) > 1:
            text = f"History of {name}"
            paint = partial(_history, known=known, unit=unit)
            plots[f"history-{name}"] = draw(f"history-{name}", text, 7, paint, wide_in=HALF_IN)
    return plots


def _history(axes: Axes, known: Sequence[tuple[int, float, Point]], unit: str) -> None:
    """Draw a line over the runs; accepted ones filled, an accepted regression as a diamond."""
    axes.plot([x for x, _, _ in known], [y for _, y, _ in known], color=COLOUR["rule"], linewidth=1.6)
    for x, y, point in known:
        colour = COLOUR["fail" if point.worse else "student" if point.kind == "run" else "shipped"]
        face = COLOUR["paper"] if point.kind == "run" else colour
        marker = "D" if point.worse else "o"
        axes.plot(x, y, marker, color=colour, markerfacecolor=face, markersize=5.2, markeredgewidth=1.3)
    values = [y for _, y, _ in known]
    room = max(max(values) - min(values), 0.05 * max(values), 1e-9)
    axes.set_ylim(max(0.0, min(values) - 0.3 * room), max(values) + 0.3 * room)
    axes.set_xlim(known[0][0] - 0.5, known[-1][0] + 0.5)
    step = max(1, -(-len(known) // 8))
    axes.set_xticks([x for x, _, _ in known][::step])
    axes.grid(axis="x", visible=False)
    axes.grid(axis="y", color=COLOUR["rule"], linewidth=0.6)
    axes.tick_params(axis="y", colors=COLOUR["muted"])
    axes.locator_params(axis="y", nbins=4)
    axes.set_xlabel(f"run; {unit}", color=COLOUR["muted"])
