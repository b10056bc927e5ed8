"""The silhouettes of the demo world: one function per class draws one varied instance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from .animals import cat, fish, snail
from .craft import airplane, sailboat
from .flyers import bird, butterfly
from .geometry import Part
from .plants import flower, mushroom, tree
from .things import guitar, house, mug, umbrella
from .vehicles import bicycle, car

BUILDERS: Mapping[str, Callable[[np.random.Generator], list[Part]]] = MappingProxyType(
    {
        "airplane": airplane,
        "bicycle": bicycle,
        "bird": bird,
        "butterfly": butterfly,
        "car": car,
        "cat": cat,
        "fish": fish,
        "flower": flower,
        "guitar": guitar,
        "house": house,
        "mug": mug,
        "mushroom": mushroom,
        "sailboat": sailboat,
        "snail": snail,
        "tree": tree,
        "umbrella": umbrella,
    }
)
"""Class name to the function that draws one instance of it, in painter's order (back to front)."""

__all__ = ["BUILDERS", "Part"]
