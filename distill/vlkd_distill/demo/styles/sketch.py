"""The sketch look: pencil on paper; several wobbling outlines, hatching for tone, no colour at all."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ..backdrop import backdrop
from ..palette import luminance, named_colour, palette
from ..placing import Placed, place
from ..raster import Canvas, Pixels, coordinates, grain, noise, to_image
from ..scene import COLOURS, Scene
from ..shapes.geometry import Outline, between, chance

Rng = np.random.Generator


def draw(scene: Scene, size: int) -> Image.Image:
    """Render the scene as a pencil drawing; red, green and blue are equal in every pixel."""
    rng = np.random.default_rng([scene.seed, 3])
    placed = place(scene)
    lead = Canvas(size, "L", 0)
    tone = Canvas(size, "L", 0)
    if chance(rng, 0.6):
        _background(scene, lead, rng)
    _object(scene, placed, lead, tone, rng)
    if placed.grounded and chance(rng, 0.6):
        _ground(placed, lead, rng)
    paper = (
        between(rng, 0.88, 0.99) + noise(rng, size, 5) * 0.02 + grain(rng, size) * between(rng, 0.006, 0.022)
    )
    tooth = np.clip(0.9 + noise(rng, size, min(size, 60)) * 0.32 + grain(rng, size) * 0.12, 0.35, 1.25)
    dark = np.clip((lead.pixels() + _hatching(tone.pixels(), rng, size)) * tooth, 0, 1)
    out = paper * (1 - dark * between(rng, 0.7, 0.88))
    return to_image(out.astype(np.float32)).convert("RGB")


def _wobbly(outline: Outline, closed: bool, rng: Rng, amount: float) -> Outline:
    """The outline as an unsteady hand repeats it: shifted, and bent by slow waves along its length."""
    count = len(outline)
    phase = np.linspace(0, 2 * np.pi, count, endpoint=not closed)[:, None]
    waves = sum(
        rng.normal(0, amount / k, (1, 2)) * np.sin(k * phase + rng.uniform(0, 6.3, (1, 2))) for k in (1, 2, 4)
    )
    moved: Outline = outline + waves + rng.normal(0, amount * 0.6, (1, 2))
    return moved


def _object(scene: Scene, placed: Placed, lead: Canvas, tone: Canvas, rng: Rng) -> None:
    colours = dict(palette(scene, rng))
    colours["main"] = named_colour(COLOURS[int(rng.integers(len(COLOURS)))])
    width, shaky = between(rng, 0.007, 0.014), between(rng, 0.002, 0.0045)
    passes, shading = int(rng.integers(2, 4)), between(rng, 0.35, 1.0) * (0.0 if chance(rng, 0.2) else 1.0)
    for part in placed.parts:
        if part.role == "string":
            continue
        depth = (1 - luminance(colours[part.role])) * shading
        if not part.stroke:
            lead.fill(part.outline, 0)
            tone.fill(part.outline, int(255 * min(1.0, depth + (0.3 if part.role == "black" else 0.0))))
        elif not part.detail:
            lead.stroke(part.outline, 0, part.stroke, part.closed)
            tone.stroke(part.outline, int(255 * max(depth, 0.3)), part.stroke, part.closed)
        for sides in _edges(part.outline, part.stroke, part.closed, part.detail):
            for _ in range(1 if part.detail else passes):
                pressure = int(255 * between(rng, 0.45, 0.9))
                lead.stroke(
                    _wobbly(sides[0], sides[1], rng, shaky),
                    pressure,
                    width * (0.8 if part.detail else 1.0),
                    sides[1],
                )


def _edges(outline: Outline, stroke: float, closed: bool, detail: bool) -> list[tuple[Outline, bool]]:
    """The lines that draw a part: its contour, or both sides of a broad line, or a thin line itself."""
    if not stroke or detail or stroke < 0.012:
        return [(outline, closed)]
    ahead = np.roll(outline, -1, axis=0) - np.roll(outline, 1, axis=0)
    if not closed:
        ahead[0], ahead[-1] = outline[1] - outline[0], outline[-1] - outline[-2]
    normal = np.stack([-ahead[:, 1], ahead[:, 0]], axis=1)
    normal /= np.maximum(np.hypot(normal[:, 0], normal[:, 1]), 1e-9)[:, None]
    return [(outline + normal * stroke / 2, closed), (outline - normal * stroke / 2, closed)]


def _background(scene: Scene, lead: Canvas, rng: Rng) -> None:
    """Faint contours of what is behind, each hiding what it covers."""
    back = backdrop(scene)
    width = between(rng, 0.005, 0.008)
    for shape in back.shapes:
        if not shape.stroke:
            lead.fill(shape.outline, 0)
        outline = _wobbly(shape.outline, not shape.stroke, rng, 0.003)
        lead.stroke(outline, int(255 * between(rng, 0.16, 0.42)), width, closed=not shape.stroke)


def _ground(placed: Placed, lead: Canvas, rng: Rng) -> None:
    """A few strokes under the object, so that it stands on something."""
    for _ in range(int(rng.integers(3, 8))):
        x, y = (
            between(rng, placed.left - 0.08, placed.right - 0.1),
            placed.bottom + between(rng, -0.01, 0.035),
        )
        stroke = np.array([[x, y], [x + between(rng, 0.1, 0.3), y + between(rng, -0.012, 0.012)]])
        lead.stroke(stroke, int(255 * between(rng, 0.3, 0.6)), 0.008, closed=False)


def _hatching(tone: Pixels, rng: Rng, size: int) -> Pixels:
    """Parallel pencil lines (S, S) that get denser, then crossed, where the tone is darker."""
    x, y = coordinates(size)
    bend = noise(rng, size, 4) * np.float32(0.016)
    angle, pitch = between(rng, 0.4, 1.2), between(rng, 0.026, 0.042)
    total = np.zeros_like(tone)
    for turn, start in ((0.0, 0.16), (between(rng, 0.6, 1.3), 0.55), (-0.5, 0.82)):
        across = x * np.cos(angle + turn) + y * np.sin(angle + turn) + bend
        wave = 0.5 + 0.5 * np.cos(across * np.float32(2 * np.pi / pitch))
        total += np.where(tone > start, wave**2 * (0.25 + 0.45 * tone), 0)
    return total + tone * np.float32(0.1)
