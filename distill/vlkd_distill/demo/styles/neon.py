"""The neon look: glowing coloured tubes along the contours, at night."""

from __future__ import annotations

import colorsys

import numpy as np
from PIL import Image, ImageFilter

from ..backdrop import backdrop
from ..palette import Colour, named_colour
from ..placing import Placed, place
from ..raster import Canvas, Pixels, coordinates, grain, noise, to_image, to_pixels
from ..scene import COLOURS, Scene
from ..shapes.geometry import between, chance, points

Rng = np.random.Generator


def draw(scene: Scene, size: int) -> Image.Image:
    """Render the scene as a neon sign."""
    rng = np.random.default_rng([scene.seed, 3])
    placed = place(scene)
    night = _night(scene, placed, rng, size)
    tubes = Canvas(size, "RGB", (0, 0, 0))
    _object(scene, placed, tubes, rng)
    glow = tubes.reduced()
    light = to_pixels(glow)
    near = to_pixels(glow.filter(ImageFilter.GaussianBlur(size * 0.018)))
    far = to_pixels(glow.filter(ImageFilter.GaussianBlur(size * between(rng, 0.05, 0.09))))
    core = np.clip(light.max(axis=-1, keepdims=True) * 1.5 - 0.75, 0, 1) * np.float32(between(rng, 0.3, 0.75))
    strength = between(rng, 0.8, 1.3)
    out = (
        night
        + light * np.float32(0.95)
        + near * np.float32(0.95 * strength)
        + far * np.float32(1.2 * strength)
    )
    return to_image(out + core + grain(rng, size)[..., None] * np.float32(0.008))


def _lamp(name: str) -> Colour:
    """A colour as gas in a tube gives it: full brightness, strong saturation."""
    h, s, _ = colorsys.rgb_to_hsv(*(float(c) for c in named_colour(name)))
    return np.array(
        colorsys.hsv_to_rgb(h, 0.1 if s < 0.15 else min(1.0, 0.45 + 0.55 * s), 1.0), dtype=np.float32
    )


def _ink(colour: Colour, power: float) -> tuple[int, int, int]:
    r, g, b = (np.clip(colour * power, 0, 1) * 255).astype(int).tolist()
    return r, g, b


def _night(scene: Scene, placed: Placed, rng: Rng, size: int) -> Pixels:
    """The dark scene behind (S, S, 3): a wall or a sky, faint shapes, sometimes bricks."""
    hue = float(rng.random())
    top = np.array(colorsys.hsv_to_rgb(hue, 0.6, between(rng, 0.03, 0.12)), dtype=np.float32)
    low = np.array(colorsys.hsv_to_rgb((hue + 0.12) % 1, 0.7, between(rng, 0.06, 0.22)), dtype=np.float32)
    canvas = Canvas(size, "RGB", (0, 0, 0))
    kind, back = float(rng.random()), backdrop(scene)
    faint = np.array(colorsys.hsv_to_rgb((hue + between(rng, 0.1, 0.5)) % 1, 0.8, 1.0), dtype=np.float32)
    power = between(rng, 0.1, 0.3)
    if kind < 0.6:
        for shape in back.shapes:
            if not shape.stroke:
                canvas.fill(shape.outline, _ink(shape.colour, 0.1))
            canvas.stroke(shape.outline, _ink(faint, power), 0.007, closed=not shape.stroke)
    elif kind < 0.85:
        _bricks(canvas, _ink(faint, power * 0.6))
    _, y = coordinates(size)
    base = top * (1 - y[..., None]) + low * y[..., None]
    return (base + canvas.pixels()) * (1 + noise(rng, size, 6, 2) * np.float32(0.15))[..., None]


def _bricks(canvas: Canvas, tone: tuple[int, int, int]) -> None:
    for row in range(12):
        y = row / 11
        canvas.stroke(points((0, y), (1, y)), tone, 0.006, closed=False)
        for column in range(6):
            x = (column + 0.5 * (row % 2)) / 5
            canvas.stroke(points((x, y), (x, y + 1 / 11)), tone, 0.006, closed=False)


def _object(scene: Scene, placed: Placed, tubes: Canvas, rng: Rng) -> None:
    """Draw the tubes, each area hiding the tubes behind it."""
    main = _lamp(scene.colour)
    others = [c for c in COLOURS if c not in ("brown", "grey", scene.colour)]
    second, third = (_lamp(others[int(k)]) for k in rng.choice(len(others), 2, replace=False))
    single = chance(rng, 0.3)
    width = between(rng, 0.013, 0.021)
    inside = between(rng, 0.0, 0.12)
    for part in placed.parts:
        if part.role == "string":
            continue
        if part.role in ("main", "dark", "light", "skin"):
            colour = main
        elif part.role in ("white", "whisker", "glass", "string", "smoke"):
            colour = main if single else np.full(3, 0.9, np.float32)
        else:
            colour = (
                main
                if single
                else (second if part.role in ("second", "leaf", "wood", "black", "roof") else third)
            )
        power = 0.62 if part.detail else 1.0
        if not part.stroke:
            tubes.fill(part.outline, _ink(colour, inside))
        elif part.stroke > 0.05:
            tubes.stroke(part.outline, (0, 0, 0), part.stroke, part.closed)
        tubes.stroke(part.outline, _ink(colour, power), width * (0.6 if part.detail else 1.0), part.closed)
