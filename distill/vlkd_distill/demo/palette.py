"""Which colour a part of an object has: materials are fixed, the main colour follows the scene's word.

Colours are (3,) RGB in 0..1.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from .scene import COLOURS, Scene

Colour = npt.NDArray[np.floating[Any]]
Palette = Mapping[str, Colour]
"""Role to colour."""

_NAMED: Mapping[str, tuple[int, int, int]] = MappingProxyType(
    {
        "red": (208, 44, 40),
        "orange": (242, 132, 30),
        "yellow": (246, 204, 54),
        "green": (74, 148, 58),
        "blue": (48, 104, 204),
        "purple": (126, 72, 178),
        "pink": (240, 126, 172),
        "brown": (132, 82, 48),
        "white": (240, 239, 234),
        "grey": (138, 142, 150),
    }
)
_MATERIALS: Mapping[str, tuple[int, int, int]] = MappingProxyType(
    {
        "wood": (120, 76, 44),
        "leaf": (70, 136, 52),
        "black": (34, 34, 40),
        "white": (248, 247, 242),
        "glass": (168, 212, 236),
        "beak": (240, 160, 40),
        "skin": (236, 214, 176),
        "shade": (186, 158, 120),
        "metal": (170, 176, 186),
        "lamp": (255, 236, 150),
        "tail": (214, 50, 44),
        "eye": (206, 214, 84),
        "nose": (232, 142, 146),
        "whisker": (250, 250, 250),
        "heart": (246, 190, 40),
        "fruit": (220, 56, 46),
        "brick": (158, 74, 58),
        "coffee": (82, 50, 32),
        "smoke": (226, 228, 232),
        "string": (238, 232, 214),
        "water": (96, 160, 214),
    }
)
ROLES: tuple[str, ...] = ("main", "dark", "light", "second", "roof", *_MATERIALS)


def named_colour(name: str) -> Colour:
    """The plain colour a word of `COLOURS` stands for."""
    return np.array(_NAMED[name], dtype=np.float32) / 255


def varied(colour: Colour, rng: np.random.Generator, hue: float, light: float) -> Colour:
    """The colour with a random shift of at most `hue` turns and `light` in saturation and value."""
    h, s, v = colorsys.rgb_to_hsv(*(float(c) for c in colour))
    dh, ds, dv = rng.uniform(-1, 1, 3)
    s = s * (1 + light * float(ds))
    v = v * (1 + light * float(dv))
    shifted = colorsys.hsv_to_rgb((h + hue * float(dh)) % 1, min(1.0, max(0.0, s)), min(1.0, max(0.0, v)))
    return np.array(shifted, dtype=np.float32)


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """The colour `share` of the way from `a` to `b`."""
    return (a * (1 - share) + b * share).astype(np.float32)


_BLACK = np.zeros(3, dtype=np.float32)
_WHITE = np.ones(3, dtype=np.float32)


def palette(scene: Scene, rng: np.random.Generator, hue: float = 0.015, light: float = 0.12) -> Palette:
    """The colour of each role in one scene."""
    main = varied(named_colour(scene.colour), rng, hue, light)
    others = [name for name in COLOURS if name not in (scene.colour, "brown", "grey")]
    second = varied(named_colour(others[int(rng.integers(len(others)))]), rng, hue, light)
    out = {
        role: varied(np.array(c, np.float32) / 255, rng, hue, light * 0.6) for role, c in _MATERIALS.items()
    }
    roofs = (out["brick"], out["wood"], named_colour("grey"), second)
    out["roof"] = mix(roofs[int(rng.integers(4))], _BLACK, 0.12)
    out["main"], out["second"] = main, second
    out["dark"] = mix(main, _BLACK, 0.34)
    out["light"] = mix(main, _WHITE, 0.42) if scene.colour != "white" else mix(main, _BLACK, 0.12)
    return out


def luminance(colour: Colour) -> float:
    """How bright a colour looks, 0..1 (Rec. 601 weights)."""
    return float(0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2])
