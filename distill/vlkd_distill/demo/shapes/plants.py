"""Things that grow: flower, mushroom, tree. Each function draws one instance."""

from __future__ import annotations

import math

import numpy as np

from .geometry import (
    Outline,
    Part,
    arc,
    between,
    chance,
    curve,
    ellipse,
    fills,
    line,
    moved,
    moved_all,
    points,
    turned,
)

Rng = np.random.Generator


def flower(rng: Rng) -> list[Part]:
    """A daisy with a ring of petals, or a tulip with a cup of them, on a stem with leaves."""
    bend, top = between(rng, -0.2, 0.2), between(rng, -0.45, -0.3)
    parts = [line((bend * 0.3, 1.0), (-bend * 0.4, 0.4), (bend, top), role="leaf", width=0.075, smooth=True)]
    for side in (-1.0, 1.0):
        if chance(rng, 0.8):
            y, reach = between(rng, 0.5, 0.8), between(rng, 0.4, 0.6)
            leaf = curve(
                (0, y),
                (side * reach * 0.5, y - 0.3),
                (side * reach, y - 0.34),
                (side * reach * 0.62, y - 0.06),
            )
            parts.append(Part(leaf, "leaf"))
    blossom = _tulip(rng) if chance(rng, 0.25) else _daisy(rng)
    return parts + [Part(moved(p.outline, bend, top), p.role, p.stroke, p.closed, p.detail) for p in blossom]


def _daisy(rng: Rng) -> list[Part]:
    count, size = int(rng.integers(5, 11)), between(rng, 0.52, 0.62)
    width = min(0.3, between(rng, 1.5, 2.1) * size / count)
    lean, start = between(rng, 0.72, 1.0), between(rng, 0, 1)
    pointed = chance(rng, 0.4)
    petals: list[Outline] = []
    for k in range(count):
        if pointed:
            petal = curve(
                (0.05, 0), (size * 0.5, -width * 0.9), (size * 1.02, 0.0), (size * 0.5, width * 0.9)
            )
        else:
            petal = ellipse(size * 0.6, 0, size * 0.42, width)
        petals.append(turned(petal, start + 2 * math.pi * k / count) * np.array([1.0, lean]))
    roles = ("main", "light") if chance(rng, 0.3) else ("main", "main")
    parts = [Part(petal, roles[k % 2]) for k, petal in enumerate(petals)]
    heart = size * between(rng, 0.3, 0.4)
    parts.append(Part(ellipse(0, 0, heart, heart * lean), "heart"))
    return parts


def _tulip(rng: Rng) -> list[Part]:
    w, h = between(rng, 0.3, 0.4), between(rng, 0.5, 0.62)
    side = curve((0, 0.28), (w * 0.9, 0.15), (w * 1.1, -h * 0.5), (w * 0.8, -h), (w * 0.2, -h * 0.3))
    middle = curve(
        (0, 0.3), (w * 0.62, 0.0), (w * 0.4, -h * 0.6), (0, -h * 1.05), (-w * 0.4, -h * 0.6), (-w * 0.62, 0.0)
    )
    back = curve((0.2, 0), (w * 0.5, -h), (0, -h * 0.6), (-w * 0.5, -h), (-0.2, 0))
    flip = np.array([-1.0, 1.0])
    return [Part(back, "dark"), Part(side, "main"), Part(side * flip, "main"), Part(middle, "light")]


def mushroom(rng: Rng) -> list[Part]:
    """A toadstool: a domed cap, spotted or plain, on a stout stem; sometimes a small one beside it."""
    parts = _toadstool(rng)
    if chance(rng, 0.35):
        x, scale = between(rng, 0.5, 0.7), between(rng, 0.38, 0.5)
        parts = moved_all(_toadstool(rng), x, 1.0 - scale, scale) + parts
    if chance(rng, 0.4):
        for x in (-0.5, -0.36, 0.34, 0.48):
            parts.append(
                line((x, 1.0), (x + between(rng, -0.1, 0.1), 0.72), role="leaf", width=0.05, detail=True)
            )
    return parts


def _toadstool(rng: Rng) -> list[Part]:
    wide, tall, thick = between(rng, 0.68, 0.95), between(rng, 0.62, 0.95), between(rng, 0.17, 0.26)
    rim, lean = between(rng, -0.05, 0.12), between(rng, -0.08, 0.08)
    stem = curve(
        (-thick, 0.95),
        (-thick * 1.15, 0.75),
        (-thick * 0.75 + lean, rim),
        (thick * 0.75 + lean, rim),
        (thick * 1.15, 0.75),
        (thick, 0.95),
        (0, 1.0),
    )
    dome = arc(0, rim, wide, tall, math.pi, 2 * math.pi)
    under = arc(0, rim, wide, 0.16, 0.0, math.pi)
    cap = np.concatenate([dome, under])
    parts = [
        Part(stem, "skin"),
        Part(cap, "main"),
        Part(np.concatenate([under, points((-wide, rim))]), "skin"),
    ]
    for k in range(7):
        x = (k - 3) / 3.4 * wide
        depth = 0.15 * math.sqrt(1 - (x / wide) ** 2)
        parts.append(line((x * 0.7, rim + 0.01), (x, rim + depth), role="shade", width=0.022, detail=True))
    if chance(rng, 0.3):
        ring = curve(
            (-thick, rim + 0.3),
            (0, rim + 0.38),
            (thick, rim + 0.3),
            (thick * 1.2, rim + 0.42),
            (0, rim + 0.5),
            (-thick * 1.2, rim + 0.42),
        )
        parts.append(Part(ring, "skin", detail=True))
    if chance(rng, 0.75):
        r = between(rng, 0.09, 0.14)
        for angle, out in ((-2.6, 0.7), (-2.05, 0.55), (-1.5, 0.78), (-1.0, 0.42), (-0.7, 0.78)):
            x, y = wide * out * math.cos(angle), rim + tall * out * math.sin(angle)
            parts.append(Part(ellipse(x, y, r * between(rng, 0.8, 1.25), r * 0.85), "white", detail=True))
    return parts


def tree(rng: Rng) -> list[Part]:
    """A broad-leaved tree, a conifer or a tall narrow one, with a bare trunk below."""
    kind = float(rng.random())
    w = between(rng, 0.09, 0.14)
    flare = w * between(rng, 1.3, 1.9)
    stem = curve((-flare, 1.0), (-w, 0.6), (-w * 0.8, 0.0), (w * 0.8, 0.0), (w, 0.6), (flare, 1.0))
    crown = _conifer if kind < 0.3 else _poplar if kind < 0.45 else _broad_crown
    return [Part(stem, "wood"), *crown(rng)]


def _poplar(rng: Rng) -> list[Part]:
    peak, wide = between(rng, -1.15, -1.0), between(rng, 0.34, 0.46)
    right = [(0, 0.62), (wide * 0.8, 0.4), (wide, 0.0), (wide * 0.5, -0.65), (0, peak)]
    left = [(-x, y) for x, y in reversed(right[1:4])]
    marks = [
        Part(arc(x, y, 0.13, 0.2, 0.2, 1.6), "dark", 0.035, False, True)
        for x, y in ((-0.1, 0.1), (0.06, -0.3), (0.0, -0.66))
    ]
    return [Part(curve(*right, *left), "main"), *marks]


def _broad_crown(rng: Rng) -> list[Part]:
    bumps, wide = int(rng.integers(6, 10)), between(rng, 0.74, 0.95)
    angles = np.linspace(0, 2 * math.pi, 70, endpoint=False)
    radius = 1 + between(rng, 0.08, 0.13) * np.abs(np.sin(angles * bumps / 2 + between(rng, 0, 3)))
    radius += 0.06 * np.sin(angles * 2 + between(rng, 0, 6))
    crown = np.stack([wide * radius * np.cos(angles), -0.34 + 0.6 * radius * np.sin(angles)], axis=1)
    parts = [line((0, 0.45), (side * 0.4, 0.05), role="wood", width=0.09) for side in (-1, 1)]
    parts.append(Part(crown, "main"))
    for _ in range(4):
        x, y = between(rng, -0.5, 0.5) * wide, between(rng, -0.7, -0.1)
        mark = arc(x, y, 0.2, 0.15, math.pi * 1.05, math.pi * 1.9)
        parts.append(Part(mark, "dark", stroke=0.035, closed=False, detail=True))
    if chance(rng, 0.35):
        spots = [(between(rng, -0.55, 0.55) * wide, between(rng, -0.75, 0.05)) for _ in range(6)]
        parts += fills("fruit", [ellipse(x, y, 0.07) for x, y in spots], detail=True)
    return parts


def _conifer(rng: Rng) -> list[Part]:
    tiers, wide = int(rng.integers(3, 5)), between(rng, 0.55, 0.72)
    parts: list[Part] = []
    step = 1.5 / (tiers + 0.6)
    for k in range(tiers):
        low = 0.62 - k * step
        half = wide * (1 - 0.62 * k / tiers)
        peak = low - step * 1.65
        tier = points(
            (-half, low),
            (-half * 0.5, low + 0.05),
            (0, low + 0.07),
            (half * 0.5, low + 0.05),
            (half, low),
            (half * 0.4, (low + peak) / 2),
            (0, max(peak, -1.05)),
            (-half * 0.4, (low + peak) / 2),
        )
        parts.append(Part(tier, "main" if k % 2 else "dark"))
    return parts
