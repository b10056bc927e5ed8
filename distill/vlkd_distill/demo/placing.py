"""Where the object stands in the picture: a scene's parts in picture coordinates.

Picture coordinates: x to the right, y down, the whole picture is [0, 1] on both axes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from .scene import Scene
from .shapes import BUILDERS, Part
from .shapes.geometry import between

_HALF_EXTENT = {"small": (0.25, 0.30), "medium": (0.31, 0.37), "large": (0.38, 0.44)}
_LEAN = {
    "airplane": 0.3,
    "bird": 0.12,
    "butterfly": 0.3,
    "fish": 0.22,
    "guitar": 0.1,
    "umbrella": 0.15,
    "sailboat": 0.12,
}
_FLOATING = frozenset({"airplane", "bird", "butterfly", "fish", "umbrella", "guitar"})


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """The object of one scene in the picture.

    Args:
        parts: In painter's order, outlines and stroke widths in picture coordinates.
        left, top, right, bottom: The box around all parts.
        grounded: Whether the object stands on something.
    """

    parts: tuple[Part, ...]
    left: float
    top: float
    right: float
    bottom: float
    grounded: bool


def place(scene: Scene) -> Placed:
    """Build the scene's object and put it into the picture; a function of the scene alone."""
    rng = np.random.default_rng([scene.seed, 1])
    parts = BUILDERS[scene.class_name](rng)
    lean = between(rng, -1, 1) * _LEAN.get(scene.class_name, 0.08)
    squeeze, shear = between(rng, 0.82, 1.1), between(rng, -0.1, 0.1)
    c, s = math.cos(lean), math.sin(lean)
    matrix = np.array([[squeeze, 0.0], [shear, 1.0]]) @ np.array([[c, s], [-s, c]])
    if scene.facing == "left":
        matrix = matrix @ np.diag([-1.0, 1.0])
    outlines = [p.outline @ matrix for p in parts]
    low = np.min([o.min(axis=0) for o in outlines], axis=0)
    high = np.max([o.max(axis=0) for o in outlines], axis=0)
    scale = between(rng, *_HALF_EXTENT[scene.size_word]) / (float((high - low).max()) / 2)
    half = (high - low) / 2 * scale
    grounded = scene.class_name not in _FLOATING
    room = np.maximum(0.53 - half, 0.0)
    x = 0.5 + between(rng, -1, 1) * float(room[0])
    y = 0.5 + between(rng, -0.1 if grounded else -1, 1) * float(room[1])
    shift = np.array([x, y]) - (low + high) / 2 * scale
    placed = tuple(
        replace(p, outline=o * scale + shift, stroke=p.stroke * scale)
        for p, o in zip(parts, outlines, strict=True)
    )
    return Placed(
        placed, x - float(half[0]), y - float(half[1]), x + float(half[0]), y + float(half[1]), grounded
    )
