"""The photo look: light from one side, soft shadows, rough surfaces, an unsharp background, a lens."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

from ..backdrop import Backdrop, backdrop
from ..palette import Palette, palette
from ..placing import Placed, place
from ..raster import (
    OVERSAMPLING,
    Canvas,
    Pixels,
    blurred,
    coordinates,
    grain,
    ink,
    noise,
    to_image,
    to_pixels,
)
from ..scene import Scene
from ..shapes.geometry import Outline, between

Rng = np.random.Generator


def draw(scene: Scene, size: int) -> Image.Image:
    """Render the scene as a photograph."""
    rng = np.random.default_rng([scene.seed, 3])
    placed, colours = place(scene), palette(scene, rng, light=0.14)
    light = np.float32(between(rng, 0.5, 1.0)) * (1 if rng.random() < 0.5 else -1)
    behind = _background(backdrop(scene), rng, size)
    behind *= 1 - _shadow(placed, rng, float(light), size)[..., None]
    front, mask = _object(placed, colours, rng, float(light), size)
    out = behind * (1 - mask[..., None]) + front * mask[..., None]
    return to_image(_lens(out, rng, size))


def _background(back: Backdrop, rng: Rng, size: int) -> Pixels:
    canvas = Canvas(size, "RGB", back.gradient())
    for shape in back.shapes:
        if shape.stroke:
            canvas.stroke(shape.outline, ink(shape.colour), shape.stroke, closed=False)
        else:
            canvas.fill(shape.outline, ink(shape.colour))
    for _ in range(int(rng.integers(0, 5))):
        blob = _blob(rng, between(rng, 0, 1), between(rng, 0.2, 0.9), between(rng, 0.03, 0.08))
        canvas.fill(blob, ink(back.bottom * np.float32(between(rng, 0.5, 1.25))))
    soft = canvas.reduced().filter(ImageFilter.GaussianBlur(size * between(rng, 0.008, 0.026)))
    pixels = to_pixels(soft)
    _, y = coordinates(size)
    rough = noise(rng, size, int(rng.integers(6, 14)), 3)
    fine = noise(rng, size, min(size, 48), 1)
    below = np.clip((y - back.horizon) * 8, 0, 1)
    texture = 1 + rough * (0.05 + 0.13 * below) + fine * (0.02 + 0.09 * below)
    patches = 1 + noise(rng, size, 3) * np.float32(0.16)
    rough_pixels: Pixels = pixels * (texture * patches)[..., None]
    return rough_pixels


def _blob(rng: Rng, x: float, y: float, r: float) -> Outline:
    angles = np.linspace(0, 2 * np.pi, 9, endpoint=False)
    radius = r * rng.uniform(0.6, 1.3, 9)
    return np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], axis=1)


def _shadow(placed: Placed, rng: Rng, light: float, size: int) -> Pixels:
    """How much darker (S, S) the object makes what is behind it."""
    canvas = Canvas(size, "L", 0)
    if placed.grounded:
        flat, lean = between(rng, 0.14, 0.26), -light * between(rng, 0.4, 0.8)
        foot = placed.bottom - 0.015
        for part in placed.parts:
            up = foot - part.outline[:, 1]
            outline = np.stack([part.outline[:, 0] + lean * up, foot - flat * up], axis=1)
            if part.stroke:
                canvas.stroke(outline, 170, part.stroke, part.closed)
            else:
                canvas.fill(outline, 170)
        radius = 0.012
    else:
        shift = np.array([-light * 0.05, 0.06])
        for part in placed.parts:
            if not part.detail:
                canvas.part(type(part)(part.outline + shift, part.role, part.stroke, part.closed), 90)
        radius = 0.035
    return to_pixels(canvas.reduced().filter(ImageFilter.GaussianBlur(radius * size))) * np.float32(0.85)


def _object(placed: Placed, colours: Palette, rng: Rng, light: float, size: int) -> tuple[Pixels, Pixels]:
    """The lit object (S, S, 3) and its coverage (S, S)."""
    colour = Canvas(size, "RGB", ink(colours["main"]))
    mask, relief = Canvas(size, "L", 0), Canvas(size, "L", 0)
    for k, part in enumerate(placed.parts):
        colour.part(part, ink(colours[part.role]))
        if not part.detail:
            mask.part(part, 255)
            relief.part(part, 120 + 37 * (k % 4))
    coverage = mask.pixels()
    for part in placed.parts:
        if part.detail:
            mask.part(part, 255)
    whole = mask.pixels()
    light_map = _lighting(relief, coverage, light, size)
    surface = noise(rng, size, int(rng.integers(8, 20)), 3) * np.float32(between(rng, 0.05, 0.15))
    surface += grain(rng, size) * np.float32(between(rng, 0.01, 0.05))
    lit = colour.pixels() * (light_map * (1 + surface))[..., None]
    gloss = np.float32(between(rng, 0.0, 0.5)) * np.clip(light_map - 1.12, 0, 1)
    return lit + gloss[..., None], whole


def _lighting(relief: Canvas, coverage: Pixels, light: float, size: int) -> Pixels:
    """Brightness factor (S, S) from the slopes of a height map: the parts' steps and the whole's bulge."""
    fine = to_pixels(relief.image.reduce(OVERSAMPLING).filter(ImageFilter.GaussianBlur(size * 0.012)))
    bulge = blurred(coverage, 0.05)
    height = fine * np.float32(0.35) + bulge
    slope_y, slope_x = np.gradient(height * np.float32(size / 96))
    toward = -(slope_x * light + slope_y * 0.9)
    x, y = coordinates(size)
    sweep = 1.06 + (0.5 - y) * 0.32 + (0.5 - x) * light * 0.24
    rim = 1 - 0.35 * np.clip(0.62 - bulge, 0, 0.6)
    shaded: Pixels = np.clip(sweep * rim * (1 + toward * -5.5), 0.3, 1.7).astype(np.float32)
    return shaded


def _lens(pixels: Pixels, rng: Rng, size: int) -> Pixels:
    """Exposure, white balance, a slight blur, darker corners and sensor noise."""
    warm = between(rng, -0.07, 0.07)
    gain = np.array([1 + warm, 1.0, 1 - warm], dtype=np.float32) * np.float32(between(rng, 0.82, 1.14))
    out = blurred(pixels * gain, between(rng, 0.002, 0.006))
    x, y = coordinates(size)
    out *= (1 - np.float32(between(rng, 0.2, 0.75)) * ((x - 0.5) ** 2 + (y - 0.5) ** 2))[..., None]
    contrast = between(rng, 0.9, 1.15)
    out = (out - 0.5) * np.float32(contrast) + 0.5
    sensor = grain(rng, size)[..., None] + 0.5 * rng.standard_normal((size, size, 3), dtype=np.float32)
    return out + sensor * np.float32(between(rng, 0.008, 0.03))
