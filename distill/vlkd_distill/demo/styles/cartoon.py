"""The cartoon look: flat loud colours, thick dark outlines, a simple or dotted background."""

from __future__ import annotations

import colorsys

import numpy as np
from PIL import Image, ImageFilter

from ..backdrop import Backdrop, backdrop
from ..palette import Colour, Palette, mix, palette
from ..placing import Placed, place
from ..raster import Canvas, ink
from ..scene import Scene
from ..shapes.geometry import between, chance, ellipse, points

Rng = np.random.Generator


def draw(scene: Scene, size: int) -> Image.Image:
    """Render the scene as a cartoon."""
    rng = np.random.default_rng([scene.seed, 3])
    placed = place(scene)
    colours = {role: _loud(c) for role, c in palette(scene, rng, hue=0.015, light=0.08).items()}
    canvas = _background(backdrop(scene), rng, size)
    line = between(rng, 0.02, 0.032)
    black = ink(mix(np.array([0.08, 0.06, 0.12], np.float32), colours["main"], 0.08))
    if chance(rng, 0.3):
        _halo(canvas, placed, size)
    _object(canvas, placed, colours, line, black)
    return canvas.reduced()


def _loud(colour: Colour) -> Colour:
    """The colour brighter and more saturated; greys stay grey."""
    h, s, v = colorsys.rgb_to_hsv(*(float(c) for c in colour))
    s, v = (min(1.0, s * 1.35 + 0.06), min(1.0, v * 1.1 + 0.04)) if s > 0.15 else (s, min(1.0, v * 1.06))
    return np.array(colorsys.hsv_to_rgb(h, s, v), dtype=np.float32)


def _background(back: Backdrop, rng: Rng, size: int) -> Canvas:
    pale = np.float32(between(rng, 0.0, 0.3))
    tones = [_loud(c) * (1 - pale) + pale for c in (back.top, back.bottom)]
    canvas = Canvas(size, "RGB", ink(tones[0]))
    if chance(rng, 0.25):
        _rays(canvas, tones, rng)
    lines = chance(rng, 0.4)
    for shape in back.shapes:
        tone = _loud(shape.colour) * (1 - pale) + pale
        if shape.stroke:
            canvas.stroke(shape.outline, ink(tone), shape.stroke, closed=False)
            continue
        canvas.fill(shape.outline, ink(tone))
        if lines:
            canvas.stroke(shape.outline, ink(tone * np.float32(0.6)), 0.007, closed=True)
    if chance(rng, 0.45):
        _halftone(canvas, tones, rng)
    return canvas


def _rays(canvas: Canvas, tones: list[Colour], rng: Rng) -> None:
    x, y, count = between(rng, 0.3, 0.7), between(rng, 0.3, 0.7), int(rng.integers(7, 12))
    angles = np.linspace(0, 2 * np.pi, 2 * count + 1) + between(rng, 0, 1)
    for k in range(count):
        a, b = angles[2 * k], angles[2 * k + 1]
        wedge = points((x, y), (x + 2 * np.cos(a), y + 2 * np.sin(a)), (x + 2 * np.cos(b), y + 2 * np.sin(b)))
        canvas.fill(wedge, ink(tones[1]))


def _halftone(canvas: Canvas, tones: list[Colour], rng: Rng) -> None:
    """Dots that grow towards one side, as printed comics shade a sky."""
    down, pitch, tone = chance(rng, 0.5), between(rng, 0.05, 0.075), ink(tones[0] * np.float32(0.86))
    count = int(1 / pitch) + 1
    disc = ellipse(0, 0, 1)[::2]
    for row in range(count):
        share = row / count
        r = pitch * 0.48 * (share if down else 1 - share)
        if r * canvas.side < 0.8:
            continue
        for column in range(count + 1):
            canvas.fill(disc * r + ((column + 0.5 * (row % 2)) * pitch, row * pitch), tone)


def _halo(canvas: Canvas, placed: Placed, size: int) -> None:
    """A white border around the whole object, as on a sticker."""
    shape = Canvas(size, "L", 0)
    for part in placed.parts:
        if not part.detail:
            shape.part(part, 255)
            shape.stroke(part.outline, 255, 0.02 + part.stroke, part.closed)
    wide = shape.reduced().filter(ImageFilter.GaussianBlur(size * 0.03)).resize(canvas.image.size)
    canvas.image.paste((255, 255, 255), mask=wide.point([min(255, max(0, (v - 34) * 9)) for v in range(256)]))


def _object(
    canvas: Canvas, placed: Placed, colours: Palette, line: float, black: tuple[int, int, int]
) -> None:
    wide = placed.right - placed.left
    for part in placed.parts:
        tone = ink(colours[part.role])
        if part.stroke and not part.detail:
            canvas.stroke(part.outline, black, part.stroke + line * 1.3, part.closed)
            canvas.stroke(part.outline, tone, part.stroke, part.closed)
        elif part.stroke:
            dark = part.role in ("dark", "black", "shade")
            canvas.stroke(
                part.outline,
                black if dark else tone,
                max(part.stroke, line * (0.5 if dark else 0.25)),
                part.closed,
            )
        else:
            canvas.fill(part.outline, tone)
            _highlight(canvas, part.outline, colours[part.role], wide, part.detail)
            canvas.stroke(part.outline, black, line * (0.45 if part.detail else 1.0), closed=True)


def _highlight(
    canvas: Canvas,
    outline: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
    colour: Colour,
    wide: float,
    detail: bool,
) -> None:
    """One flat step of light on the upper left of a large part."""
    low, high = outline.min(axis=0), outline.max(axis=0)
    extent = high - low
    if detail or float(extent.min()) < 0.3 * wide:
        return
    centre = low + extent * np.array([0.5, 0.5])
    glint = centre + (outline - centre) * 0.72 + extent * np.array([-0.06, -0.07])
    canvas.fill(glint, ink(mix(colour, np.ones(3, np.float32), 0.22)))
