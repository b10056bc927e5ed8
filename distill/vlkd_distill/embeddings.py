"""The teacher's image embeddings, asked for once and kept on disk in shards.

Letters used in shapes: N images, D embedding size.
"""

from __future__ import annotations

import functools
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

from .answers import few
from .mapped import Ebb
from .querybudget import counted
from .teachers import Teacher

_Ask = Callable[[Sequence[Sample], Sequence[bytes] | None], npt.NDArray[np.float32]]

_SHARD = 256
_STREAMED = 64  # images whose files are held in memory while they are asked about


@runtime_checkable
class EmbedsFiles(Protocol):
    """A teacher that knows images by their files: its answers lie on disk already, so no shard is written."""

    def embed_samples(self, samples: Sequence[Sample]) -> npt.NDArray[np.float32]:
        """Embed images by the content of their files: unit rows ``(N, D)``."""
        ...

    def check_samples(self, samples: Sequence[Sample]) -> None:
        """Refuse images that it cannot embed, all named or counted at once."""
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
        ask: _Ask = functools.partial(_from_files, teacher)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        ask = functools.partial(_from_cache, teacher, folder)
    shape, start = (len(samples), teacher.dim), 0
    result = np.zeros(shape, np.float32) if into is None else open_memmap(into, "w+", np.float32, shape)
    stream, ebb = None if contents is None else iter(contents), Ebb(result)
    for chunk in _shards(samples, _SHARD if stream is None else _STREAMED):
        held = None if stream is None else tuple(itertools.islice(stream, len(chunk)))
        rows = ask(chunk, held)
        result[start : start + len(chunk)] = rows
        ebb.touch(rows.nbytes)
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


def _from_files(
    teacher: EmbedsFiles, samples: Sequence[Sample], _: Sequence[bytes] | None
) -> npt.NDArray[np.float32]:
    return teacher.embed_samples(samples)


def _from_cache(
    teacher: Teacher, folder: Path, samples: Sequence[Sample], held: Sequence[bytes] | None
) -> npt.NDArray[np.float32]:
    path = folder / f"{_key(teacher.fingerprint, samples, held)}.safetensors"
    rows = _stored(path, (len(samples), teacher.dim))
    if rows is None:
        rows = _ask(teacher, samples, held)
        write_bytes(path, write_tensors({"embedding": rows}, {"teacher": teacher.fingerprint}))
    elif asked := counted(teacher):
        asked.count_kept(len(rows))
    return rows


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
            f"The teacher '{teacher.name}' gave embeddings that are zero or not finite for {len(bad)} of "
            f"{len(samples)} images: {few([samples[int(row)].path for row in bad])}. Nothing can be learned from "
            "them: correct the teacher, or take these images out of data.root. What was embedded before is kept."
        )
        raise DataError(msg)
    if result.shape[1] != teacher.dim:
        msg = (
            f"The teacher '{teacher.name}' gave embeddings of size {result.shape[1]} for images such as "
            f"{samples[0].path}, expected {teacher.dim} as for its texts: use the two towers of one model."
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
