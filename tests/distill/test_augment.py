"""Random views: reproducible, per sample, within their limits, and equal to the image when the limits are zero."""

from __future__ import annotations

import numpy as np
import torch

from vlkd_distill.augment import clean_views, random_views
from vlkd_distill.augmentation import Augmentation

STILL = Augmentation(min_area=1.0, flip=0.0, jitter=0.0, grayscale=0.0)


def pixels(count: int = 6, size: int = 16) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_same_seed_same_views_other_seed_other_views() -> None:
    first, again = (random_views(pixels(), Augmentation(), generator(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, random_views(pixels(), Augmentation(), generator(4)))


def test_views_stay_in_range_and_shape() -> None:
    views = random_views(pixels(), Augmentation(), generator())
    assert views.shape == (6, 3, 16, 16)
    assert views.min() >= 0 and views.max() <= 1


def test_every_sample_gets_its_own_draw() -> None:
    same = pixels(1).repeat(8, 1, 1, 1)
    views = random_views(same, Augmentation(), generator())
    assert all(not torch.equal(views[0], other) for other in views[1:])


def test_mirror_comes_as_often_as_asked() -> None:
    left_bright = torch.zeros(1, 16, 16, 3, dtype=torch.uint8)
    left_bright[:, :, :8] = 255
    always, never = (
        random_views(left_bright.repeat(32, 1, 1, 1), Augmentation(1.0, flip, 0.0, 0.0), generator())
        for flip in (1.0, 0.0)
    )
    assert (always[..., 8:].mean(dim=(1, 2, 3)) > 0.7).all()
    assert (never[..., :8].mean(dim=(1, 2, 3)) > 0.7).all()


def test_grayscale_makes_channels_equal() -> None:
    views = random_views(pixels(), Augmentation(0.7, 0.5, 0.0, 1.0), generator())
    assert (views.max(dim=1).values - views.min(dim=1).values).max().item() < 1e-4


def test_no_limits_left_means_colours_unchanged() -> None:
    flat = torch.full((4, 8, 8, 3), 0, dtype=torch.uint8) + torch.tensor([200, 90, 30], dtype=torch.uint8)
    views = random_views(flat, STILL, generator())
    assert (views - clean_views(flat)).abs().max().item() < 1e-4
