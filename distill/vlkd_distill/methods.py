"""Methods as short ordered lists of stages; each says what trains, on which views, and with which loss.

Letters used in shapes: B batch, C classes, D embedding size.

References:
    VL2V: Addepalli et al., "Leveraging Vision-Language Models for Improving Domain Generalization in Image
    Classification", CVPR 2024 (VL2V-ADiP and VL2V-SD).
    KD: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015.
    PromptKD: Li et al., "PromptKD: Unsupervised Prompt Distillation for Vision-Language Models", CVPR 2024.
    VLM-OOD: Li et al., "Distilling Large Vision-Language Model with Out-of-Distribution Generalizability",
    ICCV 2023.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vlkd_runtime.errors import ConfigError
from vlkd_runtime.vectors import ClassVectors

from . import losses
from .specs import MethodName, ProjectorNorm, Settings
from .stages import Batch, Method, Stage, Start


class _ByOwnHead:
    """A fresh linear classifier on the student's features: one stage that trains everything."""

    predicts_by_vectors = False
    uses_styles = False
    start: Start = "network"
    projector_norm: ProjectorNorm = "batch"

    def __init__(self, settings: Settings, vectors: ClassVectors) -> None:
        self._settings = settings
        self._vectors = torch.from_numpy(vectors.vectors.copy())
        self._scale = vectors.logit_scale

    def to(self, device: torch.device) -> None:
        """Compute there from now on."""
        self._vectors = self._vectors.to(device)

    def outputs(self) -> int:
        """Class count C."""
        return len(self._vectors)

    def stages(self) -> tuple[Stage, ...]:
        """One stage that trains everything."""
        return (Stage("train", "all", False, self._settings.epochs, self._settings.lr),)

    def logits(self, outputs: Tensor) -> Tensor:
        """The head's outputs."""
        return outputs


class _ByVectors:
    """A head that ends in the teacher's space, where the class vectors classify."""

    needs_teacher = True
    predicts_by_vectors = True
    uses_styles = False
    start: Start = "network"
    projector_norm: ProjectorNorm = "batch"

    def __init__(self, settings: Settings, vectors: ClassVectors) -> None:
        self._settings = settings
        self._vectors = torch.from_numpy(vectors.vectors.copy())
        self._scale = vectors.logit_scale

    def to(self, device: torch.device) -> None:
        """Compute there from now on."""
        self._vectors = self._vectors.to(device)

    def outputs(self) -> int:
        """Embedding size D of the teacher."""
        return int(self._vectors.shape[1])

    def stages(self) -> tuple[Stage, ...]:
        """One stage that trains everything."""
        return (Stage("train", "all", False, self._settings.epochs, self._settings.lr),)

    def logits(self, outputs: Tensor) -> Tensor:
        """Scaled cosines with the class vectors; for the teacher's embeddings its zero-shot logits."""
        return self._scale * losses.unit(outputs) @ self._vectors.t()

    def _align(self) -> Stage:
        how = self._settings
        return Stage("align", "head", True, how.align_epochs, how.align_lr, rate="distill.align_lr")


class Erm(_ByOwnHead):
    """Plain training: cross-entropy on the source labels, all weights, a fresh linear classifier."""

    needs_teacher = False

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy with the labels."""
        return losses.cross_entropy(outputs, batch.labels)


class Kd(_ByOwnHead):
    """Naive distillation done right: labels and the teacher's soft labels, a fresh linear classifier."""

    needs_teacher = True

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """`losses.knowledge_distillation` from the teacher's zero-shot logits."""
        teacher = self._scale * losses.unit(_target(batch)) @ self._vectors.t()
        how = self._settings
        return losses.knowledge_distillation(
            outputs, teacher, batch.labels, how.soft_weight, how.soft_temperature
        )


class VlmOod(_ByVectors):
    """VLM-OOD: imitate the teacher's visual space and keep its order of class texts, for unseen classes.

    Projection and backbone train together from the start; the four losses have weight one each in the paper.
    With the cross-entropy alone, no image is shown to the teacher.
    """

    def __init__(self, settings: Settings, vectors: ClassVectors) -> None:
        super().__init__(settings, vectors)
        self.needs_teacher = settings.asks_about_images

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """L_cls + L_mse + L_im-cst + L_vlprox (+ L_cap), each by its weight; similarities are divided by tau."""
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
        if how.caption_weight > 0:
            caption = losses.caption_contrast(outputs, _captions(batch), batch.labels, tau)
            terms.append(how.caption_weight * caption)
        return torch.stack(terms).sum()


class Vl2vAdip(_ByVectors):
    """VL2V-ADiP: align the projection, freeze it and distill into the backbone, predict by class vectors."""

    def stages(self) -> tuple[Stage, ...]:
        """Align (projection only, on cached features), then distill (backbone only)."""
        distill = Stage("distill", "backbone", False, self._settings.epochs, self._settings.lr)
        return (self._align(), distill)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """`losses.vl2v` with the teacher's image embeddings and the labels' class vectors."""
        classes = self._vectors[batch.labels]
        return losses.vl2v(outputs, _target(batch), classes, self._settings.image_weight)


class Vl2vSd(Vl2vAdip):
    """VL2V-SD: the student starts as the teacher's image encoder and learns by the same loss, in one stage."""

    start: Start = "teacher"

    def stages(self) -> tuple[Stage, ...]:
        """One stage that trains everything; a copy needs no alignment."""
        return (Stage("distill", "all", False, self._settings.epochs, self._settings.lr),)


class PromptKd(_ByVectors):
    """PromptKD's second stage: match a prompt-tuned teacher over its class vectors, without labels.

    The first stage, learning the prompts, is `prompt_learning`; the class vectors given here are those of the
    learned prompts, computed once after it.
    """

    start: Start = "projector"

    def __init__(self, settings: Settings, vectors: ClassVectors) -> None:
        super().__init__(settings, vectors)
        self.projector_norm = settings.projector_norm

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """`losses.soft_divergence` from the teacher's logits times ``divergence_weight``; no label is read."""
        how = self._settings
        goal = self.logits(_target(batch))
        return how.divergence_weight * losses.soft_divergence(
            self.logits(outputs), goal, how.soft_temperature
        )


class DataFree(_ByVectors):
    """The teacher's soft labels on images made from class names, and the class each was asked to show.

    Inspired by Xuan et al., whose abstract says that the student is distilled on synthesised images and gives
    no formula: loss, weights and stages are ours. How the images come about is `synthesis`'s business; here
    they are labelled images like others. The classifier is the class vectors, and the distance to the
    teacher's image embeddings keeps the student in the space where these have a meaning.
    """

    def stages(self) -> tuple[Stage, ...]:
        """Align the projection on cached features, then train everything."""
        return (self._align(), Stage("distill", "all", False, self._settings.epochs, self._settings.lr))

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """``T^2 KL(teacher || student) + beta CE(prompt class) + gamma |student - teacher|^2`` on unit rows."""
        image, how = _target(batch), self._settings
        student, teacher = self.logits(outputs), self.logits(image)
        return (
            losses.soft_divergence(student, teacher, how.soft_temperature)
            + how.prompt_weight * losses.cross_entropy(student, batch.labels)
            + how.embedding_weight * losses.unit_distance(outputs, image)
        )


class Vlkd(_ByVectors):
    """Our own recipe: the teacher's embeddings of style-diversified views, labels by class vectors, relations.

    Part of the views are redrawn in other styles (`stylise`), and what the student is to match is the
    teacher's embedding of that very view. Projection and backbone train together after the projection is
    aligned.
    """

    uses_styles = True

    def stages(self) -> tuple[Stage, ...]:
        """Align the projection on cached features, then train everything; a share of the start may stay."""
        how = self._settings
        return (self._align(), Stage("distill", "all", False, how.epochs, how.lr, how.start_share))

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """``a CE(labels) + b |student - teacher|^2 + c T^2 KL(teacher || student) + d relations``."""
        image, how = _target(batch), self._settings
        terms = [
            how.cls_weight * losses.cross_entropy(self.logits(outputs), batch.labels),
            how.distance_weight * losses.unit_distance(outputs, image),
        ]
        if how.answers_weight > 0:
            soft = losses.soft_divergence(self.logits(outputs), self.logits(image), how.soft_temperature)
            terms.append(how.answers_weight * soft)
        if how.relation_weight > 0:
            terms.append(how.relation_weight * losses.relation(outputs, image))
        return torch.stack(terms).sum()


def _target(batch: Batch) -> Tensor:
    if batch.image_target is None:
        msg = "A method that learns from the teacher was given a batch without its embeddings."
        raise RuntimeError(msg)
    return batch.image_target


def _captions(batch: Batch) -> Tensor:
    if batch.caption_target is None:
        msg = "A method that learns from captions was given a batch without their embeddings."
        raise RuntimeError(msg)
    return batch.caption_target


METHODS: dict[MethodName, type[Erm | Kd | Vl2vAdip | Vl2vSd | PromptKd | VlmOod | DataFree | Vlkd]] = {
    "erm": Erm,
    "kd": Kd,
    "vl2v-adip": Vl2vAdip,
    "vl2v-sd": Vl2vSd,
    "promptkd": PromptKd,
    "vlm-ood": VlmOod,
    "data-free": DataFree,
    "vlkd": Vlkd,
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
