"""What is behind the object: a background as coloured outlines, which each style renders its own way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from PIL import Image

from .palette import Colour, varied
from .scene import Scene
from .shapes.geometry import Outline, between, box, chance, curve, ellipse, moved, points


@dataclass(frozen=True, slots=True, eq=False)
class Shape:
    """One thing in the background: an outline, filled, or a line of a width when `stroke` is above 0."""

    outline: Outline
    colour: Colour
    stroke: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Backdrop:
    """A background in picture coordinates.

    Args:
        top, bottom: The colours the picture is graded between, from top to bottom.
        shapes: What is drawn over that, back to front.
        horizon: Height at which the ground begins, 0..1; 1 when there is none.
    """

    top: Colour
    bottom: Colour
    shapes: tuple[Shape, ...]
    horizon: float

    def gradient(self) -> Image.Image:
        """A two-pixel-high picture to be stretched over the canvas."""
        rows = np.stack([self.top, self.bottom])[:, None, :].repeat(2, axis=1)
        return Image.fromarray((np.clip(rows, 0, 1) * 255).astype(np.uint8))


Rng = np.random.Generator


def _c(r: int, g: int, b: int) -> Colour:
    return np.array((r, g, b), dtype=np.float32) / 255


def _hills(rng: Rng, horizon: float, colour: Colour, rise: float) -> Shape:
    heights = horizon - rng.random(5) * rise
    ridge = curve(
        *[(float(x), float(y)) for x, y in zip(np.linspace(-0.1, 1.1, 5), heights, strict=True)], closed=False
    )
    return Shape(np.concatenate([ridge, points((1.1, 1.1), (-0.1, 1.1))]), colour)


def _clouds(rng: Rng, count: int, low: float, colour: Colour) -> list[Shape]:
    shapes = []
    for _ in range(count):
        x, y, w = between(rng, 0, 1), between(rng, 0.03, low), between(rng, 0.08, 0.17)
        for dx, dy, k in ((-0.7, 0.12, 0.6), (0.0, 0.0, 0.8), (0.75, 0.14, 0.55)):
            shapes.append(Shape(ellipse(x + dx * w, y + dy * w, w * k, w * k * 0.55), colour))
    return shapes


def _dots(rng: Rng, count: int, low: float, high: float, colours: list[Colour], r: float) -> list[Shape]:
    return [
        Shape(
            ellipse(between(rng, 0, 1), between(rng, low, high), r * between(rng, 0.5, 1.2)),
            colours[k % len(colours)],
        )
        for k in range(count)
    ]


def _meadow(rng: Rng) -> Backdrop:
    horizon, green = between(rng, 0.4, 0.66), varied(_c(120, 178, 78), rng, 0.03, 0.2)
    shapes = _clouds(rng, int(rng.integers(0, 3)), horizon * 0.6, _c(246, 249, 252))
    shapes += [_hills(rng, horizon, green * np.float32(0.78), 0.16), _hills(rng, horizon + 0.08, green, 0.05)]
    blooms = [varied(_c(246, 220, 90), rng, 0.5, 0.1), _c(250, 250, 244)]
    shapes += _dots(rng, int(rng.integers(5, 14)), horizon + 0.12, 1.0, blooms, 0.012)
    for _ in range(int(rng.integers(6, 14))):
        x, y, h = between(rng, 0, 1), between(rng, horizon + 0.12, 1.02), between(rng, 0.03, 0.07)
        shapes.append(
            Shape(points((x, y), (x + between(rng, -0.02, 0.02), y - h)), green * np.float32(0.7), 0.012)
        )
    return Backdrop(varied(_c(132, 190, 236), rng, 0.03, 0.15), _c(222, 236, 242), tuple(shapes), horizon)


def _sea(rng: Rng) -> Backdrop:
    horizon, blue = between(rng, 0.2, 0.55), varied(_c(40, 118, 168), rng, 0.04, 0.2)
    shapes = _clouds(rng, int(rng.integers(0, 3)), horizon * 0.7, _c(244, 246, 250))
    if chance(rng, 0.4):
        shapes.append(
            Shape(ellipse(between(rng, 0.1, 0.9), horizon - between(rng, 0.0, 0.12), 0.08), _c(252, 226, 150))
        )
    if chance(rng, 0.4):
        shapes.append(_hills(rng, horizon, _c(98, 126, 134), 0.1))
    shapes.append(Shape(box(-0.1, horizon, 1.1, 1.1), blue))
    shapes.append(Shape(box(-0.1, horizon + 0.3, 1.1, 1.1), blue * np.float32(0.86)))
    for _ in range(int(rng.integers(8, 16))):
        x, y, w = between(rng, -0.1, 1), between(rng, horizon + 0.04, 1.0), between(rng, 0.05, 0.14)
        crest = curve((x, y), (x + w / 2, y - 0.015), (x + w, y), closed=False)
        shapes.append(Shape(crest, blue + np.float32(0.22), 0.01))
    return Backdrop(varied(_c(150, 200, 232), rng, 0.06, 0.15), _c(236, 232, 220), tuple(shapes), horizon)


def _sky(rng: Rng) -> Backdrop:
    shapes = _clouds(rng, int(rng.integers(3, 7)), 0.95, _c(240, 244, 250))
    if chance(rng, 0.3):
        shapes.insert(
            0, Shape(ellipse(between(rng, 0.1, 0.9), between(rng, 0.1, 0.4), 0.07), _c(255, 240, 190))
        )
    top = varied(_c(86, 150, 222), rng, 0.06, 0.2)
    return Backdrop(top, varied(_c(196, 222, 242), rng, 0.2, 0.1), tuple(shapes), 1.0)


def _city(rng: Rng) -> Backdrop:
    horizon = between(rng, 0.6, 0.76)
    shapes, x = [], -0.08
    while x < 1.05:
        w, top = between(rng, 0.12, 0.26), between(rng, 0.05, horizon - 0.15)
        wall = varied(_c(150, 142, 138), rng, 0.5, 0.3)
        shapes.append(Shape(box(x, top, x + w, horizon), wall))
        pane = _c(250, 232, 160) if chance(rng, 0.4) else wall * np.float32(0.6)
        for wy in np.arange(top + 0.04, horizon - 0.06, 0.09):
            for wx in np.arange(x + 0.03, x + w - 0.04, 0.065):
                if chance(rng, 0.75):
                    shapes += [Shape(box(float(wx), float(wy), float(wx) + 0.028, float(wy) + 0.04), pane)]
        x += w + between(rng, 0.0, 0.04)
    road = varied(_c(116, 116, 122), rng, 0.05, 0.15)
    shapes.append(Shape(box(-0.1, horizon, 1.1, 1.1), road * np.float32(1.25)))
    shapes.append(Shape(box(-0.1, horizon + 0.07, 1.1, 1.1), road))
    dash, white = box(0.0, horizon + 0.2, 0.14, horizon + 0.22), _c(226, 222, 204)
    shapes += [Shape(moved(dash, 0.3 * k, 0.0), white) for k in range(4)]
    return Backdrop(varied(_c(168, 188, 208), rng, 0.06, 0.15), _c(226, 218, 208), tuple(shapes), horizon)


def _room(rng: Rng) -> Backdrop:
    horizon, wall = between(rng, 0.58, 0.76), varied(_c(206, 190, 168), rng, 0.5, 0.16)
    shapes = []
    if chance(rng, 0.5):
        for x in np.arange(between(rng, 0, 0.08), 1.0, 0.13):
            shapes += [Shape(box(float(x), -0.1, float(x) + 0.05, horizon), wall * np.float32(0.92))]
    for x in (between(rng, 0.0, 0.3), between(rng, 0.6, 0.85)):
        y, w, h = between(rng, 0.05, 0.2), between(rng, 0.14, 0.24), between(rng, 0.16, 0.28)
        frame, inside = varied(_c(120, 84, 56), rng, 0.05, 0.3), varied(_c(170, 196, 206), rng, 0.5, 0.25)
        slope, streak = (
            points((x, y + h * 0.7), (x + w, y + h * 0.4)),
            varied(_c(96, 130, 104), rng, 0.5, 0.3),
        )
        shapes.append(Shape(box(x - 0.015, y - 0.015, x + w + 0.015, y + h + 0.015), frame))
        shapes += [Shape(box(x, y, x + w, y + h), inside), Shape(slope, streak, 0.03)]
    floor = varied(_c(150, 108, 72), rng, 0.06, 0.25)
    shapes.append(Shape(box(-0.1, horizon, 1.1, 1.1), floor))
    shapes.append(Shape(box(-0.1, horizon, 1.1, horizon + 0.025), floor * np.float32(0.7)))
    for x in np.linspace(-0.4, 1.4, 8):
        board = points((0.15 + 0.7 * float(x), horizon + 0.03), (float(x), 1.05))
        shapes += [Shape(board, floor * np.float32(0.82), 0.008)]
    return Backdrop(wall, wall * np.float32(0.88), tuple(shapes), horizon)


def _forest(rng: Rng) -> Backdrop:
    horizon, green = between(rng, 0.55, 0.75), varied(_c(62, 104, 58), rng, 0.03, 0.2)
    shapes = _dots(rng, 12, 0.0, 0.45, [green, green * np.float32(1.2), green * np.float32(0.8)], 0.16)
    for k in range(int(rng.integers(5, 9))):
        x, w = between(rng, -0.05, 1.0), between(rng, 0.03, 0.08)
        bark = varied(_c(84, 66, 50), rng, 0.02, 0.25) * np.float32(0.7 + 0.07 * k)
        shapes.append(
            Shape(
                points(
                    (x, -0.1), (x + w * 0.8, -0.1), (x + w, horizon + 0.06), (x - w * 0.1, horizon + 0.06)
                ),
                bark,
            )
        )
    earth = varied(_c(98, 92, 58), rng, 0.03, 0.2)
    shapes.append(_hills(rng, horizon + 0.04, earth, 0.06))
    shapes += _dots(
        rng,
        16,
        horizon + 0.08,
        1.0,
        [varied(_c(150, 110, 56), rng, 0.04, 0.2), green, earth * np.float32(0.7)],
        0.022,
    )
    return Backdrop(varied(_c(140, 172, 128), rng, 0.04, 0.2), _c(196, 206, 160), tuple(shapes), horizon)


def _snow(rng: Rng) -> Backdrop:
    horizon, white = between(rng, 0.45, 0.68), varied(_c(232, 238, 246), rng, 0.02, 0.05)
    shapes = [
        _hills(rng, horizon, _c(186, 202, 222), 0.3),
        _hills(rng, horizon + 0.02, _c(208, 220, 234), 0.14),
    ]
    shapes.append(_hills(rng, horizon + 0.08, white, 0.05))
    shapes += _dots(rng, int(rng.integers(14, 30)), 0.0, 1.0, [_c(255, 255, 255)], 0.013)
    return Backdrop(varied(_c(150, 170, 200), rng, 0.05, 0.15), _c(220, 226, 236), tuple(shapes), horizon)


def _plain(rng: Rng) -> Backdrop:
    base = varied(_c(216, 210, 200), rng, 0.5, 0.18)
    horizon = between(rng, 0.6, 0.8) if chance(rng, 0.4) else 1.0
    shapes = [Shape(box(-0.1, horizon, 1.1, 1.1), base * np.float32(0.84))] if horizon < 1 else []
    return Backdrop(base, base * np.float32(0.9), tuple(shapes), horizon)


_PAINTERS: Mapping[str, Callable[[Rng], Backdrop]] = MappingProxyType(
    {
        "meadow": _meadow,
        "sea": _sea,
        "sky": _sky,
        "city": _city,
        "room": _room,
        "forest": _forest,
        "snow": _snow,
        "plain": _plain,
    }
)


def backdrop(scene: Scene) -> Backdrop:
    """The scene's background; a function of the scene alone."""
    return _PAINTERS[scene.background](np.random.default_rng([scene.seed, 2]))
