"""Methods as short ordered lists of stages; each says what trains, on which views, and with which loss.

Letters used in shapes: B batch, C classes, D embedding size.

References:
    VL2V-ADiP: Addepalli et al., "Leveraging Vision-Language Models for Improving Domain Generalization in
    Image Classification", CVPR 2024.
    KD: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015.
    VLM-OOD: Li et al., "Distilling Large Vision-Language Model with Out-of-Distribution Generalizability",
    ICCV 2023.
    Data-free, inspired by: Xuan et al., "Distilling Vision-Language Foundation Models: A Data-Free Approach via
    Prompt Diversification", arXiv 2407.15155.
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
    """A way to train a student.

    Attributes:
        needs_teacher: whether the loss looks at the teacher's embeddings of the training images.
        predicts_by_vectors: whether the head ends in the teacher's space and the class vectors classify;
            otherwise the head gives the logits itself.
        uses_styles: whether part of its views are style views (`vlkd_distill.stylise`).
    """

    needs_teacher: bool
    predicts_by_vectors: bool
    uses_styles: bool

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
    predicts_by_vectors = False
    uses_styles = False

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


class Kd:
    """Naive distillation done right: labels and the teacher's soft labels, a fresh linear classifier."""

    needs_teacher = True
    predicts_by_vectors = False
    uses_styles = False

    def __init__(self, settings: Settings, vectors: ClassVectors) -> None:
        self._settings = settings
        self._vectors = torch.from_numpy(vectors.vectors.copy())
        self._scale = vectors.logit_scale

    def outputs(self) -> int:
        """Class count C."""
        return len(self._vectors)

    def stages(self) -> tuple[Stage, ...]:
        """One stage that trains everything."""
        return (Stage("train", "all", False, self._settings.epochs, self._settings.lr),)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """`losses.knowledge_distillation` from the teacher's zero-shot logits."""
        teacher = self._scale * losses.unit(_target(batch)) @ self._vectors.t()
        how = self._settings
        return losses.knowledge_distillation(
            outputs, teacher, batch.labels, how.soft_weight, how.soft_temperature
        )


class VlmOod:
    """VLM-OOD: imitate the teacher's visual space and keep its order of class texts, for unseen classes.

    Projection and backbone train together from the start; the four losses have weight one each in the paper.
    With the cross-entropy alone, no image is shown to the teacher.
    """

    predicts_by_vectors = True
    uses_styles = False

    def __init__(self, settings: Settings, vectors: ClassVectors) -> None:
        self._settings = settings
        self.needs_teacher = settings.asks_about_images
        self._vectors = torch.from_numpy(vectors.vectors.copy())

    def outputs(self) -> int:
        """Embedding size D of the teacher."""
        return int(self._vectors.shape[1])

    def stages(self) -> tuple[Stage, ...]:
        """One stage that trains everything."""
        return (Stage("train", "all", False, self._settings.epochs, self._settings.lr),)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """L_cls + L_mse + L_im-cst + L_vlprox, each by its weight; similarities divided by ``text_temperature``."""
        how, tau = self._settings, self._settings.text_temperature
        student = losses.unit(outputs) @ self._vectors.t() / tau
        # A term that is off is not computed: zero times a loss that overflows is not zero.
        terms = []
        if how.cls_weight > 0:
            terms.append(how.cls_weight * losses.cross_entropy(student, batch.labels))
        if how.distance_weight > 0:
            terms.append(how.distance_weight * losses.unit_distance(outputs, _target(batch)))
        if how.contrast_weight > 0:
            terms.append(how.contrast_weight * losses.image_contrast(outputs, _target(batch), tau))
        if how.proximity_weight > 0:
            teacher = losses.unit(_target(batch)) @ self._vectors.t() / tau
            nearest = losses.language_proximity(student, teacher, batch.labels, how.nearest_texts)
            terms.append(how.proximity_weight * nearest)
        return torch.stack(terms).sum()


class Vl2vAdip:
    """VL2V-ADiP: align the projection, freeze it and distill into the backbone, predict by class vectors."""

    needs_teacher = True
    predicts_by_vectors = True
    uses_styles = False

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
        classes = self._vectors[batch.labels]
        return losses.vl2v(outputs, _target(batch), classes, self._settings.image_weight)


class DataFree:
    """The teacher's soft labels on images made from class names, and the class each was asked to show.

    Inspired by Xuan et al., whose abstract says that the student is distilled on synthesised images and gives
    no formula: loss, weights and stages are ours. How the images come about is `synthesis`'s business; here
    they are labelled images like others. The classifier is the class vectors, and the distance to the
    teacher's image embeddings keeps the student in the space where these have a meaning.
    """

    needs_teacher = True
    predicts_by_vectors = True
    uses_styles = False

    def __init__(self, settings: Settings, vectors: ClassVectors) -> None:
        self._settings = settings
        self._vectors = torch.from_numpy(vectors.vectors.copy())
        self._scale = vectors.logit_scale

    def outputs(self) -> int:
        """Embedding size D of the teacher."""
        return int(self._vectors.shape[1])

    def stages(self) -> tuple[Stage, ...]:
        """Align the projection on cached features, then train everything."""
        return (
            Stage("align", "head", True, self._settings.align_epochs, self._settings.align_lr),
            Stage("distill", "all", False, self._settings.epochs, self._settings.lr),
        )

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """``T^2 KL(teacher || student) + beta CE(prompt class) + gamma |student - teacher|^2`` on unit rows."""
        image, how = _target(batch), self._settings
        student = self._scale * losses.unit(outputs) @ self._vectors.t()
        teacher = self._scale * losses.unit(image) @ self._vectors.t()
        return (
            losses.soft_divergence(student, teacher, how.soft_temperature)
            + how.prompt_weight * losses.cross_entropy(student, batch.labels)
            + how.embedding_weight * losses.unit_distance(outputs, image)
        )


def _target(batch: Batch) -> Tensor:
    if batch.image_target is None:
        msg = "A method that learns from the teacher was given a batch without its embeddings."
        raise RuntimeError(msg)
    return batch.image_target


METHODS: dict[str, type[Erm | Kd | Vl2vAdip | VlmOod | DataFree]] = {
    "erm": Erm,
    "kd": Kd,
    "vl2v-adip": Vl2vAdip,
    "vlm-ood": VlmOod,
    "data-free": DataFree,
}


def create(settings: Settings, vectors: ClassVectors) -> Method:
    """The method that the settings name.

    Raises:
        ConfigError: unknown method.
    """
    if settings.method not in METHODS:
        msg = f"Unknown method '{settings.method}' (distill.method). Expected one of {', '.join(METHODS)}."
        raise ConfigError(msg)
    return METHODS[settings.method](settings, vectors)
