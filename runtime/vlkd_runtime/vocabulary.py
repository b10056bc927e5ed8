"""Other classes without another network: the same embedding, compared with other class vectors.

Letters: N images, D sizes of the joint space, C classes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .engines.base import Engine, EngineInfo, EngineOutput
from .errors import DataError
from .vectors import ClassVectors


class VocabularyEngine:
    """An engine whose logits come from handed-over class vectors instead of those inside the graph.

    Attributes:
        inner: The engine that computes the embedding.
    """

    def __init__(self, engine: Engine, vectors: ClassVectors) -> None:
        self.inner = engine
        # Laid out so that the product reads memory in order.
        self._columns = np.ascontiguousarray(vectors.vectors.T)
        self._scale = np.float32(vectors.logit_scale)

    @property
    def info(self) -> EngineInfo:
        """Say which engine computes the embedding."""
        return self.inner.info

    def run(self, images: npt.NDArray[np.uint8]) -> EngineOutput:
        """Run one batch and compare its embedding with the class vectors."""
        embedding = self.inner.run(images).embedding
        return EngineOutput(embedding, self._scale * (embedding @ self._columns))

    def close(self) -> None:
        """Close the engine inside."""
        self.inner.close()


def check_same_space(old: ClassVectors, new: ClassVectors) -> None:
    """Hold new class vectors to the joint space the network was distilled into.

    Raises:
        DataError: They come from another teacher or have another size.
    """
    if new.teacher_fingerprint != old.teacher_fingerprint:
        msg = (
            f"class vectors: expected ones from {old.teacher} ({old.teacher_fingerprint}), found "
            f"{new.teacher} ({new.teacher_fingerprint}); embed the names with the teacher of this bundle"
        )
        raise DataError(msg)
    if new.vectors.shape[1] != old.vectors.shape[1]:
        msg = (
            f"class vectors: expected {old.vectors.shape[1]} columns, found {new.vectors.shape[1]}; "
            "make them again"
        )
        raise DataError(msg)
