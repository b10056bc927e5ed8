"""Two processes train the student that one process trains: every loss, a resume, and a process that fails."""

from __future__ import annotations

import dataclasses
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from vlkd_bench.samples import Sample
from vlkd_distill import closing, processes
from vlkd_distill.augment import random_views
from vlkd_distill.augmentation import Augmentation
from vlkd_distill.processes import Ring
from vlkd_distill.prompting import PromptedTeacher
from vlkd_distill.specs import Settings, StudentSpec
from vlkd_distill.teachers import OpenClipTeacher, Teacher
from vlkd_distill.training_run import TrainingRun
from vlkd_runtime.atomic import write_text
from vlkd_runtime.errors import TrainingError, UnavailableError
from vlkd_runtime.vectors import ClassVectors


@pytest.mark.parametrize(("total", "count"), [(6, 2), (7, 2), (5, 4), (3, 1)])
def test_parts_make_the_whole(total: int, count: int) -> None:
    rows = [row for rank in range(count) for row in range(total)[Ring(rank, count).part(total)]]
    assert rows == list(range(total))


def test_a_part_has_the_views_of_the_whole_batch() -> None:
    pixels = torch.randint(0, 256, (7, 16, 16, 3), dtype=torch.uint8)
    whole = random_views(pixels, Augmentation(), torch.Generator().manual_seed(3))
    for rank in range(3):
        part = Ring(rank, 3).part(7)
        own = random_views(pixels[part], Augmentation(), torch.Generator().manual_seed(3), (part, 7))
        torch.testing.assert_close(own, whole[part])


def training_run(root: Path, count: int, method: str, epochs: int) -> TrainingRun:
    """Images whose class is their colour, in two domains, on disk; in batches that two do not divide."""
    rng, images = np.random.default_rng(0), 20
    labels = np.arange(images) % 3
    pixels = rng.integers(0, 60, (images, 32, 32, 3), dtype=np.uint8)
    pixels[np.arange(images), :, :, labels] += 180
    basis = np.linalg.qr(rng.standard_normal((8, 3)))[0].T.astype(np.float32)
    embeddings = basis[labels] + 0.1 * rng.standard_normal((images, 8)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    folder = root / f"{count}"
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "pixels.npy", pixels)
    np.save(folder / "embeddings.npy", embeddings.astype(np.float32))
    write_text(folder / "bad.json", "[]")
    settings = Settings(
        method=method,  # type: ignore[arg-type]
        epochs=epochs,
        align_epochs=1,
        batch=7,
        teacher_view="clean_cached",
        processes=count,
        seed=5,
    )
    return TrainingRun(
        settings=settings,
        vectors=ClassVectors(("a", "b", "c"), basis.copy(), ((), (), ()), (), "test", "0" * 64, 10.0),
        student=StudentSpec("resnet10t", 32, "none", 0, {"channels": [8, 16, 16, 32], "stem_width": 8}),
        samples=tuple(
            Sample(Path("none"), f"{'xy'[i % 2]}/c/{i}", "xy"[i % 2], int(labels[i])) for i in range(images)
        ),
        store=folder,
        embeddings=folder / "embeddings.npy",
        styled=None,
        captions=None,
        selection=(),
        views=False,
        teacher="none",
        cache=folder,
        folder=folder,
    )


def with_prompted_views(run: TrainingRun, untrained_clip: Callable[[Path], str]) -> TrainingRun:
    """The same run with a vision transformer that sees the views with learned tokens in place of stored answers."""
    plain = OpenClipTeacher.load(untrained_clip(run.folder / "teacher"))
    prompted = PromptedTeacher(plain, torch.randn(1, 2, 16), torch.randn(2, 2, 32))
    prompted.save(run.folder / "prompts.safetensors")
    return dataclasses.replace(
        run,
        settings=dataclasses.replace(run.settings, teacher_view="same_aug"),
        embeddings=None,
        views=True,
        teacher=plain.name,
        prompts=run.folder / "prompts.safetensors",
    )


def no_teacher() -> Teacher:
    raise AssertionError("no student here is made of its teacher")


def trained(run: TrainingRun) -> dict[str, torch.Tensor]:
    student = run.train(run.open(), no_teacher)
    return {name: tensor.clone() for name, tensor in student.state_dict().items()}


# vlm-ood compares the images of a batch with each other and averages over a part of them; align trains on
# features that every process holds whole.
@pytest.mark.parametrize("method", ["vlm-ood", pytest.param("vl2v-adip", marks=pytest.mark.slow)])
def test_two_processes_train_the_student_of_one(tmp_path: Path, method: str) -> None:
    one = trained(training_run(tmp_path, 1, method, 2))
    two = trained(training_run(tmp_path, 2, method, 2))
    assert not multiprocessing.active_children()
    start = trained(training_run(tmp_path / "start", 1, method, 0))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=2e-5)
    moved = max(float((one[name] - start[name]).abs().max()) for name in one if "weight" in name)
    assert moved > 20 * 2e-5  # or the tolerance would say nothing


def test_two_processes_match_a_prompted_teacher_by_statistics_of_the_whole_batch(
    tmp_path: Path, untrained_clip: Callable[[Path], str]
) -> None:
    losses: dict[int, list[float]] = {0: [], 1: [], 2: []}
    heads = {}
    for count, kept in losses.items():
        run = training_run(tmp_path / f"{count}", count or 1, "promptkd", 2 if count else 0)
        run = with_prompted_views(run, untrained_clip)
        student = run.train(run.open(), no_teacher, lambda *words, kept=kept: kept.append(words[2]))
        heads[count] = {name: tensor.clone() for name, tensor in student.head.state_dict().items()}
    assert len(losses[1]) == 6
    assert losses[2][0] == pytest.approx(losses[1][0], rel=1e-5)  # statistics of a part would be far off
    # Features of an untrained network are much alike, and the norm divides by their spread: one process with another
    # number of threads is up to 1e-3 off after some steps, too.
    assert losses[2] == pytest.approx(losses[1], rel=1e-2)
    # What shifts all rows alike the norm takes off again: the gradient of these two is rounding alone.
    for name in heads[1].keys() - {"first.bias", "norm.running_mean"}:
        torch.testing.assert_close(heads[2][name], heads[1][name], rtol=1e-3, atol=1e-4)
    assert float((heads[1]["first.weight"] - heads[0]["first.weight"]).abs().max()) > 5 * 1e-4


def test_a_process_sees_the_views_with_the_prompts_that_were_learned(
    tmp_path: Path, untrained_clip: Callable[[Path], str]
) -> None:
    run = with_prompted_views(training_run(tmp_path, 1, "promptkd", 1), untrained_clip)
    plain = OpenClipTeacher.load(run.teacher)
    assert run.prompts is not None
    expected, seer = PromptedTeacher.load(run.prompts, plain), run.open().teacher
    assert isinstance(seer, PromptedTeacher) and seer.visual is not None
    views = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    assert torch.equal(seer.embed_views(views), expected.embed_views(views))
    assert not torch.allclose(seer.embed_views(views), plain.embed_views(views), atol=1e-3)


@pytest.mark.slow
def test_two_processes_go_on_from_a_checkpoint(tmp_path: Path) -> None:
    whole = trained(training_run(tmp_path / "whole", 2, "vlm-ood", 2))
    run = training_run(tmp_path / "cut", 2, "vlm-ood", 2)

    class Stopped(Exception):
        pass

    def stop_in_the_second_epoch(done: list[int]) -> None:
        done.append(1)
        if len(done) == 5:
            raise Stopped

    done: list[int] = []
    with pytest.raises(Stopped):
        run.train(run.open(), no_teacher, lambda *_: stop_in_the_second_epoch(done))
    assert (run.folder / "checkpoint.safetensors").exists()
    resumed = trained(run)
    for name, tensor in whole.items():
        assert torch.equal(resumed[name], tensor), name


@pytest.mark.slow
@pytest.mark.parametrize("why", ["nowhere", "the data contract is broken"])
def test_a_process_that_fails_ends_the_training_with_an_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], why: str
) -> None:
    run = training_run(tmp_path, 2, "vlm-ood", 1)
    if why == "nowhere":
        broken = dataclasses.replace(run, store=tmp_path / "nowhere")
    else:  # what this process may not open while it makes a run, the others may not open either
        with closing.forbid([run.store / "pixels.npy"]):
            broken = dataclasses.replace(run, closed=closing.forbidden())
    with pytest.raises(UnavailableError, match=r"all its 2 processes .* and one failed"):
        processes.run(2, lambda ring: run._go(ring, run.open(), no_teacher, lambda *_: None), broken)
    assert why in capfd.readouterr().err


@pytest.mark.slow
def test_a_training_that_runs_away_is_told_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = training_run(tmp_path, 2, "erm", 6)
    run = dataclasses.replace(run, settings=dataclasses.replace(run.settings, lr=10.0))
    with pytest.raises(TrainingError, match=r"ran away with distill\.lr = 10"):
        trained(run)
    assert not multiprocessing.active_children() and "Traceback" not in capfd.readouterr().err
