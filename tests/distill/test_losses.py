"""Losses against second, slower computations written out in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vlkd_distill import losses


def rows(count: int, width: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((count, width))).float()


def vl2v_by_hand(p: np.ndarray, v: np.ndarray, u: np.ndarray, weight: float) -> float:
    total = 0.0
    for one, image, text in zip(p, v, u, strict=True):
        cos_v = one @ image / np.sqrt((one @ one) * (image @ image))
        cos_u = one @ text / np.sqrt((one @ one) * (text @ text))
        total += -(weight * cos_v + (1 - weight) * cos_u)
    return total / len(p)


@pytest.mark.parametrize("weight", [0.0, 0.1, 0.5, 1.0])
def test_vl2v_is_the_weighted_negative_cosine(weight: float) -> None:
    p, v, u = rows(5, 8, 0), rows(5, 8, 1), rows(5, 8, 2)
    expected = vl2v_by_hand(p.numpy(), v.numpy(), u.numpy(), weight)
    assert losses.vl2v(p, v, u, weight).item() == pytest.approx(expected, abs=1e-6)


def test_vl2v_is_minus_one_when_all_agree() -> None:
    p = rows(4, 6, 3)
    assert losses.vl2v(p, 3 * p, 0.2 * p, 0.5).item() == pytest.approx(-1.0, abs=1e-6)


def test_vl2v_does_not_see_the_scale_of_the_class_vectors() -> None:
    p, v, u = rows(4, 6, 0), rows(4, 6, 1), rows(4, 6, 2)
    assert losses.vl2v(p, v, 100 * u, 0.5).item() == pytest.approx(losses.vl2v(p, v, u, 0.5).item(), abs=1e-6)


def test_vl2v_gradient_turns_without_stretching() -> None:
    p = rows(4, 6, 0).requires_grad_()
    losses.vl2v(p, rows(4, 6, 1), rows(4, 6, 2), 0.5).backward()
    assert p.grad is not None
    assert (p.grad * p).sum(-1).abs().max().item() < 1e-6
    assert p.grad.abs().max().item() > 1e-3


def test_cross_entropy_by_hand() -> None:
    logits, labels = rows(6, 3, 0), torch.tensor([0, 1, 2, 0, 1, 2])
    z = logits.double().numpy()
    by_hand = np.mean([np.log(np.exp(row).sum()) - row[y] for row, y in zip(z, labels.numpy(), strict=True)])
    assert losses.cross_entropy(logits, labels).item() == pytest.approx(by_hand, abs=1e-6)


def test_unit_keeps_a_zero_row_finite() -> None:
    assert torch.isfinite(losses.unit(torch.zeros(2, 4))).all()
