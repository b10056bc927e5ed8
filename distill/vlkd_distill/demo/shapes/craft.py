"""Things that fly or sail: airplane, sailboat. Each function draws one instance, facing right."""

from __future__ import annotations

import math

import numpy as np

from .geometry import Part, arc, between, chance, curve, ellipse, fills, line, points, softened, turned_all

Rng = np.random.Generator


def airplane(rng: Rng) -> list[Part]:
    """A passenger plane from the side or from above, or a small one with a propeller."""
    return _airplane_above(rng) if chance(rng, 0.35) else _airplane_side(rng)


def _airplane_side(rng: Rng) -> list[Part]:
    r, fin, reach = between(rng, 0.15, 0.21), between(rng, 0.42, 0.6), between(rng, 0.5, 0.72)
    body = curve(
        (-1, -0.08),
        (-0.6, -r * 0.9),
        (0, -r),
        (0.6, -r * 0.95),
        (0.9, -r * 0.4),
        (1, 0.06),
        (0.85, r * 0.8),
        (0.45, r),
        (-0.1, r),
        (-0.65, r * 0.45),
    )
    parts = [
        Part(
            points((0.28, -r * 0.6), (-0.1, -reach * 0.85), (-0.26, -reach * 0.85), (-0.08, -r * 0.6)), "dark"
        ),
        Part(points((-0.55, -r * 0.7), (-0.86, -fin), (-1.08, -fin), (-1.0, -0.05)), "second"),
        Part(body, "main"),
    ]
    if chance(rng, 0.6):
        parts.append(line((-0.96, 0.02), (0.9, 0.05), role="second", width=0.05, detail=True))
    windows = np.linspace(-0.5, 0.55, int(rng.integers(5, 9)))
    parts += fills("glass", [ellipse(float(x), -r * 0.35, 0.035, 0.045) for x in windows], detail=True)
    parts.append(
        Part(points((0.72, -r * 0.68), (0.88, -r * 0.4), (0.9, -0.02), (0.73, -0.03)), "glass", detail=True)
    )
    parts.append(Part(points((-0.68, -0.03), (-1.02, 0.2), (-1.14, 0.2), (-0.95, -0.05)), "dark"))
    wing = points((0.3, 0.03), (-0.22, reach), (-0.46, reach), (-0.2, 0.06))
    if chance(rng, 0.5):
        parts.append(Part(ellipse(0.16, r + 0.13, 0.16, 0.085), "metal"))
    parts.append(Part(wing, "light"))
    if chance(rng, 0.3):
        parts += [Part(ellipse(1.04, 0.05, 0.035, 0.36), "black"), Part(ellipse(1.03, 0.05, 0.07), "metal")]
    return parts


def _airplane_above(rng: Rng) -> list[Part]:
    r, span, sweep = between(rng, 0.11, 0.15), between(rng, 0.8, 1.0), between(rng, 0.1, 0.45)
    wing = points((0.3, r * 0.5), (0.02 - sweep, span), (-0.2 - sweep, span), (-0.18, r * 0.5))
    tail = points((-0.7, r * 0.4), (-0.95, 0.38), (-1.1, 0.38), (-0.95, r * 0.2))
    up = np.array([1.0, -1.0])
    body = curve(
        (-1, 0),
        (-0.8, -r * 0.6),
        (0, -r),
        (0.6, -r),
        (0.9, -r * 0.6),
        (1, 0),
        (0.9, r * 0.6),
        (0.6, r),
        (0, r),
        (-0.8, r * 0.6),
    )
    parts = fills("light", [wing, wing * up])
    if chance(rng, 0.6):
        pod = ellipse(0.14 - sweep * 0.35, 0.42, 0.12, 0.06)
        parts += fills("metal", [pod, pod * up])
    parts += [*fills("second", [tail, tail * up]), Part(body, "main")]
    parts.append(
        Part(points((-0.62, 0.025), (-1.06, 0.035), (-1.06, -0.035), (-0.62, -0.025)), "second", detail=True)
    )
    parts.append(
        Part(
            curve((0.72, -r * 0.6), (0.86, -r * 0.3), (0.86, r * 0.3), (0.72, r * 0.6)), "glass", detail=True
        )
    )
    return turned_all(parts, between(rng, -0.9, 0.35))


def sailboat(rng: Rng) -> list[Part]:
    """A boat with a mast and one or two sails, from the side, on a few waves."""
    deck, mast, top = 0.5, between(rng, -0.06, 0.14), between(rng, -1.0, -0.85)
    bow, stern, keel = between(rng, 0.8, 0.98), between(rng, -0.9, -0.75), between(rng, 0.82, 0.95)
    hull = softened(points((stern, deck), (bow, deck - 0.05), (bow - 0.3, keel), (stern + 0.2, keel)), 1)
    parts = [line((mast, top), (mast, deck), role="wood", width=0.06), *_sails(mast, top, bow, stern, rng)]
    if chance(rng, 0.5):
        parts.append(Part(points((mast, top), (mast - 0.24, top + 0.07), (mast, top + 0.15)), "tail"))
    parts.append(Part(hull, "wood" if chance(rng, 0.6) else "second"))
    if chance(rng, 0.5):
        ends = ((stern + 0.05, deck + 0.1), (bow - 0.08, deck + 0.07))
        parts.append(line(*ends, role="white", width=0.05, detail=True))
    if chance(rng, 0.7):
        for x in np.arange(-0.95, 0.9, 0.38):
            wave = arc(float(x) + 0.19, keel - 0.04, 0.19, 0.1, 0.0, math.pi)
            parts.append(Part(wave, "water", stroke=0.045, closed=False, detail=True))
    return parts


def _sails(mast: float, top: float, bow: float, stern: float, rng: Rng) -> list[Part]:
    """The main sail behind the mast, mostly a jib before it, sometimes a stripe."""
    belly = between(rng, -0.05, 0.16)
    end = stern + between(rng, 0.0, 0.15)
    head = (mast - 0.05, top + 0.08)
    luff = curve(head, (mast - 0.06, -0.2), (mast - 0.05, 0.3), closed=False)
    leech = curve((end, 0.34), ((end + mast) / 2 - 0.06 - belly, -0.26), head, closed=False)
    parts = [Part(np.concatenate([luff, leech[:1], leech]), "main")]
    if chance(rng, 0.8):
        tip = (mast + 0.05, between(rng, top + 0.1, top + 0.35))
        edge = curve(tip, ((mast + bow) / 2 + 0.08, -0.05 + belly), (bow - 0.05, 0.36), closed=False)
        parts.append(Part(np.concatenate([points((mast + 0.05, 0.34)), edge]), "light"))
    if chance(rng, 0.4):
        y = between(rng, -0.3, 0.0)
        ends = ((mast - 0.06, y), (mast - 0.3 - 0.3 * (y + 0.3), y + 0.02))
        parts.append(line(*ends, role="second", width=0.08, detail=True))
    return parts
