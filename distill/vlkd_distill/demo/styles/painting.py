"""The painting look: visible strokes that follow the forms, shifted colours, canvas."""

from __future__ import annotations

import colorsys

import numpy as np
from PIL import Image, ImageDraw

from ..backdrop import backdrop
from ..palette import Palette, luminance, mix, palette
from ..placing import Placed, place
from ..raster import OVERSAMPLING, Canvas, Pixels, blurred, coordinates, ink, noise, to_image
from ..scene import Scene
from ..shapes.geometry import between, chance

Rng = np.random.Generator


def draw(scene: Scene, size: int) -> Image.Image:
    """Render the scene as a painting."""
    rng = np.random.default_rng([scene.seed, 3])
    placed, mood = place(scene), _mood(rng)
    colours = palette(scene, rng, hue=0.03, light=0.2)
    behind = _underpainting(scene, size)
    front, mask = _figure(placed, colours, rng, size)
    flow = _flow(mask, rng, size)
    far = _strokes(_shifted(behind, mood), flow[0], rng, 380, (0.1, 0.034), 0.055)
    near = _strokes(_shifted(front, mood), flow[1], rng, 480, (0.055, 0.02), 0.04, where=mask)
    ragged = np.clip((mask - 0.5 + 0.22 * noise(rng, size, min(size, 34))) * 3.2 + 0.5, 0, 1)[..., None]
    out = far * (1 - ragged) + near * ragged
    return to_image(_varnish(_details(out, placed, _repainted(colours, mood), rng, size), rng, size))


def _mood(rng: Rng) -> tuple[float, float, tuple[float, float, float]]:
    """Hue turn, saturation factor and a tint: the painter's palette."""
    tint = colorsys.hsv_to_rgb(float(rng.random()), 0.6, 0.85)
    return between(rng, -0.05, 0.05), between(rng, 0.85, 1.4), tint


def _shifted(pixels: Pixels, mood: tuple[float, float, tuple[float, float, float]]) -> Pixels:
    """Turn hue about the grey axis, push saturation, and mix in the tint."""
    turn, saturation, tint = mood
    c, s = np.cos(2 * np.pi * turn), np.sin(2 * np.pi * turn) / np.sqrt(3)
    third = (1 - c) / 3
    rotate = np.array(
        [
            [c + third, third - s, third + s],
            [third + s, c + third, third - s],
            [third - s, third + s, c + third],
        ]
    )
    grey = pixels.mean(axis=-1, keepdims=True)
    out = (grey + (pixels - grey) * np.float32(saturation)) @ rotate.astype(np.float32).T
    tinted: Pixels = out * np.float32(0.88) + np.array(tint, dtype=np.float32) * np.float32(0.12)
    return tinted


def _underpainting(scene: Scene, size: int) -> Pixels:
    back = backdrop(scene)
    canvas = Canvas(size, "RGB", back.gradient())
    for shape in back.shapes:
        if shape.stroke:
            canvas.stroke(shape.outline, ink(shape.colour), shape.stroke, closed=False)
        else:
            canvas.fill(shape.outline, ink(shape.colour))
    return blurred(canvas.pixels(), 0.006)


def _repainted(colours: Palette, mood: tuple[float, float, tuple[float, float, float]]) -> Palette:
    """The palette as the mood shifts it."""
    shifted = _shifted(np.stack(list(colours.values())), mood)
    return dict(zip(colours, shifted, strict=True))


def _figure(placed: Placed, colours: Palette, rng: Rng, size: int) -> tuple[Pixels, Pixels]:
    """The object before the brush (S, S, 3), lit from one side, and its coverage (S, S)."""
    canvas, mask = Canvas(size, "RGB", ink(colours["main"])), Canvas(size, "L", 0)
    contour = mix(colours["dark"], np.array([0.1, 0.08, 0.2], np.float32), 0.5)
    for part in placed.parts:
        canvas.part(part, ink(colours[part.role]))
        if not part.detail:
            mask.part(part, 255)
            if not part.stroke:
                canvas.stroke(part.outline, ink(mix(colours[part.role], contour, 0.6)), 0.012, closed=True)
    x, y = coordinates(size)
    side = 1 if chance(rng, 0.5) else -1
    light = 1.1 - 0.5 * np.clip(
        (x - placed.left) / (placed.right - placed.left) * side + (side < 0) - 0.3, 0, 1
    )
    light = light - 0.2 * np.clip((y - 0.5) * 2, 0, 1)
    return canvas.pixels() * light.astype(np.float32)[..., None], mask.pixels()


def _flow(mask: Pixels, rng: Rng, size: int) -> tuple[Pixels, Pixels]:
    """Stroke directions in radians (S, S): a slow swirl behind, along the contours on the object."""
    swirl = (noise(rng, size, 3) * 1.2 + between(rng, -0.8, 0.8)).astype(np.float32)
    slope_y, slope_x = np.gradient(blurred(mask, 0.045))
    along = np.arctan2(slope_y, slope_x) + np.float32(np.pi / 2)
    weak = np.hypot(slope_x, slope_y) < 0.004 * 96 / size
    return swirl, np.where(weak, swirl + np.float32(0.8), along)


def _strokes(
    source: Pixels,
    flow: Pixels,
    rng: Rng,
    count: int,
    shape: tuple[float, float],
    jitter: float,
    where: Pixels | None = None,
) -> Pixels:
    """Cover a picture with short thick lines coloured by what is under their middles.

    Args:
        source: (S, S, 3) colours.
        flow: (S, S) directions in radians.
        rng: Decides places and colour jitter.
        count: How many strokes; with `where` they all fall on it.
        shape: Length and width in picture coordinates.
        jitter: How far a stroke's brightness may stray.
        where: (S, S) coverage the strokes keep to; None for everywhere.
    """
    size = source.shape[0]
    canvas = to_image(source).resize((size * OVERSAMPLING,) * 2, Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(canvas)
    if where is None:
        spots = rng.random((count, 2))
    else:
        inside = np.argwhere(where > 0.4)
        if not len(inside):
            return source
        picks = inside[rng.integers(len(inside), size=count)]
        spots = (picks + rng.random((count, 2))) / size
    rows, columns = np.minimum((spots * size).astype(int), size - 1).T
    colours = source[rows, columns] * (1 + rng.uniform(-1, 1, (count, 1)) * jitter * 2)
    colours = colours + rng.uniform(-1, 1, (count, 3)) * jitter
    inks = (np.clip(colours, 0, 1) * 255).astype(int).tolist()
    angles = flow[rows, columns] + rng.uniform(-0.25, 0.25, count)
    half = shape[0] / 2 * rng.uniform(0.5, 1.2, count)
    steps = np.stack([np.cos(angles) * half, np.sin(angles) * half], axis=1)
    centres = spots[:, ::-1]
    ends = np.concatenate([centres - steps, centres + steps], axis=1) * canvas.width
    widths = np.maximum(1, shape[1] * canvas.width * rng.uniform(0.6, 1.3, count)).astype(int).tolist()
    for end, tone, width in zip(ends.tolist(), inks, widths, strict=True):
        pen.line(end, fill=tuple(tone), width=width)
    return np.asarray(canvas.reduce(OVERSAMPLING), dtype=np.float32) / np.float32(255)


def _details(pixels: Pixels, placed: Placed, colours: Palette, rng: Rng, size: int) -> Pixels:
    """Set the small parts and a loose contour on top with a thinner brush."""
    canvas, cover = Canvas(size, "RGB", (128, 128, 128)), Canvas(size, "L", 0)
    contour = int(255 * between(rng, 0.15, 0.75))
    shadow = np.zeros(3, np.float32)
    for part in placed.parts:
        outline = part.outline + rng.normal(0, 0.0022, part.outline.shape)
        tone, dark = ink(colours[part.role]), ink(mix(colours[part.role], shadow, 0.62))
        if part.stroke:
            if not part.detail:
                canvas.stroke(outline, dark, part.stroke + 0.016, part.closed)
                cover.stroke(outline, contour, part.stroke + 0.016, part.closed)
            canvas.stroke(outline, tone, part.stroke, part.closed)
            cover.stroke(outline, 235, part.stroke, part.closed)
        elif part.detail:
            canvas.fill(outline, tone)
            cover.fill(outline, 215 if luminance(colours[part.role]) < 0.3 else 180)
        else:
            cover.fill(outline, 0)
            canvas.stroke(outline, dark, 0.011, closed=True)
            cover.stroke(outline, contour, 0.011, closed=True)
    weight = cover.pixels()[..., None]
    return pixels * (1 - weight) + canvas.pixels() * weight


def _varnish(pixels: Pixels, rng: Rng, size: int) -> Pixels:
    """Bristle streaks, canvas weave and a little relief."""
    streaks = noise(rng, size, min(size, 40)) * np.float32(0.05)
    x, y = coordinates(size)
    weave = np.sin(x * 96 * 2.1) * np.sin(y * 96 * 2.1) * between(rng, 0.01, 0.035)
    grey = pixels.mean(axis=-1)
    relief = np.zeros_like(grey)
    relief[1:, 1:] = (grey[1:, 1:] - grey[:-1, :-1]) * np.float32(0.28)
    finished: Pixels = pixels * (1 + streaks + weave.astype(np.float32) + relief)[..., None]
    return finished
