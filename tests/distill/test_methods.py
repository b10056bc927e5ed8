"""Methods: which losses they are made of, and who classifies."""

from __future__ import annotations

import dataclasses
from typing import get_args

import numpy as np
import pytest
import torch

from vlkd_distill import losses, methods, stages
from vlkd_distill.specs import MethodName, Settings
from vlkd_runtime.vectors import ClassVectors

SETTINGS = Settings(
    method="erm",
    epochs=1,
    lr=1e-3,
    align_epochs=1,
    align_lr=1e-3,
    batch=6,
    weight_decay=0.0,
    image_weight=0.3,
    soft_weight=0.4,
    soft_temperature=2.0,
    prompt_weight=0.7,
    embedding_weight=0.3,
    text_temperature=0.1,
    nearest_texts=2,
    style_share=0.5,
    teacher_view="clean_cached",
    batch_norm="train",
    precision="float32",
    seed=0,
)
LABELS = torch.tensor([0, 1, 2, 0])


@pytest.fixture
def vectors() -> ClassVectors:
    rows = np.random.default_rng(1).standard_normal((3, 8))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return ClassVectors(("a", "b", "c"), rows.astype(np.float32), ((), (), ()), (), "test", "0" * 64, 10.0)


def created(name: str, vectors: ClassVectors, **changes: float) -> stages.Method:
    return methods.create(dataclasses.replace(SETTINGS, method=name, **changes), vectors)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("name", "outputs", "stages", "by_vectors"),
    [
        ("erm", 3, [("train", "all")], False),
        ("kd", 3, [("train", "all")], False),
        ("vl2v-adip", 8, [("align", "head"), ("distill", "backbone")], True),
        ("vl2v-sd", 8, [("distill", "all")], True),
        ("promptkd", 8, [("train", "all")], True),
        ("vlkd", 8, [("align", "head"), ("distill", "all")], True),
        ("vlm-ood", 8, [("train", "all")], True),
        ("data-free", 8, [("align", "head"), ("distill", "all")], True),
    ],
)
def test_a_method_says_what_trains_and_who_classifies(
    name: str, outputs: int, stages: list[tuple[str, str]], by_vectors: bool, vectors: ClassVectors
) -> None:
    method = created(name, vectors)
    assert method.outputs() == outputs
    assert [(stage.name, stage.trains) for stage in method.stages()] == stages
    assert method.predicts_by_vectors is by_vectors
    assert method.needs_teacher is (name != "erm")


def test_every_method_that_settings_may_name_exists() -> None:
    assert set(methods.METHODS) == set(get_args(MethodName))


@pytest.mark.parametrize("name", sorted(methods.METHODS))
def test_answers_are_the_heads_or_scaled_cosines(name: str, vectors: ClassVectors) -> None:
    method = created(name, vectors)
    outputs = 3 * randn(4, method.outputs())
    found = method.logits(outputs)
    if method.predicts_by_vectors:
        rows = outputs.numpy() / np.linalg.norm(outputs.numpy(), axis=1, keepdims=True)
        assert np.allclose(found.numpy(), 10.0 * rows @ vectors.vectors.T, atol=1e-5)
    else:
        assert torch.equal(found, outputs)


@pytest.mark.parametrize("weight", [1.0, 1000 / 3], ids=["plain", "the code's"])
def test_promptkd_is_the_weighted_divergence_from_the_teacher_whatever_the_labels(
    weight: float, vectors: ClassVectors
) -> None:
    outputs, image = 5 * randn(4, 8), 3 * randn(4, 8, seed=1)
    method = created("promptkd", vectors, divergence_weight=weight)
    total = 0.0
    for own, seen in zip(outputs.numpy(), image.numpy(), strict=True):
        q, p = (
            np.exp(10.0 * vectors.vectors @ row / np.linalg.norm(row) / 2.0, dtype=np.float64)
            for row in (own, seen)
        )
        q, p = q / q.sum(), p / p.sum()
        total += weight * 2.0**2 * float((p * np.log(p / q)).sum())
    found = method.loss(outputs, stages.Batch(LABELS, image))
    assert found.item() == pytest.approx(total / 4, rel=1e-5)
    assert torch.equal(found, method.loss(outputs, stages.Batch(torch.full((4,), -100), image)))


def test_vlkd_adds_labels_distance_divergence_and_relations(vectors: ClassVectors) -> None:
    outputs, image = 5 * randn(4, 8), 3 * randn(4, 8, seed=1)
    weights = {"cls_weight": 0.7, "distance_weight": 0.3, "answers_weight": 0.2, "relation_weight": 5.0}
    own, seen = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (outputs.numpy(), image.numpy()))
    gaps = [(own[i] @ own[j] - seen[i] @ seen[j]) ** 2 for i in range(4) for j in range(4) if i != j]
    parts = {
        "cls_weight": losses.cross_entropy(torch.from_numpy(10.0 * own @ vectors.vectors.T), LABELS).item(),
        "distance_weight": float(np.mean(((own - seen) ** 2).sum(1))),
        "answers_weight": losses.soft_divergence(
            *(torch.from_numpy(10.0 * rows @ vectors.vectors.T) for rows in (own, seen)), 2.0
        ).item(),
        "relation_weight": float(np.mean(gaps)),
    }
    found = created("vlkd", vectors, **weights).loss(outputs, stages.Batch(LABELS, image))
    assert found.item() == pytest.approx(sum(weights[name] * parts[name] for name in weights), rel=1e-4)


def test_relations_of_one_sample_are_none() -> None:
    assert losses.relation(randn(1, 8), randn(1, 8, seed=1)).item() == 0.0


def test_kd_takes_the_teachers_scaled_cosines_as_its_logits(vectors: ClassVectors) -> None:
    outputs, image = randn(4, 3), randn(4, 8, seed=1)
    teacher = 10.0 * torch.nn.functional.cosine_similarity(
        image[:, None], torch.from_numpy(vectors.vectors.copy())[None], dim=-1
    )
    expected = losses.knowledge_distillation(outputs, teacher, LABELS, 0.4, 2.0)
    found = created("kd", vectors).loss(outputs, stages.Batch(LABELS, image))
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_vlm_ood_is_the_sum_of_its_four_losses(vectors: ClassVectors) -> None:
    outputs, image = 5 * randn(4, 8), 3 * randn(4, 8, seed=1)
    texts = torch.from_numpy(vectors.vectors.copy())
    student = torch.nn.functional.cosine_similarity(outputs[:, None], texts[None], dim=-1) / 0.1
    teacher = torch.nn.functional.cosine_similarity(image[:, None], texts[None], dim=-1) / 0.1
    parts = [
        losses.cross_entropy(student, LABELS),
        losses.unit_distance(outputs, image),
        losses.image_contrast(outputs, image, 0.1),
        losses.language_proximity(student, teacher, LABELS, 2),
    ]
    found = created("vlm-ood", vectors).loss(outputs, stages.Batch(LABELS, image))
    assert found.item() == pytest.approx(sum(part.item() for part in parts), rel=1e-5)
    names = ("cls_weight", "distance_weight", "contrast_weight", "proximity_weight")
    for position, name in enumerate(names):
        alone = created("vlm-ood", vectors, **(dict.fromkeys(names, 0.0) | {name: 2.5}))
        found = alone.loss(outputs, stages.Batch(LABELS, image))
        assert found.item() == pytest.approx(2.5 * parts[position].item(), rel=1e-4), name


def test_vlm_ood_with_the_cross_entropy_alone_shows_the_teacher_nothing(vectors: ClassVectors) -> None:
    alone = created("vlm-ood", vectors, distance_weight=0.0, contrast_weight=0.0, proximity_weight=0.0)
    assert not alone.needs_teacher
    assert torch.isfinite(alone.loss(randn(4, 8), stages.Batch(LABELS, None)))


def test_data_free_adds_soft_labels_prompt_class_and_distance(vectors: ClassVectors) -> None:
    outputs, image = 5 * randn(4, 8), 3 * randn(4, 8, seed=1)
    total = 0.0
    for own, seen, label in zip(outputs.numpy(), image.numpy(), LABELS.tolist(), strict=True):
        own, seen = own / np.linalg.norm(own), seen / np.linalg.norm(seen)
        student, teacher = 10.0 * vectors.vectors @ own, 10.0 * vectors.vectors @ seen

        def shares(logits: np.ndarray) -> np.ndarray:
            return np.exp(logits) / np.exp(logits).sum()

        soft, goal = shares(student / 2.0), shares(teacher / 2.0)
        total += 2.0**2 * float((goal * np.log(goal / soft)).sum())
        total += 0.7 * -float(np.log(shares(student)[label])) + 0.3 * float(((own - seen) ** 2).sum())
    found = created("data-free", vectors).loss(outputs, stages.Batch(LABELS, image))
    assert found.item() == pytest.approx(total / 4, rel=1e-5)


@pytest.mark.parametrize("name", sorted(set(methods.METHODS) - {"erm"}))
def test_a_batch_without_the_teacher_is_refused(name: str, vectors: ClassVectors) -> None:
    method = created(name, vectors)
    with pytest.raises(RuntimeError, match="without its embeddings"):
        method.loss(randn(4, method.outputs()), stages.Batch(LABELS, None))
