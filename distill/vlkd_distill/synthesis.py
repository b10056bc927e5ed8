"""Synthesisers: from prompts to images, and those images as one more domain on disk.

Inspired by the first step of Xuan et al. (see `diversify`), who invert a VQGAN through CLIP. Here anything that
turns prompts into images will do: `demo_synthesis.DemoSynthesiser`, `diffusion.Diffusers`, `inversion.Inversion`.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from vlkd_runtime.atomic import write_bytes, write_text
from vlkd_runtime.errors import ConfigError, DataError

from .wording import Prompt

_CHUNK = 16
_TRIES = 3


class Synthesiser(Protocol):
    """Anything that draws what prompts ask for.

    Attributes:
        name: short, fit for a folder name.
        fingerprint: changes whenever an image could.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def fingerprint(self) -> str: ...  # noqa: D102

    def synthesise(self, prompts: Sequence[Prompt], seed: int) -> Iterator[Image.Image]:
        """Draw one RGB image per prompt, in order; the same arguments give the same images."""
        ...


class Restyler(Protocol):
    """Anything that redraws an image as a text describes it."""

    @property
    def fingerprint(self) -> str: ...  # noqa: D102

    def restyle(
        self, images: Sequence[Image.Image], texts: Sequence[str], seeds: Sequence[int]
    ) -> Iterator[Image.Image]:
        """Redraw RGB images, in order and in any size; an image, a text and a seed always give the same."""
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
    per_class: int,
    seed: int,
    progress: Callable[[int], None] = lambda _: None,
    *,
    domain: str | None = None,
    judge: Judge | None = None,
) -> SyntheticSet:
    """Draw `per_class` images of each class as a domain of a data folder; a class's prompts take turns.

    An interrupted call goes on where it stopped, with the same images as a call that was not. Beside the
    domain's folder, ``<domain>.json`` records synthesiser, seed and prompts.

    Args:
        folder: data folder, made if needed.
        synthesiser: who draws.
        prompts: what.
        per_class: images of each class.
        seed: of all of it.
        progress: called with the number of images just finished.
        domain: name of the domain; ``synthetic-<synthesiser>`` unless given.
        judge: images it refuses are drawn again, twice at most, and then dropped.

    Raises:
        ConfigError: nothing to draw, or a class name that cannot be a folder's.
        DataError: the folder holds a domain of this name made otherwise.
    """
    domain = domain or f"synthetic-{synthesiser.name}"
    jobs = _jobs(prompts, per_class, domain)
    facts = _facts(synthesiser, prompts, per_class, seed, judge)
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    final, part = folder / f"{domain}.json", folder / f"{domain}.part.json"
    chunks: dict[str, dict[str, Any]] = _earlier(folder / domain, final, part, key)
    folder.mkdir(parents=True, exist_ok=True)
    if not chunks:  # so that what is killed in its first chunk is known for what it is
        write_text(part, json.dumps({"key": key, "chunks": chunks}))
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


def _jobs(prompts: Sequence[Prompt], per_class: int, domain: str) -> list[_Job]:
    """Each image's prompt and its name ``<class>/<file>``."""
    of_class: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        of_class.setdefault(prompt.class_name, []).append(prompt)
    for name in (domain, *of_class):
        if not name or name[0] == "." or "/" in name or "\\" in name or "\0" in name:
            msg = f"Expected a class or domain name that can be a folder's, found {name!r}: rename it."
            raise ConfigError(msg)
    if not prompts or per_class < 1:
        msg = f"Expected prompts and at least 1 image a class, found {len(prompts)} prompts and {per_class} images."
        raise ConfigError(msg)
    return [
        (own[number % len(own)], f"{name}/{number:05d}.png")
        for name, own in of_class.items()
        for number in range(per_class)
    ]


def _facts(
    synthesiser: Synthesiser, prompts: Sequence[Prompt], per_class: int, seed: int, judge: Judge | None
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
        "per_class": per_class,
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
