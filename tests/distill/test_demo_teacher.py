"""The demo world's teacher: the weights in the tree know the world, and its training does what it says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file

from vlkd_distill.demo import CLASSES, STYLES, TEACHER_FOLDER, sample_scene
from vlkd_distill.demo.captions import describe
from vlkd_distill.demo.teacher_check import zero_shot
from vlkd_distill.demo.teacher_data import TRAINING_SEEDS, fitting, render_all, scene_codes, training_scenes
from vlkd_distill.demo.teacher_model import CONFIG, CONFIG_NAME, WEIGHTS_NAME, save_model
from vlkd_distill.demo.teacher_training import Settings, Trainer, augment, contrast
from vlkd_distill.demo.train_teacher import main
from vlkd_runtime.errors import ConfigError

TINY = Settings(seed=3, per_class=1, epochs=2, batch=40)


def test_the_teacher_names_unseen_scenes_of_every_style() -> None:
    accuracy = zero_shot(TEACHER_FOLDER, per_class=4, seed=77)
    assert tuple(accuracy) == STYLES
    assert min(accuracy.values()) >= 0.9, accuracy


def test_the_teachers_files_are_what_open_clip_and_the_record_say() -> None:
    assert json.loads((TEACHER_FOLDER / CONFIG_NAME).read_text()) == CONFIG
    weights = TEACHER_FOLDER / WEIGHTS_NAME
    assert weights.stat().st_size < 12_000_000
    tensors = load_file(weights)
    assert {t.dtype for t in tensors.values()} == {torch.float16, torch.int64}
    assert all(torch.isfinite(t).all() for t in tensors.values())
    record = json.loads((TEACHER_FOLDER / "training.json").read_text())
    assert tuple(record["zero_shot"]) == STYLES
    assert min(record["zero_shot"].values()) >= 0.9
    assert record["images"] % (len(CLASSES) * len(STYLES)) == 0


def test_no_one_elses_world_is_trained_on() -> None:
    trained = {scene.seed for scene in training_scenes(seed=0, per_class=2)}
    held_out = {sample_scene(0, s, c, k).seed for s in STYLES for c in CLASSES for k in range(2)}
    assert len(trained) == 2 * len(CLASSES) * len(STYLES)
    assert trained.isdisjoint(held_out)
    with pytest.raises(ConfigError, match=f"held-out seed below {TRAINING_SEEDS}"):
        zero_shot(TEACHER_FOLDER, per_class=1, seed=TRAINING_SEEDS)


def test_fitting_agrees_with_each_caption_on_each_scene() -> None:
    rng = np.random.default_rng(0)
    scenes = training_scenes(seed=1, per_class=1)
    captions = [describe(scene, rng) for scene in scenes]
    found = fitting(scene_codes(scenes), captions)
    expected = [[caption.fits(scene) for caption in captions] for scene in scenes]
    assert found.tolist() == expected
    assert found.diagonal().all()
    assert found.sum() > len(scenes)


def test_contrast_is_the_mean_surprise_of_all_true_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    images, texts = (torch.nn.functional.normalize(torch.randn(5, 4, generator=generator)) for _ in range(2))
    true = torch.eye(5, dtype=torch.bool)
    true[0, 3] = true[2, 1] = True
    logits = 7.0 * images.double().numpy() @ texts.double().numpy().T

    def one_way(table: np.ndarray, truth: np.ndarray) -> float:
        total = 0.0
        for row, marks in zip(table, truth, strict=True):
            surprise = [np.log(np.exp(row).sum()) - row[k] for k in np.flatnonzero(marks)]
            total += sum(surprise) / len(surprise)
        return total / len(table)

    expected = (one_way(logits, true.numpy()) + one_way(logits.T, true.numpy().T)) / 2
    assert contrast(images, texts, torch.tensor(7.0), true).item() == pytest.approx(expected, rel=1e-5)


def test_augment_keeps_shape_and_range() -> None:
    torch.manual_seed(0)
    pictures = torch.randint(0, 256, (3, 72, 72, 3), dtype=torch.uint8)
    first, second = augment(pictures), augment(pictures)
    assert first.shape == (3, 3, 64, 64)
    assert first.abs().max() <= 1
    assert not torch.equal(first, second)


def test_render_all_writes_the_scenes_in_order(tmp_path: Path) -> None:
    scenes = training_scenes(seed=2, per_class=1)[:3]
    done: list[int] = []
    render_all(tmp_path / "pictures.npy", scenes, processes=1, progress=done.append)
    pictures = np.load(tmp_path / "pictures.npy")
    assert pictures.shape == (3, 72, 72, 3)
    assert pictures.dtype == np.uint8
    assert len({picture.tobytes() for picture in pictures}) == 3
    assert sum(done) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["pictures.npy"]


def trainer(folder: Path, settings: Settings = TINY) -> Trainer:
    folder.mkdir(exist_ok=True)
    scenes = training_scenes(settings.seed, settings.per_class)
    pictures: np.ndarray[Any, np.dtype[np.uint8]] = np.random.default_rng(0).integers(
        0, 256, (len(scenes), 72, 72, 3), dtype=np.uint8
    )
    return Trainer(folder, settings, pictures, scenes)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which one of two epochs was trained."""
    folder = tmp_path_factory.mktemp("interrupted")
    trainer(folder).run_epoch(lambda count, loss: None)
    return folder


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path: Path, interrupted: Path) -> None:
    whole = trainer(tmp_path / "whole")
    assert not whole.resume()
    seen: list[int] = []
    for _ in range(TINY.epochs):
        whole.run_epoch(lambda count, loss: seen.append(count))
    assert seen == [40] * 4
    second = trainer(interrupted)
    assert second.resume()
    assert second.epoch == 1
    second.run_epoch(lambda count, loss: None)
    assert torch.equal(second.used_tokens, whole.used_tokens)
    for name, value in whole.ema.items():
        torch.testing.assert_close(second.ema[name], value, rtol=0, atol=1e-6, msg=name)


def test_another_runs_state_is_refused(interrupted: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected a run with .*'epochs': 9.*, found one with"):
        trainer(interrupted, replace(TINY, epochs=9)).resume()


def test_saved_weights_are_half_precision_without_unused_words(tmp_path: Path) -> None:
    tiny = trainer(tmp_path / "tiny")
    used = torch.zeros(49408, dtype=torch.bool)
    used[[0, 320, 2368]] = True
    save_model(tmp_path / "tiny", tiny.ema, used)
    rows = load_file(tmp_path / "tiny" / WEIGHTS_NAME)["token_embedding.weight"]
    assert rows.dtype == torch.float16
    assert torch.equal(rows.any(dim=1), used)
    loaded, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'tiny'}")
    wanted = tiny.ema["visual.trunk.stem.conv.weight"]
    torch.testing.assert_close(
        loaded.state_dict()["visual.trunk.stem.conv.weight"], wanted, rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--evaluate", str(TEACHER_FOLDER), "--check", "1"], 0, "zero-shot on held-out"),
        (["--out", "unused", "--epochs", "0"], 2, "counts of 1 or more"),
    ],
    ids=["evaluate", "no epochs"],
)
def test_the_command_line(
    arguments: list[str], code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == code
    shown = capsys.readouterr()
    assert text in " ".join((shown.out + shown.err).split())
