"""Prompt learning: its losses by hand, its average, and that it learns, resumes and asks the tower once."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch

from vlkd_distill import class_vectors, prompt_learning
from vlkd_distill.prompt_learning import FILE, PromptSettings, learn_prompts
from vlkd_distill.prompting import PromptedTeacher, prompted_class_vectors
from vlkd_distill.teachers import OpenClipTeacher
from vlkd_runtime.errors import ConfigError, DataError

VIT = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16}
CNN = {"image_size": 32, "timm_model_name": "test_resnet", "timm_pool": "avg", "timm_proj": "linear"}
TEXT = {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
NAMES = ("sea_horse", "dog", "cat")
SETTINGS = PromptSettings(epochs=4, shots=4, batch=6, lr=0.05)


def teacher(vision: dict[str, Any]) -> OpenClipTeacher:
    torch.manual_seed(0)
    model = open_clip.model.CLIP(24, vision, TEXT)
    described = open_clip.transform.PreprocessCfg(32)
    open_clip.model.set_model_preprocess_cfg(model, described.__dict__)
    preprocess = open_clip.transform.image_transform_v2(described, is_train=False)
    return OpenClipTeacher("tiny:test", model, preprocess, open_clip.SimpleTokenizer(context_length=12))


def images() -> tuple[np.ndarray, np.ndarray]:
    """Eighteen noisy pictures, each class of its own colour."""
    random, labels = np.random.default_rng(0), np.arange(18) % 3
    pixels = random.integers(0, 60, (18, 32, 32, 3))
    pixels[np.arange(18), :, :, labels] += 150
    return pixels.astype(np.uint8), labels.astype(np.int64)


def softmax(row: np.ndarray) -> np.ndarray:
    shares: np.ndarray = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
    return shares


def divergence(goal: np.ndarray, own: np.ndarray) -> float:
    """KL(goal || own), a mean over rows, by loops."""
    total = 0.0
    for wanted, found in zip(map(softmax, goal), map(softmax, own), strict=True):
        for p, q in zip(wanted, found, strict=True):
            total += p * math.log(p / q)
    return total / len(goal)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_prompt_loss_by_hand() -> None:
    image, text = (torch.nn.functional.normalize(randn(n, 6, seed=n), dim=-1) for n in (4, 3))
    image0, text0 = (torch.nn.functional.normalize(randn(n, 6, seed=9 + n), dim=-1) for n in (4, 3))
    labels = torch.tensor([0, 2, 1, 2])
    settings = PromptSettings(text_weight=25.0, image_weight=10.0, logit_weight=2.0)
    v, t, v0, t0 = (part.double().numpy() for part in (image, text, image0, text0))
    logits, frozen = 7.0 * v @ t.T, 7.0 * v0 @ t0.T
    entropy = (
        -sum(math.log(softmax(row)[label]) for row, label in zip(logits, labels.tolist(), strict=True)) / 4
    )
    texts = sum(abs(a - b) for a, b in zip(t.ravel(), t0.ravel(), strict=True)) / t.size
    seen = sum(abs(a - b) for a, b in zip(v.ravel(), v0.ravel(), strict=True)) / v.size
    expected = entropy + 25.0 * texts + 10.0 * seen + 2.0 * divergence(frozen, logits) / 3
    found = prompt_learning.prompt_loss(image, text, image0, text0, labels, 7.0, settings)
    assert found.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("epochs", [1, 2, 5, 20, 100])
def test_average_weights_are_a_normal_curve(epochs: int) -> None:
    weights = prompt_learning.average_weights(epochs, 0.75, 0.05)
    mean, width = 0.75 * epochs, 0.05 * epochs
    heights = np.array([math.exp(-((e - mean) ** 2) / (2 * width**2)) for e in range(1, epochs + 1)])
    assert np.allclose(weights, heights / heights.sum()) and sum(weights) == pytest.approx(1)
    if epochs == 20:
        assert int(np.argmax(weights)) + 1 == 15 and weights[13] == pytest.approx(weights[15])


def test_few_shot_draws_evenly_and_by_the_seed() -> None:
    labels = np.array([0] * 9 + [1] * 5 + [2] * 2)
    rows = prompt_learning.few_shot(labels, 4, 0)
    assert [int((labels[rows] == c).sum()) for c in range(3)] == [4, 4, 2]
    assert len(set(rows.tolist())) == 10 and rows.tolist() == sorted(rows.tolist())
    assert np.array_equal(rows, prompt_learning.few_shot(labels, 4, 0))
    assert not np.array_equal(rows, prompt_learning.few_shot(labels, 4, 1))
    assert prompt_learning.few_shot(labels, 0, 0).tolist() == list(range(16))


def error(own: PromptedTeacher | OpenClipTeacher) -> float:
    """Cross-entropy on the training images."""
    pixels, labels = images()
    views = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    if isinstance(own, PromptedTeacher):
        stored = prompted_class_vectors(own, NAMES)
    else:
        stored = class_vectors.compute(own, NAMES, ["a photo of a {}."])
    logits = own.logit_scale * own.embed_views(views).numpy() @ stored.vectors.T
    return -float(np.mean([math.log(softmax(row)[label]) for row, label in zip(logits, labels, strict=True)]))


@pytest.mark.parametrize("vision", [CNN, VIT], ids=["text only", "both towers"])
def test_prompts_learn_and_the_teacher_stays(vision: dict[str, Any], tmp_path: Path) -> None:
    own = teacher(vision)
    before = {name: tensor.clone() for name, tensor in own._model.state_dict().items()}
    free = dataclasses.replace(SETTINGS, text_weight=0.0, image_weight=0.0, logit_weight=0.0, epochs=12)
    steps: list[tuple[str, int, float]] = []
    learned = learn_prompts(own, *images(), NAMES, free, 0, tmp_path, lambda *step: steps.append(step))
    assert error(learned) < 0.9 * error(own)
    assert all(torch.equal(tensor, before[name]) for name, tensor in own._model.state_dict().items())
    assert learned.text.shape == (2, 4, 32)
    assert (learned.visual is None) is (vision is CNN)
    assert len(steps) == 12 * 2 and all(name == "prompts" and np.isfinite(loss) for name, _, loss in steps)
    stored = PromptedTeacher.load(tmp_path / FILE, own)
    assert stored.fingerprint == learned.fingerprint != own.fingerprint


def test_regularisation_holds_the_prompts_to_the_frozen_teacher(tmp_path: Path) -> None:
    own, gaps = teacher(CNN), []
    for weight in (0.0, 200.0):
        how = dataclasses.replace(SETTINGS, text_weight=weight, logit_weight=0.0, lr=0.02)
        learned = learn_prompts(own, *images(), NAMES, how, 0, tmp_path / str(weight))
        frozen = class_vectors.compute(own, NAMES, how.templates).vectors
        gaps.append(float(np.abs(prompted_class_vectors(learned, NAMES).vectors - frozen).mean()))
    assert gaps[1] < gaps[0]


def test_without_steps_the_average_is_what_the_words_start_from(tmp_path: Path) -> None:
    own = teacher(CNN)
    how = dataclasses.replace(SETTINGS, lr=1e-12, tokens=5, layers=1, epochs=3)
    learned = learn_prompts(own, *images(), NAMES, how, 0, tmp_path)
    words = own._tokenizer(["a photo of a"])[0, 1:5]
    embedded = own._model.token_embedding(words)  # type: ignore[operator]
    assert torch.allclose(learned.text[0, :4], embedded, atol=1e-6)
    assert 0 < learned.text[0, 4].abs().max() < 0.1


@pytest.mark.parametrize("vision", [CNN, VIT], ids=["text only", "both towers"])
def test_an_interrupted_run_ends_as_a_whole_one(vision: dict[str, Any], tmp_path: Path) -> None:
    own = teacher(vision)
    whole = learn_prompts(own, *images(), NAMES, SETTINGS, 3, tmp_path / "whole")
    calls = 0

    def stop(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn_prompts(own, *images(), NAMES, SETTINGS, 3, tmp_path / "part", stop)
    resumed = learn_prompts(own, *images(), NAMES, SETTINGS, 3, tmp_path / "part")
    assert resumed.fingerprint == whole.fingerprint
    other = learn_prompts(own, *images(), NAMES, SETTINGS, 4, tmp_path / "other")
    assert other.fingerprint != whole.fingerprint


def test_a_tower_without_prompts_sees_each_image_once(tmp_path: Path) -> None:
    own, seen = teacher(CNN), []
    own._model.visual.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))  # type: ignore[union-attr]
    learn_prompts(own, *images(), NAMES, SETTINGS, 0, tmp_path)
    assert sum(seen) == 12  # four shots of three classes, whatever the epochs


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        pytest.param([0, 1, 0], ("a", "b", "c"), r"found none of \['c'\]", id="class without images"),
        pytest.param([0, 1, 2], ("a", "b"), r"labels \[2\]", id="label without class"),
        pytest.param([0, 1], ("a", "b"), "expected uint8 images", id="count"),
    ],
)
def test_labels_that_do_not_fit(
    labels: list[int], names: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        learn_prompts(teacher(CNN), images()[0][:3], np.array(labels), names, SETTINGS, 0, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": 0}, "tokens must be at least 1"),
        ({"epochs": 0, "batch": 0}, "epochs must be .*; batch must be"),
        ({"shots": -1}, "shots must be 0"),
        ({"average_width": 0.0}, "average_width must be above 0"),
    ],
    ids=str,
)
def test_impossible_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PromptSettings(**changes)
