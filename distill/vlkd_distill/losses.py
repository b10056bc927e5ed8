"""Losses as pure functions of tensors.

Letters used in shapes: B batch, C classes, D embedding size.

References:
    VL2V: Addepalli et al., "Leveraging Vision-Language Models for Improving Domain Generalization in
    Image Classification", CVPR 2024.
"""

from __future__ import annotations

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
