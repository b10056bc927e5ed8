"""The ``compress`` verb: any ONNX image classifier, made as small as its held-out domains allow."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from vlkd_bench.machine import read_machine
from vlkd_bench.paired import GuardBudget
from vlkd_bench.predictions import PredictionRow, evaluate, read_predictions, write_predictions
from vlkd_bench.samples import Sample
from vlkd_compress import record, virtual
from vlkd_compress.adopt import Adopted, InputForm, Layout
from vlkd_compress.calibration import select_by_coverage, select_calibration
from vlkd_compress.ladder import Climb, Limits
from vlkd_compress.qat.settings import QatSettings
from vlkd_compress.recipes import Dialect
from vlkd_distill.data import DomainDataset, content_key, scan
from vlkd_runtime import Classifier
from vlkd_runtime.atomic import write_bytes, write_text
from vlkd_runtime.errors import DataError
from vlkd_runtime.preprocess import PreprocessSpec, prepare

from . import qat, virtualising
from .adopting import adopted_model, check_form, spec_of
from .climbing import Climber, Task, dialect_of, recipes
from .config import GuardConfig
from .progress import Live
from .readable import only_readable_once
from .stages import StageResult, Workspace, locked, versions
from .targets import find


@dataclass(frozen=True, slots=True)
class Request:
    """What the verb was asked for.

    Attributes:
        model: an ONNX image classifier.
        data: folder laid out as ``<domain>/<class>/<image>``, or as ``<class>/<image>``.
        held_out: domains on which the guard judges; none lets it judge on virtual domains.
        target: the device; decides the dialect.
        classes: class names in the order of the logits; the folder names, sorted, when empty.
        candidates: names of recipes, boldest first; what suits the dialect when empty.
        normalise: a name of `NORMALISATIONS`, ``auto``, or empty where mean and std are given.
        mean: taken off pixel values from 0 to 255.
        std: divides them.
        layout: order of the input's axes.
        bgr: whether the input wants blue first.
        output: name of the output with the logits.
        size: height and width, where the graph leaves them open.
        resize: how images are brought to size.
        crop_fraction: share of the resized image the crop covers.
        interpolation: filter of the resizing.
        jpeg_scale: how much of a JPEG is decoded, as `vlkd_runtime.PreprocessSpec` has it.
        calibration_images: how many set the scales.
        coverage: whether they are chosen to cover the embedding space instead of evenly at random.
        budget: what may be lost.
        limits: when to stop.
        ranked: whether layers are ranked when the bold candidates fail.
        threads: of the engine in races.
        seed: of the choice of calibration images, of virtual domains and of training.
        guard: families and severities of virtual domains.
        qat_epochs: passes over the source images in quantization-aware training, tried when nothing else in INT8
            passed; 0 leaves it out.
    """

    model: Path
    data: Path
    held_out: tuple[str, ...]
    target: str
    classes: tuple[str, ...] = ()
    candidates: tuple[str, ...] = ()
    normalise: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    layout: Layout = "auto"
    bgr: bool = False
    output: str | None = None
    size: tuple[int, int] | None = None
    resize: str = "squash"
    crop_fraction: float = 1.0
    interpolation: str = "bilinear"
    jpeg_scale: int = 0
    calibration_images: int = 256
    coverage: bool = False
    budget: GuardBudget = dataclasses.field(default_factory=GuardBudget)
    limits: Limits = dataclasses.field(default_factory=Limits)
    ranked: bool = True
    threads: int = 1
    seed: int = 0
    guard: GuardConfig = dataclasses.field(default_factory=GuardConfig)
    qat_epochs: int = 2

    @property
    def dialect(self) -> Dialect:
        """How quantized graphs are written for the target."""
        return dialect_of(find(self.target))

    def form(self, mean: tuple[float, ...], std: tuple[float, ...]) -> InputForm:
        """The input's form with this normalisation."""
        return InputForm(mean, std, self.layout, self.bgr, self.size)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the verb ends with: the exit code, the machine's copy and the table for people."""

    exit_code: int
    plain: dict[str, Any]
    text: str


def compress(request: Request, out: Path, console: Console) -> Outcome:
    """Compress a classifier under the guard; what is finished is found done by the next run.

    Raises:
        UsageError: the caller's mistake, named before any long work where it can be.
        RefusalError: the calibration images cannot give honest scales.
    """
    chosen = recipes(request.candidates, find(request.target))
    dataset = scan(request.data, classes=request.classes)
    sources = dataset.sources(request.held_out)
    check_form(request)
    if not request.held_out:
        virtual.require()
    with locked(out):
        live = Live(console)
        workspace = Workspace(out, out / "cache", live.say)
        left = only_readable_once(dataset.samples, workspace, live)
        dataset = dataclasses.replace(dataset, samples=left.samples)
        guarded, usable, judges = _split(request, dataset, workspace, live)
        model, adopted, found = adopted_model(request, dataset, usable, workspace)
        spec = spec_of(request, adopted.height, adopted.width)
        task = _task(request, dataset, model, spec, guarded, usable, workspace, live)
        contract = (
            f"Calibration: {len(task.calibration)} images of {', '.join(sources)}; no label of them is used.",
            f"{judges} Layers are ranked on one in five of them, by hash of the name, and candidates that rest on the "
            "ranking are judged on the others.",
            *filter(None, [left.sentence]),
        )
        for line in contract:
            live.say(f"contract: {line}")
        climber = Climber(task, workspace, live)
        lessons = qat.Lessons(usable, request.held_out, QatSettings(request.qat_epochs, seed=request.seed))
        climb = climber.run(
            chosen,
            request.budget,
            request.limits,
            escalate=qat.escalate(climber, lessons, chosen),
            ranked=request.ranked,
        )
        return _finish(request, task, climb, climber, adopted, found, contract, out)


def _split(
    request: Request, dataset: DomainDataset, workspace: Workspace, live: Live
) -> tuple[tuple[Sample, ...], tuple[Sample, ...], str]:
    """Who judges, who may set scales and train, and a sentence about the judges."""
    if request.held_out:
        guarded = dataset.of(request.held_out)
        words = f"The guard judges on {len(guarded)} images of {', '.join(request.held_out)}."
        return guarded, dataset.of(dataset.sources(request.held_out)), words
    tests, usable = (dataset.of(dataset.domains, split) for split in ("test", "train"))
    if not tests:
        msg = f"Expected test images in {request.data} to draw virtual domains of, one image in five is: found none."
        raise DataError(msg)
    guarded = virtualising.samples(request.guard, request.seed, workspace, live, tests)
    return guarded, usable, virtualising.contract(request.guard, len(tests))


def _task(
    request: Request,
    dataset: DomainDataset,
    model: StageResult,
    spec: PreprocessSpec,
    guarded: tuple[Sample, ...],
    usable: tuple[Sample, ...],
    workspace: Workspace,
    live: Live,
) -> Task:
    path = model.folder / "model.onnx"

    def work(folder: Path) -> None:
        with (
            Classifier.from_model(path, spec, dataset.classes, logit_scale=1.0, threads=2) as classifier,
            live.task("evaluating float", len(guarded)) as advance,
        ):
            rows = evaluate(classifier, guarded, lambda _: advance(1))
        write_predictions(folder / "predictions.jsonl", rows, dataset.classes)

    calibration = _calibration(request, path, spec, usable)
    inputs = {"model": model.key, "images": content_key(guarded), "preprocess": spec.to_json()}
    stage = workspace.stage("guard-float", inputs | versions("onnxruntime", "pillow", "vlkd-edge"), work)
    reference: tuple[PredictionRow, ...] = read_predictions(
        stage.folder / "predictions.jsonl", dataset.classes
    )
    return Task(
        model=path,
        key=model.key,
        spec=spec,
        names=dataset.classes,
        logit_scale=1.0,
        dialect=request.dialect,
        calibration=calibration,
        guarded=guarded,
        reference=reference,
        threads=request.threads,
    )


def _calibration(
    request: Request, model: Path, spec: PreprocessSpec, usable: tuple[Sample, ...]
) -> tuple[Sample, ...]:
    """Choose the images that set the scales; the model's own features stand in for a teacher's here."""
    count, seed = request.calibration_images, request.seed
    if not request.coverage:
        return select_calibration(usable, count, seed=seed, forbidden_domains=request.held_out)
    from vlkd_runtime.engines import open_engine

    with contextlib.closing(open_engine(model, threads=2)) as engine:
        rows = [engine.run(prepare(sample.path, spec)[np.newaxis]).embedding for sample in usable]
    return select_by_coverage(
        usable, np.concatenate(rows), count, seed=seed, forbidden_domains=request.held_out
    )


def _finish(
    request: Request,
    task: Task,
    climb: Climb,
    climber: Climber,
    adopted: Adopted,
    found: str,
    contract: Sequence[str],
    out: Path,
) -> Outcome:
    """Write the record, its table and picture, and the chosen model."""
    ranking, size = climber.ranking, task.model.stat().st_size
    target = out / "model.onnx"
    target.unlink(missing_ok=True)  # an earlier run's would look like this one's
    preflight: dict[str, Any] | None = None
    if climb.chosen is not None and climb.chosen.made.candidate is not None:
        shutil.copyfile(climb.chosen.made.candidate.path, out / ".model.onnx.tmp")
        (out / ".model.onnx.tmp").replace(target)
        if task.dialect == "tensorrt":
            from vlkd_compress.preflight import run_preflight

            with climber.live.task("TensorRT preflight", None):
                preflight = run_preflight(target, find(request.target)).to_json()
    accuracy: dict[str, list[bool]] = {}
    for row in task.reference:
        accuracy.setdefault(row.domain, []).append(row.correct)
    plain = record.as_json(climb, ranking) | {
        "model": str(target) if climb.chosen else None,
        "target": request.target,
        "dialect": task.dialect,
        "float": {
            "model": str(request.model),
            "size_bytes": size,
            "input": found,
            "changed": list(adopted.changed),
            "accuracy": {name: sum(right) / len(right) for name, right in accuracy.items()},
        },
        "contract": list(contract),
        "calibration": {"images": len(task.calibration), "coverage": request.coverage, "seed": request.seed},
        "preflight": preflight,
        "record": str(out / "ladder.json"),
        "picture": str(out / "ladder.png"),
        "machine": read_machine().to_json(),
    }
    table = record.markdown(climb, size, ranking)
    write_text(out / "ladder.json", json.dumps(plain, indent=1) + "\n")
    write_text(out / "ladder.md", table)
    write_bytes(out / "ladder.png", record.picture(climb, size))
    refused = preflight is not None and preflight["verdict"] == "fail"
    if refused and preflight is not None:
        table += f"\nTensorRT's preflight says no: {preflight['reason']}\n"
    return Outcome(0 if climb.chosen and not refused else 1, plain, table)
