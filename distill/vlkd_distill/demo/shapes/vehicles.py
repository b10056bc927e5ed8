"""Things on wheels: bicycle, car. Each function draws one instance, facing right."""

from __future__ import annotations

import math

import numpy as np

from .geometry import (
    Outline,
    Part,
    Point,
    between,
    box,
    chance,
    curve,
    ellipse,
    fills,
    line,
    points,
    softened,
)

Rng = np.random.Generator


def bicycle(rng: Rng) -> list[Part]:
    """A bicycle from the side: two spoked wheels, a frame, a saddle and a handlebar."""
    r, base = between(rng, 0.38, 0.46), between(rng, 0.52, 0.6)
    rear, front, crank = (-base, 0.45), (base, 0.45), (between(rng, -0.12, 0.0), 0.47)
    seat, head = (between(rng, -0.3, -0.2), between(rng, -0.25, -0.12)), (0.36, between(rng, -0.28, -0.18))
    spokes = int(rng.integers(4, 8))
    parts = _wheel(rear, r, spokes, rng) + _wheel(front, r, spokes, rng)
    width = between(rng, 0.06, 0.085)
    low_head = (head[0] + 0.04, head[1] + 0.14)
    step_through = [line(low_head, (0.1, 0.3), crank, role="main", width=width, smooth=True)]
    diamond = [line(head, seat, role="main", width=width), line(low_head, crank, role="main", width=width)]
    parts += step_through if chance(rng, 0.3) else diamond
    for start, stop in ((seat, crank), (crank, rear), (seat, rear), (head, front)):
        parts += [line(start, stop, role="main", width=width)]
    x, y = seat[0] - 0.05, seat[1] - 0.16
    saddle = softened(points((x - 0.2, y - 0.06), (x + 0.2, y - 0.03), (x + 0.02, y + 0.06)))
    parts += [line(seat, (x, y), role="metal", width=0.05), Part(saddle, "black"), *_handlebar(head, rng)]
    x, y = crank
    pedals = line((x - 0.12, y - 0.12), (x + 0.12, y + 0.12), role="black", width=0.04)
    return [*parts, Part(ellipse(x, y, 0.09), "metal"), pedals]


def _wheel(hub: Point, r: float, spokes: int, rng: Rng) -> list[Part]:
    x, y = hub
    parts = [Part(ellipse(x, y, r), "black", stroke=0.075)]
    for angle in np.linspace(0, math.pi, spokes, endpoint=False) + between(rng, 0, 1):
        dx, dy = r * math.cos(angle), r * math.sin(angle)
        parts += [line((x - dx, y - dy), (x + dx, y + dy), role="metal", width=0.018, detail=True)]
    return parts


def _handlebar(head: Point, rng: Rng) -> list[Part]:
    """Bent down for racing or straight; sometimes a basket before it."""
    x, y = head[0] - 0.04, head[1] - 0.2
    parts = [line(head, (x, y), role="metal", width=0.05)]
    if chance(rng, 0.5):
        bend = ((x, y), (x + 0.2, y - 0.04), (x + 0.24, y + 0.14), (x + 0.06, y + 0.2))
        parts.append(line(*bend, role="black", width=0.06, smooth=True))
    else:
        parts.append(line((x + 0.1, y - 0.06), (x - 0.22, y - 0.02), role="black", width=0.07))
    if chance(rng, 0.3):
        x, y = head
        basket = points((x + 0.06, y - 0.16), (x + 0.42, y - 0.16), (x + 0.36, y + 0.12), (x + 0.1, y + 0.12))
        parts.append(Part(basket, "wood"))
    return parts


def car(rng: Rng) -> list[Part]:
    """A car from the side: saloon, hatchback, beetle or van, by where its roof begins and ends."""
    kind = int(rng.integers(4))
    front, back = ((0.28, -0.42), (0.28, -0.78), (0.2, -0.6), (0.5, -0.9))[kind]
    roof, deck = -between(rng, 0.46, 0.58) - 0.06 * (kind == 3), -between(rng, 0.02, 0.1)
    hood = min(0.92, front + between(rng, 0.28, 0.38))
    body = _beetle() if kind == 2 else _car_body(kind, (front, back), roof, deck, hood)
    if kind == 2:
        back, front, roof, deck, hood = -0.5, 0.22, -0.42, -0.08, 0.55
    middle, sill = (front + back) / 2 + 0.04, deck - 0.02
    top, post = roof + 0.08, 0.04
    low_back = back + 0.04 if kind == 3 else back - 0.12
    rear = points((back + 0.06, roof + 0.1), (middle - post, top), (middle - post, sill), (low_back, sill))
    fore = points(
        (middle + post, top), (front - 0.02, roof + 0.1), (hood - 0.13, sill), (middle + post, sill)
    )
    parts = [Part(body, "main"), *fills("glass", [rear, fore], detail=True)]
    if chance(rng, 0.35):
        parts.append(Part(box(-0.98, 0.1, 1.0, 0.18), "second", detail=True))
    parts += [
        line((middle, sill), (middle, 0.24), role="dark", width=0.025, detail=True),
        line((middle - 0.18, 0.03), (middle - 0.08, 0.03), role="dark", width=0.035, detail=True),
        Part(ellipse(0.95, 0.1, 0.06, 0.07), "lamp", detail=True),
        Part(ellipse(-0.99, 0.1, 0.035, 0.07), "tail", detail=True),
    ]
    r = between(rng, 0.2, 0.27)
    for x in (-between(rng, 0.54, 0.62), between(rng, 0.54, 0.62)):
        parts += [Part(ellipse(x, 0.3, r), "black"), Part(ellipse(x, 0.3, r * 0.5), "metal", detail=True)]
    if chance(rng, 0.2):
        parts += [line((back + 0.1, roof - 0.06), (front - 0.1, roof - 0.06), role="metal", width=0.05)]
    return parts


def _beetle() -> Outline:
    top = [(-1, 0.3), (-0.92, -0.02), (-0.5, -0.42), (-0.1, -0.54), (0.3, -0.4), (0.55, -0.08)]
    return curve(*top, (0.9, 0.0), (1.02, 0.3), (0, 0.34))


def _car_body(kind: int, ends: Point, roof: float, deck: float, hood: float) -> Outline:
    front, back = ends
    tail = -0.98 if kind in (1, 3) else max(-0.95, back - 0.26)
    rear = [(-1, 0.28), (-1.02, deck + 0.03), (tail, deck - 0.02), (back, roof)]
    return softened(points(*rear, (front, roof - 0.01), (hood, deck), (0.96, deck + 0.1), (1.04, 0.28)))
