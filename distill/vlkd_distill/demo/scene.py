"""What a demo picture shows, in words: the value every other module of the demo world starts from.

A :class:`Scene` holds words (class, style, colour, background, size, side) and one number that decides
everything the words leave open. In three styles colour and background go with the class most of the time,
so a network can get far on them without looking at the shape; in `sketch` and `neon` they say nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from vlkd_runtime.errors import ConfigError

CLASSES: tuple[str, ...] = (
    "airplane",
    "bicycle",
    "bird",
    "butterfly",
    "car",
    "cat",
    "fish",
    "flower",
    "guitar",
    "house",
    "mug",
    "mushroom",
    "sailboat",
    "snail",
    "tree",
    "umbrella",
)
STYLES: tuple[str, ...] = ("photo", "painting", "cartoon", "sketch", "neon")
COLOURS: tuple[str, ...] = (
    "red",
    "orange",
    "yellow",
    "green",
    "blue",
    "purple",
    "pink",
    "brown",
    "white",
    "grey",
)
BACKGROUNDS: tuple[str, ...] = ("meadow", "sea", "sky", "city", "room", "forest", "snow", "plain")
SIZES: tuple[str, ...] = ("small", "medium", "large")
FACINGS: tuple[str, ...] = ("left", "right")

TYPICAL: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "airplane": ("white", "sky"),
        "bicycle": ("blue", "city"),
        "bird": ("yellow", "sky"),
        "butterfly": ("purple", "meadow"),
        "car": ("red", "city"),
        "cat": ("grey", "room"),
        "fish": ("orange", "sea"),
        "flower": ("pink", "meadow"),
        "guitar": ("brown", "room"),
        "house": ("brown", "snow"),
        "mug": ("white", "room"),
        "mushroom": ("red", "forest"),
        "sailboat": ("white", "sea"),
        "snail": ("brown", "forest"),
        "tree": ("green", "meadow"),
        "umbrella": ("purple", "city"),
    }
)
"""Class name to the colour and the background it mostly has in the styles that carry colour."""

TYPICAL_SHARE = 0.65
"""How often, in photo, painting and cartoon, a scene takes its class's typical colour (or background)."""

_NEON_COLOURS = tuple(c for c in COLOURS if c not in ("brown", "grey"))


@dataclass(frozen=True, slots=True)
class Scene:
    """One picture in words, complete: the same scene always renders to the same pixels.

    Args:
        class_name: One of `CLASSES`.
        style: One of `STYLES`.
        colour: One of `COLOURS`; a sketch has none to show and is sampled as "grey".
        background: One of `BACKGROUNDS`.
        size_word: One of `SIZES`: how much of the picture the object fills.
        facing: "left" or "right"; mirrors the object.
        seed: Decides shape, pose, place and texture.
    """

    class_name: str
    style: str
    colour: str
    background: str
    size_word: str = "medium"
    facing: str = "right"
    seed: int = 0

    def __post_init__(self) -> None:
        require("class", self.class_name, CLASSES)
        require("style", self.style, STYLES)
        require("colour", self.colour, COLOURS)
        require("background", self.background, BACKGROUNDS)
        require("size word", self.size_word, SIZES)
        require("facing", self.facing, FACINGS)
        if self.seed < 0:
            msg = f"Expected a scene seed of 0 or more, found {self.seed}: give a non-negative whole number."
            raise ConfigError(msg)


def require(what: str, found: str, known: tuple[str, ...]) -> None:
    """Refuse a word the demo world does not know.

    Raises:
        ConfigError: `found` is not in `known`; the message lists what is.
    """
    if found not in known:
        msg = f"Unknown demo {what} {found!r}: the demo world knows {', '.join(known)}."
        raise ConfigError(msg)


def sample_scene(seed: int, style: str, class_name: str, index: int) -> Scene:
    """Draw scene number `index` of a class in a style; a function of its four arguments alone.

    Raises:
        ConfigError: An unknown style or class, or a negative seed or index.
    """
    require("style", style, STYLES)
    require("class", class_name, CLASSES)
    if seed < 0 or index < 0:
        msg = f"Expected a seed and an index of 0 or more, found seed {seed} and index {index}."
        raise ConfigError(msg)
    rng = np.random.default_rng([seed, STYLES.index(style), CLASSES.index(class_name), index])
    biased = style in ("photo", "painting", "cartoon")
    typical_colour, typical_background = TYPICAL[class_name]
    free_colours = _NEON_COLOURS if style == "neon" else COLOURS
    colour = free_colours[int(rng.integers(len(free_colours)))]
    background = BACKGROUNDS[int(rng.integers(len(BACKGROUNDS)))]
    keep_colour, keep_background = rng.random(2) < TYPICAL_SHARE
    if biased and keep_colour:
        colour = typical_colour
    if biased and keep_background:
        background = typical_background
    return Scene(
        class_name=class_name,
        style=style,
        colour="grey" if style == "sketch" else colour,
        background=background,
        size_word=SIZES[int(rng.choice(3, p=(0.3, 0.4, 0.3)))],
        facing=FACINGS[int(rng.integers(2))],
        seed=int(rng.integers(2**62)),
    )
