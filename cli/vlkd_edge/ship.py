"""The torch-free half of a build: evaluate, compress under the guard, preflight, bundle, measure."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vlkd_bench.latency import LatencyStats, measure
from vlkd_bench.paired import GuardBudget
from vlkd_bench.predictions import PredictionRow, evaluate, read_predictions, write_predictions
from vlkd_bench.samples import Sample
from vlkd_compress import record
from vlkd_compress.guard import Candidate, Trial
from vlkd_compress.ladder import Climb, Limits, Rung
from vlkd_compress.qat.settings import QatSettings
from vlkd_compress.recipes import Recipe
from vlkd_distill.data import content_key
from vlkd_runtime import Classifier
from vlkd_runtime.atomic import write_bytes, write_text
from vlkd_runtime.bundle import Bundle
from vlkd_runtime.errors import GuardError
from vlkd_runtime.golden import Golden
from vlkd_runtime.preprocess import PreprocessSpec, prepare
from vlkd_runtime.vectors import ClassVectors

from . import calibrating, qat
from .climbing import Climber, Task, dialect_of, recipes
from .config import Config
from .progress import Live
from .stages import StageResult, Workspace, versions

GOLDEN_IMAGES = 8
_PRECISIONS = {
    "fp16": "float16",
    "fp8": "float8",
}  # by the word in a candidate's name; all others are integers
PREFLIGHT_PACKAGES = ("onnxruntime-ep-nv-tensorrt-rtx-cu13", "tensorrt-cu13-bindings", "onnxruntime", "onnx")


Slimmer = Callable[[Climber, Sequence[Recipe]], tuple[list[Rung], list[Rung]]]


@dataclass(frozen=True, slots=True)
class Shipping:
    """What the stages below share.

    Attributes:
        config: the build's configuration.
        workspace: where stages lie.
        live: progress.
        spec: how an image is prepared.
        vectors: the class vectors.
    """

    config: Config
    workspace: Workspace
    live: Live
    spec: PreprocessSpec
    vectors: ClassVectors

    def predictions(self, title: str, model: StageResult, samples: Sequence[Sample]) -> StageResult:
        """Run a graph on images through the runtime and store what it answers."""

        def work(folder: Path) -> None:
            rows = self.answer(title, model.folder / "model.onnx", samples)
            write_predictions(folder / "predictions.jsonl", rows, self.vectors.names)

        inputs = {
            "model": model.key,
            "images": content_key(samples),
            "preprocess": self.spec.to_json(),
            **versions("onnxruntime", "pillow", "vlkd-edge"),
        }
        return self.workspace.stage(f"evaluate-{title}", inputs, work)

    def answer(self, title: str, model: Path, samples: Sequence[Sample]) -> tuple[PredictionRow, ...]:
        """Predictions of a graph that is in no bundle yet, by the runtime's own code."""
        with Classifier.from_model(
            model, self.spec, self.vectors.names, logit_scale=self.vectors.logit_scale, threads=2
        ) as classifier:
            return watched(self.live, f"evaluating {title}", classifier, samples)

    def read(self, stage: StageResult) -> tuple[PredictionRow, ...]:
        """The predictions of a stage."""
        return read_predictions(stage.folder / "predictions.jsonl", self.vectors.names)


def watched(
    live: Live, title: str, classifier: Classifier, samples: Sequence[Sample]
) -> tuple[PredictionRow, ...]:
    """`evaluate` under a progress bar."""
    with live.task(title, len(samples)) as advance:
        return evaluate(classifier, samples, lambda _: advance(1))


@dataclass(frozen=True, slots=True)
class Compressed:
    """What compression came to.

    Attributes:
        chosen: the candidate that may ship; None when none passed.
        key: key of the stage that made it.
        trials: every candidate that was judged.
        budget: what was allowed.
        climb: all that was tried, refused candidates included.
        floating: the float graph of the candidate that is shown.
        float_bytes: size of the graph that was compressed.
        climber: who made them; makes further variants too.
    """

    chosen: Candidate | None
    key: str
    trials: tuple[Trial, ...]
    budget: GuardBudget
    climb: Climb
    floating: Path
    float_bytes: int
    climber: Climber

    @property
    def shown(self) -> Trial:
        """The trial that the report is about: the chosen one's, or the last."""
        return next((trial for trial in self.trials if trial.candidate is self.chosen), self.trials[-1])


def compress(
    ship: Shipping,
    floating: StageResult,
    reference: Sequence[PredictionRow],
    guarded: Sequence[Sample],
    calibration: Sequence[Sample],
    embed: Callable[[Sequence[Sample]], npt.NDArray[np.float32]],
    slimmer: Slimmer = lambda *_: ([], []),
) -> Compressed:
    """Climb down the ladder, boldest candidate first, until the guard lets one pass; keep the record.

    Args:
        ship: shared things.
        floating: the stage of the float graph.
        reference: the float graph's predictions on the guarded images.
        guarded: every image of the held-out domains.
        calibration: train images of the source domains.
        embed: the teacher's embeddings of some of them, asked for if calibration is chosen by coverage.
        slimmer: gives rungs with pruned students, before the recipes and after the ranked ones.

    Raises:
        GuardError: no candidate came as far as the guard.
    """
    config = ship.config
    model = floating.folder / "model.onnx"
    target = config.device()
    task = Task(
        model=model,
        key=floating.key,
        spec=ship.spec,
        names=ship.vectors.names,
        logit_scale=ship.vectors.logit_scale,
        dialect=dialect_of(target),
        calibration=calibrating.choose(
            config, ship.workspace, ship.live, calibration, ship.vectors.teacher_fingerprint, embed
        ),
        guarded=tuple(guarded),
        reference=tuple(reference),
        threads=config.bench.threads,
    )
    climber = Climber(task, ship.workspace, ship.live)
    settings = config.compress
    chosen = recipes(settings.candidates, target)
    lessons = qat.Lessons(
        tuple(calibration),
        config.data.held_out,
        QatSettings(settings.qat_epochs, seed=config.distill.seed),
        embed,
        ship.vectors,
    )
    before, after = slimmer(climber, chosen)
    climb = climber.run(
        chosen,
        config.guard.budget(),
        # A ladder that starts bolder shall come as far down as it would without.
        Limits(settings.trials + len(before) + len(after), settings.minutes),
        bolder=before,
        escalate=(*after, *qat.escalate(climber, lessons, chosen)),
        ranked=settings.rank,
        early=config.guard.early_stop,
    )
    size, root = model.stat().st_size, ship.workspace.root
    write_text(root / "ladder.json", json.dumps(record.as_json(climb, climber.ranking), indent=1) + "\n")
    write_text(root / "ladder.md", record.markdown(climb, size, climber.ranking))
    write_bytes(root / "ladder.png", record.picture(climb, size))
    outcome = climb.outcome
    if not outcome.trials:
        raise GuardError(climb.explain())
    key = outcome.chosen.path.parent.name if outcome.chosen is not None else ""
    shown = outcome.chosen or outcome.trials[-1].candidate
    judged = climber.floating(shown.name)
    return Compressed(outcome.chosen, key, outcome.trials, outcome.budget, climb, judged, size, climber)


def precision(candidate: Candidate) -> str:
    """Precision of most of a candidate's weights, as the manifest names it."""
    words = candidate.name.split("-")
    return next((name for word, name in _PRECISIONS.items() if word in words), "int8")


def preflight(ship: Shipping, compressed: Compressed) -> Mapping[str, Any] | None:
    """Hold the graph against its target's rules and a real builder; see ``vlkd_compress.preflight``.

    Where the builder is the target's own, its engine is kept for the bundle: ``engine_file`` names it.
    """
    return None if compressed.chosen is None else preflight_of(ship, compressed.chosen.path, compressed.key)


def preflight_of(ship: Shipping, model: Path, key: str) -> Mapping[str, Any]:
    """`preflight` of one graph, whose content ``key`` names."""
    from vlkd_compress.preflight import run_preflight

    target = ship.config.device()

    def work(folder: Path) -> None:
        with ship.live.task("TensorRT preflight", None):
            keep = folder / "engine.bin" if target.engine == "tensorrt-rtx" else None
            result = run_preflight(model, target, keep_engine=keep)
        write_text(folder / "preflight.json", json.dumps(dataclasses.asdict(result), indent=1))

    inputs = {
        "model": key,
        "target": dataclasses.asdict(target),
        **versions(*PREFLIGHT_PACKAGES, "vlkd-edge"),
    }
    stage = ship.workspace.stage("preflight", inputs, work)
    result: dict[str, Any] = json.loads((stage.folder / "preflight.json").read_text())
    if not result["answered"]:  # a time-out or a missing package is no verdict to keep
        shutil.rmtree(stage.folder)
    engine = stage.folder / "engine.bin"
    return result | {"engine_file": str(engine) if engine.is_file() else None}


def golden(
    ship: Shipping, model: Path, floating: Path, further: Mapping[str, Path], samples: Sequence[Sample]
) -> tuple[Golden, dict[str, float]]:
    """Inputs with the outputs that each graph gave on this machine.

    Args:
        ship: shared things.
        model: the first variant.
        floating: the float graph.
        further: the other variants, by name.
        samples: images to take some of.

    Returns:
        The golden samples, and the largest difference of a logit to the float graph's; "" is the first variant.
    """
    chosen = samples[:: max(1, len(samples) // GOLDEN_IMAGES)][:GOLDEN_IMAGES]
    images = np.stack([prepare(sample.path, ship.spec) for sample in chosen])
    outputs = []
    for graph in (floating, model, *further.values()):
        with Classifier.from_model(
            graph, ship.spec, ship.vectors.names, logit_scale=ship.vectors.logit_scale
        ) as classifier:
            outputs.append(classifier.infer(images))
    reference, shipped, *others = outputs
    gaps = {
        name: float(np.abs(output.logits - reference.logits).max())
        for name, output in zip(("", *further), (shipped, *others), strict=True)
    }
    answers = {name: (output.embedding, output.logits) for name, output in zip(further, others, strict=True)}
    return Golden(images, shipped.embedding, shipped.logits, answers), gaps


def measure_shipped(
    ship: Shipping, bundle: Path, key: str, samples: Sequence[Sample], machine: Mapping[str, Any]
) -> tuple[StageResult, LatencyStats]:
    """Accuracy and latency of the bundle itself, opened as a device opens it."""
    config = ship.config.bench

    def work(folder: Path) -> None:
        opened = Bundle.open(bundle)
        # The graph that the guard judged, on the CPU that the report names.
        variant = opened.manifest.variants[0].name
        with Classifier.load(opened, engine="ort-cpu", variant=variant, threads=2) as classifier:
            rows = watched(ship.live, "evaluating the bundle", classifier, samples)
        write_predictions(folder / "predictions.jsonl", rows, ship.vectors.names)
        with (
            Classifier.load(opened, engine="ort-cpu", variant=variant, threads=config.threads) as classifier,
            ship.live.task("timing the bundle", None),
        ):
            stats = measure(timed_call(classifier, samples[0].path, ship.spec), min_samples=config.samples)
        write_text(folder / "latency.json", json.dumps(stats.to_json()))

    inputs = {
        "bundle": key,
        "images": content_key(samples),
        "bench": dataclasses.asdict(config),
        "machine": dict(machine),
        **versions("onnxruntime", "vlkd-edge"),
    }
    stage = ship.workspace.stage("measure", inputs, work)
    return stage, LatencyStats.from_json(json.loads((stage.folder / "latency.json").read_text()))


def timed_call(classifier: Classifier, image: Path, spec: PreprocessSpec) -> Callable[[], object]:
    """One prediction on a prepared array: what an application does per frame, decoding apart."""
    prepared: npt.NDArray[np.uint8] = prepare(image, spec)
    return lambda: classifier.predict(prepared)
