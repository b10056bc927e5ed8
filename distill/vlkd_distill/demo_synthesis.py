"""The demo world's renderer as a synthesiser: it draws what a sentence says, as far as it knows the words."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vlkd_runtime.errors import ConfigError

from . import demo
from .synthesis import text_of
from .wording import Prompt

_KEYWORDS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "style": {style: (*words, style) for style, words in demo.STYLE_WORDS.items()},
    "background": {
        "meadow": ("meadow", "grass", "field"),
        "sea": ("sea", "ocean"),
        "sky": ("sky", "clouds"),
        "city": ("city", "street", "buildings"),
        "room": ("room", "indoors"),
        "forest": ("forest", "woods"),
        "snow": ("snow", "winter", "snowy"),
        "plain": ("plain", "nothing around it"),
    },
    "size_word": {"small": ("small", "little"), "medium": ("medium-sized",), "large": ("large", "big")},
    "facing": {side: (f"facing {side}",) for side in demo.FACINGS},
    "class_name": {name: (name,) for name in demo.CLASSES},
    # Last: a word of these may be part of a style's words, as in "black and white drawing".
    "colour": {colour: (colour,) for colour in demo.COLOURS},
}


def read_prompt(text: str) -> Mapping[str, tuple[str, ...]]:
    """What a sentence says in the demo world's words: `Scene` field to values, in the order they are named."""
    left, said = text.lower(), dict[str, tuple[str, ...]]()
    for field, values in _KEYWORDS.items():
        words = [(word, value) for value, synonyms in values.items() for word in synonyms]
        found: list[tuple[int, str]] = []
        for word, value in sorted(words, key=lambda pair: -len(pair[0])):
            pattern = rf"\b{re.escape(word)}\b"
            found += [(match.start(), value) for match in re.finditer(pattern, left)]
            left = re.sub(pattern, "_" * len(word), left)
        said[field] = tuple(dict.fromkeys(value for _, value in sorted(found)))
    return said


@dataclass(frozen=True, slots=True)
class DemoSynthesiser:
    """Draws the demo world as a sentence tells it to: a text-to-image model that needs no download.

    Words it knows are obeyed, others ignored; two styles give the blend of both pictures. What the sentence
    leaves open is typical and hardly varies: one of a few poses that belong to the sentence, and the class's
    usual colour and place nine times in ten. Text-to-image models collapse in a similar way, but here the
    collapse is our assumption, built in: that diversified prompts help here is by construction and no evidence
    that they help elsewhere.

    Attributes:
        size: side of the images in pixels.
        poses: how many poses one sentence can give.
    """

    size: int = 96
    poses: int = 6

    @property
    def name(self) -> str:
        """``demo``."""
        return "demo"

    @property
    def fingerprint(self) -> str:
        """Hash of the renderer's and this module's source."""
        digest = hashlib.sha256(f"{self.size} {self.poses}".encode())
        for path in (Path(__file__), *sorted(Path(demo.__path__[0]).rglob("*.py"))):
            if "teacher" not in path.name:
                digest.update(path.read_bytes())
        return digest.hexdigest()

    def synthesise(self, prompts: Sequence[Prompt], seed: int) -> Iterator[Image.Image]:
        """Draw one RGB image per prompt.

        Raises:
            ConfigError: a prompt has no words, or names none of the demo world's classes.
        """
        for index, prompt in enumerate(prompts):
            yield self._draw(text_of(prompt, self.name), np.random.default_rng([seed, index]))

    def _draw(self, text: str, rng: np.random.Generator) -> Image.Image:
        said = read_prompt(text)
        if not said["class_name"]:
            msg = f"Expected a prompt that names one of {', '.join(demo.CLASSES)}, found {text!r}."
            raise ConfigError(msg)
        name = said["class_name"][0]
        colour, background = demo.TYPICAL[name]
        usual = {"colour": colour, "background": background, "size_word": "medium", "facing": "right"}
        every = {
            "colour": demo.COLOURS,
            "background": demo.BACKGROUNDS,
            "size_word": demo.SIZES,
            "facing": demo.FACINGS,
        }
        chosen = {}
        for field, value in usual.items():
            strays, other = rng.random() < 0.1, every[field][int(rng.integers(len(every[field])))]
            free = other if strays else value
            chosen[field] = said[field][int(rng.integers(len(said[field])))] if said[field] else free
        digest = hashlib.sha256(f"{text}\n{int(rng.integers(self.poses))}".encode()).digest()
        pose = int.from_bytes(digest[:7], "big")
        pictures = []
        for style in said["style"][:2] or ("photo",):
            words = chosen | ({"colour": "grey"} if style == "sketch" else {})
            pictures.append(demo.render(demo.Scene(name, style, seed=pose, **words), self.size))
        return pictures[0] if len(pictures) == 1 else Image.blend(pictures[0], pictures[1], 0.5)
