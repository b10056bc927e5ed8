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


def softmax(row: np.ndarray) -> np.ndarray:
    weights = np.exp(row.astype(np.float64) - row.max())
    return weights / weights.sum()


def kl(p: np.ndarray, q: np.ndarray) -> float:
    return float(sum(a * (np.log(a) - np.log(b)) for a, b in zip(p, q, strict=True)))


def test_soft_divergence_goes_from_teacher_to_student() -> None:
    # Teacher (0.8, 0.2), student (0.5, 0.5): KL = 0.8 ln 1.6 + 0.2 ln 0.4; the other direction is 0.2231.
    teacher, student = torch.tensor([[0.8, 0.2]]).log(), torch.zeros(1, 2)
    assert losses.soft_divergence(student, teacher, 1.0).item() == pytest.approx(0.192745, abs=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_soft_divergence_is_the_mean_over_samples_times_the_squared_temperature(temperature: float) -> None:
    student, teacher = 3 * rows(7, 5, 0), 3 * rows(7, 5, 1)
    by_hand = np.mean(
        [
            kl(softmax(t / temperature), softmax(s / temperature))
            for s, t in zip(student.numpy(), teacher.numpy(), strict=True)
        ]
    )
    found = losses.soft_divergence(student, teacher, temperature).item()
    assert found == pytest.approx(temperature**2 * by_hand, rel=1e-4)


def test_the_gradient_of_the_soft_divergence_has_the_same_size_at_every_temperature() -> None:
    # For large T the gradient goes to (centred student - centred teacher) / (N C): no T is left in it.
    teacher, sizes = rows(6, 5, 1), []
    for temperature in (1.0, 4.0, 50.0):
        student = rows(6, 5, 0).requires_grad_()
        losses.soft_divergence(student, teacher, temperature).backward()
        assert student.grad is not None
        sizes.append(student.grad.norm().item())
    gap = (student - teacher).detach().double().numpy()
    limit = (gap - gap.mean(axis=1, keepdims=True)) / gap.size
    assert student.grad.numpy() == pytest.approx(limit, rel=0.1, abs=2e-3)
    assert max(sizes) < 2 * min(sizes)


def test_soft_divergence_of_equal_logits_is_zero_and_teaches_nothing_to_the_teacher() -> None:
    student, teacher = rows(3, 4, 0).requires_grad_(), rows(3, 4, 0).requires_grad_()
    loss = losses.soft_divergence(student, teacher, 2.0)
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert teacher.grad is None


def test_soft_divergence_stays_finite_on_one_hot_teachers() -> None:
    teacher = torch.tensor([[1000.0, 0.0, 0.0]])
    found = losses.soft_divergence(torch.zeros(1, 3), teacher, 1.0).item()
    assert found == pytest.approx(np.log(3), abs=1e-5)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_naive_distillation_mixes_labels_and_soft_labels(weight: float) -> None:
    student, teacher, labels = rows(4, 3, 0), rows(4, 3, 1), torch.tensor([0, 2, 1, 1])
    hard = np.mean([-np.log(softmax(s)[y]) for s, y in zip(student.numpy(), labels.numpy(), strict=True)])
    soft = np.mean(
        [kl(softmax(t / 3), softmax(s / 3)) for s, t in zip(student.numpy(), teacher.numpy(), strict=True)]
    )
    found = losses.knowledge_distillation(student, teacher, labels, weight, 3.0).item()
    assert found == pytest.approx((1 - weight) * hard + weight * 9 * soft, rel=1e-4)


def test_unit_distance_is_two_minus_two_cosines_whatever_the_lengths() -> None:
    s, t = rows(6, 5, 0), rows(6, 5, 1)
    cosines = [a @ b / np.sqrt((a @ a) * (b @ b)) for a, b in zip(s.numpy(), t.numpy(), strict=True)]
    assert losses.unit_distance(7 * s, 0.1 * t).item() == pytest.approx(2 - 2 * np.mean(cosines), abs=1e-5)


def test_image_contrast_by_hand_is_symmetric_and_zero_for_clear_pairs() -> None:
    s, t = rows(5, 6, 0), rows(5, 6, 1)
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (s.numpy(), t.numpy()))
    total = 0.0
    for i in range(5):
        total -= np.log(softmax(np.array([a[i] @ b[j] for j in range(5)]) / 0.2)[i]) / 10
        total -= np.log(softmax(np.array([a[j] @ b[i] for j in range(5)]) / 0.2)[i]) / 10
    assert losses.image_contrast(s, t, 0.2).item() == pytest.approx(total, rel=1e-4)
    assert losses.image_contrast(t, s, 0.2).item() == pytest.approx(total, rel=1e-4)
    assert losses.image_contrast(torch.eye(4), torch.eye(4), 0.01).item() == pytest.approx(0.0, abs=1e-6)


def proximity_by_hand(student: np.ndarray, teacher: np.ndarray, labels: np.ndarray, k: int) -> float:
    kept = []
    for s, t, y in zip(student, teacher, labels, strict=True):
        if int(t.argmax()) == y:
            top = np.argsort(-t)[:k]
            kept.append(kl(softmax(t[top]), softmax(s[top])))
    return float(np.mean(kept)) if kept else 0.0


@pytest.mark.parametrize("k", [1, 2, 4, 9], ids=["one", "two", "four", "more than there are"])
def test_language_proximity_looks_at_the_teachers_nearest_texts_where_it_is_right(k: int) -> None:
    student, teacher = 2 * rows(12, 5, 0), 2 * rows(12, 5, 1)
    labels = teacher.argmax(-1)
    labels[::3] = (labels[::3] + 1) % 5
    expected = proximity_by_hand(student.numpy(), teacher.numpy(), labels.numpy(), k)
    assert losses.language_proximity(student, teacher, labels, k).item() == pytest.approx(expected, abs=1e-5)


def test_language_proximity_of_all_classes_is_the_whole_divergence() -> None:
    student, teacher = rows(6, 5, 0), rows(6, 5, 1)
    found = losses.language_proximity(student, teacher, teacher.argmax(-1), 5).item()
    assert found == pytest.approx(losses.soft_divergence(student, teacher, 1.0).item(), abs=1e-6)


def test_language_proximity_is_zero_and_finite_where_the_teacher_is_always_wrong() -> None:
    student, teacher = rows(6, 5, 0).requires_grad_(), rows(6, 5, 1)
    loss = losses.language_proximity(student, teacher, (teacher.argmax(-1) + 1) % 5, 3)
    loss.backward()
    assert loss.item() == 0.0
    assert student.grad is not None and torch.isfinite(student.grad).all()
