"""Golden samples: inputs with the outputs the desk saw, for the device to compare with.

Letters: K samples, H rows, W columns, D sizes of the joint space, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import DataError
from .tensorfile import read_tensors, write_tensors

_FORMAT = "vlkd-golden/1"
_TENSORS = {
    "images": (np.dtype(np.uint8), 4),
    "embedding": (np.dtype(np.float32), 2),
    "logits": (np.dtype(np.float32), 2),
}


@dataclass(frozen=True, slots=True, eq=False)
class Golden:
    """Prepared images and what the shipped model answers to them.

    Attributes:
        images: (K, H, W, 3) uint8, already prepared.
        embedding: (K, D) float32, unit rows.
        logits: (K, C) float32.
        further: What further variants of the model answer: embedding and logits by the variant's name.
    """

    images: npt.NDArray[np.uint8]
    embedding: npt.NDArray[np.float32]
    logits: npt.NDArray[np.float32]
    further: Mapping[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]] = field(
        default_factory=dict
    )

    def of(self, variant: str) -> Golden:
        """Give the samples with one further variant's answers."""
        return Golden(self.images, *self.further[variant])

    def __post_init__(self) -> None:
        for name in self.further:
            try:
                self.of(name)
            except DataError as error:
                msg = f"variant {name!r}: {error}"
                raise DataError(msg) from error
        for name, (dtype, rank) in _TENSORS.items():
            array: npt.NDArray[Any] = getattr(self, name)
            if array.dtype != dtype or array.ndim != rank or array.size == 0:
                msg = (
                    f"golden {name}: expected {dtype} of rank {rank} and not empty, "
                    f"found {array.dtype} {array.shape}; make the samples again"
                )
                raise DataError(msg)
            if not np.isfinite(array).all():
                msg = f"golden {name}: found values that are not finite; make the samples again"
                raise DataError(msg)
        if not len(self.images) == len(self.embedding) == len(self.logits):
            msg = (
                f"golden: expected as many images as answers, found {len(self.images)} images, "
                f"{len(self.embedding)} embeddings, {len(self.logits)} logits; make the samples again"
            )
            raise DataError(msg)
        if self.images.shape[3] != 3:
            msg = f"golden images: expected (K, H, W, 3), found {self.images.shape}; put channels last"
            raise DataError(msg)
        norms = np.linalg.norm(self.embedding.astype(np.float64), axis=1)
        if not (np.abs(norms - 1) <= 1e-2).all():
            msg = (
                f"golden embedding: expected unit rows, found lengths {norms.min():.4g} to "
                f"{norms.max():.4g}; normalise"
            )
            raise DataError(msg)

    def to_bytes(self) -> bytes:
        """Serialise as safetensors; the same samples always give the same bytes."""
        tensors = {name: getattr(self, name) for name in _TENSORS}
        for name, (embedding, logits) in self.further.items():
            tensors[f"embedding.{name}"], tensors[f"logits.{name}"] = embedding, logits
        return write_tensors(tensors, {"format": _FORMAT})

    @classmethod
    def from_bytes(cls, data: bytes, *, where: str) -> Golden:
        """Parse what `to_bytes` wrote.

        Raises:
            DataError: Not such a file, or tensors are missing or of the wrong kind.
        """
        tensors, metadata = read_tensors(data, where=where)
        further = {name.partition(".")[2] for name in tensors if "." in name}
        expected = {*_TENSORS, *(f"{kind}.{name}" for name in further for kind in ("embedding", "logits"))}
        if metadata != {"format": _FORMAT} or set(tensors) != expected:
            msg = (
                f"{where}: expected {_FORMAT} with the tensors {', '.join(_TENSORS)}, found "
                f"{metadata.get('format', 'no format')!r} with {', '.join(sorted(tensors)) or 'none'}; "
                "build it again"
            )
            raise DataError(msg)
        try:
            pairs = {
                name: (tensors[f"embedding.{name}"], tensors[f"logits.{name}"]) for name in sorted(further)
            }
            return cls(**{name: tensors[name] for name in _TENSORS}, further=pairs)
        except DataError as error:
            msg = f"{where}: {error}"
            raise DataError(msg) from error
