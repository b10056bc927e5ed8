"""The composition root: puts distill, compress, benchmarks and runtime together into one build."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from vlkd_bench.machine import Machine, read_machine
from vlkd_bench.samples import Sample
from vlkd_distill.data import DomainDataset
from vlkd_distill.teacher_names import check_name
from vlkd_distill.templates import resolve_templates
from vlkd_runtime.errors import UnavailableError
from vlkd_runtime.vectors import ClassVectors

from . import learn, reporting, ship
from .bundling import write
from .config import Config
from .progress import Live
from .stages import Workspace, locked
from .targets import Target, find

BASELINE = "erm"
NEEDED = ("torch", "timm", "open_clip", "onnx", "onnxscript", "onnxruntime", "jinja2", "matplotlib")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a build ends with.

    Attributes:
        exit_code: 0 done, 1 the guard or the preflight said no.
        json_text: the machine's copy of the report.
    """

    exit_code: int
    json_text: str


@dataclass(frozen=True, slots=True)
class Images:
    """Which images which part of the build may see.

    Attributes:
        train: train images of the source domains: training, calibration, golden samples.
        test: test images of every domain: accuracies, nothing else.
        guarded: every image of the held-out domains: the guard, nothing else.
    """

    train: tuple[Sample, ...]
    test: tuple[Sample, ...]
    guarded: tuple[Sample, ...]

    @classmethod
    def split(cls, dataset: DomainDataset, held_out: Sequence[str]) -> Images:
        """Divide a data set; an image is never in ``train`` and in another part."""
        sources = dataset.sources(held_out)
        return cls(dataset.of(sources, "train"), dataset.of(dataset.domains, "test"), dataset.of(held_out))


def build(config: Config, out: Path, cache: Path, console: Console) -> Outcome:
    """Run every stage that is not done yet and write bundle and report.

    Args:
        config: what to build.
        out: output folder.
        cache: where teacher embeddings are kept.
        console: for people; progress is drawn only if it is a terminal.

    Raises:
        UsageError: the caller's mistake, found before any long work where it can be.
        RefusalError: a parity check or a calibration said no.
    """
    target = find(config.target)
    check_beforehand(config)
    with locked(out):
        return _build(config, target, Workspace(out, cache), Live(console), console)


def check_beforehand(config: Config) -> None:
    """Refuse what can be refused before any work starts: names, folders, packages.

    Raises:
        UsageError: names what to change or install.
    """
    check_name(config.teacher.model)
    resolve_templates(config.teacher.templates)
    learn.check_domains(config)
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        msg = f"A build needs packages that are not installed ({', '.join(missing)}): pip install 'vlkd-edge[build]'"
        raise UnavailableError(msg)


def _build(config: Config, target: Target, workspace: Workspace, live: Live, console: Console) -> Outcome:
    learning = learn.Learning(config, workspace, live)
    learn.check_models(learning)
    dataset, data_key = learn.dataset(learning)
    images = Images.split(dataset, config.data.held_out)
    sources = dataset.sources(config.data.held_out)
    contract = reporting.contract(config, sources, images)
    for line in contract:
        live.say(f"[dim]contract:[/] {line}")

    teacher = learn.teacher_key(config)
    vectors_stage = learn.class_vectors(learning, dataset.classes, teacher)
    vectors = ClassVectors.load(vectors_stage.folder / "class_vectors.safetensors")
    store = learn.pixels(learning, images.train, data_key, sources)
    asked = learn.teacher_predictions(learning, images.test, vectors_stage, teacher, data_key)
    graphs = {}
    for method in (BASELINE, config.distill.method):
        trained = learn.train(learning, method, images.train, store, vectors_stage)
        graphs[method] = learn.export(learning, method, trained, store, images.train, vectors_stage)

    shared = ship.Shipping(config, workspace, live, learning.spec, vectors, data_key)
    student = graphs[config.distill.method]
    erm_rows = shared.read(shared.predictions(BASELINE, graphs[BASELINE], images.test, "test"))
    student_rows = shared.read(shared.predictions("student", student, images.test, "test"))
    reference = shared.read(shared.predictions("reference", student, images.guarded, "guarded"))
    compressed = ship.compress(shared, student, reference, images.guarded, images.train)
    facts = reporting.Facts(
        config=config,
        target=target,
        dataset=dataset,
        contract=contract,
        accuracy={"teacher": shared.read(asked), "erm": erm_rows, "student": student_rows},
        compressed=compressed,
        preflight=ship.preflight(shared, compressed),
        machine=read_machine(),
        vectors=vectors,
    )
    refused = facts.preflight is not None and facts.preflight["verdict"] == "fail"
    if compressed.chosen is None or refused:
        return reporting.finish(facts, workspace, None, None, console)
    bundle = write(shared, target, compressed.trials[-1], images.train, facts, workspace.root)
    measured, latency = ship.measure_shipped(
        shared, bundle.folder, bundle.digest, images.test, _stable(facts.machine)
    )
    facts = dataclasses.replace(facts, accuracy={**facts.accuracy, "shipped": shared.read(measured)})
    return reporting.finish(facts, workspace, bundle, latency, console)


def _stable(machine: Machine) -> Mapping[str, Any]:
    """The machine without what changes from minute to minute, as a key for measurements."""
    plain: dict[str, Any] = json.loads(json.dumps(machine.to_json()))
    plain.pop("load_average", None)
    return plain


def command_line() -> str:
    """The command that is running, as a person would type it."""
    return " ".join(["vlkd-edge", *sys.argv[1:]])
