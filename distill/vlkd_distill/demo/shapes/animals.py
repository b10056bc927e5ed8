"""Living things without wings: cat, fish, snail. Each draws one instance, facing right."""

from __future__ import annotations

import math

import numpy as np

from .geometry import (
    Part,
    Point,
    arc,
    between,
    chance,
    curve,
    ellipse,
    eye,
    fills,
    line,
    points,
)

Rng = np.random.Generator


def cat(rng: Rng) -> list[Part]:
    """A cat that sits and looks at you, or one that walks past."""
    return _cat_walking(rng) if chance(rng, 0.4) else _cat_sitting(rng)


def _cat_face(x: float, y: float, r: float, rng: Rng) -> list[Part]:
    def at(dx: float, dy: float) -> Point:
        return (x + r * dx, y + r * dy)

    ear = between(rng, 0.5, 0.72)
    parts: list[Part] = []
    for side in (-1.0, 1.0):
        outer = points(at(side * 0.98, -0.3), at(side * 0.86, -0.75 - ear), at(side * 0.18, -0.8))
        inner = outer * 0.6 + outer.mean(axis=0) * 0.4
        parts += [Part(outer, "main"), Part(inner, "nose", detail=True)]
    parts.append(Part(ellipse(x, y, r, r * 0.84), "main"))
    if chance(rng, 0.5):
        stripes = [(at(k, -0.78), at(k * 0.8, -0.45)) for k in (-0.25, 0.0, 0.25)]
        parts += [line(*ends, role="dark", width=0.05, detail=True) for ends in stripes]
    for side in (-1.0, 1.0):
        middle = at(side * 0.42, -0.08)
        parts.append(Part(ellipse(*middle, r * 0.17, r * 0.2), "eye", detail=True))
        parts.append(Part(ellipse(*middle, r * 0.07, r * 0.18), "black", detail=True))
        root, tips = at(side * 0.35, 0.34), (at(side * 1.3, 0.06), at(side * 1.3, 0.5))
        parts += [line(root, tip, role="whisker", width=0.022, detail=True) for tip in tips]
    parts.append(Part(points(at(-0.12, 0.2), at(0.12, 0.2), at(0, 0.36)), "nose", detail=True))
    mouth = (at(-0.2, 0.5), at(0, 0.4), at(0.2, 0.5))
    return [*parts, line(*mouth, role="black", width=0.03, detail=True)]


def _cat_sitting(rng: Rng) -> list[Part]:
    wide, head, look = between(rng, 0.38, 0.5), between(rng, 0.34, 0.4), between(rng, -0.06, 0.14)
    curl = between(rng, -0.1, 0.5)
    body = curve(
        (-wide, 0.95),
        (-wide * 1.08, 0.55),
        (-0.26, 0.0),
        (0.02, -0.2),
        (0.3, 0.0),
        (wide * 1.12, 0.55),
        (wide, 0.95),
        (0, 0.99),
    )
    tail = [(wide * 0.7, 0.86), (0.78, 0.84), (0.92, 0.5), (0.74, curl)]
    parts = [line(*tail, role="main", width=between(rng, 0.12, 0.17), smooth=True), Part(body, "main")]
    parts.append(
        Part(
            curve((-0.16, 0.02), (0.0, -0.05), (0.16, 0.02), (0.12, 0.42), (-0.12, 0.42)),
            "light",
            detail=True,
        )
    )
    for x in (-0.14, 0.14):
        parts += [line((x, 0.5), (x, 0.93), role="dark", width=0.035, detail=True)]
    parts += fills("light", [ellipse(-0.15, 0.94, 0.13, 0.07), ellipse(0.15, 0.94, 0.13, 0.07)], detail=True)
    return parts + _cat_face(look, -0.4, head, rng)


def _cat_walking(rng: Rng) -> list[Part]:
    stride, head = between(rng, 0.04, 0.16), between(rng, 0.25, 0.3)
    tail = [
        (-0.62, -0.02),
        (-0.88, -0.2),
        (between(rng, -1.0, -0.8), -0.55),
        (between(rng, -0.95, -0.6), -0.82),
    ]
    parts = [line(*tail, role="main", width=0.12, smooth=True)]
    for x, step, role in (
        (-0.42, stride, "dark"),
        (0.42, -stride, "dark"),
        (-0.54, -stride, "main"),
        (0.3, stride, "main"),
    ):
        parts.append(
            Part(
                points((x - 0.09, 0.1), (x + 0.11, 0.1), (x + step + 0.09, 0.75), (x + step - 0.07, 0.75)),
                role,
            )
        )
    body = curve(
        (-0.7, 0.1),
        (-0.58, -0.14),
        (0, -0.12),
        (0.45, -0.22),
        (0.62, 0.0),
        (0.5, 0.26),
        (0, 0.3),
        (-0.5, 0.32),
    )
    parts.append(Part(body, "main"))
    if chance(rng, 0.6):
        for x in np.arange(-0.45, 0.3, 0.22):
            parts += [line((float(x), -0.1), (float(x) + 0.04, 0.1), role="dark", width=0.06, detail=True)]
    return parts + _cat_face(0.62, -0.36, head, rng)


def fish(rng: Rng) -> list[Part]:
    """A fish from the side: round or long, plain, striped or scaly."""
    tall, fork, fin = between(rng, 0.32, 0.56), between(rng, 0.3, 0.5), between(rng, 0.2, 0.36)
    body = curve(
        (0.95, 0.02),
        (0.6, -tall * 0.72),
        (0.15, -tall),
        (-0.4, -tall * 0.6),
        (-0.68, -0.06),
        (-0.68, 0.08),
        (-0.4, tall * 0.6),
        (0.15, tall),
        (0.6, tall * 0.75),
    )
    tail = curve(
        (-0.56, 0.0), (-0.8, -fork * 0.7), (-1.06, -fork), (-0.92, 0.0), (-1.06, fork), (-0.8, fork * 0.7)
    )
    top = curve(
        (0.42, -tall * 0.8),
        (0.1, -tall - fin),
        (-0.35, -tall - fin * 0.6),
        (-0.4, -tall * 0.5),
        (0, -tall * 0.8),
    )
    low = curve((0.16, tall * 0.9), (-0.06, tall + fin * 0.75), (-0.26, tall + fin * 0.6), (-0.2, tall * 0.7))
    parts = [Part(tail, "second"), Part(top, "second"), Part(low, "second"), Part(body, "main")]
    parts += _fish_pattern(tall, rng)
    gill = arc(0.34, 0.02, 0.16, tall * 0.55, -1.1, 1.1)
    parts.append(Part(gill, "dark", stroke=0.04, closed=False, detail=True))
    parts.append(Part(curve((0.3, 0.06), (0.06, 0.02), (-0.06, 0.18), (0.1, 0.24)), "second", detail=True))
    parts.append(line((0.93, 0.1), (0.78, 0.13), role="black", width=0.035, detail=True))
    return parts + eye(0.66, -tall * 0.24, between(rng, 0.075, 0.11))


def _fish_pattern(tall: float, rng: Rng) -> list[Part]:
    """White stripes, scales, or a light belly."""
    pattern = int(rng.integers(3))
    parts: list[Part] = []
    if pattern == 0:
        for x in (0.28, -0.02, -0.34)[: int(rng.integers(2, 4))]:
            h = tall * math.sqrt(max(0.0, 1 - ((x - 0.12) / 0.9) ** 2)) * 0.86
            stripe = [(x, -h), (x + 0.07, 0.0), (x, h)]
            parts += [line(*stripe, role="white", width=0.11, smooth=True, detail=True)]
        return parts
    if pattern == 1:
        rows = ((0.2, (-0.14, 0.14)), (-0.06, (0.0, -0.24, 0.24)), (-0.32, (-0.12, 0.12)))
        for x, y in [(x, y) for x, heights in rows for y in heights]:
            scale = arc(x, y * tall / 0.45, 0.11, 0.11, math.pi / 2, 3 * math.pi / 2)
            parts.append(Part(scale, "dark", stroke=0.03, closed=False, detail=True))
        return parts
    belly = curve((0.86, 0.12), (0.5, tall * 0.72), (0.1, tall * 0.88), (-0.5, tall * 0.36), (0.1, 0.2))
    return [Part(belly, "light", detail=True)]


def snail(rng: Rng) -> list[Part]:
    """A snail with a spiral shell on its back and two feelers."""
    r, neck = between(rng, 0.48, 0.6), between(rng, -0.3, -0.05)
    centre = (between(rng, -0.24, -0.1), 0.72 - r)
    foot = curve(
        (-1.0, 0.86),
        (-0.6, 0.66),
        (0.2, 0.6),
        (0.5, 0.3),
        (0.6, neck),
        (0.8, neck - 0.1),
        (0.94, neck + 0.08),
        (0.86, 0.35),
        (0.66, 0.78),
        (0.3, 0.88),
        (-0.5, 0.9),
    )
    angles = np.linspace(0.4, 2 * math.pi * between(rng, 1.9, 2.6) + 0.4, 46)
    radius = r * 0.96 * (1 - angles / angles[-1]) ** 0.85 + 0.03
    spiral = np.stack([centre[0] + radius * np.cos(angles), centre[1] + radius * np.sin(angles)], axis=1)
    parts: list[Part] = []
    for dx in (-0.02, 0.16):
        tip = (0.76 + dx * 1.7 + between(rng, -0.04, 0.04), neck - between(rng, 0.4, 0.52))
        parts += [line((0.76 + dx, neck), tip, role="skin", width=0.05), Part(ellipse(*tip, 0.06), "black")]
    parts += [Part(foot, "skin"), Part(ellipse(*centre, r, r * between(rng, 0.9, 1.0)), "main")]
    parts.append(Part(spiral, "dark", stroke=between(rng, 0.06, 0.1), closed=False, detail=True))
    parts.append(
        line(
            (0.74, neck + 0.2), (0.84, neck + 0.23), (0.9, neck + 0.17), role="black", width=0.03, detail=True
        )
    )
    return parts
