"""Quantization-aware training as the last escalation of a climb; torch is imported only to do it."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from vlkd_bench.samples import Sample
from vlkd_compress.calibration import refuse_held_out, select_calibration
from vlkd_compress.ladder import Rung
from vlkd_compress.qat.settings import QatSettings
from vlkd_compress.recipes import Recipe
from vlkd_distill.closing import forbid
from vlkd_distill.data import content_key
from vlkd_runtime.atomic import write_text
from vlkd_runtime.errors import RefusalError
from vlkd_runtime.preprocess import prepare
from vlkd_runtime.vectors import ClassVectors

from .climbing import Climber, Start
from .stages import versions

if TYPE_CHECKING:
    from vlkd_compress.qat.training import Answers, Loss

NAME = "int8-qat"
MOST_IMAGES = 4096
TEMPERATURE = 2.0


@dataclass(frozen=True, slots=True, eq=False)
class Lessons:
    """What a rounded graph learns from, beside the float graph's own answers.

    Attributes:
        samples: images of source domains; no label of them is used.
        held_out: domains they may not be of.
        settings: how it trains.
        embed: the teacher's embeddings ``(N, D)`` of some of them; None where there is no teacher.
        vectors: the class vectors; with ``embed``.
    """

    samples: tuple[Sample, ...]
    held_out: tuple[str, ...]
    settings: QatSettings = field(default_factory=QatSettings)
    embed: Callable[[Sequence[Sample]], npt.NDArray[np.float32]] | None = None
    vectors: ClassVectors | None = None


def escalate(climber: Climber, lessons: Lessons, recipes: Sequence[Recipe]) -> tuple[Rung, ...]:
    """Give the climber the rung, where there is one: INT8 in TensorRT's dialect, every layer that was planned.

    The ranges that training starts from are those that the ranking found best, so the rung rests on it.

    Args:
        climber: gets the graph's maker among its starts.
        lessons: what is learned from.
        recipes: those of the climb; without static INT8 among them there is nothing to train.
    """
    head = next((recipe for recipe in recipes if recipe.kind == "int8"), None)
    if climber.task.dialect != "tensorrt" or head is None or lessons.settings.epochs == 0:
        return ()
    climber.starts = {**climber.starts, NAME: partial(_start, climber, lessons, head)}
    teacher = (
        "the teacher's embeddings and the float model's answers"
        if lessons.embed
        else "the float model's answers"
    )
    step = f"INT8 in TensorRT's dialect, trained for {lessons.settings.epochs} epochs with {teacher}"
    return (Rung(NAME, (step,), ranked=True, graph=NAME),)


def _start(climber: Climber, lessons: Lessons, head: Recipe) -> Start:
    """Train, unless that is done.

    Raises:
        RefusalError: torch is missing, or the graph or the images do not allow it.
    """
    if importlib.util.find_spec("torch") is None:
        msg = (
            "Quantization-aware training needs torch, which is not installed: pip install 'vlkd-edge[qat]', or leave "
            "it out (qat_epochs = 0)."
        )
        raise RefusalError(msg)
    ranking, task = climber.ranking, climber.task
    methods = dict(ranking.methods) if ranking is not None else {}
    method = min(methods, key=lambda name: methods[name]) if methods else head.method
    samples = lessons.samples
    if len(samples) > MOST_IMAGES:
        samples = select_calibration(
            samples, MOST_IMAGES, seed=lessons.settings.seed, forbidden_domains=lessons.held_out
        )
    refuse_held_out(samples, task.guarded)

    def work(folder: Path) -> None:
        from vlkd_compress.qat.quantize import quantize_with_training
        from vlkd_compress.qat.training import steps

        with forbid(sample.path for sample in task.guarded):
            images = np.stack([prepare(sample.path, task.spec) for sample in samples])
        with climber.live.task(f"training {NAME}", steps(len(images), lessons.settings)) as advance:
            report = quantize_with_training(
                climber.calibration(),
                images,
                _loss(lessons, samples),
                folder / "model.onnx",
                method=method,  # type: ignore[arg-type]  # the ranking's methods are the recipes' own
                settings=lessons.settings,
                on_step=lambda done, loss: advance(done, note=f"loss {loss:.3f}"),
            )
        write_text(folder / "report.json", json.dumps({"planned": report.quantized}, indent=1))

    inputs = {
        "model": task.key,
        "calibration": content_key(task.calibration),
        "images": content_key(samples),
        "preprocess": task.spec.to_json(),
        "settings": dataclasses.asdict(lessons.settings),
        "method": method,
        "teacher": lessons.vectors.teacher_fingerprint if lessons.embed and lessons.vectors else None,
    }
    stage = climber.workspace.stage(
        NAME, inputs | versions("torch", "onnx", "onnxruntime", "pillow", "vlkd-edge"), work
    )
    planned = json.loads((stage.folder / "report.json").read_text())["planned"]
    return Start(stage, (), tuple(planned))


def _loss(lessons: Lessons, samples: Sequence[Sample]) -> Loss:
    """Agreement with the float graph on the same views and, where there is a teacher, with its embeddings."""
    import torch

    from vlkd_distill import losses

    teacher = goal_logits = None
    if lessons.embed is not None and lessons.vectors is not None:
        teacher = torch.from_numpy(np.array(lessons.embed(samples), dtype=np.float32))
        vectors = torch.from_numpy(np.array(lessons.vectors.vectors, dtype=np.float32))
        goal_logits = lessons.vectors.logit_scale * losses.unit(teacher) @ vectors.t()

    def loss(own: Answers, floating: Answers, rows: npt.NDArray[np.int64]) -> torch.Tensor:
        total = losses.soft_divergence(own.logits, floating.logits, TEMPERATURE)
        total = total + losses.unit_distance(own.embedding, floating.embedding)
        if teacher is not None and goal_logits is not None:
            total = total + losses.unit_distance(own.embedding, teacher[rows])
            total = total + losses.soft_divergence(own.logits, goal_logits[rows], TEMPERATURE)
        return total

    return loss
