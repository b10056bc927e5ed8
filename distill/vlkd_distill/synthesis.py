"""Synthesisers: from prompts to images, and those images as one more domain on disk.

Inspired by the first step of Xuan et al. (see `diversify`), who invert a VQGAN through CLIP. Here anything that
turns prompts into images will do: the demo world's renderer below, `diffusion.Diffusers`, `inversion.Inversion`.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from vlkd_runtime.atomic import write_bytes, write_text
from vlkd_runtime.errors import ConfigError, DataError

from . import demo
from .diversify import Prompt

_CHUNK = 16
_TRIES = 3


class Synthesiser(Protocol):
    """Anything that draws what prompts ask for.

    Attributes:
        name: short, fit for a folder name.
        fingerprint: changes whenever an image could.
        reads_text: whether it draws from `Prompt.text`; otherwise from embeddings.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def fingerprint(self) -> str: ...  # noqa: D102

    @property
    def reads_text(self) -> bool: ...  # noqa: D102

    def synthesise(self, prompts: Sequence[Prompt], seed: int) -> Iterator[Image.Image]:
        """Draw one RGB image per prompt, in order; the same arguments give the same images."""
        ...


class Judge(Protocol):
    """Says which images show what they were asked to show; see `synthcheck.ConsistencyJudge`."""

    @property
    def fingerprint(self) -> str: ...  # noqa: D102

    def __call__(self, images: Sequence[Image.Image], class_names: Sequence[str]) -> Sequence[bool]:
        """One verdict per image."""
        ...


def text_of(prompt: Prompt, reader: str) -> str:
    """The prompt's sentence.

    Raises:
        ConfigError: the prompt is an embedding without words.
    """
    if prompt.text is None:
        msg = (
            f"Expected a prompt in words for the synthesiser '{reader}', found an embedding ({prompt.provenance}): "
            "diversify in sentence space, or synthesise by inversion."
        )
        raise ConfigError(msg)
    return prompt.text


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
    def reads_text(self) -> bool:
        """Words are all it reads."""
        return True

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


@dataclass(frozen=True, slots=True)
class SyntheticSet:
    """A domain of synthetic images on disk.

    Attributes:
        folder: data folder; the images lie in ``folder/<domain>/<class>/<n>.png``.
        domain: name of the domain.
        images: how many were kept.
        regenerated: images that the judge refused and that were drawn again, each try counted.
        dropped: ``<class>/<file>`` of those that it refused to the last.
    """

    folder: Path
    domain: str
    images: int
    regenerated: int
    dropped: tuple[str, ...]


def write_synthetic(
    folder: Path,
    synthesiser: Synthesiser,
    prompts: Sequence[Prompt],
    per_prompt: int,
    seed: int,
    progress: Callable[[int], None] = lambda _: None,
    *,
    domain: str | None = None,
    judge: Judge | None = None,
) -> SyntheticSet:
    """Draw `per_prompt` images of each prompt as a domain of a data folder.

    An interrupted call goes on where it stopped, with the same images as a call that was not. Beside the
    domain's folder, ``<domain>.json`` records synthesiser, seed and prompts.

    Args:
        folder: data folder, made if needed.
        synthesiser: who draws.
        prompts: what.
        per_prompt: images of each prompt.
        seed: of all of it.
        progress: called with the number of images just finished.
        domain: name of the domain; ``synthetic-<synthesiser>`` unless given.
        judge: images it refuses are drawn again, twice at most, and then dropped.

    Raises:
        ConfigError: nothing to draw, or a class name that cannot be a folder's.
        DataError: the folder holds a domain of this name made otherwise.
    """
    domain = domain or f"synthetic-{synthesiser.name}"
    jobs = _jobs(prompts, per_prompt, domain)
    facts = _facts(synthesiser, prompts, per_prompt, seed, judge)
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    final, part = folder / f"{domain}.json", folder / f"{domain}.part.json"
    chunks: dict[str, dict[str, Any]] = _earlier(folder / domain, final, part, key)
    for start in range(0, len(jobs), _CHUNK):
        chunk = jobs[start : start + _CHUNK]
        if not _is_whole(folder / domain, chunk, chunks.get(str(start))):
            chunks[str(start)] = _draw_chunk(folder / domain, synthesiser, chunk, (seed, start), judge)
            write_text(part, json.dumps({"key": key, "chunks": chunks}))
        progress(len(chunk))
    dropped = tuple(name for chunk in chunks.values() for name in chunk["dropped"])
    regenerated = sum(chunk["regenerated"] for chunk in chunks.values())
    counts = {"images": len(jobs) - len(dropped), "regenerated": regenerated, "dropped": list(dropped)}
    write_text(final, json.dumps({"key": key, **facts, **counts, "chunks": chunks}, indent=1))
    part.unlink(missing_ok=True)
    return SyntheticSet(folder, domain, len(jobs) - len(dropped), regenerated, dropped)


_Job = tuple[Prompt, str]


def _jobs(prompts: Sequence[Prompt], per_prompt: int, domain: str) -> list[_Job]:
    """Each image's prompt and its name ``<class>/<file>``."""
    for name in (domain, *(prompt.class_name for prompt in prompts)):
        if not name or name[0] == "." or "/" in name or "\\" in name or "\0" in name:
            msg = f"Expected a class or domain name that can be a folder's, found {name!r}: rename it."
            raise ConfigError(msg)
    if not prompts or per_prompt < 1:
        msg = f"Expected prompts and at least 1 image of each, found {len(prompts)} prompts and {per_prompt} images."
        raise ConfigError(msg)
    jobs, counts = [], dict[str, int]()
    for prompt in prompts:
        for _ in range(per_prompt):
            number = counts.get(prompt.class_name, 0)
            jobs.append((prompt, f"{prompt.class_name}/{number:05d}.png"))
            counts[prompt.class_name] = number + 1
    return jobs


def _facts(
    synthesiser: Synthesiser, prompts: Sequence[Prompt], per_prompt: int, seed: int, judge: Judge | None
) -> dict[str, Any]:
    """All that the images depend on; an embedding is told by its hash."""
    told = []
    for prompt in prompts:
        target = None if prompt.target is None else hashlib.sha256(prompt.target.tobytes()).hexdigest()
        told.append(
            {
                "class": prompt.class_name,
                "text": prompt.text,
                "target": target,
                "provenance": prompt.provenance,
            }
        )
    return {
        "synthesiser": synthesiser.name,
        "fingerprint": synthesiser.fingerprint,
        "judge": None if judge is None else judge.fingerprint,
        "seed": seed,
        "per_prompt": per_prompt,
        "prompts": told,
    }


def _earlier(images: Path, final: Path, part: Path, key: str) -> dict[str, dict[str, Any]]:
    """The chunks that an earlier call of the same key has drawn."""
    record = next((path for path in (final, part) if path.is_file()), None)
    if record is None and images.exists() and any(images.rglob("*.png")):
        found = "images without a record"
    elif record is None:
        return {}
    else:
        try:
            stored = json.loads(record.read_text())
            if stored["key"] == key:
                return dict(stored["chunks"])
            found = "one of other prompts, seed, judge or synthesiser"
        except (ValueError, KeyError, TypeError):
            found = f"a damaged record {record.name}"
    msg = f"Expected no domain or the same one at {images}, found {found}: remove it, or name another domain."
    raise DataError(msg)


def _is_whole(images: Path, chunk: Sequence[_Job], done: Mapping[str, Any] | None) -> bool:
    return done is not None and all(name in done["dropped"] or (images / name).is_file() for _, name in chunk)


def _draw_chunk(
    images: Path,
    synthesiser: Synthesiser,
    chunk: Sequence[_Job],
    seed: tuple[int, int],
    judge: Judge | None,
) -> dict[str, Any]:
    left, regenerated = list(chunk), 0
    for attempt in range(_TRIES if judge is not None else 1):
        regenerated += len(left) if attempt else 0
        number = int(np.random.SeedSequence([*seed, attempt]).generate_state(1)[0])
        drawn = list(synthesiser.synthesise([prompt for prompt, _ in left], number))
        names = [prompt.class_name for prompt, _ in left]
        good = judge(drawn, names) if judge is not None else [True] * len(drawn)
        for (_, name), image, kept in zip(left, drawn, good, strict=True):
            if kept:
                (images / name).parent.mkdir(parents=True, exist_ok=True)
                data = io.BytesIO()
                image.save(data, "png")
                write_bytes(images / name, data.getvalue())
        left = [job for job, kept in zip(left, good, strict=True) if not kept]
        if not left:
            break
    for _, name in left:
        (images / name).unlink(missing_ok=True)
    return {"regenerated": regenerated, "dropped": [name for _, name in left]}
