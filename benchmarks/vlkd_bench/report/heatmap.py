"""The heat map of class vectors as SVG, in the page's own colours; drawn by hand, for matplotlib knows no CSS."""

from __future__ import annotations

from html import escape

from . import wording
from .canvas import Plot
from .similarity import ClassSimilarity

CELL, LABEL_PX, FONT = 24.0, 5.3, 9.0
LONGEST = 16
NUMBERS_UP_TO = 12


def draw_heatmap(found: ClassSimilarity) -> Plot:
    """Return the map; a cell is the fuller, the nearer two classes are, and says how near where there is room."""
    names = [_short(name) for name in found.names]
    text = f"Cosines between the vectors of {len(names)} classes"
    return Plot("classes", text, _svg(found, names, 320.0), _svg(found, names, 281.0))


def _svg(found: ClassSimilarity, names: list[str], width: float) -> str:
    count = len(names)
    margin = 8.0 + LABEL_PX * max(len(name) for name in names)
    cell = min(CELL, (width - margin) / count)
    font = min(FONT, max(4.0, cell - 1.0))
    margin = 6.0 + LABEL_PX * font / FONT * max(len(name) for name in names)
    side = cell * count
    low, high = colour_range(found)
    parts = [
        f'<svg viewBox="0 0 {margin + side + 2:.1f} {margin + side + 2:.1f}" aria-hidden="true" focusable="false" '
        f'style="font-size: {font:.1f}px; max-width: {1.6 * (margin + side):.0f}px">'
    ]
    for i, name in enumerate(names):
        middle = margin + cell * (i + 0.5)
        parts.append(
            f'<text x="{margin - 4:.1f}" y="{middle:.1f}" dy=".35em" text-anchor="end">{escape(name)}</text>'
        )
        parts.append(
            f'<text transform="translate({middle:.1f} {margin - 4:.1f}) rotate(-90)" dy=".35em">{escape(name)}</text>'
        )
    for i, row in enumerate(found.cosines):
        for j, value in enumerate(row):
            x, y = margin + cell * j, margin + cell * i
            own = i == j
            fill = 0.0 if own else 0.06 + 0.94 * max(0.0, min(1.0, (value - low) / (high - low)))
            style = 'class="own"' if own else f'style="fill-opacity: {fill:.2f}"'
            parts.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{cell - 1:.1f}" height="{cell - 1:.1f}" {style}/>'
            )
            if count <= NUMBERS_UP_TO and not own:
                tone = ' class="on"' if fill > 0.55 else ""
                parts.append(
                    f'<text x="{x + cell / 2 - 0.5:.1f}" y="{y + cell / 2 - 0.5:.1f}" dy=".35em" '
                    f'text-anchor="middle" font-size="{0.82 * font:.1f}"{tone}>{_number(value)}</text>'
                )
    return "".join([*parts, "</svg>"])


def colour_range(found: ClassSimilarity) -> tuple[float, float]:
    """Return the cosines that the faintest and the fullest colour stand for: those of the shown pairs."""
    values = [value for i, row in enumerate(found.cosines) for j, value in enumerate(row) if i != j]
    low, high = min(values), max(values)
    return (low, high) if high - low > 1e-6 else (low, low + 1.0)


def _number(value: float) -> str:
    """Return a cosine in as few letters as a cell holds."""
    text = f"{value:.2f}".replace("0.", ".", 1)
    return {"1.00": "1", "-.00": "0"}.get(text, text).replace("-", "\N{MINUS SIGN}")


def _short(name: str) -> str:
    text = wording.plain(name)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
