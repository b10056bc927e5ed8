"""The words that prompts for synthetic images are made of, and the prompt itself.

Letters used in shapes: D embedding size.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from .demo.captions import STYLE_WORDS

SINGLE = "a photo of a {}"
"""The baseline: one plain prompt a class."""


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """What one synthetic image is asked to show; it has a text, a target, or both.

    Attributes:
        class_name: the class, as the data set spells it.
        text: a sentence; None in token space, where no words say it.
        target: unit text embedding of one teacher ``(D,)``; None where the text alone says it.
        provenance: rule, space and what was drawn, for the record.
    """

    class_name: str
    text: str | None
    target: npt.NDArray[np.float32] | None
    provenance: str


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What kind of picture of what kind of thing, where.

    Attributes:
        styles: what kind of picture, as in "a <style> of a".
        looks: in front of the class name, as in "a <look> car".
        places: after it, as in "a car <place>".
    """

    styles: tuple[str, ...]
    looks: tuple[str, ...]
    places: tuple[str, ...]

    def without(self, words: Sequence[str]) -> Vocabulary:
        """Leave out every entry that says one of the words, or all of them where they are a phrase."""
        spoken = [
            re.compile(rf"\b{re.escape(word.strip())}\b", re.IGNORECASE) for word in words if word.strip()
        ]

        def kept(entries: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(entry for entry in entries if not any(word.search(entry) for word in spoken))

        return replace(self, styles=kept(self.styles), looks=kept(self.looks), places=kept(self.places))


_LOOKS = (
    *("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "white", "grey"),
    *("small", "large"),
)
_PLACES = (
    *("in a meadow", "by the sea", "in the sky", "on a street", "in a room", "in a forest", "in the snow"),
    "on a plain background",
)
GENERAL = Vocabulary(
    styles=(
        *("photo", "snapshot", "close-up photo", "blurry photo", "black and white photo", "film still"),
        *("painting", "oil painting", "watercolour", "fresco", "gouache painting", "stained glass window"),
        *("cartoon", "comic", "clip art", "anime drawing", "vector illustration", "poster", "pixel art"),
        *("sketch", "pencil drawing", "charcoal drawing", "ink drawing", "woodcut", "line drawing", "doodle"),
        *(
            "3d rendering",
            "clay figure",
            "embroidery",
            "mosaic",
            "origami",
            "graffiti",
            "neon sign",
            "tattoo",
        ),
    ),
    looks=_LOOKS,
    places=(*_PLACES, "at night", "at dusk", "in fog", "seen from above"),
)
"""For teachers trained on the web."""
DEMO = Vocabulary(
    styles=(
        *("photo", "snapshot", "painting", "oil painting", "cartoon", "clip art"),
        *("sketch", "pencil drawing", "neon sign", "neon light"),
    ),
    looks=_LOOKS,
    places=_PLACES,
)
"""Words that the demo world's teacher and renderer know."""


def words_for(domains: Sequence[str]) -> tuple[str, ...]:
    """What a prompt must not say if these domains are to stay unseen: their names, and the demo's synonyms."""
    names = [domain.replace("_", " ") for domain in domains]
    return tuple(dict.fromkeys(word for name in names for word in (name, *STYLE_WORDS.get(name.lower(), ()))))


def spoken(class_name: str) -> str:
    """A class name as a sentence says it."""
    return class_name.replace("_", " ")


def article(words: str) -> str:
    """The words with "a" or "an" in front, by their first letter."""
    return f"{'an' if words[:1].lower() in tuple('aeiou') else 'a'} {words}"
