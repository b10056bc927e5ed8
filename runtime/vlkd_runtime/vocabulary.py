"""Other classes without another network: the same embedding, compared with other class vectors.

Letters: N images, D sizes of the joint space, C classes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
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


class VocabularyOwner:
    """Has classes that may change while other threads use them: replaced as a whole, read once in each call."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._changing = threading.Lock()

    @property
    def vocabulary(self) -> Vocabulary:
        """The classes at this moment, with what a check of their vectors had to say."""
        return self._vocabulary

    @property
    def names(self) -> tuple[str, ...]:
        """The classes, in the order of the logits."""
        return self._vocabulary.names

    @property
    def logit_scale(self) -> float:
        """What cosines are multiplied by to get logits."""
        return self._vocabulary.logit_scale

    def set_vocabulary(self, vectors: ClassVectors) -> None:
        """Change the classes of this classifier; predictions under way in other threads end with the old ones.

        Args:
            vectors: Class vectors of the same teacher.

        Raises:
            DataError: They are from another teacher, unusable, or this classifier came from no bundle; nothing
                is changed then.
        """
        with self._changing:
            self._vocabulary = Vocabulary.of(vectors, self._known_vectors())

    def add_classes(self, vectors: ClassVectors) -> None:
        """Add classes behind the ones that are there.

        Raises:
            DataError: As for `set_vocabulary`, or a class is there already; nothing is changed then.
        """
        with self._changing:
            known = self._known_vectors()
            self._vocabulary = Vocabulary.of(known.added(vectors), known)

    def remove_classes(self, names: Iterable[str]) -> None:
        """Take classes out.

        Raises:
            DataError: A class is not there, or none would be left; nothing is changed then.
        """
        with self._changing:
            known = self._known_vectors()
            self._vocabulary = Vocabulary.of(known.removed(names), known)

    def rename_classes(self, names: Mapping[str, str]) -> None:
        """Call classes something else; their vectors stay.

        Args:
            names: New names by old ones.

        Raises:
            DataError: A class is not there, or two would have one name; nothing is changed then.
        """
        with self._changing:
            known = self._known_vectors()
            self._vocabulary = Vocabulary.of(known.renamed(names), known)

    def _known_vectors(self) -> ClassVectors:
        if self._vocabulary.vectors is None:
            msg = "vocabulary: expected a classifier loaded from a bundle, which knows its teacher; load one"
            raise DataError(msg)
        return self._vocabulary.vectors


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
