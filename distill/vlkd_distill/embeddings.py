"""The teacher's image embeddings, asked for once and kept on disk in shards.

Letters used in shapes: N images, D embedding size.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from vlkd_bench.samples import Sample
from vlkd_runtime.atomic import write_bytes
from vlkd_runtime.errors import DataError
from vlkd_runtime.preprocess import decode
from vlkd_runtime.tensorfile import read_tensors, write_tensors

from .teachers import Teacher

_SHARD = 256


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

    Returns:
        Unit rows ``(N, D)``.

    Raises:
        DataError: the teacher gave an embedding that is not finite.
        ImageError: an image cannot be decoded.
    """
    if isinstance(teacher, EmbedsFiles):
        known = teacher.embed_samples(samples)
        progress(len(samples))
        return known
    folder.mkdir(parents=True, exist_ok=True)
    parts: list[npt.NDArray[np.float32]] = []
    for chunk in _shards(samples):
        path = folder / f"{_key(teacher.fingerprint, chunk)}.safetensors"
        rows = _stored(path, (len(chunk), teacher.dim))
        if rows is None:
            rows = _ask(teacher, chunk)
            write_bytes(path, write_tensors({"embedding": rows}, {"teacher": teacher.fingerprint}))
        parts.append(rows)
        progress(len(chunk))
    return np.concatenate(parts) if parts else np.zeros((0, teacher.dim), np.float32)


def _shards(samples: Sequence[Sample]) -> Iterator[Sequence[Sample]]:
    for _, group in itertools.groupby(samples, key=lambda sample: sample.domain):
        members = tuple(group)
        for start in range(0, len(members), _SHARD):
            yield members[start : start + _SHARD]


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


def _ask(teacher: Teacher, samples: Sequence[Sample]) -> npt.NDArray[np.float32]:
    rows = [
        teacher.embed_images([decode(sample.path) for sample in samples[start : start + 32]])
        for start in range(0, len(samples), 32)
    ]
    result = np.concatenate(rows)
    bad = np.flatnonzero(~np.isfinite(result).all(axis=1))
    if len(bad):
        msg = (
            f"The teacher '{teacher.name}' gave an embedding that is not finite for "
            f"{samples[int(bad[0])].path} and {len(bad) - 1} more images: nothing can be learned from it."
        )
        raise DataError(msg)
    return result


def _key(fingerprint: str, samples: Sequence[Sample]) -> str:
    digest = hashlib.sha256(fingerprint.encode())
    for sample in samples:
        digest.update(hashlib.sha256(sample.path.read_bytes()).digest())
    return digest.hexdigest()[:32]
