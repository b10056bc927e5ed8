"""Captions of images: a file with one for each, embedded by the teacher's text tower once.

A ``.jsonl`` file has an object a line, ``{"image": "<domain>/<class>/<file>", "caption": "..."}``; a ``.csv`` file has
the columns ``image`` and ``caption``. Captions of images that are not asked for, such as test images, are passed over.

Letters used in shapes: N images, D embedding size.

References:
    Li et al., "Distilling Large Vision-Language Model with Out-of-Distribution Generalizability", ICCV 2023 (auxiliary
    captions, which its authors have a captioning model write).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from numpy.lib.format import open_memmap

from vlkd_bench.samples import Sample
from vlkd_runtime.errors import ConfigError, DataError
from vlkd_runtime.strictjson import JsonProblems, parse

from .answers import few, refuse_not_finite
from .mapped import Ebb
from .templates import read_text

if TYPE_CHECKING:
    from .teachers import Teacher

_AT_ONCE = 256
_SUFFIXES = (".jsonl", ".csv")


def read_captions(path: Path, samples: Sequence[Sample]) -> tuple[str, ...]:
    """The caption of each image, in the order of the samples.

    Args:
        path: a ``.jsonl`` or ``.csv`` file.
        samples: images, found by their id.

    Raises:
        ConfigError: the file cannot be read, or a line says something else; the line is named.
        DataError: images without a caption, counted and named.
    """
    if path.suffix.lower() not in _SUFFIXES:
        msg = f"{path}: expected captions in a file that ends in {' or '.join(_SUFFIXES)}; rename it (data.captions)."
        raise ConfigError(msg)
    text = read_text(path, "captions")
    lines = _json_lines(text, path) if path.suffix.lower() == ".jsonl" else _csv_lines(text, path)
    found: dict[str, str] = {}
    for number, image, caption in lines:
        if not isinstance(image, str) or not isinstance(caption, str) or not caption.strip():
            msg = (
                f"{path}, line {number}: expected the texts image and caption, neither empty, found {image!r} and "
                f"{caption!r}; correct the line."
            )
            raise ConfigError(msg)
        if found.setdefault(image, caption.strip()) != caption.strip():
            msg = f"{path}, line {number}: found a second caption of {image}; keep one."
            raise ConfigError(msg)
    missing = [sample.image for sample in samples if sample.image not in found]
    if missing:
        msg = (
            f"{path} has no caption for {len(missing)} of {len(samples)} train images: {few(missing)}. It has "
            f"{len(found)} captions, found by <domain>/<class>/<file>. Add them, or set distill.caption_weight = 0."
        )
        raise DataError(msg)
    return tuple(found[sample.image] for sample in samples)


def _json_lines(text: str, path: Path) -> Iterator[tuple[int, Any, Any]]:
    # split("\n") and not splitlines(): a caption may hold U+2028, which ends a line for splitlines.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = parse(line)
        except JsonProblems as error:
            msg = f"{path}, line {number}: {error}; write one JSON object a line."
            raise ConfigError(msg) from error
        if not isinstance(value, dict):
            msg = f"{path}, line {number}: expected an object with image and caption, found {type(value).__name__}."
            raise ConfigError(msg)
        yield number, value.get("image"), value.get("caption")


def _csv_lines(text: str, path: Path) -> Iterator[tuple[int, Any, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    columns = reader.fieldnames or ()
    if not {"image", "caption"} <= set(columns):
        msg = f"{path}, line 1: expected the columns image and caption, found {', '.join(columns) or 'none'}."
        raise ConfigError(msg)
    for row in reader:
        yield reader.line_num, row["image"], row["caption"]


def embed_captions(
    teacher: Teacher, captions: Sequence[str], into: Path, progress: Callable[[int], None] = lambda _: None
) -> npt.NDArray[np.float32]:
    """Embed captions with the teacher's text tower.

    Args:
        teacher: who to ask.
        captions: in the order of the result's rows.
        into: the ``.npy`` file that gets the rows, which are then mapped from it.
        progress: called with the number of captions just finished.

    Returns:
        Unit rows ``(N, D)``.

    Raises:
        DataError: an embedding is not finite.
    """
    rows = open_memmap(into, "w+", np.float32, (len(captions), teacher.dim))
    ebb = Ebb(rows)
    for start in range(0, len(captions), _AT_ONCE):
        part = captions[start : start + _AT_ONCE]
        found = teacher.embed_texts(part)
        refuse_not_finite(found, f"The teacher '{teacher.name}'", "caption", [repr(text) for text in part])
        rows[start : start + len(part)] = found
        ebb.touch(found.nbytes)
        progress(len(part))
    rows.flush()
    mapped: npt.NDArray[np.float32] = np.load(into, mmap_mode="r", allow_pickle=False)
    return mapped
