"""What a training is made of: stages, what a loss may look at, and what a method has to say of itself.

Letters used in shapes: B batch, C classes, D embedding size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from .specs import ProjectorNorm

Trains = Literal["head", "backbone", "all"]
Start = Literal["network", "projector", "teacher"]


@dataclass(frozen=True, slots=True)
class Stage:
    """One part of a method's training.

    Attributes:
        name: shown in the progress and in the record.
        trains: the part whose weights change; everything else takes no gradient.
        cached_features: run the frozen backbone once on clean images and train on its features.
        epochs: passes over the training images.
        lr: peak learning rate; warms up over the first twentieth and falls as a cosine.
        start_share: how much of the weights before the stage is mixed into those after it.
        rate: the setting that ``lr`` comes from.
    """

    name: str
    trains: Trains
    cached_features: bool
    epochs: int
    lr: float
    start_share: float = 0.0
    rate: str = "distill.lr"


@dataclass(frozen=True, slots=True)
class Batch:
    """What a loss may look at besides the student's outputs.

    Attributes:
        labels: ``(B,)`` int64.
        image_target: the teacher's embeddings of these images or views ``(B, D)``; None if not asked for.
        caption_target: its embeddings of the images' captions ``(B, D)``; None without captions.
    """

    labels: Tensor
    image_target: Tensor | None
    caption_target: Tensor | None = None


class Method(Protocol):
    """A way to train a student.

    Attributes:
        needs_teacher: whether the loss looks at the teacher's embeddings of the training images.
        predicts_by_vectors: whether the head ends in the teacher's space and the class vectors classify;
            otherwise the head gives the logits itself.
        uses_styles: whether part of its views are style views (`vlkd_distill.stylise`).
        start: what the student is before it learns: a timm network with a linear head, the same with
            PromptKD's two-layer projector, or a copy of the teacher's image encoder.
        projector_norm: what is between that projector's layers.
    """

    needs_teacher: bool
    predicts_by_vectors: bool
    uses_styles: bool
    start: Start
    projector_norm: ProjectorNorm

    def to(self, device: torch.device) -> None:
        """Compute there from now on: outputs and batches will be there."""
        ...

    def outputs(self) -> int:
        """Width of the student's head."""
        ...

    def stages(self) -> tuple[Stage, ...]:
        """What happens, in order."""
        ...

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Loss of the head's outputs ``(B, outputs())``: a scalar."""
        ...

    def logits(self, outputs: Tensor) -> Tensor:
        """What the student will answer: class logits ``(B, C)`` of the head's outputs."""
        ...
