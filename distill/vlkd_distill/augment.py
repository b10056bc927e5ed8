"""Random views of image batches, one draw per sample, as a few tensor operations for the whole batch.

Letters used in shapes: B batch, S pixels a side.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .augmentation import Augmentation

_LUMA = torch.tensor([0.299, 0.587, 0.114])
_RGB_TO_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_YIQ_TO_RGB = torch.linalg.inv(_RGB_TO_YIQ)


def random_views(
    pixels: Tensor,
    how: Augmentation,
    generator: torch.Generator,
    part: tuple[slice, int] | None = None,
) -> Tensor:
    """Draw one random view of each image.

    Args:
        pixels: ``(B, S, S, 3)`` uint8; the views are computed where these are.
        how: the limits of the draw.
        generator: source of randomness, on the processor; the same state gives the same views.
        part: which images of a larger batch these are, and how many that has; views are drawn for all of it, so
            that each image has the view that it has in the whole batch.

    Returns:
        ``(B, 3, S, S)`` float32 in 0 to 1.
    """
    images = pixels.permute(0, 3, 1, 2).float().div_(255.0)
    own, total = part or (slice(None), len(images))
    crops = _crop_matrices(total, how, generator)[own].to(images.device)
    grid = F.affine_grid(crops, list(images.shape), align_corners=False)
    views = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return _recolour(views, how, generator, own, total)


def clean_views(pixels: Tensor) -> Tensor:
    """The images as they are: ``(B, S, S, 3)`` uint8 to ``(B, 3, S, S)`` float32 in 0 to 1."""
    return pixels.permute(0, 3, 1, 2).float().div_(255.0)


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator) * (high - low) + low


def _crop_matrices(count: int, how: Augmentation, generator: torch.Generator) -> Tensor:
    """Affine maps ``(B, 2, 3)`` from the view to the part of the image it shows."""
    area = _uniform(count, how.min_area, 1.0, generator)
    aspect = torch.exp(_uniform(count, -0.2877, 0.2877, generator))  # 3:4 to 4:3
    width = (area * aspect).sqrt().clamp(max=1.0)
    height = (area / aspect).sqrt().clamp(max=1.0)
    left = _uniform(count, -1.0, 1.0, generator) * (1.0 - width)
    top = _uniform(count, -1.0, 1.0, generator) * (1.0 - height)
    mirror = torch.where(torch.rand(count, generator=generator) < how.flip, -1.0, 1.0)
    zero = torch.zeros(count)
    rows = [torch.stack([width * mirror, zero, left], -1), torch.stack([zero, height, top], -1)]
    return torch.stack(rows, 1)


def _recolour(views: Tensor, how: Augmentation, generator: torch.Generator, own: slice, total: int) -> Tensor:
    """Brightness, contrast, saturation, hue and grayscale as one colour matrix and one offset a sample."""
    count = len(views)
    brightness, contrast, saturation = (
        _uniform(total, 1.0 - how.jitter, 1.0 + how.jitter, generator)[own] for _ in range(3)
    )
    angle = _uniform(total, -how.jitter, how.jitter, generator)[own] * 2.0 * torch.pi
    gray = torch.rand(total, generator=generator)[own] < how.grayscale
    saturation = torch.where(gray, 0.0, saturation)
    cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros(count), torch.ones(count)
    turn = torch.stack(
        [
            torch.stack([one, zero, zero], -1),
            torch.stack([zero, saturation * cos, -saturation * sin], -1),
            torch.stack([zero, saturation * sin, saturation * cos], -1),
        ],
        1,
    )
    matrix = ((_YIQ_TO_RGB @ turn @ _RGB_TO_YIQ) * (brightness * contrast)[:, None, None]).to(views.device)
    luma = torch.einsum("bchw,c->b", views, _LUMA.to(views.device)) / (views.shape[2] * views.shape[3])
    offset = ((1.0 - contrast) * brightness).to(views.device) * luma
    mixed = torch.einsum("bij,bjhw->bihw", matrix, views) + offset[:, None, None, None]
    return mixed.clamp_(0.0, 1.0)
