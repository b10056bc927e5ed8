"""How a build learns: prompts, students, float graphs. torch is imported only to do work."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vlkd_bench.leaveout import BASELINE
from vlkd_bench.samples import Sample
from vlkd_distill import splits
from vlkd_distill.augmentation import Augmentation
from vlkd_distill.datacontract import describe
from vlkd_distill.specs import TEACHER, MethodName
from vlkd_runtime.atomic import write_bytes, write_text

from . import synthesising, trainingdata
from .learn import Learning, load_vectors, teacher_key
from .stages import StageResult, versions

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from vlkd_distill.stages import Method

PARITY_IMAGES = 16
PARITY_LOGIT_GAP = 1e-2
PARITY_COSINE = 0.9999
WEIGHTS = "student.safetensors"


def vectors_for(
    learning: Learning,
    method: MethodName,
    samples: Sequence[Sample],
    store: StageResult,
    vectors: StageResult,
    every: StageResult | None = None,
) -> StageResult:
    """The class vectors that a method learns from: the names' own, or for promptkd those of learned prompts.

    Args:
        learning: what the stages share.
        method: who asks.
        samples: train images of the source domains; a few of each class teach the prompts.
        store: their pixels.
        vectors: of the plain class names, which the samples' labels count.
        every: of all names that get a vector by these prompts, where there are more than the prompts are learned on.
    """
    if method != "promptkd":
        return vectors
    settings, seed = learning.config.prompts, learning.config.distill.seed
    names = load_vectors(vectors).names
    all_names = names if every is None else load_vectors(every).names

    def work(folder: Path) -> None:
        from vlkd_distill import checkpoints, pixels, prompt_learning
        from vlkd_distill.compute import device_of
        from vlkd_distill.prompting import prompted_class_vectors

        images = pixels.PixelStore.open(store.folder, samples)
        rows = prompt_learning.few_shot(images.labels, settings.shots, seed)
        steps = settings.epochs * -(-len(rows) // settings.batch)
        with learning.live.task("learning prompts", steps) as advance:
            prompted = prompt_learning.learn_prompts(
                learning.open_clip_teacher("promptkd"),
                images.pixels,
                images.labels,
                names,
                settings,
                seed,
                folder,
                lambda stage, done, loss: advance(done, note=f"{stage}, loss {loss:.3f}"),
                device_of(learning.config.distill.device),
            )
        prompted_class_vectors(prompted, all_names).save(folder / "class_vectors.safetensors")
        (folder / checkpoints.FILE).unlink(missing_ok=True)

    inputs = {
        "settings": dataclasses.asdict(settings),
        "seed": seed,
        "vectors": vectors.key,
        "pixels": store.key,
    }
    if every is not None:
        inputs["every"] = every.key
    return learning.workspace.stage(
        "prompts", inputs | versions("torch", "open_clip_torch", "vlkd-edge"), work
    )


@dataclass(frozen=True, slots=True)
class Changed:
    """A student that something took apart, and how it learns again.

    Attributes:
        stage: holds what is left of it, ``student.safetensors``.
        epochs: passes over the training images.
        lr: their peak learning rate.
        zeros: names of tensors whose zeros stay.
    """

    stage: StageResult
    epochs: int
    lr: float
    zeros: tuple[str, ...] = ()


def train(
    learning: Learning,
    method: MethodName,
    samples: Sequence[Sample],
    store: StageResult,
    vectors: StageResult,
    changed: Changed | None = None,
) -> StageResult:
    """Train one student, from its start or from what a change left of it.

    Args:
        learning: what the stages share.
        method: how.
        samples: train images of the source domains.
        store: their pixels.
        vectors: as `vectors_for` gives them.
        changed: what to go on from, by the same loss in one stage.
    """
    settings = learning.settings(method)
    if changed is not None:  # a change touches the first layers, too
        settings = dataclasses.replace(settings, frozen_groups=0)
    if describe(method).unlabelled_images and not settings.judges:
        samples = splits.unlabelled(samples)  # a loss that read a label would fail at once

    def work(folder: Path) -> None:
        from vlkd_distill import checkpoints, methods, prompt_learning, training, training_run
        from vlkd_distill.recovery import Recovering, Recovery

        stored = load_vectors(vectors)
        how: Method = methods.create(settings, stored)
        recovery = None
        if changed is not None:
            left = changed.stage.folder / WEIGHTS
            recovery = Recovery(left, changed.epochs, changed.lr, changed.zeros)
            how = Recovering(how, recovery)
        teacher = trainingdata.seer(learning, method, vectors)
        seen = trainingdata.training_data(learning, how, settings, samples, store, teacher, folder)
        run = training_run.TrainingRun(
            settings=settings,
            vectors=stored,
            student=learning.student_spec(),
            samples=seen.store.samples,
            store=store.folder,
            embeddings=None if seen.embeddings is None else folder / trainingdata.EMBEDDINGS,
            styled=None if seen.styled is None else trainingdata.folder_of(seen.styled.pixels),
            captions=None
            if seen.captions is None
            else trainingdata.folder_of(seen.captions) / trainingdata.CAPTIONS,
            selection=seen.selection,
            views=seen.teacher is not None,
            teacher=learning.config.teacher.model,
            cache=learning.workspace.cache,
            folder=folder,
            recovery=recovery,
            prompts=vectors.folder / prompt_learning.FILE if method == "promptkd" else None,
        )
        with learning.live.task(
            f"{'training' if changed is None else 'recovering'} {method}",
            training.total_steps(settings, how, seen),
        ) as advance:

            def on_step(stage: str, steps: int, loss: float) -> None:
                advance(steps, note=f"{stage}, loss {loss:.3f}")

            student = run.train(seen, learning.teacher, on_step)
        checkpoints.save_weights(folder / WEIGHTS, student)
        (folder / checkpoints.FILE).unlink(missing_ok=True)
        trainingdata.forget_embeddings(folder)

    inputs = {
        "settings": settings.used(),
        "augmentation": dataclasses.asdict(Augmentation()),
        "student": dataclasses.asdict(learning.student_spec()),
        "pixels": store.key,
        "vectors": len(load_vectors(vectors).names) if method == BASELINE else vectors.key,
    }
    if learning.config.student.arch == TEACHER:
        inputs["copied"] = teacher_key(learning.config)
    if method == "vlkd":
        inputs["renderer"] = trainingdata.style_renderer()
    if "prompted_styles" in settings.used():
        inputs["restyler"] = synthesising.restyler_key(learning.config)
    if settings.reads_captions:
        inputs["captions"] = trainingdata.captions_key(learning.config)
    if changed is not None:
        inputs["changed"] = {
            "stage": changed.stage.key,
            "epochs": changed.epochs,
            "lr": changed.lr,
            "zeros": list(changed.zeros),
        }
    name = method if changed is None else f"recover-{changed.stage.name}"
    return learning.workspace.stage(name, inputs | versions("torch", "timm", "vlkd-edge"), work)


def export(
    learning: Learning,
    method: MethodName,
    trained: StageResult,
    store: StageResult,
    samples: Sequence[Sample],
    vectors: StageResult,
) -> StageResult:
    """Fuse a trained student and write the float graph in the target's opset, checked against torch."""
    opset = learning.config.device().opset

    def work(folder: Path) -> None:
        import numpy as np

        from vlkd_distill import checkpoints, methods, pixels, starting, students
        from vlkd_distill import export as graph

        stored = load_vectors(vectors)
        how = methods.create(learning.settings(method), stored)
        student = starting.untrained(learning.student_spec(), how, learning.teacher)
        checkpoints.load_weights(trained.folder / WEIGHTS, student)
        network = students.Deployable(
            student, students.FusedHead(stored) if how.predicts_by_vectors else None
        )
        with learning.live.task(f"exporting {method}", None):
            words = graph.describe(stored, learning.spec, learning.student_spec().arch)
            graph.export(network, learning.spec.height, folder / "model.onnx", metadata=words)
            images = pixels.PixelStore.open(store.folder, samples).pixels
            some = np.array(images[:: max(1, len(images) // PARITY_IMAGES)][:PARITY_IMAGES])
            parity = graph.check_parity(
                network, folder / "model.onnx", some, max_logit_gap=PARITY_LOGIT_GAP, min_cosine=PARITY_COSINE
            )
            if opset != graph.OPSET:
                _rewrite(folder / "model.onnx", opset, some)
        write_text(folder / "parity.json", json.dumps(dataclasses.asdict(parity), indent=1))

    inputs = {
        "trained": trained.key,
        "vectors": vectors.key,
        "parity": [PARITY_LOGIT_GAP, PARITY_COSINE],
        "preprocess": learning.spec.to_json(),
        "opset": opset,
    }
    inputs |= versions("torch", "onnx", "onnxscript", "onnxruntime", "vlkd-edge")
    return learning.workspace.stage(f"export-{method}", inputs, work)


def _rewrite(path: Path, opset: int, images: npt.NDArray[np.uint8]) -> None:
    """Bring a graph to an older opset, checked against what it was."""
    import onnx

    from vlkd_compress import interface

    model, wanted = onnx.load(path), interface.Interface(opset)
    changed = interface.change(model, wanted)
    interface.check_same(model, changed, wanted, images, max_logit_gap=PARITY_LOGIT_GAP)
    write_bytes(path, changed.SerializeToString(deterministic=True))
