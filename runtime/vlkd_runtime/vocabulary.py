"""Other classes without another network: the same embedding, compared with other class vectors.

Letters: N images, D sizes of the joint space, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .engines.base import EngineOutput
from .errors import DataError
from .vectorlint import Finding, lint
from .vectors import ClassVectors


@dataclass(frozen=True, slots=True, eq=False)
class Vocabulary:
    """The classes of one moment; predictions hold on to one of these, so that a change never mixes with them.

    Attributes:
        names: The classes, in the order of the logits.
        logit_scale: What cosines are multiplied by.
        vectors: Where the classes come from; None for a model in no bundle.
        columns: The class vectors, (D, C), where the logits are computed from the embedding; None where the
            graph's own logits are taken.
        findings: What a check of the vectors had to say.
    """

    names: tuple[str, ...]
    logit_scale: float
    vectors: ClassVectors | None = None
    columns: npt.NDArray[np.float32] | None = None
    findings: tuple[Finding, ...] = ()

    @classmethod
    def of(cls, vectors: ClassVectors, space: ClassVectors) -> Vocabulary:
        """Make one of handed-over vectors.

        Args:
            vectors: The new class vectors.
            space: Vectors of the space that the network was distilled into.

        Raises:
            DataError: They are of another space, or a check finds an error in them.
        """
        check_same_space(space, vectors)
        findings = lint(vectors, expected_dim=space.vectors.shape[1])
        errors = [finding for finding in findings if finding.severity == "error"]
        if errors:
            words = " ".join(f"{finding.message} {finding.advice}" for finding in errors)
            msg = f"class vectors: {words}"
            raise DataError(msg)
        # Laid out so that the product reads memory in order.
        columns = np.ascontiguousarray(vectors.vectors.T)
        return cls(vectors.names, vectors.logit_scale, vectors, columns, findings)

    def logits(self, output: EngineOutput) -> npt.NDArray[np.float32]:
        """Give the logits of these classes, (N, C)."""
        if self.columns is None:
            return output.logits
        product: npt.NDArray[np.float32] = np.float32(self.logit_scale) * (output.embedding @ self.columns)
        return product


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
