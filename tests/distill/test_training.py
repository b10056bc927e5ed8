"""The loop: exact resume, real freezing, balanced batches, and a loss that goes down."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vlkd_bench.samples import Sample
from vlkd_distill import checkpoints, clip_student, feeding, methods, stages, students, training
from vlkd_distill.augment import clean_views
from vlkd_distill.augmentation import Augmentation
from vlkd_distill.pixels import PixelStore
from vlkd_distill.specs import Settings, StudentSpec
from vlkd_distill.splits import unlabelled
from vlkd_runtime.errors import ConfigError, DataError, TrainingError
from vlkd_runtime.vectors import ClassVectors

SETTINGS = Settings(
    method="vl2v-adip",
    epochs=2,
    lr=3e-3,
    align_epochs=2,
    align_lr=1e-2,
    batch=6,
    weight_decay=0.01,
    image_weight=0.5,
    soft_weight=0.5,
    soft_temperature=2.0,
    text_temperature=0.07,
    nearest_texts=256,
    style_share=0.5,
    teacher_view="clean_cached",
    batch_norm="train",
    precision="float32",
    seed=5,
)
SPEC = StudentSpec("resnet10t", 32, "none", 0, {"channels": [8, 16, 16, 32], "stem_width": 8})


def vectors() -> ClassVectors:
    rows = np.linalg.qr(np.random.default_rng(1).standard_normal((8, 3)))[0].T.astype(np.float32)
    return ClassVectors(
        names=("a", "b", "c"),
        vectors=np.ascontiguousarray(rows),
        prompts=(("a",), ("b",), ("c",)),
        templates=("{}",),
        teacher="test",
        teacher_fingerprint="0" * 64,
        logit_scale=10.0,
    )


def seen(count: int = 18) -> feeding.TrainingData:
    """Images whose class is their colour, in two domains of unequal size."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 3
    pixels = rng.integers(0, 60, (count, 32, 32, 3), dtype=np.uint8)
    pixels[np.arange(count), :, :, labels] += 180
    samples = tuple(
        Sample(Path("none"), f"{'x' if i < 12 else 'y'}/c/{i}", "x" if i < 12 else "y", int(labels[i]))
        for i in range(count)
    )
    noise = 0.1 * rng.standard_normal((count, 8)).astype(np.float32)
    embeddings = vectors().vectors[labels] + noise
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return feeding.TrainingData(PixelStore(samples, pixels, ()), embeddings.astype(np.float32), None)


def fresh(settings: Settings = SETTINGS) -> tuple[students.Student, stages.Method]:
    method = methods.create(settings, vectors())
    return students.create(SPEC, method.outputs()), method


def state(student: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in student.state_dict().items()}


@pytest.mark.parametrize("stop_after", [1, 2, 3], ids=["in align", "between stages", "in distill"])
@pytest.mark.parametrize("name", ["vl2v-adip", "vlm-ood", "kd", "erm"])
def test_interrupted_and_resumed_ends_with_the_same_weights(
    tmp_path: Path, name: str, stop_after: int
) -> None:
    settings = dataclasses.replace(SETTINGS, method=name, epochs=2 if name == "vl2v-adip" else 4)
    whole, method = fresh(settings)
    training.train(whole, method, settings, seen(), tmp_path / "whole")

    class Killed(Exception):
        pass

    steps_per_epoch, done = 3, 0

    def stop(_stage: str, steps: int, _loss: float) -> None:
        nonlocal done
        done += steps
        if done == stop_after * steps_per_epoch + 1:
            raise Killed

    broken, method = fresh(settings)
    with pytest.raises(Killed):
        training.train(broken, method, settings, seen(), tmp_path / "cut", stop)
    resumed, method = fresh(settings)
    training.train(resumed, method, settings, seen(), tmp_path / "cut")
    for key, tensor in state(whole).items():
        assert torch.equal(tensor, state(resumed)[key]), key


@pytest.mark.parametrize(
    ("rule", "share"), [("mean", 0), ("source-best", 0), ("swad", 0), ("last", 0.5), ("swad", 0.5)]
)
def test_chosen_weights_survive_an_interruption_too(tmp_path: Path, rule: str, share: float) -> None:
    settings = dataclasses.replace(SETTINGS, weights=rule, epochs=5, judgements=10)
    if share:
        settings = dataclasses.replace(settings, method="vlkd", start_share=share)
    data = dataclasses.replace(seen(), selection=(0, 5, 13))
    whole, method = fresh(settings)
    training.train(whole, method, settings, data, tmp_path / "whole")

    class Killed(Exception):
        pass

    def stop(stage: str, _steps: int, _loss: float) -> None:
        calls.append(stage)
        if calls.count("distill") == 11:
            raise Killed

    calls: list[str] = []
    broken, method = fresh(settings)
    with pytest.raises(Killed):
        training.train(broken, method, settings, data, tmp_path / "cut", stop)
    resumed, method = fresh(settings)
    training.train(resumed, method, settings, data, tmp_path / "cut")
    plain = dataclasses.replace(settings, weights="last", start_share=0)
    last, method = fresh(plain)
    training.train(last, method, plain, data, tmp_path / "last")
    for key, tensor in state(whole).items():
        assert torch.equal(tensor, state(resumed)[key]), key
    assert any(not torch.equal(state(whole)[key], state(last)[key]) for key in state(whole))


def test_images_kept_back_do_not_train(tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, weights="last")
    data = dataclasses.replace(seen(), selection=(0, 5, 13))
    spoilt = dataclasses.replace(data, store=dataclasses.replace(data.store, pixels=data.store.pixels.copy()))
    spoilt.store.pixels[[0, 5, 13]] = 0
    ends = []
    for name, one in (("as they are", data), ("black", spoilt)):
        student, method = fresh(settings)
        training.train(student, method, settings, one, tmp_path / name)
        ends.append(state(student))
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


def test_align_moves_the_projection_only_and_distill_the_backbone_only(tmp_path: Path) -> None:
    student, method = fresh()
    start, aligned = state(student), {}

    def watch(stage: str, _steps: int, _loss: float) -> None:
        if stage == "distill" and not aligned:
            aligned.update(state(student))

    # The first call of the distill stage comes after its first step, so compare the head there, too.
    training.train(student, method, SETTINGS, seen(), tmp_path, watch)
    end = state(student)
    assert not torch.equal(start["head.weight"], aligned["head.weight"])
    assert torch.equal(aligned["head.weight"], end["head.weight"])
    assert torch.equal(aligned["head.bias"], end["head.bias"])
    moved = [name for name in end if name.startswith("backbone") and not torch.equal(start[name], end[name])]
    assert moved


def test_align_runs_no_backward_through_the_backbone(tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, epochs=0)
    student, method = fresh(settings)
    start = {name: parameter.clone() for name, parameter in student.backbone.named_parameters()}
    training.train(student, method, settings, seen(), tmp_path)
    assert start and all(torch.equal(start[name], p) for name, p in student.backbone.named_parameters())
    assert all(p.grad is None for p in student.backbone.parameters())


def test_frozen_batch_norm_keeps_its_statistics(tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, batch_norm="frozen")
    student, method = fresh(settings)
    start = state(student)
    training.train(student, method, settings, seen(), tmp_path)
    running = [name for name in start if "running_" in name]
    assert running and all(torch.equal(start[name], state(student)[name]) for name in running)


def test_training_learns(tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, epochs=12)
    student, method = fresh(settings)
    heard: list[float] = []
    training.train(student, method, settings, seen(), tmp_path, lambda _s, _n, loss: heard.append(loss))
    assert np.mean(heard[-3:]) < np.mean(heard[:3]) - 0.3


def test_batches_are_even_over_domains_and_cover_the_epoch() -> None:
    domains = ["x"] * 12 + ["y"] * 6
    batches = list(feeding.epoch_rows(domains, 6, torch.Generator().manual_seed(0)))
    assert len(batches) == 3
    assert all(Counter(domains[row] for row in batch.tolist()) == {"x": 3, "y": 3} for batch in batches)
    drawn = torch.cat(batches).tolist()
    assert len({row for row in drawn if row < 12}) == 9  # without replacement within a round
    assert sorted(row for row in drawn if row >= 12) == sorted(
        [*range(12, 18), *[r for r in drawn if r >= 12][6:]]
    )


def test_unknown_method_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Unknown method 'magic'"):
        methods.create(dataclasses.replace(SETTINGS, method="magic"), vectors())


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    student, _ = fresh()
    checkpoints.save_weights(tmp_path / "w.safetensors", student)
    other = students.create(dataclasses.replace(SPEC, arch="resnet14t"), 8)
    with pytest.raises(DataError, match="belong to another network"):
        checkpoints.load_weights(tmp_path / "w.safetensors", other)


def test_the_second_stage_starts_from_what_the_rule_chose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second stage of VL2V-ADiP leaves the projection as it finds it."""
    losses, heads = [3.0, 1.0, 2.0, 4.0], []

    def judged(student: students.Student, *_: object) -> float:
        heads.append(student.head.weight.detach().clone())
        return losses[len(heads) - 1]

    monkeypatch.setattr(training, "_source_loss", judged)
    settings = dataclasses.replace(
        SETTINGS, align_weights="source-best", judgements=4, align_epochs=4, batch_norm="frozen"
    )
    student, method = fresh(settings)
    data = dataclasses.replace(seen(), selection=(0, 5, 13))
    training.train(student, method, settings, data, tmp_path)
    assert len(heads) == len(losses)
    assert torch.equal(student.head.weight, heads[1])
    assert not torch.equal(heads[1], heads[3])


@pytest.mark.parametrize(
    ("method", "rule", "judges"),
    [
        ("vl2v-adip", "swad", True),
        ("vl2v-adip", "mean", False),
        ("erm", "swad", False),
        ("vlkd", "last", False),
    ],
)
def test_images_are_kept_back_only_where_a_rule_judges(method: Any, rule: Any, judges: bool) -> None:
    settings = dataclasses.replace(SETTINGS, method=method, align_weights=rule)
    assert settings.judges is judges
    assert ("align_weights" in settings.used()) is (method != "erm" and rule != "last")
    assert ("align_weights" in settings.as_json()) is (rule != "last")


# Classes are colours here.
PLAIN = Augmentation(min_area=0.8, jitter=0.0, grayscale=0.0)


def signs(count: int, *, misleading: bool) -> feeding.TrainingData:
    """A sign of one of three colours in the middle of a background that has the class's colour, too, or any.

    Four labels in five follow the sign where the background misleads, and the rest the background alone.
    """
    rng = np.random.default_rng(3 + misleading)
    sign, ground = rng.integers(0, 3, count), rng.integers(0, 3, count)
    if misleading:
        ground = np.where(rng.random(count) < 0.85, sign, ground)
    labels = np.where(rng.random(count) < 0.5, ground, sign) if misleading else sign
    pixels = rng.integers(0, 60, (count, 32, 32, 3), dtype=np.uint8)
    pixels[np.arange(count), :, :, ground] += 120
    pixels[:, 10:22, 10:22] = rng.integers(0, 60, (count, 12, 12, 3))
    pixels[np.arange(count), 10:22, 10:22, sign] += 180
    samples = tuple(
        Sample(Path("none"), f"{'xy'[i % 2]}/c/{i}", "xy"[i % 2], int(labels[i])) for i in range(count)
    )
    embeddings = vectors().vectors[sign] + 0.1 * rng.standard_normal((count, 8)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return feeding.TrainingData(PixelStore(samples, pixels, ()), embeddings.astype(np.float32), None)


def agreement(student: students.Student, method: stages.Method, data: feeding.TrainingData) -> float:
    """Share of the clean images on which student and teacher name the same class."""
    assert data.embeddings is not None
    with torch.inference_mode():
        own = method.logits(student(clean_views(torch.from_numpy(data.store.pixels.copy()))))
        teachers = torch.from_numpy(data.embeddings.copy()) @ torch.from_numpy(vectors().vectors.copy()).t()
    return float((own.argmax(1) == teachers.argmax(1)).float().mean())


def test_promptkd_comes_to_agree_with_its_teacher_and_reads_no_label(tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, method="promptkd", epochs=30, soft_temperature=1.0)
    data = seen(48)
    hidden = dataclasses.replace(data.store, samples=unlabelled(data.store.samples))
    method = methods.create(settings, vectors())
    student = clip_student.with_projector(
        students.create(SPEC, method.outputs()), method.outputs(), "batch", 1
    )
    before = agreement(student.eval(), method, data)
    training.train(
        student, method, settings, dataclasses.replace(data, store=hidden), tmp_path, augmentation=PLAIN
    )
    assert before < 0.6
    assert agreement(student, method, data) > 0.9


def test_a_teacher_that_knows_more_than_the_labels_helps_where_these_mislead(tmp_path: Path) -> None:
    """In the sources the background is the class; the teacher looks at the sign in it, which the target needs."""
    found, target = {}, signs(96, misleading=False)
    names: tuple[Any, ...] = ("erm", "vl2v-adip", "vlkd")
    for name in names:
        settings = dataclasses.replace(
            SETTINGS, method=name, epochs=12, lr=1e-2, align_epochs=6, image_weight=1.0, cls_weight=0.0,
            answers_weight=0.0, weight_decay=0.0,
        )  # fmt: skip
        method = methods.create(settings, vectors())
        student = students.create(SPEC, method.outputs())
        data = signs(96, misleading=True)
        training.train(student, method, settings, data, tmp_path / name, augmentation=PLAIN)
        with torch.inference_mode():
            answers = method.logits(student(clean_views(torch.from_numpy(target.store.pixels.copy()))))
        found[name] = float((answers.argmax(1).numpy() == target.store.labels).mean())
    assert found["vl2v-adip"] > found["erm"] + 0.1
    assert found["vlkd"] > found["erm"] + 0.1


RUNS_AWAY = dataclasses.replace(SETTINGS, method="erm", lr=10.0, batch_norm="frozen", epochs=6)


def test_a_training_that_runs_away_stops_at_the_first_loss_that_says_so(tmp_path: Path) -> None:
    student, method = fresh(RUNS_AWAY)
    told: list[float] = []
    with pytest.raises(
        TrainingError, match=r"step (\d+) of 18 of the stage 'train' of erm.*distill\.lr = 10\. Lo"
    ) as no:
        training.train(student, method, RUNS_AWAY, seen(), tmp_path, lambda *words: told.append(words[2]))
    assert np.isfinite(told).all() and f"step {len(told) + 1} of" in str(no.value)
    left = checkpoints.load(tmp_path)
    assert left is None or all(tensor.isfinite().all() for tensor in left.weights.values())


def test_weights_that_a_last_step_broke_are_not_kept(tmp_path: Path) -> None:
    settings = dataclasses.replace(RUNS_AWAY, lr=1e-3, epochs=1)
    student, method = fresh(settings)

    steps: list[int] = []

    @torch.no_grad()
    def broken_by_the_last_step() -> None:
        steps.append(1)
        student.head.weight[0, 0] = torch.inf if len(steps) == 3 else 0.0

    with pytest.raises(
        TrainingError, match="Expected finite weights, found others after an epoch of the stage"
    ):
        training.train(student, method, settings, seen(), tmp_path, hold=broken_by_the_last_step)
    assert checkpoints.load(tmp_path) is None


def test_a_loss_that_is_not_finite_from_the_start_is_not_the_learning_rates_fault(tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, method="kd")
    student, method = fresh(settings)
    data = seen()
    assert data.embeddings is not None
    data.embeddings[:] = np.nan
    with pytest.raises(TrainingError, match=r"found nan at step 1 of 6 .*Look at the teacher's embeddings"):
        training.train(student, method, settings, data, tmp_path)


def test_every_stage_names_the_setting_of_its_learning_rate() -> None:
    rates = [(stage.name, stage.rate) for stage in fresh()[1].stages()]
    assert rates == [("align", "distill.align_lr"), ("distill", "distill.lr")]
