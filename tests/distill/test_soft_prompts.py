"""Prompts in token space: vectors read as words are, drawn or learned, against slower computations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vlkd_distill import class_vectors, diversify, soft_prompts
from vlkd_distill.teachers import OpenClipTeacher
from vlkd_distill.wording import DEMO, SINGLE
from vlkd_runtime.errors import UnavailableError

CLASSES = ("car", "cat", "fish", "house")


@pytest.fixture(scope="module")
def teacher() -> OpenClipTeacher:
    return OpenClipTeacher.load("demo")


def test_vectors_of_words_are_read_as_the_words(teacher: OpenClipTeacher) -> None:
    tower = soft_prompts.tower_of(teacher)
    styles, endings = ("oil painting", "neon sign"), ("of a car", "of a cat by the sea")
    rows = soft_prompts.style_rows(tower, styles)
    assert rows.shape == (2, 2, tower.owner.token_embedding.embedding_dim)
    found = soft_prompts.encode(tower, endings, rows)
    expected = teacher.embed_texts([f"{a} {b}" for a, b in zip(styles, endings, strict=True)])
    assert np.abs(found.detach().numpy() - expected).max() < 1e-5


def test_a_style_of_one_token_fills_both_slots(teacher: OpenClipTeacher) -> None:
    tower = soft_prompts.tower_of(teacher)
    assert len(tower.tokenizer.encode("photo")) == 1
    first, second = soft_prompts.style_rows(tower, ("photo",))[0]
    assert torch.equal(first, second)


def test_crowding_is_the_mean_log_sum_over_the_others() -> None:
    rows = torch.nn.functional.normalize(torch.randn(5, 7, generator=torch.Generator().manual_seed(0)), dim=1)
    each = [
        0.2 * math.log(sum(math.exp(float(rows[i] @ rows[j]) / 0.2) for j in range(5) if j != i))
        for i in range(5)
    ]
    assert float(soft_prompts.crowding(rows, 0.2)) == pytest.approx(sum(each) / 5, rel=1e-5)


def test_learned_styles_differ_and_leave_the_classes_what_they_are(teacher: OpenClipTeacher) -> None:
    tower = soft_prompts.tower_of(teacher)
    rows = soft_prompts.style_rows(tower, DEMO.styles)
    classes = torch.from_numpy(class_vectors.compute(teacher, CLASSES, (SINGLE,)).vectors.copy())
    learned = soft_prompts.learn_styles(tower, classes, CLASSES, rows, 6, 0, teacher.logit_scale)
    start = rows.mean(dim=(0, 1)) + rows.std(dim=(0, 1)) * torch.randn(
        6, *rows.shape[1:], generator=torch.Generator().manual_seed(0)
    )

    def crowded(soft: torch.Tensor) -> float:
        return float(soft_prompts.crowding(soft_prompts.encode(tower, ["of a"] * 6, soft), 0.1))

    with torch.no_grad():
        assert crowded(learned) < crowded(start) - 0.05
        for label, name in enumerate(CLASSES):
            seen = soft_prompts.encode(tower, [f"of a {name}"] * 6, learned)
            assert ((seen @ classes.T).argmax(dim=1) == label).all()
    assert all(parameter.grad is None for parameter in teacher._model.parameters())


@pytest.mark.parametrize("rule", ["mix", "random", "contrastive"])
def test_prompts_are_unit_rows_that_a_seed_decides(
    rule: str, teacher: OpenClipTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soft_prompts, "_STEPS", 2)

    def made(seed: int) -> np.ndarray:
        prompts = diversify.diversify(rule, "token", CLASSES, 3, seed=seed, vocabulary=DEMO, teacher=teacher)
        assert [prompt.class_name for prompt in prompts] == [name for name in CLASSES for _ in range(3)]
        assert all(prompt.text is None and f"seed {seed}" in prompt.provenance for prompt in prompts)
        return np.stack([prompt.target for prompt in prompts])

    rows = made(1)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert (made(1) == rows).all() and (made(2) != rows).any()
    assert all(len(np.unique(rows[k : k + 3], axis=0)) == 3 for k in range(0, 12, 3))


def test_a_mixture_of_one_style_is_that_style(teacher: OpenClipTeacher) -> None:
    made = diversify.diversify(
        "mix",
        "token",
        CLASSES,
        2,
        vocabulary=DEMO.without(DEMO.styles[1:]),
        teacher=teacher,
    )
    tower = soft_prompts.tower_of(teacher)
    assert DEMO.without(DEMO.styles[1:]).styles == ("photo",)
    rows = soft_prompts.style_rows(tower, ("photo",))
    expected = soft_prompts.encode(tower, ["of a car"], rows).detach().numpy()[0]
    assert np.allclose(made[0].target, expected, atol=1e-5)


def test_a_black_box_is_refused() -> None:
    class Box:
        name = "box"

    with pytest.raises(UnavailableError, match=r"an open_clip teacher.*found 'box', a Box"):
        soft_prompts.tower_of(Box())
