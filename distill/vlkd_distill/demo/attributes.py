"""What each class looks like, in words: for prompts that describe a class besides naming it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

ATTRIBUTES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "airplane": ("wings", "a tail", "a row of windows", "a long body"),
        "bicycle": ("two wheels", "spokes", "a saddle", "a handlebar"),
        "bird": ("wings", "a beak", "a tail", "thin legs"),
        "butterfly": ("four wings", "spots", "feelers", "a thin body"),
        "car": ("two wheels", "windows", "a roof", "doors"),
        "cat": ("pointed ears", "whiskers", "a tail", "four legs"),
        "fish": ("fins", "a tail", "scales", "gills"),
        "flower": ("petals", "a stem", "leaves", "a round centre"),
        "guitar": ("strings", "a long neck", "a curved body", "a sound hole"),
        "house": ("a roof", "windows", "doors", "a chimney"),
        "mug": ("a handle", "a round rim", "a flat bottom", "hot coffee"),
        "mushroom": ("a round cap", "a stem", "spots", "gills"),
        "sailboat": ("sails", "a mast", "a hull", "waves below"),
        "snail": ("a spiral shell", "feelers", "a soft body", "no legs"),
        "tree": ("a trunk", "leaves", "branches", "a wide crown"),
        "umbrella": ("a round canopy", "ribs", "a handle", "a curved hook"),
    }
)
"""Class name to what one sees on it; several classes share an attribute, as classes do."""
