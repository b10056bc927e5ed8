"""Runs a climb down the ladder in a workspace: each candidate, race and ranking is a stage that is found done."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vlkd_bench.machine import read_machine
from vlkd_bench.paired import GuardBudget
from vlkd_bench.predictions import PredictionRow, evaluate, read_predictions, write_predictions
from vlkd_bench.samples import ABSENT, Sample
from vlkd_compress.calibrated import Calibration
from vlkd_compress.calibration import CalibrationImages, refuse_held_out
from vlkd_compress.fused import FusedCount, count_fused
from vlkd_compress.guard import Candidate
from vlkd_compress.ladder import Climb, Limits, Made, Rung, climb, plan
from vlkd_compress.prune.settings import Pruned
from vlkd_compress.ranking import Group, Ranking, RankingImages, is_for_ranking, rank
from vlkd_compress.recipes import Dialect, Recipe, make
from vlkd_compress.speed import Speed, race
from vlkd_distill.closing import forbid
from vlkd_distill.data import content_key
from vlkd_runtime import Classifier
from vlkd_runtime.atomic import write_text
from vlkd_runtime.engines import open_engine
from vlkd_runtime.errors import CalibrationError, ConfigError, RefusalError
from vlkd_runtime.preprocess import PreprocessSpec, prepare
from vlkd_runtime.targets import Target

from .progress import Live
from .stages import StageResult, Workspace, versions

DEFAULTS: dict[Dialect, tuple[str, ...]] = {
    "tensorrt": ("int8-percentile", "fp16"),
    "cpu": ("int8-percentile", "int8-dynamic", "weights8"),
}
# These cost speed or size but hardly any accuracy: they come after the layers have been ranked.
LAST = ("fp16", "weights8", "weights4")


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """What is compressed, on which images, for which engine.

    Attributes:
        model: the float graph.
        key: names its content.
        spec: how an image is prepared.
        names: class names in the order of the logits.
        logit_scale: what the logits are multiplied by.
        dialect: for which engine the candidates are written.
        calibration: the images that set the scales, from source domains only.
        guarded: every image of the held-out domains.
        reference: the float graph's predictions on them.
        threads: of the engine in races.
    """

    model: Path
    key: str
    spec: PreprocessSpec
    names: tuple[str, ...]
    logit_scale: float
    dialect: Dialect
    calibration: tuple[Sample, ...]
    guarded: tuple[Sample, ...]
    reference: tuple[PredictionRow, ...]
    threads: int = 1


@dataclass(frozen=True, slots=True)
class Start:
    """A graph that training made for some rungs.

    Attributes:
        stage: holds ``model.onnx``: a float graph for the rungs' recipes, or for rungs without one the candidate.
        steps: what was done to the float model so far, in order.
        planned: names of the layers it quantizes, if it is a candidate that does.
        pruned: what pruning did to it, if that was done.
    """

    stage: StageResult
    steps: tuple[str, ...]
    planned: tuple[str, ...] | None = None
    pruned: Pruned | None = None


@dataclass(slots=True)
class Climber:
    """Makes, races and judges candidates of one task, as stages of a workspace.

    Attributes:
        task: what is compressed.
        workspace: where stages lie.
        live: progress.
        starts: makes the graphs that rungs name, when a rung is tried; a `RefusalError` refuses the rung.
        ranking: of the layers, once they have been ranked.
    """

    task: Task
    workspace: Workspace
    live: Live
    starts: Mapping[str, Callable[[], Start]] = field(default_factory=dict)
    ranking: Ranking | None = None
    _calibrations: dict[Path, Calibration] = field(default_factory=dict)
    _floats: dict[str, Path] = field(default_factory=dict)
    _keys: dict[str, str] = field(default_factory=dict)
    _made: dict[Path, tuple[str, StageResult]] = field(default_factory=dict)

    def run(
        self,
        recipes: Sequence[Recipe],
        budget: GuardBudget,
        limits: Limits,
        *,
        bolder: Sequence[Rung] = (),
        escalate: Sequence[Rung] = (),
        ranked: bool = True,
        early: bool = True,
    ) -> Climb:
        """Climb from the boldest rung down.

        Args:
            recipes: boldest first.
            budget: what may be lost.
            limits: when to stop.
            bolder: rungs before the recipes, such as pruned students.
            escalate: rungs after the ranked ones, such as students trained with quantization.
            ranked: whether layers are ranked when the bold recipes fail; otherwise only these are tried.
            early: whether a clear answer may come before all held-out images are answered.

        Raises:
            CalibrationError: a held-out image is among the calibration images, or activations are not finite.
        """
        refuse_held_out(self.task.calibration, self.task.guarded)
        first = self.quickest([recipe for recipe in recipes if recipe.kind not in LAST])
        last = [recipe for recipe in recipes if recipe.kind in LAST]
        ranked = ranked and bool(first) and bool(self._ranking_images())
        if ranked:
            rungs = plan(first, self.rank, layers=self.layers, last=last, escalate=escalate)
            bold = len(bolder) + len(first)
        else:
            plain = [*map(Rung.of, first), *escalate, *map(Rung.of, last)]
            rungs, bold = iter(plain), len(bolder) + len(plain)
        return climb(
            itertools.chain(bolder, rungs),
            self.make,
            self.task.reference,
            self.answer,
            budget,
            limits,
            bold=bold,
            ranked=ranked,
            early=early,
            say=lambda text: self.live.say(f"guard: {text}"),
        )

    def make(self, rung: Rung) -> Made:
        """Make a rung's candidate and race it where the target's engine runs."""
        start = None
        if rung.graph:
            try:
                start = self.starts[rung.graph]()
            except CalibrationError:
                raise
            except RefusalError as error:
                return Made(rung, None, str(error), None, None, 0)
        if rung.recipe is None:
            assert start is not None
            made, fused = start.stage, self._fused(start)
        else:
            made = self.candidate(rung.recipe, start)
            report = json.loads((made.folder / "report.json").read_text())
            if report["refusal"]:
                return Made(rung, None, report["refusal"], None, None, 0)
            fused = None if report["fused"] is None else FusedCount(**report["fused"])
        model = made.folder / "model.onnx"
        self._made[model] = rung.name, made
        if start is not None and rung.recipe is not None:
            self._floats[rung.name] = start.stage.folder / "model.onnx"
        speed = self.speed(rung.name, made)
        refusal = ""
        if speed is not None and speed.slower:
            refusal = f"slower than float on the target's engine: {speed.describe()}"
        steps, pruned = rung.steps, None
        if start is not None:
            steps, pruned = (*start.steps, *rung.steps), start.pruned
            refusal = refusal or _lost_zeros(model, pruned.sparse_layers if pruned else 0)
        return Made(
            rung, Candidate(rung.name, model, steps), refusal, speed, fused, model.stat().st_size, pruned
        )

    def floating(self, name: str) -> Path:
        """The float graph that a candidate was made of: the task's own, or that of its start."""
        return self._floats.get(name, self.task.model)

    def _fused(self, start: Start) -> FusedCount | None:
        """What ONNX Runtime makes of the layers that training quantized."""
        if start.planned is None or self.task.dialect != "cpu":
            return None
        return count_fused(start.stage.folder / "model.onnx", len(start.planned))

    def quickest(self, recipes: Sequence[Recipe]) -> list[Recipe]:
        """The recipes, fastest first where the target's engine runs here; as given elsewhere."""
        if self.task.dialect != "cpu" or len(recipes) < 2:
            return list(recipes)
        speeds = {recipe.name: self.speed(recipe.name, self.candidate(recipe)) for recipe in recipes}

        def ratio(recipe: Recipe) -> float:
            speed = speeds[recipe.name]
            return speed.ratio if speed is not None else 0.0

        return sorted(recipes, key=ratio, reverse=True)

    def candidate(self, recipe: Recipe, start: Start | None = None) -> StageResult:
        """The stage that writes a candidate from the float model or another start, or says why there can be none."""

        def work(folder: Path) -> None:
            target, refusal, planned = folder / "model.onnx", "", None
            with self.live.task(f"making {recipe.name}", None):
                try:
                    report = make(recipe, self.calibration(start), target)
                    planned = getattr(report, "quantized", None)
                except CalibrationError:  # no other recipe would do better
                    raise
                except RefusalError as error:
                    refusal = str(error)
                fused = None
                if planned is not None and recipe.dialect == "cpu":
                    fused = dataclasses.asdict(count_fused(target, len(planned)))
            told = {"refusal": refusal, "planned": planned, "fused": fused}
            write_text(folder / "report.json", json.dumps(told, indent=1))

        return self.workspace.stage(f"candidate-{recipe.name}", self._inputs(recipe, start), work)

    def layers(self, recipe: Recipe) -> int:
        """How many layers a recipe quantizes; none if that cannot be done, or makes the graph slower."""
        made = self.candidate(recipe)
        report, speed = json.loads((made.folder / "report.json").read_text()), self.speed(recipe.name, made)
        return 0 if speed is not None and speed.slower else len(report["planned"] or ())

    def speed(self, name: str, made: StageResult) -> Speed | None:
        """The race against the float model; None where the target's engine does not run, or there is no model."""
        model = made.folder / "model.onnx"
        if self.task.dialect != "cpu" or not model.exists():
            return None

        def work(folder: Path) -> None:
            image = prepare(self.task.calibration[0].path, self.task.spec)[np.newaxis]
            with self.live.task(f"racing {name}", None):
                found = race(self.task.model, model, image, threads=self.task.threads)
            write_text(folder / "speed.json", json.dumps(dataclasses.asdict(found), indent=1))

        machine = read_machine()
        inputs = {
            "candidate": made.key,
            "threads": self.task.threads,
            "machine": [machine.cpu_model, list(machine.isa)],
            **versions("onnxruntime"),
        }
        stage = self.workspace.stage(f"race-{name}", inputs, work)
        return Speed(**json.loads((stage.folder / "speed.json").read_text()))

    def answer(self, model: Path, images: Sequence[str], /) -> tuple[PredictionRow, ...]:
        """A candidate's predictions on some of the held-out images."""
        task, (name, made) = self.task, self._made[model]
        by_name = {sample.image: sample for sample in task.guarded}
        asked = tuple(by_name[image] for image in images)

        def work(folder: Path) -> None:
            engine = open_engine(model, engine="ort-cpu", threads=2)
            with (
                Classifier(engine, task.spec, task.names, logit_scale=task.logit_scale) as classifier,
                self.live.task(f"evaluating {name}", len(asked)) as advance,
            ):
                rows = evaluate(classifier, asked, lambda _: advance(1))
            write_predictions(folder / "predictions.jsonl", rows, task.names)

        inputs = {
            "candidate": made.key,
            "images": content_key(asked),
            "preprocess": task.spec.to_json(),
            **versions("onnxruntime", "pillow", "vlkd-edge"),
        }
        stage = self.workspace.stage(f"evaluate-{name}", inputs, work)
        return read_predictions(stage.folder / "predictions.jsonl", task.names)

    def rank(self, recipe: Recipe, others: Sequence[Recipe]) -> Ranking:
        """Rank the layers on the held-out images set apart for that."""
        chosen = self._ranking_images()
        made = self.candidate(recipe)
        speed = self.speed(recipe.name, made)
        saved = None if speed is None else 1000 * (speed.float_ms - speed.candidate_ms)

        def work(folder: Path) -> None:
            images = np.stack([prepare(sample.path, self.task.spec) for sample in chosen])
            given = RankingImages(
                tuple(sample.domain for sample in chosen),
                np.asarray([sample.label for sample in chosen], dtype=np.int64),
                images,
            )
            with self.live.task("ranking layers", None) as advance:
                found = rank(
                    self.calibration(),
                    recipe,
                    given,
                    methods=others,
                    saved_us=saved,
                    progress=lambda note: advance(1, note=note),
                )
            write_text(folder / "ranking.json", json.dumps(dataclasses.asdict(found), indent=1))

        inputs = {
            "candidate": made.key,
            "others": [other.name for other in others],
            "images": content_key(chosen),
            "timed": speed is not None,
        }
        stage = self.workspace.stage("ranking", inputs | versions("onnxruntime", "vlkd-edge"), work)
        self.ranking = _ranking(json.loads((stage.folder / "ranking.json").read_text()))
        return self.ranking

    def _ranking_images(self) -> tuple[Sample, ...]:
        """The held-out images that rank layers; views of one image go the same way, absent classes tell nothing."""
        return tuple(
            sample
            for sample in self.task.guarded
            if is_for_ranking(sample.source or sample.image) and sample.label != ABSENT
        )

    def calibration(self, start: Start | None = None) -> Calibration:
        """A float graph with the calibration images; read when its first candidate is really made."""
        model = self.task.model if start is None else start.stage.folder / "model.onnx"
        if model not in self._calibrations:
            with forbid(sample.path for sample in self.task.guarded):
                images = CalibrationImages.load(self.task.calibration, self.task.spec)
            self._calibrations[model] = Calibration(model, images)
        return self._calibrations[model]

    def _inputs(self, recipe: Recipe, start: Start | None) -> Mapping[str, Any]:
        return {
            "recipe": dataclasses.asdict(recipe),
            "model": self.task.key if start is None else start.stage.key,
            "calibration": self._content("calibration", self.task.calibration),
            "preprocess": self.task.spec.to_json(),
            **versions("onnx", "onnxruntime", "pillow", "vlkd-edge"),
        }

    def _content(self, which: str, samples: Sequence[Sample]) -> str:
        if which not in self._keys:
            self._keys[which] = content_key(samples)
        return self._keys[which]


def _lost_zeros(model: Path, planned: int) -> str:
    """Why a candidate that is meant to be 2:4 sparse is not; "" if it is, or is not meant to be."""
    if not planned:
        return ""
    from vlkd_compress.graph import load
    from vlkd_compress.prune.sparsegraph import count_sparse

    found = len(count_sparse(load(model)).sparse)
    if found >= planned:
        return ""
    return f"{planned} layers are meant to have two zeros in every four input channels, and {found} have"


def dialect_of(target: Target) -> Dialect:
    """How quantized graphs are written for a target."""
    return "cpu" if target.dialect == "onnxruntime-qdq" else "tensorrt"


def recipes(names: Sequence[str], target: Target) -> list[Recipe]:
    """The recipes of these names, or those that suit the target.

    Raises:
        ConfigError: a name is unknown, of another dialect, or in numbers that the target does not compute with.
    """
    dialect = dialect_of(target)
    found = [Recipe.named(name, dialect) for name in names or DEFAULTS[dialect]]
    if "float8" not in target.precisions and any(recipe.kind == "fp8" for recipe in found):
        msg = f"The candidate 'fp8' needs FP8, and {target.name} computes in {', '.join(target.precisions)}."
        raise ConfigError(msg)
    return found


def _ranking(plain: dict[str, Any]) -> Ranking:
    groups = tuple(
        Group(tuple(item["layers"]), item["harm"], item["saved_us"]) for item in plain.pop("groups")
    )
    return Ranking(groups=groups, **plain)
