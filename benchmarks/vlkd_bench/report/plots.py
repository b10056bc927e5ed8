"""The report's plots as SVG that takes its colours from the page and reads the same on every build.

Each plot is drawn twice, for a wide page and for a phone, at the same type size; the page shows one of them.
matplotlib draws with marker colours that are then replaced by the page's CSS variables, so that one picture
serves light, dark and print.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import wording
from .values import BuildReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDE_IN = 9.0
NARROW_IN = 3.9
ROW_IN = 0.24
LABEL_LENGTH = (36, 19)

# Drawn colour -> CSS variable of the page. The drawn values only need to differ from each other.
_VARIABLES = {
    "#010101": "--ink",
    "#020202": "--muted",
    "#030303": "--rule",
    "#040404": "--band",
    "#050505": "--teacher",
    "#060606": "--erm",
    "#070707": "--student",
    "#080808": "--shipped",
    "#090909": "--pass",
    "#0a0a0a": "--fail",
    "#0b0b0b": "--inconclusive",
    "#0c0c0c": "--paper",
}
_COLOUR = {variable[2:]: colour for colour, variable in _VARIABLES.items()}
_MARKER = {"teacher": "s", "erm": "D", "student": "o", "shipped": "o"}
_SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "vlkd",
    "font.size": 8.6,
    "font.family": "sans-serif",
    "axes.linewidth": 0.6,
    "text.parse_math": False,
}


@dataclass(frozen=True, slots=True)
class Plot:
    """One plot in both widths; `text` says what it shows to those who cannot see it."""

    name: str
    text: str
    wide: str
    narrow: str


def draw_plots(report: BuildReport) -> dict[str, Plot]:
    """Return the plots there is data for, by name."""
    plots = {}
    if report.accuracy:
        rows = 0.85 * len(report.domains) * (len(report.accuracy) + 1)
        plots["accuracy"] = _draw("accuracy", "Accuracy by domain and model", rows, _accuracy, report)
    if len(report.candidates) > 1:
        rows = 2 * len(report.candidates)
        plots["candidates"] = _draw(
            "candidates", "Worst-domain drop of each candidate", rows, _candidates, report
        )
    if report.latency:
        plots["latency"] = _draw("latency", "Distribution of latency", 9, _latency, report)
    if report.stages:
        plots["stages"] = _draw("stages", "Time of each stage", 1.2 * len(report.stages), _stages, report)
    return plots


def _draw(
    name: str, text: str, rows: float, draw: Callable[[Axes, BuildReport], None], report: BuildReport
) -> Plot:
    """Draw one plot at both widths."""
    pictures = []
    for suffix, width in (("w", WIDE_IN), ("n", NARROW_IN)):
        pictures.append(
            _picture(f"{name}-{suffix}-", width, 0.75 + ROW_IN * rows, lambda ax: draw(ax, report))
        )
    return Plot(name, text, pictures[0], pictures[1])


def _picture(prefix: str, width: float, height: float, draw: Callable[[Axes], None]) -> str:
    """Return one figure as an SVG element without page furniture."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with mpl.rc_context(_SETTINGS), warnings.catch_warnings():
        # The browser has fonts for scripts that matplotlib's own lacks; only its measuring is off then.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        figure = Figure(figsize=(width, height), facecolor="none")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot(facecolor="none")
        _plain_axes(axes)
        draw(axes)
        _fit(figure, axes)
        buffer = io.StringIO()
        figure.savefig(
            buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    return _for_page(buffer.getvalue(), prefix)


def _plain_axes(axes: Axes) -> None:
    """Leave only a base line, a light grid across it and small labels."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_COLOUR["rule"])
    axes.tick_params(axis="x", length=0, pad=5, colors=_COLOUR["muted"])
    axes.tick_params(axis="y", length=0, pad=6, colors=_COLOUR["ink"])
    axes.grid(axis="x", color=_COLOUR["rule"], linewidth=0.6)
    axes.set_axisbelow(True)


def _fit(figure: Figure, axes: Axes) -> None:
    """Give the axes all the room that its labels leave.

    matplotlib measures with its own wide font, so the page's text is at most as wide.
    """
    width, height = figure.get_size_inches()
    left = max((label.get_window_extent().width for label in axes.get_yticklabels()), default=0.0)
    left_in = left / figure.dpi + 0.12
    axes.set_position((left_in / width, 0.5 / height, 1 - (left_in + 0.2) / width, 1 - 0.62 / height))


def _for_page(svg: str, prefix: str) -> str:
    """Strip the XML prologue, prefix ids, and hand colours and fonts over to the page's style sheet."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = re.sub(r'(xlink:href="#|url\(#)', rf"\1{prefix}", svg)
    svg = re.sub(
        r'^<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 aria-hidden="true" focusable="false">', svg
    )
    svg = svg.replace("xlink:href", "href")
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return re.sub(r"font: (?:(\d+|bold) )?([\d.]+)px [^;\"]*", _font, svg)


def _font(match: re.Match[str]) -> str:
    weight = f"; font-weight: {match[1]}" if match[1] else ""
    return f"font-size: {match[2]}px{weight}"


def _is_narrow(axes: Axes) -> bool:
    """Tell whether this is the drawing for a phone."""
    return bool(axes.bbox.width < WIDE_IN * 36)


def _label(axes: Axes, text: str) -> str:
    """Return a name short enough for an axis; tables have it in full."""
    text = wording.plain(text)
    length = LABEL_LENGTH[_is_narrow(axes)]
    return text if len(text) <= length else text[: length - 1] + "…"


def _accuracy(axes: Axes, report: BuildReport) -> None:
    """Draw a dot with its interval for each model, models grouped by domain."""
    models, domains = report.accuracy, report.domains
    step = len(models) + 1
    lowest = 1.0
    for group, domain in enumerate(domains):
        if domain in report.held_out:
            axes.axhspan(group * step - 0.75, (group + 1) * step - 1.25, color=_COLOUR["band"], linewidth=0)
        for offset, model in enumerate(models):
            value = model.summary.domains.get(domain)
            if value is None:
                continue
            y, colour = group * step + offset, _COLOUR[model.key]
            lowest = min(lowest, value.lower)
            axes.plot((100 * value.lower, 100 * value.upper), (y, y), color=colour, linewidth=1.4, zorder=2)
            face = _COLOUR["paper"] if model.key == "student" else colour
            axes.plot(
                100 * value.accuracy,
                y,
                _MARKER[model.key],
                markersize=5.2,
                color=colour,
                markerfacecolor=face,
                markeredgewidth=1.3,
                zorder=3,
            )
    centres = [group * step + (len(models) - 1) / 2 for group in range(len(domains))]
    names = [
        f"{_label(axes, name)}\nheld out" if name in report.held_out else _label(axes, name)
        for name in domains
    ]
    axes.set_yticks(centres, names)
    for label, name in zip(axes.get_yticklabels(), domains, strict=True):
        label.set_fontweight("bold" if name in report.held_out else "normal")
    axes.set_ylim(len(domains) * step - 1, -1)
    axes.set_xlim(max(0.0, 100 * lowest - 4), 101)
    axes.set_xlabel("top-1 accuracy, %", color=_COLOUR["muted"])


def _candidates(axes: Axes, report: BuildReport) -> None:
    """Draw each candidate's observed worst drop and, as a line to a tick, its upper bound."""
    for y, row in enumerate(report.candidates):
        colour = _COLOUR[row.verdict]
        axes.plot((row.worst_drop, row.worst_upper), (y, y), color=colour, linewidth=1.6)
        axes.plot(row.worst_upper, y, "|", color=colour, markersize=9, markeredgewidth=1.6)
        axes.plot(row.worst_drop, y, "o", color=colour, markersize=5.2)
    axes.axvline(report.budget.worst_points, color=_COLOUR["ink"], linewidth=1, linestyle=(0, (3, 2)))
    count = len(report.candidates)
    axes.annotate(
        "budget",
        (report.budget.worst_points, -0.95),
        xytext=(4, 0),
        textcoords="offset points",
        color=_COLOUR["ink"],
        va="center",
        ha="left",
    )
    axes.set_yticks(range(count), [_label(axes, row.name) for row in report.candidates])
    axes.set_ylim(count - 0.4, -1.2)
    low = min(0.0, *(row.worst_drop for row in report.candidates))
    high = max(report.budget.worst_points, *(row.worst_upper for row in report.candidates))
    axes.set_xlim(low - 0.05 * (high - low), high + 0.18 * (high - low))
    axes.set_xlabel("drop of the worst domain, points", color=_COLOUR["muted"])


def _latency(axes: Axes, report: BuildReport) -> None:
    """Draw the share of calls done within a time, with the median and the 99th percentile marked."""
    keys = ("shipped", "student", "erm", "teacher")
    ends = []
    for index, row in enumerate(report.latency):
        stats = row.stats
        colour = _COLOUR[keys[index % len(keys)]]
        quantiles = stats.quantiles_ms
        shares = [100 * i / (len(quantiles) - 1) for i in range(len(quantiles))]
        axes.plot(
            quantiles, shares, color=colour, linewidth=1.8, linestyle="-" if index == 0 else (0, (4, 1.5))
        )
        axes.plot(stats.p50_ms, 50, "o", color=colour, markersize=4.8)
        if stats.p99_ms is not None:
            axes.plot(stats.p99_ms, 99, "D", color=colour, markersize=4)
        ends.append(quantiles[int(0.99 * (len(quantiles) - 1))])
    start = min(row.stats.min_ms for row in report.latency)
    axes.set_xlim(start - 0.04 * (max(ends) - start) - 1e-9, max(ends) + 0.06 * (max(ends) - start) + 1e-9)
    axes.set_ylim(0, 103)
    axes.set_yticks((0, 25, 50, 75, 100), ("0 %", "25 %", "50 %", "75 %", "100 %"))
    axes.grid(axis="y", color=_COLOUR["rule"], linewidth=0.6)
    axes.set_xlabel("milliseconds for one image", color=_COLOUR["muted"])


def _stages(axes: Axes, report: BuildReport) -> None:
    """Draw a bar a stage with its time at the end; cached ones hollow."""
    longest = max(stage.seconds for stage in report.stages) or 1.0
    for y, stage in enumerate(report.stages):
        face = _COLOUR["paper"] if stage.cached else _COLOUR["student"]
        axes.barh(y, stage.seconds, height=0.55, color=face, edgecolor=_COLOUR["student"], linewidth=0.9)
        text = wording.seconds(stage.seconds) + (", cached" if stage.cached else "")
        axes.annotate(
            text,
            (stage.seconds, y),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            color=_COLOUR["ink"],
        )
    axes.set_yticks(range(len(report.stages)), [_label(axes, stage.name) for stage in report.stages])
    axes.set_ylim(len(report.stages) - 0.4, -0.6)
    # Room for the text at the end of the longest bar, whose size in data depends on the width.
    axes.set_xlim(0, longest * (1.55 if _is_narrow(axes) else 1.16))
    axes.set_xlabel("seconds", color=_COLOUR["muted"])
