"""The stored text class vectors: the classifier's head, made once at the desk and never recomputed.

Letters: C classes, D sizes of the teacher's joint space.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from . import atomic
from .errors import DataError
from .strictjson import JsonProblems, compact, parse
from .tensorfile import read_tensors, write_tensors

_FORMAT = "vlkd-class-vectors/1"
_TENSOR = "class_vectors"
_KEYS = ("format", "logit_scale", "names", "prompts", "teacher", "teacher_fingerprint", "templates")
# Rows normalised in float32 are within 1e-6 of one; half precision along the way still is within 1e-3.
_NORM_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True, eq=False)
class ClassVectors:
    """One unit vector per class, with what it was made from.

    Attributes:
        names: Class names, in the order of the logits.
        vectors: Unit rows, (C, D) float32, read-only.
        prompts: For each class, the texts whose embeddings were averaged; may be empty.
        templates: The sentence patterns the prompts were made with; may be empty.
        teacher: Which model embedded the texts.
        teacher_fingerprint: Hash that tells its weights from others'.
        logit_scale: What cosine similarities are multiplied by to get logits.
    """

    names: tuple[str, ...]
    vectors: npt.NDArray[np.float32]
    prompts: tuple[tuple[str, ...], ...]
    templates: tuple[str, ...]
    teacher: str
    teacher_fingerprint: str
    logit_scale: float

    def __post_init__(self) -> None:
        check_names(self.names)
        vectors = np.asarray(self.vectors)
        if vectors.dtype != np.float32 or vectors.ndim != 2 or vectors.shape[1] == 0:
            msg = (
                f"class vectors: expected float32 of shape (C, D), found {vectors.dtype} {vectors.shape}; "
                "convert them first"
            )
            raise DataError(msg)
        if len(vectors) != len(self.names):
            msg = (
                f"class vectors: expected one row per class, found {len(vectors)} rows and "
                f"{len(self.names)} names; make the vectors again"
            )
            raise DataError(msg)
        if len(self.prompts) != len(self.names):
            msg = (
                f"class vectors: expected one tuple of prompts per class, found {len(self.prompts)} for "
                f"{len(self.names)} classes; give an empty tuple where none are known"
            )
            raise DataError(msg)
        _check_rows(vectors, self.names)
        if not (math.isfinite(self.logit_scale) and self.logit_scale > 0):
            msg = (
                f"class vectors: expected a finite logit_scale above 0, found {self.logit_scale}; "
                "take the teacher's"
            )
            raise DataError(msg)
        if not self.teacher.strip() or not self.teacher_fingerprint.strip():
            msg = (
                "class vectors: teacher and teacher_fingerprint must not be empty; "
                "name the model they came from"
            )
            raise DataError(msg)
        kept = np.array(vectors, dtype=np.float32, order="C")
        kept.flags.writeable = False
        object.__setattr__(self, "vectors", kept)
        object.__setattr__(self, "logit_scale", float(self.logit_scale))

    def added(self, other: ClassVectors) -> ClassVectors:
        """Give these classes with others behind them.

        Raises:
            DataError: They come from another teacher, have another logit scale, or share a name.
        """
        if other.teacher_fingerprint != self.teacher_fingerprint or other.logit_scale != self.logit_scale:
            msg = (
                f"class vectors: expected ones from {self.teacher} ({self.teacher_fingerprint}) with logit scale "
                f"{self.logit_scale:g}, found {other.teacher} ({other.teacher_fingerprint}) with "
                f"{other.logit_scale:g}; embed the names with the same teacher"
            )
            raise DataError(msg)
        if other.vectors.shape[1] != self.vectors.shape[1]:
            msg = (
                f"class vectors: expected {self.vectors.shape[1]} columns, found {other.vectors.shape[1]}; "
                "make them again"
            )
            raise DataError(msg)
        return dataclasses.replace(
            self,
            names=(*self.names, *other.names),
            vectors=np.concatenate([self.vectors, other.vectors]),
            prompts=(*self.prompts, *other.prompts),
            templates=tuple(dict.fromkeys((*self.templates, *other.templates))),
        )

    def removed(self, names: Iterable[str]) -> ClassVectors:
        """Give these classes without some of them.

        Raises:
            DataError: One is not there, or none is left.
        """
        gone = {names} if isinstance(names, str) else set(names)
        self._check_there(gone)
        kept = [index for index, name in enumerate(self.names) if name not in gone]
        return dataclasses.replace(
            self,
            names=tuple(self.names[index] for index in kept),
            vectors=self.vectors[kept],
            prompts=tuple(self.prompts[index] for index in kept),
        )

    def renamed(self, names: Mapping[str, str]) -> ClassVectors:
        """Give these classes with some called otherwise.

        Args:
            names: New names by old ones.

        Raises:
            DataError: One is not there, or two would have one name.
        """
        self._check_there(set(names))
        return dataclasses.replace(self, names=tuple(names.get(name, name) for name in self.names))

    def _check_there(self, names: set[str]) -> None:
        missing = sorted(names - set(self.names))
        if missing:
            msg = (
                f"classes: expected names that are there, found {', '.join(map(repr, missing))}; "
                f"choose from {', '.join(map(repr, self.names[:20]))}"
            )
            raise DataError(msg)

    def to_bytes(self) -> bytes:
        """Serialise as safetensors; the same vectors always give the same bytes."""
        metadata = {
            "format": _FORMAT,
            "logit_scale": repr(self.logit_scale),
            "names": compact(self.names),
            "prompts": compact(self.prompts),
            "teacher": self.teacher,
            "teacher_fingerprint": self.teacher_fingerprint,
            "templates": compact(self.templates),
        }
        return write_tensors({_TENSOR: self.vectors}, metadata)

    @classmethod
    def from_bytes(cls, data: bytes, *, where: str) -> ClassVectors:
        """Parse what `to_bytes` wrote.

        Raises:
            DataError: Not such a file, or vectors that cannot be a classifier.
        """
        tensors, metadata = read_tensors(data, where=where)
        if metadata.get("format") != _FORMAT or set(tensors) != {_TENSOR}:
            msg = (
                f"{where}: expected {_FORMAT} with one tensor {_TENSOR!r}, found "
                f"{metadata.get('format', 'no format')!r} with {sorted(tensors)}; "
                "make it with `vlkd-edge vectors`"
            )
            raise DataError(msg)
        if set(metadata) != set(_KEYS):
            odd = sorted(set(metadata) ^ set(_KEYS))
            msg = f"{where}: expected the metadata {', '.join(_KEYS)}, and {odd} is missing or too much"
            raise DataError(msg)
        try:
            return cls(
                names=_texts(metadata["names"]),
                vectors=tensors[_TENSOR],
                prompts=_nested_texts(metadata["prompts"]),
                templates=_texts(metadata["templates"]),
                teacher=metadata["teacher"],
                teacher_fingerprint=metadata["teacher_fingerprint"],
                logit_scale=float(metadata["logit_scale"]),
            )
        except (JsonProblems, ValueError, DataError) as error:
            msg = f"{where}: {error}"
            raise DataError(msg) from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to a file, whole or not at all."""
        atomic.write_bytes(path, self.to_bytes())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ClassVectors:
        """Read from a file.

        Raises:
            DataError: It is not there, or not what `save` wrote.
        """
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            msg = f"{path}: cannot read the class vectors: {error.strerror}; check the path"
            raise DataError(msg) from error
        return cls.from_bytes(data, where=os.fspath(path))


def check_names(names: tuple[str, ...]) -> None:
    """Hold class names to what can be told apart and printed.

    Raises:
        DataError: No names, or one that is empty, padded, repeated or holds control characters.
    """
    if not names:
        msg = "classes: expected at least one name, found none; name the classes"
        raise DataError(msg)
    for index, name in enumerate(names):
        if not name or name != name.strip() or not name.isprintable():
            msg = (
                f"classes: name {index} must be printable text without blanks around it, found {name!r}; "
                "rename it"
            )
            raise DataError(msg)
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if repeated:
        msg = (
            f"classes: each name must be there once, found {', '.join(map(repr, repeated))} repeated; "
            "rename them"
        )
        raise DataError(msg)


def _check_rows(vectors: npt.NDArray[np.float32], names: tuple[str, ...]) -> None:
    # Some patterns of NaN warn when they are widened; they are found below.
    with np.errstate(invalid="ignore", over="ignore"):
        norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
    # Written so that NaN counts as wrong.
    wrong = np.flatnonzero(~(np.abs(norms - 1.0) <= _NORM_TOLERANCE))
    if wrong.size:
        row = int(wrong[0])
        msg = (
            f"class vectors: expected rows of length 1, found length {norms[row]:.6g} in row {row} "
            f"({names[row]!r}) and {wrong.size - 1} more; normalise them"
        )
        raise DataError(msg)


def _texts(text: str) -> tuple[str, ...]:
    value = parse(text)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        msg = "names and templates must be lists of text"
        raise DataError(msg)
    return tuple(value)


def _nested_texts(text: str) -> tuple[tuple[str, ...], ...]:
    value = parse(text)
    if not isinstance(value, list):
        msg = "prompts must be a list of lists of text"
        raise DataError(msg)
    return tuple(_texts(compact(item)) for item in value)
