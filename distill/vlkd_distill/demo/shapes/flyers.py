"""Living things with wings: bird, butterfly. Each draws one instance, facing right."""

from __future__ import annotations

import numpy as np

from .geometry import (
    Outline,
    Part,
    between,
    chance,
    curve,
    ellipse,
    eye,
    fills,
    line,
    mirrored,
    moved,
    points,
    turned_all,
)

Rng = np.random.Generator


def bird(rng: Rng) -> list[Part]:
    """A bird on its legs, from the side, or one in flight with its wings up."""
    return _bird_flying(rng) if chance(rng, 0.35) else _bird_perched(rng)


def _bird_perched(rng: Rng) -> list[Part]:
    head, neck, tail = between(rng, 0.23, 0.3), between(rng, -0.52, -0.36), between(rng, -0.12, 0.3)
    fat = between(rng, 0.85, 1.12)
    body = curve(
        (-0.6, 0.14),
        (-0.3, -0.12 * fat),
        (0.1, -0.28 * fat),
        (0.42, -0.26),
        (0.56, 0.02),
        (0.4, 0.34 * fat),
        (0.05, 0.46 * fat),
        (-0.3, 0.36),
    )
    wing = curve(
        (0.24, -0.06), (-0.05, -0.14), (-0.5, 0.06), (-0.8, 0.3 + tail * 0.3), (-0.35, 0.33), (0.1, 0.24)
    )
    cheek, reach = 0.4 + head * 0.7, between(rng, 0.2, 0.36)
    beak = points((cheek, neck - 0.1), (0.4 + head + reach, neck + 0.03), (cheek, neck + 0.13))
    belly = curve((0.48, -0.12), (0.53, 0.05), (0.36, 0.34 * fat), (0.08, 0.42 * fat), (0.2, 0.15))
    legs = [[(x, 0.4), (x + 0.04, 0.84), (x + 0.18, 0.87)] for x in (-0.06, 0.16)]
    parts = [line(*leg, role="beak", width=0.05) for leg in legs]
    parts += [
        Part(points((-0.4, 0.0), (-1.02, tail), (-0.98, tail + 0.2), (-0.35, 0.3)), "dark"),
        Part(body, "main"),
        Part(beak, "beak"),
        Part(ellipse(0.4, neck, head), "main"),
        Part(belly, "light", detail=True),
        Part(wing, "dark"),
        *eye(0.47, neck - 0.05, 0.07),
    ]
    if chance(rng, 0.3):
        crest = curve((0.3, neck - head * 0.85), (0.14, neck - head - 0.22), (0.42, neck - head * 1.02))
        parts.insert(3, Part(crest, "second"))
    if chance(rng, 0.4):
        parts.insert(0, line((-0.9, 0.9), (0.0, 0.88), (0.9, 0.93), role="wood", width=0.1, smooth=True))
    return parts


def _bird_flying(rng: Rng) -> list[Part]:
    lift, spread = between(rng, 0.7, 1.0), between(rng, 0.0, 0.35)
    near = curve(
        (0.2, -0.02),
        (0.16, -0.4),
        (-0.1 - spread, -lift),
        (-0.3 - spread, -lift * 0.95),
        (-0.44, -0.4),
        (-0.36, 0.04),
    )
    body = curve((-0.65, 0.12), (-0.2, -0.12), (0.3, -0.16), (0.52, 0.02), (0.25, 0.24), (-0.3, 0.24))
    tail = points((-0.5, 0.06), (-1.05, 0.0), (-0.9, 0.14), (-1.02, 0.3), (-0.5, 0.2))
    parts = [
        Part(moved(mirrored(near, 0.85), 0.12, 0.02), "dark"),
        Part(tail, "dark"),
        Part(body, "main"),
        Part(points((0.68, -0.14), (1.0, -0.02), (0.66, 0.05)), "beak"),
        Part(ellipse(0.54, -0.07, between(rng, 0.18, 0.22)), "main"),
        Part(near, "light"),
        *eye(0.59, -0.11, 0.055),
    ]
    for t in (0.35, 0.65):
        tip = (-0.02 - spread - 0.3 * t, -lift * 0.75)
        parts += [line((0.1 - 0.4 * t, -0.1), tip, role="dark", width=0.03, detail=True)]
    angle = between(rng, -0.4, 0.2)
    return turned_all(parts, angle)


def butterfly(rng: Rng) -> list[Part]:
    """A butterfly with four open wings, turned any way and folded a little."""
    tip, low = between(rng, 0.7, 0.95), between(rng, 0.6, 0.9)
    upper = curve(
        (0.04, -0.12),
        (0.3, -tip * 0.85),
        (0.72, -tip),
        (0.97, -0.62),
        (0.8, -0.22),
        (0.5, 0.02),
        (0.06, 0.04),
    )
    lower = curve((0.05, 0.04), (0.5, 0.04), (0.78, 0.26), (0.62, low * 0.85), (0.34, low), (0.12, 0.5))
    fold_left, fold_right = between(rng, 0.6, 1.0), between(rng, 0.6, 1.0)
    spot, count = between(rng, 0.08, 0.15), int(rng.integers(1, 4))
    spots: list[Outline] = [
        ellipse(0.66, -0.52, spot, spot * 1.2),
        ellipse(0.48, 0.4, spot * 1.1),
        ellipse(0.36, -0.3, spot * 0.7),
    ]
    edge = curve((0.3, -tip * 0.85), (0.72, -tip), (0.97, -0.62), (0.8, -0.22), closed=False)
    parts: list[Part] = []
    for side, fold in ((-1.0, fold_left), (1.0, fold_right)):
        squeeze = np.array([side * fold, 1.0])
        parts += [Part(lower * squeeze, "light"), Part(upper * squeeze, "main")]
        parts.append(Part(edge * squeeze, "dark", stroke=0.09, closed=False, detail=True))
        parts += fills("second", [s * squeeze for s in spots[:count]], detail=True)
        parts.append(
            Part(
                curve((0, -0.34), (side * 0.1, -0.6), (side * 0.26, -0.86), closed=False),
                "black",
                0.035,
                False,
            )
        )
    parts += [Part(ellipse(0, 0.08, 0.075, 0.48), "black"), Part(ellipse(0, -0.38, 0.1), "black")]
    angle = between(rng, -0.7, 0.7)
    return turned_all(parts, angle)
