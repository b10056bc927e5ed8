"""Draws plots as SVG that takes its colours from the page and reads the same on every build.

Each plot is drawn twice, for a wide page and for a phone, at about the same type size; the page shows one of them.
matplotlib draws with marker colours that are then replaced by the page's CSS variables, so that one picture
serves light, dark and print.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import wording

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDE_IN = 9.0
NARROW_IN = 3.9
HALF_IN = 4.4
ROW_IN = 0.24
LABEL_LENGTH = (36, 19)
# Names right of the axes, and how far from them.
END, END_GAP_IN = "end", 0.14

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
COLOUR = {variable[2:]: colour for colour, variable in _VARIABLES.items()}
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


def can_draw() -> bool:
    """Tell whether matplotlib is there; without it the pages have their tables alone, which hold every number."""
    try:
        import matplotlib as _  # noqa: F401
    except ImportError:
        return False
    return True


def draw(
    name: str,
    text: str,
    rows: float,
    paint: Callable[[Axes], None],
    *,
    wide_in: float = WIDE_IN,
) -> Plot:
    """Draw one plot at both widths.

    Args:
        name: Unique on its page.
        text: What it shows, for those who cannot see it.
        rows: Height in rows of type.
        paint: Draws it.
        wide_in: Width on a wide page, in inches; half of it where two plots stand side by side.
    """
    pictures = [
        _picture(f"{name}-{suffix}-", width, 0.75 + ROW_IN * rows, paint)
        for suffix, width in (("w", wide_in), ("n", NARROW_IN))
    ]
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
    axes.spines["bottom"].set_color(COLOUR["rule"])
    axes.tick_params(axis="x", length=0, pad=5, colors=COLOUR["muted"])
    axes.tick_params(axis="y", length=0, pad=6, colors=COLOUR["ink"])
    axes.grid(axis="x", color=COLOUR["rule"], linewidth=0.6)
    axes.set_axisbelow(True)


def _fit(figure: Figure, axes: Axes) -> None:
    """Give the axes all the room that its labels leave.

    matplotlib measures with its own wide font, so the page's text is at most as wide.
    """
    from matplotlib.text import Text

    width, height = figure.get_size_inches()
    left = max((text.get_window_extent().width for text in axes.get_yticklabels()), default=0.0)
    # The text's own extent: an annotation's includes its line.
    ends = [Text.get_window_extent(text).width for text in axes.texts if text.get_label() == END]
    left_in, right_in = left / figure.dpi + 0.12, max(ends, default=0.0) / figure.dpi + 0.2
    right_in += END_GAP_IN if ends else 0.0
    axes.set_position((left_in / width, 0.5 / height, 1 - (left_in + right_in) / width, 1 - 0.62 / height))


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


def is_narrow(axes: Axes) -> bool:
    """Tell whether this is the drawing for a phone, or for half a page."""
    return bool(axes.bbox.width < WIDE_IN * 50)


def end_labels(axes: Axes, names: Sequence[tuple[float, float, str, str]], gap: float) -> None:
    """Write names right of the axes, each as near to the height of its point as the others let it, with a line to it.

    Args:
        axes: Whose limits are set already.
        names: x and y of each point, its name and the variable of its colour.
        gap: Least distance of two names, as a share of the axes' height.
    """
    low, high = axes.get_ylim()
    order = sorted(names, key=lambda item: item[1])
    texts = [folded(axes, name) for _, _, name, _ in order]
    if any("\n" in text for text in texts):
        gap = min(1.8 * gap, 1.0 / len(order))
    heights = spread([(y - low) / (high - low) for _, y, _, _ in order], gap)
    for (x, y, _, colour), text, height in zip(order, texts, heights, strict=True):
        axes.annotate(
            text,
            (x, y),
            xytext=(1.0 + END_GAP_IN / 4, height),
            textcoords="axes fraction",
            color=COLOUR[colour],
            va="center",
            ha="left",
            label=END,
            arrowprops={
                "arrowstyle": "-",
                "color": COLOUR["rule"],
                "linewidth": 0.8,
                "shrinkA": 1,
                "shrinkB": 4,
                "relpos": (0, 0.5),
            },
        )


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Move sorted heights as little as it takes to keep a gap between them and all of them within 0 and 1.

    Heights that are too near form a block about their mean, which grows by whatever it meets.
    """
    blocks: list[
        list[float]
    ] = []  # of each: the sum of its members' wanted places less their gaps, and their number
    for number, height in enumerate(heights):
        blocks.append([height - number * gap, 1.0])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] >= blocks[-1][0] / blocks[-1][1]:
            last = blocks.pop()
            blocks[-1][0] += last[0]
            blocks[-1][1] += last[1]
    top = 1.0 - max(len(heights) - 1, 0) * gap
    places: list[float] = []
    for total, members in blocks:
        bottom = min(max(total / members, 0.0), max(top, 0.0))
        places += [bottom + (len(places) + k) * gap for k in range(int(members))]
    return places


def label(axes: Axes, text: str) -> str:
    """Return a name short enough for an axis; tables have it in full."""
    text = wording.plain(text)
    length = LABEL_LENGTH[is_narrow(axes)]
    return text if len(text) <= length else text[: length - 1] + "…"


def folded(axes: Axes, text: str) -> str:
    """Return a name on one line, or on two where a hyphen lets it; what is longer is shortened as by `label`."""
    text, length = wording.plain(text), LABEL_LENGTH[is_narrow(axes)]
    end = text.rfind("-", 0, length) + 1
    if len(text) <= length or end == 0:
        return label(axes, text)
    return f"{text[:end]}\n{label(axes, text[end:])}"
