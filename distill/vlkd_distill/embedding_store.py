"""A teacher as a store of embeddings that somebody computed before; nobody is asked.

A store holds the tensors ``image`` (N, D), ``image_sha256`` (N, 32) uint8, each row the SHA-256 of an image
file's bytes, and ``text`` (T, D); and the metadata ``format``, ``name``, ``logit_scale`` and ``texts``, a
JSON list of the T texts. Class vectors made before go in as texts that are the class names, with the one
template ``{}``.

Letters used in shapes: N images, T stored texts, D embedding size, H and W pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from vlkd_bench.samples import Sample
from vlkd_runtime.errors import DataError, UnavailableError
from vlkd_runtime.strictjson import JsonProblems, parse
from vlkd_runtime.tensorfile import read_tensors

from .answers import FloatArray, few, refuse_not_finite, unit_rows
from .mapped import Ebb, map_file
from .teacher_names import content_key

STORE_FORMAT = "vlkd-embedding-store/1"
# Two copies of one image may have been embedded in different batches; more than this is another embedding.
_SAME = 1e-3
_KEY = 32
_AT_ONCE = 1024


class StoreTeacher:
    """Embeddings that somebody computed before: it knows the images and texts it holds and nothing else."""

    def __init__(self, name: str, files: Sequence[Path]) -> None:
        """Open the store.

        Args:
            name: how the user named it.
            files: its parts; the same image may be in several.

        Raises:
            DataError: a file is damaged, not in the format, or contradicts another.
        """
        self.name = name
        parts = [_StorePart.read(path) for path in files]
        first = parts[0]
        for part in parts[1:]:
            found = (part.dim, part.logit_scale, part.teacher)
            if found != (first.dim, first.logit_scale, first.teacher):
                msg = (
                    f"{part.where}: expected size, logit_scale and teacher "
                    f"{(first.dim, first.logit_scale, first.teacher)} as in {first.where}, found {found}; "
                    "keep one teacher's embeddings in one folder"
                )
                raise DataError(msg)
        self.dim, self.logit_scale = first.dim, first.logit_scale
        self.fingerprint = content_key(files)
        self._images = _Index([(part.where, part.keys, part.images) for part in parts])
        self._texts: dict[bytes, FloatArray] = {}
        for part in parts:
            _merge(self._texts, part.texts, part.where)

    def embed_samples(self, samples: Sequence[Sample]) -> FloatArray:
        """Look images up by the content of their files: unit rows ``(N, D)``.

        Raises:
            DataError: images are not in the store, or their embeddings are not finite.
        """
        places = self._places(samples)
        rows = unit_rows(self._images.rows(places)) if len(places) else np.zeros((0, self.dim), np.float32)
        refuse_not_finite(rows, f"The store '{self.name}'", "image", [sample.path for sample in samples])
        return rows

    def check_samples(self, samples: Sequence[Sample]) -> None:
        """Refuse images without an embedding, or with one that is not finite.

        Raises:
            DataError: as `embed_samples`.
        """
        places, lengths = self._places(samples), np.zeros((len(samples), 1), np.float32)
        for start in range(0, len(samples), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            lengths[part] = np.linalg.norm(unit_rows(self._images.rows(places[part])), axis=1, keepdims=True)
        refuse_not_finite(lengths, f"The store '{self.name}'", "image", [sample.path for sample in samples])

    def _places(self, samples: Sequence[Sample]) -> npt.NDArray[np.int64]:
        keys = [hashlib.sha256(sample.path.read_bytes()).digest() for sample in samples]
        places = self._images.find(keys)
        missing = [samples[int(row)].path for row in np.flatnonzero(places < 0)]
        if missing:
            msg = (
                f"The store '{self.name}' has no embedding of {len(missing)} of {len(samples)} images: {few(missing)}. "
                f"It holds {len(self._images)}, found by the SHA-256 of the file. Embed them and add a file with "
                "write_store, or take those images out of data.root."
            )
            raise DataError(msg)
        return places

    def embed_texts(self, texts: Sequence[str]) -> FloatArray:
        """Look texts up, letter by letter: unit rows ``(N, D)``.

        Raises:
            UnavailableError: texts are not in the store.
            DataError: an embedding is not finite.
        """
        keys = [_text_key(text) for text in texts]
        missing = [text for text, key in zip(texts, keys, strict=True) if key not in self._texts]
        if missing:
            msg = (
                f"The store '{self.name}' has no embedding of the text {missing[0]!r} and {len(missing) - 1} more "
                f"of {len(texts)}; it holds {len(self._texts)} texts and cannot embed new ones. Add them with "
                "write_store, or set teacher.templates to those it was made with; for stored class vectors, "
                'store the class names as texts and set teacher.templates = ["{}"].'
            )
            raise UnavailableError(msg)
        rows = unit_rows(np.stack([self._texts[key] for key in keys]))
        refuse_not_finite(rows, f"The store '{self.name}'", "text", [repr(text) for text in texts])
        return rows

    def embed_images(self, images: Sequence[Image.Image]) -> FloatArray:
        """Refuse: a decoded image no longer tells which file it came from; ask `embed_samples`."""
        msg = (
            f"The store '{self.name}' finds images by their files' content and cannot embed {len(images)} decoded "
            "ones; ask embed_samples, or use a teacher that runs (onnx-pair:, call:, local-dir:)."
        )
        raise UnavailableError(msg)

    def embed_views(self, views: Tensor) -> Tensor:
        """Refuse: nobody embedded these views before."""
        msg = (
            f"The store '{self.name}' holds embeddings of whole images and cannot embed {len(views)} augmented "
            'views. Set distill.teacher_view = "clean_cached".'
        )
        raise UnavailableError(msg)


class _Index:
    """Rows of several mapped tensors by key; the keys alone are held in memory."""

    def __init__(self, parts: Sequence[tuple[Path, npt.NDArray[np.uint8], npt.NDArray[Any]]]) -> None:
        self._parts = [rows for _, _, rows in parts]
        self._ends = np.cumsum([len(rows) for rows in self._parts])
        self._ebb = Ebb(*self._parts)
        keys = np.concatenate([_as_texts(own) for _, own, _ in parts])
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]
        twice = np.flatnonzero(self._keys[1:] == self._keys[:-1])
        one, other = (self.rows(self._order[twice + step]) for step in (0, 1))
        for row in np.flatnonzero(~np.isclose(one, other, atol=_SAME, equal_nan=True).all(axis=1)):
            place = int(self._order[twice[row] + 1])
            where = parts[int(np.searchsorted(self._ends, place, "right"))][0]
            key = self._keys[twice[row]].ljust(_KEY, b"\0").hex()
            msg = f"{where}: two different embeddings of the image file with SHA-256 {key}; keep one of them"
            raise DataError(msg)

    def __len__(self) -> int:
        return len(self._keys) - int((self._keys[1:] == self._keys[:-1]).sum())

    def find(self, keys: Sequence[bytes]) -> npt.NDArray[np.int64]:
        """Where the keys' rows are ``(N,)``; -1 for one that is not there."""
        if not keys or not len(self._keys):
            return np.full(len(keys), -1, np.int64)
        wanted = _as_texts(np.frombuffer(b"".join(keys), np.uint8).reshape(-1, _KEY))
        at = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        return np.where(self._keys[at] == wanted, self._order[at], -1)

    def rows(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """The rows at some places ``(N, D)``, as they are stored."""
        found = np.empty((len(places), self._parts[0].shape[1]))
        owner = np.searchsorted(self._ends, places, "right")
        for number, rows in enumerate(self._parts):
            own = owner == number
            found[own] = rows[places[own] - (self._ends[number] - len(rows))]
        self._ebb.touch(found.nbytes)
        return found


def _as_texts(keys: npt.NDArray[np.uint8]) -> npt.NDArray[np.bytes_]:
    """Keys ``(N, 32)`` as values that can be compared ``(N,)``; all have one length, so zeros at an end do no harm."""
    texts: npt.NDArray[np.bytes_] = np.ascontiguousarray(keys).view(f"S{_KEY}")[:, 0]
    return texts


@dataclass(frozen=True, slots=True)
class _StorePart:
    where: Path
    teacher: str
    logit_scale: float
    dim: int
    keys: npt.NDArray[np.uint8]
    images: npt.NDArray[Any]
    texts: list[tuple[bytes, FloatArray]]

    @classmethod
    def read(cls, path: Path) -> _StorePart:
        tensors, metadata = read_tensors(map_file(path), where=str(path))
        problems: list[str] = []
        if metadata.get("format") != STORE_FORMAT:
            problems.append(f"format must be {STORE_FORMAT!r}, found {metadata.get('format')!r}")
        image, keys, text = (tensors.get(key) for key in ("image", "image_sha256", "text"))
        if image is None or image.ndim != 2 or image.dtype.kind != "f" or image.shape[1] == 0:
            problems.append("image must be a float tensor (N, D)")
        elif keys is None or keys.dtype != np.uint8 or keys.shape != (len(image), 32):
            problems.append(f"image_sha256 must be a uint8 tensor {(len(image), 32)}")
        elif text is None or text.ndim != 2 or text.dtype.kind != "f" or text.shape[1] != image.shape[1]:
            found = None if text is None else text.shape
            problems.append(f"text must be a float tensor (T, {image.shape[1]}) as image, found {found}")
        texts, scale = _texts(metadata, problems), 0.0
        try:
            scale = float(metadata.get("logit_scale", ""))
        except ValueError as error:
            problems.append(f"logit_scale must be a number: {error}")
        if not problems and text is not None and len(texts) != len(text):
            problems.append(f"texts must name {len(text)} rows, found {len(texts)}")
        if not (np.isfinite(scale) and scale > 0):
            problems.append(f"logit_scale must be above 0, found {scale}")
        if problems or image is None or keys is None or text is None:
            msg = f"{path}: not an embedding store: {'; '.join(problems)}. Write it with write_store."
            raise DataError(msg)
        said = [(_text_key(name), np.array(vector)) for name, vector in zip(texts, text, strict=True)]
        return cls(path, metadata.get("name", ""), scale, int(image.shape[1]), keys, image, said)


def _texts(metadata: Mapping[str, str], problems: list[str]) -> list[str]:
    try:
        value = parse(metadata.get("texts", ""))
    except JsonProblems as error:
        value = None
        problems.append(f"texts: {error}")
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        problems.append("texts must be a JSON list of texts")
        return []
    return value


def _merge(into: dict[bytes, FloatArray], rows: Sequence[tuple[bytes, FloatArray]], where: Path) -> None:
    for key, row in rows:
        known = into.setdefault(key, row)
        if known is not row and not np.allclose(known, row, atol=_SAME, equal_nan=True):
            msg = f"{where}: two different embeddings of the text with SHA-256 {key.hex()}; keep one of them"
            raise DataError(msg)


def _text_key(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
