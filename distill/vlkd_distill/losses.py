"""Losses as pure functions of tensors.

Letters used in shapes: B batch, C classes, D embedding size.

References:
    VL2V: Addepalli et al., "Leveraging Vision-Language Models for Improving Domain Generalization in
    Image Classification", CVPR 2024.
    KD: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, section 2.
    VLM-OOD: Li et al., "Distilling Large Vision-Language Model with Out-of-Distribution Generalizability",
    ICCV 2023.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def unit(vectors: Tensor, eps: float = 1e-6) -> Tensor:
    """Scale rows to length one, in float32 whatever the input's precision.

    Args:
        vectors: ``(..., D)``.
        eps: rows shorter than this are divided by it instead.
    """
    return F.normalize(vectors.float(), dim=-1, eps=eps)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of plain training.

    Args:
        logits: ``(B, C)``.
        labels: ``(B,)`` int64.
    """
    return F.cross_entropy(logits.float(), labels)


def vl2v(projected: Tensor, image_target: Tensor, text_target: Tensor, image_weight: float) -> Tensor:
    """Pull a projected feature towards the teacher's image embedding and its class's text embedding.

    ``-lambda cos(p, v) - (1 - lambda) cos(p, u)``, averaged over the batch; -1 when all three agree.

    Args:
        projected: student features in the teacher's space, ``(B, D)``, any length.
        image_target: the teacher's image embeddings, ``(B, D)``.
        text_target: the class vectors of the labels, ``(B, D)``.
        image_weight: lambda, 0 to 1.

    References:
        VL2V-ADiP, the loss of both the align and the distill stage.
    """
    p = unit(projected)
    image_cosine = (p * unit(image_target)).sum(-1)
    text_cosine = (p * unit(text_target)).sum(-1)
    return -(image_weight * image_cosine + (1.0 - image_weight) * text_cosine).mean()


def soft_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``T^2 KL(softmax(teacher / T) || softmax(student / T))``, averaged over the batch.

    The mean is over samples, never over samples and classes, and T^2 keeps the gradient's size the same
    for every temperature.

    Args:
        student: logits ``(B, C)``.
        teacher: logits ``(B, C)``; takes no gradient.
        temperature: T, above 0.

    References:
        KD, section 2.
    """
    own = F.log_softmax(student.float() / temperature, dim=-1)
    goal = F.log_softmax(teacher.detach().float() / temperature, dim=-1)
    return temperature**2 * F.kl_div(own, goal, reduction="batchmean", log_target=True)


def knowledge_distillation(
    student: Tensor, teacher: Tensor, labels: Tensor, weight: float, temperature: float
) -> Tensor:
    """``(1 - w) CE(student, labels) + w T^2 KL(teacher || student)``: naive distillation done right.

    Args:
        student: logits ``(B, C)``.
        teacher: logits ``(B, C)``.
        labels: ``(B,)`` int64.
        weight: w, 0 to 1.
        temperature: T.
    """
    soft = soft_divergence(student, teacher, temperature)
    return (1.0 - weight) * cross_entropy(student, labels) + weight * soft


def unit_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared distance of unit vectors, summed over dimensions: ``2 - 2 cos``.

    Args:
        student: ``(B, D)``, any length.
        teacher: ``(B, D)``, any length.

    References:
        VLM-OOD, L_mse.
    """
    return (unit(student) - unit(teacher)).square().sum(-1).mean()


def image_contrast(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """InfoNCE in both directions between the student's and the teacher's embeddings of the same images.

    Every other image of the batch is a negative, those of the same class too.

    Args:
        student: ``(B, D)``, any length.
        teacher: ``(B, D)``, any length.
        temperature: tau.

    References:
        VLM-OOD, L_im-cst.
    """
    similarity = unit(student) @ unit(teacher).t() / temperature
    own = torch.arange(len(similarity), device=similarity.device)
    return (F.cross_entropy(similarity, own) + F.cross_entropy(similarity.t(), own)) / 2.0


def language_proximity(student: Tensor, teacher: Tensor, labels: Tensor, nearest: int) -> Tensor:
    """KL on the teacher's nearest class texts, over the samples that the teacher gets right.

    Both softmaxes run over the teacher's ``nearest`` classes only. Zero where the teacher is right on none.

    Args:
        student: logits ``(B, C)``, already divided by the temperature.
        teacher: likewise; takes no gradient.
        labels: ``(B,)`` int64.
        nearest: k; all classes where there are fewer.

    References:
        VLM-OOD, L_vlprox.
    """
    goal = teacher.detach().float()
    right = goal.argmax(-1) == labels
    top = goal.topk(min(nearest, goal.shape[-1]), dim=-1).indices
    wanted = F.log_softmax(goal.gather(-1, top), dim=-1)
    own = F.log_softmax(student.float().gather(-1, top), dim=-1)
    each = (wanted.exp() * (wanted - own)).sum(-1)
    return (each * right).sum() / right.sum().clamp(min=1)


def caption_contrast(student: Tensor, captions: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of finding an image's own caption among those of the batch.

    Captions of other images of the same class are no negatives: they may say the same.

    Args:
        student: ``(B, D)``, any length.
        captions: the teacher's embeddings of the images' captions, ``(B, D)``, any length; takes no gradient.
        labels: ``(B,)`` int64.
        temperature: tau; the authors' code leaves it out, which is 1.

    References:
        VLM-OOD, its auxiliary captions.
    """
    similarity = unit(student) @ unit(captions.detach()).t() / temperature
    same = labels[:, None] == labels[None, :]
    same.fill_diagonal_(False)
    own = torch.arange(len(similarity), device=similarity.device)
    return F.cross_entropy(similarity.masked_fill(same, -torch.inf), own)


def relation(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the cosines between different samples of the batch; 0 for a single one.

    Args:
        student: ``(B, D)``, any length.
        teacher: ``(B, D)``, any length; takes no gradient.

    References:
        Tung and Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, equation 4, with cosines in
        place of their row-normalised products and without the diagonal, which is one on both sides.
    """
    own, goal = unit(student), unit(teacher.detach())
    gap = (own @ own.t() - goal @ goal.t()).square()
    pairs = len(gap) * (len(gap) - 1)
    return (gap.sum() - gap.diagonal().sum()) / max(1, pairs)
