"""Sentences that fit a scene: the text side of the demo world's image-text pairs.

A caption names the class always or nearly so, and style, colour, size, background, side and attributes
in varying combinations and synonyms; some captions are a class name alone, a few name the style alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from .attributes import ATTRIBUTES
from .scene import Scene

_SYNONYMS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "airplane": ("plane", "aeroplane", "aircraft"),
        "bicycle": ("bike",),
        "car": ("automobile", "motor car"),
        "cat": ("kitten", "kitty"),
        "flower": ("blossom", "bloom"),
        "house": ("home", "cottage"),
        "mug": ("cup", "coffee mug"),
        "mushroom": ("toadstool",),
        "sailboat": ("sailing boat", "boat"),
        "umbrella": ("parasol",),
    }
)
STYLE_WORDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "photo": ("photo", "photograph", "picture taken by a camera", "snapshot", "realistic photo"),
        "painting": ("painting", "oil painting", "art painting", "brush painting", "painting on canvas"),
        "cartoon": ("cartoon", "comic", "clip art", "cartoon illustration", "cartoon picture"),
        "sketch": ("sketch", "pencil sketch", "drawing", "pencil drawing", "black and white drawing"),
        "neon": ("neon sign", "neon light", "glowing neon picture", "sign of neon tubes", "neon drawing"),
    }
)
"""Style to the words captions use for it; the first is the plainest."""
_PLACES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "meadow": ("in a meadow", "on the grass", "in a field"),
        "sea": ("at sea", "by the sea", "in front of the ocean"),
        "sky": ("in the sky", "among clouds", "in front of the sky"),
        "city": ("in a city", "on a street", "in front of buildings"),
        "room": ("in a room", "in a living room", "indoors"),
        "forest": ("in a forest", "in the woods", "in a dark forest"),
        "snow": ("in the snow", "in winter", "on a snowy day"),
        "plain": ("on a plain background", "with nothing around it", "in front of a plain wall"),
    }
)
_SIZES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"small": ("small", "little"), "medium": ("medium-sized",), "large": ("large", "big")}
)
_LOOSE = (
    "an image of {}",
    "a picture of {}",
    "a rendering of {}",
    "a depiction of {}",
    "this is {}",
    "there is {} in the picture",
    "one can see {}",
    "the picture shows {}",
)
_HAS_SIDES = frozenset({"airplane", "bicycle", "bird", "car", "cat", "fish", "sailboat", "snail"})


def _pick(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    return words[int(rng.integers(len(words)))]


def with_article(words: str) -> str:
    """The words with "a" or "an" in front, by their first letter."""
    return f"{'an' if words[:1] in ('a', 'e', 'i', 'o', 'u') else 'a'} {words}"


@dataclass(frozen=True, slots=True)
class Caption:
    """A sentence and what it says about a scene.

    Args:
        text: The sentence.
        claims: Pairs of a `Scene` field and the value the sentence gives it; nothing else is said.
    """

    text: str
    claims: tuple[tuple[str, str], ...]

    def fits(self, scene: Scene) -> bool:
        """Whether everything said is true of the scene; no colour is true of a sketch."""
        known = all(getattr(scene, field) == value for field, value in self.claims)
        return known and not (scene.style == "sketch" and any(field == "colour" for field, _ in self.claims))


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """One sentence (or word) that is true of the scene; `rng` chooses which.

    A sketch's caption never names a colour, for there is none to see.
    """
    return describe(scene, rng).text


def describe(scene: Scene, rng: np.random.Generator) -> Caption:
    """Like `caption`, with what the sentence claims beside it."""
    kind = float(rng.random())
    noun = scene.class_name
    if rng.random() < 0.2:
        noun = _pick(rng, _SYNONYMS.get(noun, (noun,)))
    style = _pick(rng, STYLE_WORDS[scene.style])
    is_class, is_style = ("class_name", scene.class_name), ("style", scene.style)
    if kind < 0.1:
        return Caption(noun if rng.random() < 0.4 else with_article(noun), (is_class,))
    if kind < 0.16:
        return Caption(with_article(style), (is_style,))
    if kind < 0.24:
        article = "the " + noun if rng.random() < 0.3 else with_article(noun)
        return Caption(_pick(rng, _LOOSE).format(article), (is_class,))
    if kind < 0.42:
        return Caption(f"{with_article(style)} of {with_article(noun)}", (is_class, is_style))
    return _sentence(scene, noun, style, rng)


def _sentence(scene: Scene, noun: str, style: str, rng: np.random.Generator) -> Caption:
    """A sentence with any of colour, size, attributes, place, side and style."""
    colour, size, attributes, place, side, names_style = rng.random(6) < (0.6, 0.25, 0.3, 0.45, 0.12, 0.75)
    words, claims = noun, [("class_name", scene.class_name)]
    if colour and scene.style != "sketch":
        words = f"{scene.colour} {words}"
        claims.append(("colour", scene.colour))
    if size:
        words = f"{_pick(rng, _SIZES[scene.size_word])} {words}"
        claims.append(("size_word", scene.size_word))
    text = with_article(words)
    if attributes:
        known = ATTRIBUTES[scene.class_name]
        first, second = rng.permutation(len(known))[:2]
        text += f" with {known[first]}" + (f" and {known[second]}" if rng.random() < 0.5 else "")
    if side and scene.class_name in _HAS_SIDES:
        text += f" facing {scene.facing}"
        claims.append(("facing", scene.facing))
    if place:
        text += f" {_pick(rng, _PLACES[scene.background])}"
        claims.append(("background", scene.background))
    if names_style:
        claims.append(("style", scene.style))
        text = f"{with_article(style)} of {text}" if rng.random() < 0.8 else f"{text}, {style}"
    return Caption(text, tuple(claims))
