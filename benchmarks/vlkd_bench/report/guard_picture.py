"""The guard's verdict as a picture: each drop with its bounds against its budget."""

from __future__ import annotations

import io
import warnings

from ..verdict import GuardVerdict
from . import wording

_COLOUR = {"pass": "#1a7f37", "fail": "#b42318", "inconclusive": "#9a6700"}
_GREY = "#6e7781"
_LONGEST_NAME = 32


def draw_guard(guard: GuardVerdict, title: str = "") -> bytes:
    """Return a PNG with one line a criterion: the dot is what was observed, the line ends at its bounds.

    A criterion within budget has its whole upper arm left of its budget's tick.

    Args:
        guard: The verdict.
        title: A headline; says the verdict if empty.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = guard.criteria
    figure = Figure(figsize=(8.0, 1.5 + 0.34 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for y, row in enumerate(rows):
        colour = _GREY
        if row.budget is not None:
            state = "fail" if row.over("lower") else "inconclusive" if row.over("upper") else "pass"
            colour = _COLOUR[state]
            axes.plot((row.budget, row.budget), (y - 0.36, y + 0.36), color="black", linewidth=1.6)
        axes.plot((row.bound.lower, row.bound.upper), (y, y), color=colour, linewidth=1.8)
        for end in (row.bound.lower, row.bound.upper):
            axes.plot(end, y, "|", color=colour, markersize=9, markeredgewidth=1.8)
        axes.plot(row.bound.drop, y, "o", color=colour, markersize=5.5)
    axes.axvline(0, color=_GREY, linewidth=0.6)
    names = [_short(row.label) + (", not judged" if row.budget is None else "") for row in rows]
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    kind = "virtual domains" if guard.comparison.virtual else "held-out domains"
    axes.set_xlabel(
        f"points, on {kind}; dot: observed, ends: bounds (upper: {100 * guard.comparison.upper_confidence:.4g} %), "
        "black: budget",
        fontsize=8,
        x=1.0,
        ha="right",
    )
    axes.set_title(
        wording.plain(title) or f"Guard: {guard.verdict}", loc="left", color=_COLOUR[guard.verdict]
    )
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _short(name: str) -> str:
    """Return a name that fits beside the axis and starts no formula."""
    text = wording.plain(name).replace("$", r"\$")
    return text if len(text) <= _LONGEST_NAME else text[: _LONGEST_NAME - 1] + "…"
