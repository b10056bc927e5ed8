"""Outlines and the parts made of them: the vocabulary the object classes are drawn with.

Object coordinates: x to the right, y DOWN, the object roughly within [-1, 1] on both axes.
Letters in shapes: N points of an outline.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Outline = npt.NDArray[np.float64]
"""Points of an outline, (N, 2)."""
Point = tuple[float, float]


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One piece of an object: an outline and what it is made of.

    Args:
        outline: (N, 2) points.
        role: What it is made of (`main`, `dark`, `light`, `second`, `wood`, ...): decides its colour.
        stroke: 0 for a filled area; else the width of a line drawn along the outline.
        closed: Whether the outline's end joins its start.
        detail: A small thing drawn on top of the object, with thin or no contour.
    """

    outline: Outline
    role: str
    stroke: float = 0.0
    closed: bool = True
    detail: bool = False


def between(rng: np.random.Generator, low: float, high: float) -> float:
    """A uniform draw from [low, high)."""
    return low + (high - low) * float(rng.random())


def chance(rng: np.random.Generator, probability: float) -> bool:
    """True with the given probability."""
    return bool(rng.random() < probability)


def points(*xy: Point) -> Outline:
    """An outline with straight edges through the given points."""
    return np.array(xy, dtype=np.float64)


def ellipse(cx: float, cy: float, rx: float, ry: float | None = None, turn: float = 0.0) -> Outline:
    """A closed ellipse; `turn` in radians."""
    return arc(cx, cy, rx, ry, 0.0, 2 * math.pi, turn)[:-1]


def arc(
    cx: float, cy: float, rx: float, ry: float | None, start: float, stop: float, turn: float = 0.0
) -> Outline:
    """An open arc of an ellipse from angle `start` to `stop`, in radians, clockwise on screen."""
    count = max(6, int(abs(stop - start) * (4 + 6 * max(rx, ry or rx))))
    angles = np.linspace(start, stop, count + 1)
    x, y = rx * np.cos(angles), (rx if ry is None else ry) * np.sin(angles)
    c, s = math.cos(turn), math.sin(turn)
    return np.stack([cx + c * x - s * y, cy + s * x + c * y], axis=1)


def curve(*xy: Point, closed: bool = True, steps: int = 7) -> Outline:
    """A smooth curve through the given points (Catmull-Rom)."""
    p = np.array(xy, dtype=np.float64)
    before, after = (p[-1:], p[:2]) if closed else (2 * p[:1] - p[1:2], 2 * p[-1:] - p[-2:-1])
    p = np.concatenate([before, p, after])
    a, b, c, d = p[:-3], p[1:-2], p[2:-1], p[3:]
    t = np.linspace(0.0, 1.0, steps, endpoint=False)[None, :, None]
    a, b, c, d = (q[:, None, :] for q in (a, b, c, d))
    out = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    flat: Outline = out.reshape(-1, 2)
    return flat if closed else np.concatenate([flat, p[-2:-1]])


def softened(outline: Outline, times: int = 2) -> Outline:
    """A closed outline with its corners cut (Chaikin), for bodies that are angular but not sharp."""
    for _ in range(times):
        following = np.roll(outline, -1, axis=0)
        near, far = 0.8 * outline + 0.2 * following, 0.2 * outline + 0.8 * following
        outline = np.stack([near, far], axis=1).reshape(-1, 2)
    return outline


def box(x0: float, y0: float, x1: float, y1: float, soft: int = 0) -> Outline:
    """A rectangle, its corners cut `soft` times."""
    outline = points((x0, y0), (x1, y0), (x1, y1), (x0, y1))
    return softened(outline, soft) if soft else outline


def turned(outline: Outline, angle: float, about: Point = (0.0, 0.0)) -> Outline:
    """The outline rotated by `angle` radians (clockwise on screen) about a point."""
    c, s = math.cos(angle), math.sin(angle)
    centre = np.array(about)
    rotated: Outline = (outline - centre) @ np.array([[c, s], [-s, c]]) + centre
    return rotated


def mirrored(outline: Outline, scale: float = 1.0) -> Outline:
    """The outline mirrored left to right, its width scaled."""
    flipped: Outline = outline * np.array([-scale, 1.0])
    return flipped


def moved(outline: Outline, dx: float, dy: float, scale: float = 1.0) -> Outline:
    """The outline scaled about the origin, then shifted."""
    shifted: Outline = outline * scale + np.array([dx, dy])
    return shifted


def turned_all(parts: Sequence[Part], angle: float) -> list[Part]:
    """The parts rotated together by `angle` radians about the origin."""
    return [replace(part, outline=turned(part.outline, angle)) for part in parts]


def moved_all(parts: Sequence[Part], dx: float, dy: float, scale: float = 1.0) -> list[Part]:
    """The parts scaled together about the origin, then shifted."""
    return [replace(p, outline=moved(p.outline, dx, dy, scale), stroke=p.stroke * scale) for p in parts]


def line(*xy: Point, role: str, width: float, smooth: bool = False, detail: bool = False) -> Part:
    """An open line of a given width as a part."""
    outline = curve(*xy, closed=False) if smooth else points(*xy)
    return Part(outline, role, stroke=width, closed=False, detail=detail)


def fills(role: str, outlines: Sequence[Outline], detail: bool = False) -> list[Part]:
    """Several filled parts of one role."""
    return [Part(outline, role, detail=detail) for outline in outlines]


def eye(x: float, y: float, r: float) -> list[Part]:
    """A white eye with a pupil that looks ahead."""
    pupil = ellipse(x + r * 0.25, y, r * 0.6)
    return [Part(ellipse(x, y, r), "white", detail=True), Part(pupil, "black", detail=True)]
