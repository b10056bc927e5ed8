"""Methods as short ordered lists of stages; each says what trains, on which views, and with which loss.

Letters used in shapes: B batch, C classes, D embedding size.

References:
    VL2V-ADiP: Addepalli et al., "Leveraging Vision-Language Models for Improving Domain Generalization in
    Image Classification", CVPR 2024.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from vlkd_runtime.errors import ConfigError
from vlkd_runtime.vectors import ClassVectors

from . import losses
from .specs import Settings

Trains = Literal["head", "backbone", "all"]


@dataclass(frozen=True, slots=True)
class Stage:
    """One part of a method's training.

    Attributes:
        name: shown in the progress and in the record.
        trains: the part whose weights change; everything else takes no gradient.
        cached_features: run the frozen backbone once on clean images and train on its features.
        epochs: passes over the training images.
        lr: peak learning rate; warms up over the first twentieth and falls as a cosine.
    """

    name: str
    trains: Trains
    cached_features: bool
    epochs: int
    lr: float


@dataclass(frozen=True, slots=True)
class Batch:
    """What a loss may look at besides the student's outputs.

    Attributes:
        labels: ``(B,)`` int64.
        image_target: the teacher's embeddings of these images or views ``(B, D)``; None if not asked for.
    """

    labels: Tensor
    image_target: Tensor | None


class Method(Protocol):
    """A way to train a student."""

    needs_teacher: bool

    def outputs(self) -> int:
        """Width of the student's head."""
        ...

    def stages(self) -> tuple[Stage, ...]:
        """What happens, in order."""
        ...

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Loss of the head's outputs ``(B, outputs())``: a scalar."""
        ...


class Erm:
    """Plain training: cross-entropy on the source labels, all weights, a fresh linear classifier."""

    needs_teacher = False

    def __init__(self, settings: Settings, vectors: ClassVectors) -> None:
        self._settings = settings
        self._classes = len(vectors.names)

    def outputs(self) -> int:
        """Class count C."""
        return self._classes

    def stages(self) -> tuple[Stage, ...]:
        """One stage that trains everything."""
        return (Stage("train", "all", False, self._settings.epochs, self._settings.lr),)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy with the labels."""
        return losses.cross_entropy(outputs, batch.labels)


class Vl2vAdip:
    """VL2V-ADiP: align the projection, freeze it and distill into the backbone, predict by class vectors."""

    needs_teacher = True

    def __init__(self, settings: Settings, vectors: ClassVectors) -> None:
        self._settings = settings
        self._vectors = torch.from_numpy(vectors.vectors.copy())

    def outputs(self) -> int:
        """Embedding size D of the teacher."""
        return int(self._vectors.shape[1])

    def stages(self) -> tuple[Stage, ...]:
        """Align (projection only, on cached features), then distill (backbone only)."""
        return (
            Stage("align", "head", True, self._settings.align_epochs, self._settings.align_lr),
            Stage("distill", "backbone", False, self._settings.epochs, self._settings.lr),
        )

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """`losses.vl2v` with the teacher's image embeddings and the labels' class vectors."""
        if batch.image_target is None:
            msg = "vl2v-adip was given a batch without teacher embeddings."
            raise RuntimeError(msg)
        return losses.vl2v(
            outputs, batch.image_target, self._vectors[batch.labels], self._settings.image_weight
        )


METHODS: dict[str, type[Erm] | type[Vl2vAdip]] = {"erm": Erm, "vl2v-adip": Vl2vAdip}


def create(settings: Settings, vectors: ClassVectors) -> Method:
    """The method that the settings name.

    Raises:
        ConfigError: unknown method.
    """
    if settings.method not in METHODS:
        msg = f"Unknown method '{settings.method}' (distill.method). Expected one of {', '.join(METHODS)}."
        raise ConfigError(msg)
    return METHODS[settings.method](settings, vectors)
