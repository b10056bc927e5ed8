"""Things people make: guitar, house, mug, umbrella. Each function draws one instance."""

from __future__ import annotations

import math

import numpy as np

from .geometry import (
    Outline,
    Part,
    arc,
    between,
    box,
    chance,
    curve,
    ellipse,
    fills,
    line,
    points,
    softened,
    turned_all,
)

Rng = np.random.Generator


def guitar(rng: Rng) -> list[Part]:
    """A guitar, acoustic or electric, leaning one way or the other."""
    electric = chance(rng, 0.3)
    low, waist, high = between(rng, 0.38, 0.46), between(rng, 0.22, 0.27), between(rng, 0.28, 0.34)
    right = [
        (0.0, 0.98),
        (low * 0.75, 0.92),
        (low, 0.62),
        (waist, 0.3),
        (high, 0.04),
        (high * 0.7, -0.16),
        (0.07, -0.2),
    ]
    left = [(-x, y) for x, y in reversed(right)]
    if electric:
        right = [*right[:4], (high * 0.95, 0.06), (high * 1.1, -0.22), (0.18, -0.02), (0.07, 0.02)]
        left = [(-0.07, 0.02), (-0.16, -0.04), (-high * 1.05, -0.34), (-high * 1.05, 0.0), *left[3:]]
    elif chance(rng, 0.4):
        right = [*right[:4], (high * 0.9, 0.12), (high * 0.75, -0.04), (0.16, 0.04), (0.07, -0.08)]
    body = curve(*right[:-1], right[-1], *left[:-1])
    width = between(rng, 0.06, 0.08)
    parts = [Part(body, "main"), Part(box(-width, -0.86, width, 0.34), "wood")]
    for y in np.linspace(-0.74, 0.16, 5):
        parts += [line((-width, float(y)), (width, float(y)), role="metal", width=0.02, detail=True)]
    if electric:
        guard = curve((-0.2, 0.12), (0.12, 0.2), (0.2, 0.6), (0.0, 0.7), (-0.16, 0.5))
        parts.insert(1, Part(guard, "white", detail=True))
        parts += fills("black", [box(-0.14, 0.4, 0.14, 0.47), box(-0.14, 0.56, 0.14, 0.63)], detail=True)
    else:
        parts.insert(1, Part(ellipse(0, 0.26, between(rng, 0.14, 0.18)), "black", detail=True))
    parts.append(Part(box(-0.17, 0.7, 0.17, 0.77), "black", detail=True))
    top = softened(points((-0.08, -0.84), (0.08, -0.84), (0.14, -1.12), (-0.14, -1.12)), 1)
    parts.append(Part(top, "dark"))
    for y in (-0.92, -1.04):
        parts += fills("metal", [ellipse(-0.17, y, 0.045), ellipse(0.17, y, 0.045)], detail=True)
    for x in (-0.5, 0.0, 0.5):
        parts.append(
            line((x * width, -0.86), (x * width * 1.6, 0.72), role="string", width=0.012, detail=True)
        )
    angle = between(rng, 0.2, 1.25) if chance(rng, 0.8) else between(rng, -0.1, 0.2)
    return turned_all(parts, angle)


def _window(x: float, y: float, w: float, h: float) -> list[Part]:
    return [
        Part(box(x - w, y - h, x + w, y + h), "glass"),
        line((x, y - h), (x, y + h), role="white", width=0.035, detail=True),
        line((x - w, y), (x + w, y), role="white", width=0.035, detail=True),
    ]


def house(rng: Rng) -> list[Part]:
    """A house with a roof, a door and windows; from the front, or with its side wall in view."""
    return _house_corner(rng) if chance(rng, 0.45) else _house_front(rng)


def _chimney(x: float, low: float, rng: Rng) -> list[Part]:
    parts = [Part(box(x - 0.08, low - 0.42, x + 0.08, low + 0.15), "brick")]
    if chance(rng, 0.4):
        parts.append(
            line(
                (x, low - 0.5),
                (x + 0.08, low - 0.62),
                (x - 0.02, low - 0.74),
                (x + 0.1, low - 0.86),
                role="smoke",
                width=0.07,
                smooth=True,
                detail=True,
            )
        )
    return parts


def _house_front(rng: Rng) -> list[Part]:
    wide, eaves, ridge = between(rng, 0.62, 0.85), between(rng, -0.2, 0.02), between(rng, -0.9, -0.62)
    flat = between(rng, 0.0, 0.5) if chance(rng, 0.4) else 0.0
    parts = _chimney(between(rng, 0.3, 0.45), (eaves + ridge) / 2, rng) if chance(rng, 0.75) else []
    parts.append(Part(box(-wide, eaves, wide, 0.9), "main"))
    roof = points((-wide - 0.16, eaves + 0.04), (-flat, ridge), (flat, ridge), (wide + 0.16, eaves + 0.04))
    parts.append(Part(roof if flat else np.delete(roof, 2, axis=0), "roof"))
    door = between(rng, -0.2, 0.2) if chance(rng, 0.6) else -wide * 0.55
    parts.append(Part(box(door - 0.14, 0.36, door + 0.14, 0.9), "wood"))
    parts.append(Part(ellipse(door + 0.08, 0.64, 0.025), "lamp", detail=True))
    height = between(rng, 0.13, 0.17)
    for x in (-0.58 * wide, 0.6 * wide):
        if abs(x - door) > 0.3:
            parts += _window(x, eaves + 0.36, 0.13, height)
    if chance(rng, 0.4) and not flat:
        parts.append(Part(ellipse(0, (eaves + ridge) / 2 + 0.1, 0.1), "glass"))
    return parts


def _house_corner(rng: Rng) -> list[Part]:
    edge, eaves, ridge = between(rng, -0.3, -0.05), between(rng, -0.15, 0.02), between(rng, -0.85, -0.65)
    left, right, rise = -0.9, 0.95, between(rng, 0.0, 0.08)
    peak = ((left + edge) / 2, ridge)
    gable = points((left, 0.86), (left, eaves), peak, (edge, eaves), (edge, 0.9))
    side = points((edge, 0.9), (edge, eaves), (right, eaves - rise), (right, 0.82))
    roof = points(
        (edge - 0.02, eaves + 0.08), peak, (right - 0.28, ridge + 0.02), (right + 0.1, eaves - rise + 0.06)
    )
    parts = _chimney(between(rng, 0.3, 0.5), ridge + 0.1, rng) if chance(rng, 0.75) else []
    parts += [Part(side, "dark"), Part(gable, "main"), Part(roof, "roof")]
    parts.append(line((left - 0.1, eaves + 0.1), peak, (edge - 0.02, eaves + 0.08), role="roof", width=0.08))
    middle = (left + edge) / 2
    parts += [
        Part(box(middle - 0.14, 0.38, middle + 0.14, 0.88), "wood"),
        Part(ellipse(middle, (eaves + ridge) / 2 + 0.16, 0.09), "glass"),
    ]
    for x in np.linspace(edge + 0.3, right - 0.25, int(rng.integers(2, 4))):
        parts += _window(float(x), 0.32, 0.11, 0.15)
    return parts


def mug(rng: Rng) -> list[Part]:
    """A mug with a handle at its side, seen a little from above; steam, a band or a heart at times."""
    wide, foot, tall = between(rng, 0.48, 0.6), between(rng, 0.78, 1.02), between(rng, 0.5, 0.68)
    lid, base = between(rng, 0.1, 0.17), wide * foot
    left = curve((-wide, -tall), (-wide * (0.6 + foot * 0.4), 0.0), (-base, tall * 0.9), closed=False)
    bottom = arc(0, tall * 0.9, base, lid * 1.1, math.pi, 0.0)
    right = (left * np.array([-1.0, 1.0]))[::-1]
    body = np.concatenate([left, bottom, right, arc(0, -tall, wide, lid, 0.0, -math.pi)])
    reach = between(rng, 0.32, 0.44)
    handle = curve(
        (wide * 0.9, -tall * 0.62),
        (wide + reach * 0.7, -tall * 0.62),
        (wide + reach, -0.06),
        (wide + reach * 0.6, tall * 0.5),
        (wide * 0.88, tall * 0.56),
        closed=False,
    )
    parts = [Part(handle, "main", stroke=between(rng, 0.12, 0.16), closed=False), Part(body, "main")]
    parts.append(Part(ellipse(0, -tall, wide, lid), "light"))
    parts.append(Part(ellipse(0, -tall + 0.02, wide * 0.86, lid * 0.74), "coffee", detail=True))
    deco = float(rng.random())
    if deco < 0.35:
        sag = np.array([0.0, 0.0])
        band = (
            np.concatenate(
                [arc(0, -0.02, wide * 0.96, lid, math.pi, 0.0), arc(0, 0.2, wide * 0.94, lid, 0.0, math.pi)]
            )
            + sag
        )
        parts.append(Part(band, "second", detail=True))
    elif deco < 0.6:
        heart = curve((0, 0.34), (-0.24, 0.06), (-0.16, -0.12), (0, 0.0), (0.16, -0.12), (0.24, 0.06))
        parts.append(Part(heart, "second", detail=True))
    if chance(rng, 0.5):
        for x in (-0.2, 0.04, 0.26)[: int(rng.integers(2, 4))]:
            wisp = [
                (x, -tall - 0.16),
                (x + 0.08, -tall - 0.3),
                (x - 0.04, -tall - 0.44),
                (x + 0.06, -tall - 0.58),
            ]
            parts.append(line(*wisp, role="smoke", width=0.05, smooth=True, detail=True))
    return parts


def umbrella(rng: Rng) -> list[Part]:
    """An open umbrella with panels, a shaft and a hooked handle, tilted."""
    panels, tall, wide = int(rng.integers(4, 7)), between(rng, 0.62, 0.82), between(rng, 0.86, 1.0)
    rim = -0.08
    hook = curve((0, 0.8), (0.03, 0.95), (0.15, 1.0), (0.26, 0.93), (0.27, 0.8), closed=False)
    parts = [line((0, rim - tall - 0.12), (0, 0.82), role="metal", width=0.055)]
    parts.append(Part(hook, "wood", stroke=0.085, closed=False))
    edges = -np.cos(np.linspace(0, math.pi, panels + 1)) * wide
    two = chance(rng, 0.55)
    sag = between(rng, 0.06, 0.12)
    for k in range(panels):
        x0, x1 = float(edges[k]), float(edges[k + 1])
        scallop = arc((x0 + x1) / 2, rim, (x1 - x0) / 2, sag, 0.0, -math.pi)
        outline = np.concatenate([_rib(x0, wide, rim, tall), _rib(x1, wide, rim, tall)[::-1], scallop])
        parts.append(Part(outline, "second" if two and k % 2 else "main"))
    parts.append(line((0, rim - tall - 0.14), (0, rim - tall + 0.02), role="metal", width=0.06))
    angle = between(rng, -0.5, 0.5)
    return turned_all(parts, angle)


def _rib(x: float, wide: float, rim: float, tall: float) -> Outline:
    """A canopy rib from its rim point up to the crown, bent outwards like a quarter of an ellipse."""
    t = np.linspace(0, math.pi / 2, 9)
    return np.stack([x * np.cos(t), rim - tall * np.sin(t)], axis=1)
