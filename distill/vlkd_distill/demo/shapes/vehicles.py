"""Things that travel: airplane, bicycle, car, sailboat. Each function draws one instance, facing right."""

from __future__ import annotations

import math

import numpy as np

from .geometry import Part, arc, between, box, chance, curve, ellipse, fills, line, mirrored, points, softened

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
    angle = between(rng, -0.9, 0.35)
    c, s = math.cos(angle), math.sin(angle)
    turn = np.array([[c, s], [-s, c]])
    return [Part(p.outline @ turn, p.role, p.stroke, p.closed, p.detail) for p in parts]


def bicycle(rng: Rng) -> list[Part]:
    """A bicycle from the side: two spoked wheels, a frame, a saddle and a handlebar."""
    r, base = between(rng, 0.38, 0.46), between(rng, 0.52, 0.6)
    rear, front, crank = (-base, 0.45), (base, 0.45), (between(rng, -0.12, 0.0), 0.47)
    seat, head = (between(rng, -0.3, -0.2), between(rng, -0.25, -0.12)), (0.36, between(rng, -0.28, -0.18))
    parts: list[Part] = []
    spokes = int(rng.integers(4, 8))
    for cx, cy in (rear, front):
        parts.append(Part(ellipse(cx, cy, r), "black", stroke=0.075))
        for angle in np.linspace(0, math.pi, spokes, endpoint=False) + between(rng, 0, 1):
            dx, dy = r * math.cos(angle), r * math.sin(angle)
            parts.append(line((cx - dx, cy - dy), (cx + dx, cy + dy), role="metal", width=0.018, detail=True))
    width = between(rng, 0.06, 0.085)
    low_head = (head[0] + 0.04, head[1] + 0.14)
    step_through = [line(low_head, (0.1, 0.3), crank, role="main", width=width, smooth=True)]
    diamond = [line(head, seat, role="main", width=width), line(low_head, crank, role="main", width=width)]
    parts += step_through if chance(rng, 0.3) else diamond
    for start, stop in ((seat, crank), (crank, rear), (seat, rear), (head, front)):
        parts += [line(start, stop, role="main", width=width)]
    post = (seat[0] - 0.05, seat[1] - 0.16)
    parts += [
        line(seat, post, role="metal", width=0.05),
        Part(
            softened(
                points(
                    (post[0] - 0.2, post[1] - 0.06),
                    (post[0] + 0.2, post[1] - 0.03),
                    (post[0] + 0.02, post[1] + 0.06),
                )
            ),
            "black",
        ),
    ]
    grip = (head[0] - 0.04, head[1] - 0.2)
    parts.append(line(head, grip, role="metal", width=0.05))
    if chance(rng, 0.5):
        parts.append(
            line(
                grip,
                (grip[0] + 0.2, grip[1] - 0.04),
                (grip[0] + 0.24, grip[1] + 0.14),
                (grip[0] + 0.06, grip[1] + 0.2),
                role="black",
                width=0.06,
                smooth=True,
            )
        )
    else:
        parts.append(
            line((grip[0] + 0.1, grip[1] - 0.06), (grip[0] - 0.22, grip[1] - 0.02), role="black", width=0.07)
        )
    if chance(rng, 0.3):
        x, y = head
        parts.append(
            Part(
                points((x + 0.06, y - 0.16), (x + 0.42, y - 0.16), (x + 0.36, y + 0.12), (x + 0.1, y + 0.12)),
                "wood",
            )
        )
    parts.append(Part(ellipse(*crank, 0.09), "metal"))
    parts.append(
        line((crank[0] - 0.12, crank[1] - 0.12), (crank[0] + 0.12, crank[1] + 0.12), role="black", width=0.04)
    )
    return parts


def car(rng: Rng) -> list[Part]:
    """A car from the side: saloon, hatchback, beetle or van, by where its roof begins and ends."""
    kind = int(rng.integers(4))
    front, back = ((0.28, -0.42), (0.28, -0.78), (0.2, -0.6), (0.5, -0.9))[kind]
    roof, deck = -between(rng, 0.46, 0.58) - 0.06 * (kind == 3), -between(rng, 0.02, 0.1)
    hood = min(0.92, front + between(rng, 0.28, 0.38))
    tail = -0.98 if kind in (1, 3) else max(-0.95, back - 0.26)
    body = softened(
        points(
            (-1, 0.28),
            (-1.02, deck + 0.03),
            (tail, deck - 0.02),
            (back, roof),
            (front, roof - 0.01),
            (hood, deck),
            (0.96, deck + 0.1),
            (1.04, 0.28),
        )
    )
    if kind == 2:
        body = curve(
            (-1, 0.3),
            (-0.92, -0.02),
            (-0.5, -0.42),
            (-0.1, -0.54),
            (0.3, -0.4),
            (0.55, -0.08),
            (0.9, 0.0),
            (1.02, 0.3),
            (0, 0.34),
        )
        back, front, roof, deck = -0.5, 0.22, -0.42, -0.08
    middle, sill = (front + back) / 2 + 0.04, deck - 0.02
    rear_pane = points(
        (back + 0.06, roof + 0.1), (middle - 0.04, roof + 0.08), (middle - 0.04, sill), (back - 0.12, sill)
    )
    front_pane = points(
        (middle + 0.04, roof + 0.08),
        (front - 0.02, roof + 0.1),
        (hood - 0.13 if kind != 2 else 0.42, sill),
        (middle + 0.04, sill),
    )
    if kind == 3:
        rear_pane[3, 0] = back + 0.04
    parts = [Part(body, "main"), *fills("glass", [rear_pane, front_pane], detail=True)]
    if chance(rng, 0.35):
        parts.append(Part(box(-0.98, 0.1, 1.0, 0.18), "second", detail=True))
    parts += [
        line((middle, sill), (middle, 0.24), role="dark", width=0.025, detail=True),
        line((middle - 0.18, 0.03), (middle - 0.08, 0.03), role="dark", width=0.035, detail=True),
        Part(ellipse(0.95, 0.1, 0.06, 0.07), "lamp", detail=True),
        Part(ellipse(-0.99, 0.1, 0.035, 0.07), "tail", detail=True),
    ]
    r = between(rng, 0.2, 0.27)
    for cx in (-between(rng, 0.54, 0.62), between(rng, 0.54, 0.62)):
        parts += [Part(ellipse(cx, 0.3, r), "black"), Part(ellipse(cx, 0.3, r * 0.5), "metal", detail=True)]
    if chance(rng, 0.2):
        parts += [line((back + 0.1, roof - 0.06), (front - 0.1, roof - 0.06), role="metal", width=0.05)]
    return parts


def sailboat(rng: Rng) -> list[Part]:
    """A boat with a mast and one or two sails, from the side, on a few waves."""
    hull_top, mast, lean = 0.5, between(rng, -0.06, 0.14), between(rng, -1.0, -0.85)
    bow, stern, keel = between(rng, 0.8, 0.98), between(rng, -0.9, -0.75), between(rng, 0.82, 0.95)
    hull = softened(
        points((stern, hull_top), (bow, hull_top - 0.05), (bow - 0.3, keel), (stern + 0.2, keel)), 1
    )
    belly = between(rng, -0.05, 0.16)
    end = stern + between(rng, 0.0, 0.15)
    sail = curve((mast - 0.05, lean + 0.08), (mast - 0.06, -0.2), (mast - 0.05, 0.3), closed=False)
    foot = curve(
        (mast - 0.05, 0.3), (end, 0.36), (mast - 0.45 - belly, -0.2), (mast - 0.05, lean + 0.08), closed=False
    )
    foot = np.concatenate(
        [
            points((end, 0.34)),
            curve(
                (end, 0.34),
                ((end + mast) / 2 - 0.06 - belly, -0.26),
                (mast - 0.05, lean + 0.08),
                closed=False,
            ),
        ]
    )
    parts = [
        line((mast, lean), (mast, hull_top), role="wood", width=0.06),
        Part(np.concatenate([sail, foot]), "main"),
    ]
    if chance(rng, 0.8):
        tip = between(rng, lean + 0.1, lean + 0.35)
        jib = np.concatenate(
            [
                points((mast + 0.05, 0.34)),
                curve(
                    (mast + 0.05, tip),
                    ((mast + bow) / 2 + 0.08, -0.05 + belly),
                    (bow - 0.05, 0.36),
                    closed=False,
                ),
            ]
        )
        parts.append(Part(jib, "light"))
    if chance(rng, 0.4):
        y = between(rng, -0.3, 0.0)
        parts.append(
            line(
                (mast - 0.06, y),
                (mast - 0.3 - 0.3 * (y + 0.3), y + 0.02),
                role="second",
                width=0.08,
                detail=True,
            )
        )
    if chance(rng, 0.5):
        parts.append(Part(points((mast, lean), (mast - 0.24, lean + 0.07), (mast, lean + 0.15)), "tail"))
    parts.append(Part(hull, "wood" if chance(rng, 0.6) else "second"))
    if chance(rng, 0.5):
        parts.append(
            line(
                (stern + 0.05, hull_top + 0.1),
                (bow - 0.08, hull_top + 0.07),
                role="white",
                width=0.05,
                detail=True,
            )
        )
    if chance(rng, 0.7):
        for x in np.arange(-0.95, 0.9, 0.38):
            wave = arc(float(x) + 0.19, keel - 0.04, 0.19, 0.1, 0.0, math.pi)
            parts.append(Part(wave, "water", stroke=0.045, closed=False, detail=True))
    return parts


def mirror(parts: list[Part]) -> list[Part]:
    """The same parts facing the other way."""
    return [Part(mirrored(p.outline), p.role, p.stroke, p.closed, p.detail) for p in parts]
