"""The teacher's image embeddings, asked for once and kept on disk in shards.

Letters used in shapes: N images, D embedding size.
"""

from __future__ import annotations

import hashlib
import io
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from numpy.lib.format import open_memmap
from PIL import Image

from vlkd_bench.samples import Sample
from vlkd_runtime.atomic import write_bytes
from vlkd_runtime.errors import DataError, ImageError
from vlkd_runtime.preprocess import decode
from vlkd_runtime.tensorfile import read_tensors, write_tensors

from .teachers import Teacher

_SHARD = 256
_STREAMED = 64  # images whose files are held in memory while they are asked about


@runtime_checkable
class EmbedsFiles(Protocol):
    """A teacher that knows images by their files: its answers lie on disk already, so no shard is written."""

    def embed_samples(self, samples: Sequence[Sample]) -> npt.NDArray[np.float32]:
        """Embed images by the content of their files: unit rows ``(N, D)``."""
        ...


def embed(
    teacher: Teacher,
    samples: Sequence[Sample],
    folder: Path,
    progress: Callable[[int], None] = lambda _: None,
    *,
    into: Path | None = None,
    contents: Iterable[bytes] | None = None,
) -> npt.NDArray[np.float32]:
    """Embed images with the teacher, taking from the cache what is there.

    A shard holds consecutive images of one domain and is keyed by the teacher's fingerprint and the images'
    content, so runs that hold out different domains share their shards, and a changed image asks anew for
    its own shard and, where it shifts the others, for those after it in its domain. An interrupted run
    loses at most one shard; a damaged one is asked for again.

    Args:
        teacher: who to ask.
        samples: the images, in the order of the result's rows.
        folder: where the shards lie.
        progress: called with the number of images just finished.
        into: a ``.npy`` file that gets the rows, which are then mapped from it and not held in memory.
        contents: the images' files, in the same order, where a sample's path cannot be opened.

    Returns:
        Unit rows ``(N, D)``.

    Raises:
        DataError: the teacher gave an embedding that is not finite.
        ImageError: an image cannot be decoded.
    """
    if isinstance(teacher, EmbedsFiles) and contents is None:
        known = teacher.embed_samples(samples)
        progress(len(samples))
        if into is not None:
            np.save(into, known)
        return known
    folder.mkdir(parents=True, exist_ok=True)
    shape, start = (len(samples), teacher.dim), 0
    result = np.zeros(shape, np.float32) if into is None else open_memmap(into, "w+", np.float32, shape)
    stream = None if contents is None else iter(contents)
    for chunk in _shards(samples, _SHARD if stream is None else _STREAMED):
        held = None if stream is None else tuple(itertools.islice(stream, len(chunk)))
        path = folder / f"{_key(teacher.fingerprint, chunk, held)}.safetensors"
        rows = _stored(path, (len(chunk), teacher.dim))
        if rows is None:
            rows = _ask(teacher, chunk, held)
            write_bytes(path, write_tensors({"embedding": rows}, {"teacher": teacher.fingerprint}))
        result[start : start + len(chunk)] = rows
        start += len(chunk)
        progress(len(chunk))
    if into is None:
        return result
    result.flush()  # type: ignore[union-attr]
    mapped: npt.NDArray[np.float32] = np.load(into, mmap_mode="r", allow_pickle=False)
    return mapped


def _shards(samples: Sequence[Sample], size: int) -> Iterator[Sequence[Sample]]:
    for _, group in itertools.groupby(samples, key=lambda sample: sample.domain):
        while members := tuple(itertools.islice(group, size)):
            yield members


def _stored(path: Path, shape: tuple[int, int]) -> npt.NDArray[np.float32] | None:
    """A shard as stored; None if there is none, or none that can be trusted."""
    if not path.exists():
        return None
    try:
        rows = read_tensors(path.read_bytes(), where=str(path))[0]["embedding"]
    except (DataError, KeyError):
        return None
    whole = rows.dtype == np.float32 and rows.shape == shape and bool(np.isfinite(rows).all())
    return np.array(rows) if whole else None


def _ask(
    teacher: Teacher, samples: Sequence[Sample], held: Sequence[bytes] | None
) -> npt.NDArray[np.float32]:
    rows = []
    for start in range(0, len(samples), 32):
        stop = min(start + 32, len(samples))
        if held is None:
            images = [decode(sample.path) for sample in samples[start:stop]]
        else:
            images = [_decoded(held[row], samples[row]) for row in range(start, stop)]
        rows.append(teacher.embed_images(images))
    result = np.concatenate(rows)
    bad = np.flatnonzero(~np.isfinite(result).all(axis=1))
    if len(bad):
        msg = (
            f"The teacher '{teacher.name}' gave an embedding that is not finite for "
            f"{samples[int(bad[0])].path} and {len(bad) - 1} more images: nothing can be learned from it."
        )
        raise DataError(msg)
    return result


def _decoded(content: bytes, sample: Sample) -> Image.Image:
    try:
        return decode(Image.open(io.BytesIO(content)))
    except (ImageError, OSError) as error:
        msg = f"{sample.path}: {error}"
        raise ImageError(msg) from error


def _key(fingerprint: str, samples: Sequence[Sample], held: Sequence[bytes] | None) -> str:
    digest = hashlib.sha256(fingerprint.encode())
    for row, sample in enumerate(samples):
        content = sample.path.read_bytes() if held is None else held[row]
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()[:32]
