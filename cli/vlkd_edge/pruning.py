"""Pruned and sparse students of a build as rungs of the ladder: cut, recovered by distillation, exported.

Where compress and distill meet: the one chooses what goes, the other trains what is left, and they know each other as
a callable loss and as files. torch is imported only to do work.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlkd_bench.machine import read_machine
from vlkd_bench.samples import Sample
from vlkd_compress.ladder import Rung
from vlkd_compress.prune.settings import Goal, Pruned, PruneSettings
from vlkd_compress.recipes import Recipe
from vlkd_compress.speed import race
from vlkd_distill.specs import MethodName
from vlkd_runtime.atomic import write_text
from vlkd_runtime.errors import ConfigError, RefusalError
from vlkd_runtime.preprocess import prepare

from . import teach, trainingdata
from .climbing import LAST, Climber, Start, dialect_of
from .config import Config
from .learn import Learning, load_vectors
from .stages import StageResult, versions

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vlkd_compress.prune.harm import Probe
    from vlkd_distill.stages import Batch, Method
    from vlkd_distill.students import Student

REPORT = "pruned.json"
PROBE_IMAGES = 16


@dataclass(frozen=True, slots=True)
class Cut:
    """One way to make the student smaller.

    Attributes:
        goal: what may be left; None to prune nothing.
        sparse: whether the layers become 2:4 sparse.
    """

    goal: Goal | None
    sparse: bool

    @property
    def name(self) -> str:
        """Short, in front of the names of candidates."""
        return "-".join(filter(None, (self.goal.name if self.goal else "", "2in4" if self.sparse else "")))


def cuts(settings: PruneSettings) -> list[Cut]:
    """What is tried, boldest first: sparsity is given up before less is pruned."""
    goals = [settings.goal.eased(part) for part in settings.steps] if settings.goal else []
    boldest = [Cut(goals[0] if goals else None, True)] if settings.sparsity == "2:4" else []
    return boldest + [Cut(goal, False) for goal in goals]


def check(config: Config) -> None:
    """Refuse what cannot be measured, before any work.

    Raises:
        ConfigError: a latency is asked for, and the target's engine does not run here.
    """
    goal, target = config.compress.prune.goal, config.device()
    if goal is not None and goal.unit == "latency" and dialect_of(target) != "cpu":
        msg = (
            f"compress.prune.target = '{config.compress.prune.target}': expected a target whose engine runs on this "
            f"machine, found {target.name}, whose latency cannot be measured here. Ask for macs:{goal.share:g}, and "
            "measure the bundle on the device."
        )
        raise ConfigError(msg)


@dataclass(frozen=True, slots=True)
class Slimming:
    """What pruning needs of a build.

    Attributes:
        learning: what the stages share.
        method: how the student was trained, and is trained again.
        trained: the stage with its weights.
        floating: the stage with its float graph.
        store: pixels of the train images.
        samples: train images of the source domains.
        vectors: the class vectors it was trained with.
        closed: while it is entered, no held-out image can be opened.
    """

    learning: Learning
    method: MethodName
    trained: StageResult
    floating: StageResult
    store: StageResult
    samples: tuple[Sample, ...]
    vectors: StageResult
    closed: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext

    @property
    def settings(self) -> PruneSettings:
        """What the configuration asks for."""
        return self.learning.config.compress.prune

    def rungs(self, climber: Climber, recipes: Sequence[Recipe]) -> tuple[list[Rung], list[Rung]]:
        """Rungs before the recipes and rungs after the ranked ones; the climber learns how to make their graphs.

        Every cut is tried with the boldest recipe, and after the layers were ranked with the first of those that cost
        hardly any accuracy.
        """
        wanted = cuts(self.settings)
        climber.starts = {**climber.starts, **{cut.name: partial(self.start, cut) for cut in wanted}}
        bold = [recipe for recipe in recipes if recipe.kind not in LAST][:1]
        mild = [recipe for recipe in recipes if recipe.kind in LAST][:1]
        # What comes after the ranking is judged where its neighbours on the ladder are.
        before, after = (
            [Rung.of(recipe, ranked=ranked, graph=cut.name) for cut in wanted for recipe in chosen]
            for chosen, ranked in ((bold or mild, False), (mild if bold else [], True))
        )
        return before, after

    def start(self, cut: Cut) -> Start:
        """The float graph of the student after this cut and its recovery.

        Raises:
            RefusalError: nothing can be cut, or not as much.
        """
        with self.closed():
            return self._start(cut)

    def _start(self, cut: Cut) -> Start:
        settings = self.settings
        stage = self.cut(cut)
        report = json.loads((stage.folder / REPORT).read_text())
        if report["refusal"]:
            raise RefusalError(report["refusal"])
        pruned, zeros = Pruned(**report["pruned"]), tuple(report["zeros"])
        recovered = stage
        if settings.epochs:
            lr = settings.lr or 0.5 * self.learning.config.distill.lr
            changed = teach.Changed(stage, settings.epochs, lr, zeros)
            recovered = teach.train(
                self.learning, self.method, self.samples, self.store, self.vectors, changed
            )
        graph = self.export(recovered)
        recovery = f"recovered by {settings.epochs} epochs of {self.method}"
        return Start(graph, (*pruned.words, *((recovery,) if settings.epochs else ())), pruned=pruned)

    def export(self, stage: StageResult) -> StageResult:
        """The float graph of what a stage left of the student."""
        return teach.export(self.learning, self.method, stage, self.store, self.samples, self.vectors)

    def cut(self, cut: Cut) -> StageResult:
        """The stage that takes channels and weights out, or says why it cannot."""
        settings, config = self.settings, self.learning.config

        def work(folder: Path) -> None:
            with self.learning.live.task(f"cutting {cut.name}", None) as advance:
                told = self._cut(cut, folder, lambda line: advance(1, note=line))
            write_text(folder / REPORT, json.dumps(told, indent=1))

        inputs: dict[str, Any] = {
            "trained": self.trained.key,
            "vectors": self.vectors.key,
            "goal": None if cut.goal is None else dataclasses.asdict(cut.goal),
            "sparse": cut.sparse,
            "how": {
                name: getattr(settings, name)
                for name in ("importance", "images", "rounds", "round_to", "least")
            },
            "seed": config.distill.seed,
            "student": dataclasses.asdict(self.learning.student_spec()),
            **versions("torch", "timm", "torch-pruning", "vlkd-edge"),
        }
        if cut.goal is not None and cut.goal.unit == "latency":
            machine = read_machine()
            inputs["timed"] = [machine.cpu_model, list(machine.isa), config.bench.threads]
        return self.learning.workspace.stage(cut.name, inputs, work)

    def _cut(self, cut: Cut, folder: Path, tell: Callable[[str], None]) -> dict[str, Any]:
        from vlkd_compress.prune import cutting, sparsity
        from vlkd_distill import checkpoints, methods

        how = methods.create(self.learning.settings(self.method), load_vectors(self.vectors))
        student = self._student(how)
        probes = self._probes(how, folder)
        # Sixteens, or hardly any layer that lost channels would be of a shape that sparse tensor cores compute.
        settings = dataclasses.replace(self.settings, round_to=16) if cut.sparse else self.settings
        kept = (projection(student),)
        shape = partial(cutting.prune, probes=probes, settings=settings, protected=kept, tell=tell)
        zeros: tuple[str, ...] = ()
        try:
            if cut.goal is None:
                pruned = cutting.unpruned(student, probes[0].views)
            elif cut.goal.unit == "latency":
                timed = cutting.prune_to_latency(
                    student, cut.goal, shape, partial(self._time_share, how), tell=tell
                )
                student, pruned = timed.network, timed.pruned  # type: ignore[assignment]  # a copy of the student
            else:
                pruned = shape(student, cut.goal)
            if cut.sparse:
                zeros = sparsity.sparsify(student, probes, settings.importance, protected=kept)
                pruned = dataclasses.replace(pruned, sparse_layers=len(zeros), importance=settings.importance)
        except RefusalError as error:
            return {"refusal": str(error), "pruned": None, "zeros": []}
        checkpoints.save_weights(folder / teach.WEIGHTS, student.requires_grad_(False))
        return {"refusal": "", "pruned": dataclasses.asdict(pruned), "zeros": list(zeros)}

    def _student(self, how: Method) -> Student:
        from vlkd_distill import checkpoints, starting

        student = starting.untrained(self.learning.student_spec(), how, self.learning.teacher)
        checkpoints.load_weights(self.trained.folder / teach.WEIGHTS, student)
        return student.eval()

    def _probes(self, how: Method, folder: Path) -> list[Probe]:
        """Clean train images of every source domain with the training loss, in small batches."""
        import torch

        from vlkd_compress.prune.harm import Probe
        from vlkd_distill.augment import clean_views
        from vlkd_distill.feeding import Feed

        settings = dataclasses.replace(self.learning.settings(self.method), teacher_view="clean_cached")
        seer = trainingdata.seer(self.learning, self.method, self.vectors)
        data = trainingdata.training_data(
            self.learning, how, settings, self.samples, self.store, seer, folder
        )
        feed, random = Feed(how, settings, data), np.random.default_rng(settings.seed)
        domains = np.asarray(data.domains)
        probes = []
        for domain in sorted(set(data.domains)):
            mine = data.rows[np.flatnonzero(domains == domain)]
            chosen = np.sort(random.permutation(mine)[: self.settings.images])
            for first in range(0, len(chosen), PROBE_IMAGES):
                rows = chosen[first : first + PROBE_IMAGES]
                batch = feed.clean(torch.from_numpy(rows))
                views = clean_views(torch.from_numpy(np.array(data.store.pixels[rows])))
                probes.append(Probe(domain, views, partial(_loss, how, batch)))
        trainingdata.forget_embeddings(folder)
        return probes

    def _time_share(self, how: Method, network: nn.Module) -> float:
        """Time of a network's float graph by the unpruned student's, both in turns on the target's engine."""
        from vlkd_distill import export, students

        student = copy.deepcopy(network)
        head = students.FusedHead(load_vectors(self.vectors)) if how.predicts_by_vectors else None
        spec, threads = self.learning.spec, self.learning.config.bench.threads
        with tempfile.TemporaryDirectory(prefix="vlkd-prune-") as folder:
            path = Path(folder) / "trial.onnx"
            export.export(students.Deployable(student, head), spec.height, path)  # type: ignore[arg-type]
            image = prepare(self.samples[0].path, spec)[np.newaxis]
            found = race(self.floating.folder / "model.onnx", path, image, threads=threads)
        return 1.0 / found.ratio


def _loss(how: Method, batch: Batch, outputs: Tensor) -> Tensor:
    return how.loss(outputs.float(), batch)


def projection(student: Student) -> str:
    """Name of the layer whose outputs are the class vectors' space, or the logits: no channel of it goes."""
    from torch import nn

    linears = [str(name) for name, layer in student.named_modules() if isinstance(layer, nn.Linear)]
    return [name for name in linears if name.partition(".")[0] == "head"][-1]
