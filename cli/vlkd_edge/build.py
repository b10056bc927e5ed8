"""The composition root: puts distill, compress, benchmarks and runtime together into one build."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from vlkd_bench.leaveout import BASELINE
from vlkd_bench.machine import Machine, read_machine
from vlkd_bench.samples import Sample
from vlkd_distill.data import UNLABELLED, DomainDataset, check_batch
from vlkd_distill.specs import MethodName, Settings
from vlkd_distill.teacher_names import check_name
from vlkd_runtime.errors import ConfigError, UnavailableError
from vlkd_runtime.vectors import ClassVectors

from . import (
    classvectors,
    evidence,
    further,
    learn,
    measurable,
    planned,
    pruning,
    questions,
    reporting,
    sharded,
    ship,
    synthesising,
    teach,
    unlabelled,
    virtualising,
)
from .bundling import Places, write
from .climbing import recipes
from .config import Config
from .facts import Facts, Images, closed, contract
from .progress import Live
from .reporting import Outcome
from .sharded import lies_in_shards
from .stages import StageResult, Workspace, locked
from .targets import Target

LEAST_TRAIN_IMAGES = 32
NEEDED = ("torch", "timm", "open_clip", "onnx", "onnxscript", "onnxruntime", "jinja2", "matplotlib")


def build(config: Config, out: Path, cache: Path, console: Console) -> Outcome:
    """Run every stage that is not done yet and write bundle and report.

    Args:
        config: what to build.
        out: output folder.
        cache: where teacher embeddings are kept.
        console: for people; progress is drawn only if it is a terminal.

    Raises:
        UsageError: the caller's mistake, found before any long work where it can be.
        RefusalError: a training ran away, or a parity check or a calibration said no.
    """
    target = config.device()
    check_beforehand(config)
    planned.check(config, dataclasses.replace(config.distill, method=BASELINE))
    with locked(out):
        live = Live(console)
        learning = learn.Learning(config, Workspace(out, cache, live.say), live)
        with questions.counting(learning):
            return _build(learning, target, console)


def check_beforehand(config: Config, runs: Sequence[Settings] = (), *, real: bool | None = None) -> None:
    """Refuse what can be refused before any work starts: names, folders, packages.

    Args:
        config: what is built or measured.
        runs: every training that is planned, where there are others than the configuration's own.
        real: whether any of them learns from real images; as their methods do when None.

    Raises:
        UsageError: names what to change or install.
    """
    runs = runs or (config.distill,)
    free = all(how.method == synthesising.METHOD for how in runs) if real is None else not real
    check_name(config.teacher.model)
    recipes(config.compress.candidates, config.device())
    further.wanted(config.bundle.variants, config.device())
    classvectors.chosen_templates(config)
    sources = learn.check_domains(config, needed=not free)
    if not free:
        check_batch(sources, config.distill.batch)
    unlabelled.check(config, runs, sources)
    learn.absent(config)
    virtualising.check(config)
    pruning.check(config)
    if config.data.root != "demo" and not lies_in_shards(config):
        dataset = learn.scan(config)
        images = Images.split(dataset, config.data.held_out, () if free else None)
        if any(how.reads_captions for how in runs):
            from vlkd_distill.captions import read_captions

            read_captions(Path(config.data.captions), images.train)
        if not free and len(images.train) < LEAST_TRAIN_IMAGES:
            msg = (
                f"Expected at least {LEAST_TRAIN_IMAGES} train images in the source domains of {config.data.root}, "
                f"found {len(images.train)}. Add images, or hold fewer domains out."
            )
            raise ConfigError(msg)
    for how in runs:
        planned.check(config, how)
    packages = (*NEEDED, *(["torch_pruning"] if config.compress.prune.target else []))
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        msg = f"A build needs packages that are not installed ({', '.join(missing)}): pip install 'vlkd-edge[build]'"
        raise UnavailableError(msg)


@dataclass(frozen=True, slots=True)
class _Learned:
    """What is there before anything is compressed.

    Attributes:
        images: who may see which.
        usable: train images that could be read; golden samples and calibration are drawn from them.
        contract: who saw what, a sentence each.
        store: the stage with their pixels.
        trained: the stage with the student's weights.
        answered: the stage with the class vectors that the student answers by.
        graphs: float graphs, by method.
        asked: where the teacher's predictions lie.
    """

    images: Images
    usable: tuple[Sample, ...]
    contract: tuple[str, ...]
    store: StageResult
    trained: StageResult
    answered: StageResult
    graphs: Mapping[MethodName, StageResult]
    asked: StageResult


def _methods(config: Config) -> tuple[MethodName, ...]:
    """What a build trains: the baseline and its own method."""
    return BASELINE, config.distill.method


def _build(learning: learn.Learning, target: Target, console: Console) -> Outcome:
    config, workspace = learning.config, learning.workspace
    learn.check_models(learning, _methods(config))
    dataset = learn.dataset(learning)
    learned = _for_the_guard(learning, _learn(learning, dataset))
    # The student's, which ship: a prompt-tuned teacher's are others than the zero-shot ones.
    vectors = ClassVectors.load(learned.answered.folder / "class_vectors.safetensors")
    shared = ship.Shipping(config, workspace, learning.live, learning.spec, vectors)
    facts = _compressed(learning, shared, target, dataset, learned)
    refused = facts.preflight is not None and facts.preflight["verdict"] == "fail"
    if facts.compressed.chosen is None or refused:
        Places.of(workspace.root, config.name, target.name).clear()
        return reporting.finish(facts, workspace, None, None, console)
    facts = dataclasses.replace(facts, further=further.judge(shared, facts.compressed))
    with closed(config, dataset):
        bundle = write(shared, target, facts, learned.usable, workspace.root)
    measured, latency = ship.measure_shipped(
        shared, bundle.folder, bundle.digest, learned.images.test, _stable(facts.machine)
    )
    facts = dataclasses.replace(facts, accuracy={**facts.accuracy, "shipped": shared.read(measured)})
    return reporting.finish(facts, workspace, bundle, latency, console)


def _learn(learning: learn.Learning, dataset: DomainDataset) -> _Learned:
    """Train the baseline and the student, with every held-out file closed, and export both."""
    config, teacher = learning.config, learn.teacher_key(learning.config)
    free = config.distill.method == synthesising.METHOD
    images = Images.split(dataset, config.data.held_out, () if free else None)
    images = dataclasses.replace(images, absent=learn.absent(config))
    images = measurable.only_decodable(learning, dataset, images, guarded=True)
    vectors_stage = classvectors.class_vectors(learning, dataset.classes, teacher)
    made = None
    if free:
        with closed(config, dataset):
            made = synthesising.samples(synthesising.stage(learning, vectors_stage), dataset.classes)
        images = dataclasses.replace(images, train=made)
    sources = dataset.sources(config.data.held_out) if made is None else synthesising.domains(made)
    extra = unlabelled.images_for(config, config.distill.method)
    if extra:
        unlabelled.refuse_measured(extra, (*images.test, *images.guarded))
    shown = dataclasses.replace(images, train=(*images.train, *extra))
    domains = (*sources, *dict.fromkeys(sample.domain for sample in extra))
    learning.live.banner("Data contract", _contract(config, domains, shown))
    learn.check_known(learning, (*images.train, *images.test))
    graphs, trained, answered = {}, vectors_stage, vectors_stage
    with closed(config, dataset):
        store = learn.pixels(learning, images.train)
        usable = learn.usable(store, images.train)
        for method in _methods(config):
            answered = teach.vectors_for(learning, method, images.train, store, vectors_stage)
            every, decoded = images.train, store
            if method == config.distill.method and extra:
                every = shown.train
                decoded = learn.pixels(learning, every)
            trained = teach.train(learning, method, every, decoded, answered)
            graphs[method] = teach.export(learning, method, trained, store, images.train, answered)
    seen = _contract(config, domains, shown, learn.usable(decoded, shown.train))
    asked = learn.teacher_predictions(learning, images.test, vectors_stage, teacher)
    return _Learned(images, usable, seen, store, trained, answered, graphs, asked)


def _for_the_guard(learning: learn.Learning, learned: _Learned) -> _Learned:
    """The same with all images that the guard judges by, and as files what is calibrated with."""
    config, images, usable = learning.config, learned.images, learned.usable
    if sharded.learns_from_shards(config, usable):
        usable = sharded.to_calibrate_with(learning, usable)
    if lies_in_shards(config):
        images = dataclasses.replace(images, guarded=sharded.files(learning, images.guarded))
    if not config.data.held_out:
        drawn = virtualising.samples(
            config.guard, config.distill.seed, learning.workspace, learning.live, images.test
        )
        images = dataclasses.replace(images, guarded=drawn)
    images = dataclasses.replace(images, guarded=(*images.guarded, *images.absent))
    return dataclasses.replace(learned, images=images, usable=usable)


def _compressed(
    learning: learn.Learning,
    shared: ship.Shipping,
    target: Target,
    dataset: DomainDataset,
    learned: _Learned,
) -> Facts:
    """Compress the student under the guard, and have TensorRT look at what it let through."""
    config, images = learning.config, learned.images
    student = learned.graphs[config.distill.method]
    erm_rows = shared.read(shared.predictions(BASELINE, learned.graphs[BASELINE], images.test))
    both = {sample.image: sample for sample in (*images.test, *images.guarded)}
    answers = {
        row.image: row for row in shared.read(shared.predictions("student", student, tuple(both.values())))
    }
    reference = tuple(answers[sample.image] for sample in images.guarded)
    slimming = pruning.Slimming(
        learning,
        config.distill.method,
        learned.trained,
        student,
        learned.store,
        images.train,
        learned.answered,
        partial(closed, config, dataset),
    )
    compressed = ship.compress(
        shared,
        student,
        reference,
        images.guarded,
        learned.usable,
        partial(learn.teacher_embeddings, learning),
        slimming.rungs,
    )
    evidence.write(learning.workspace.root / "guard", reference, compressed.trials, shared.vectors.names)
    return Facts(
        config=config,
        target=target,
        dataset=dataset,
        contract=learned.contract,
        accuracy={
            "teacher": shared.read(learned.asked),
            "erm": erm_rows,
            "student": tuple(answers[sample.image] for sample in images.test),
        },
        reference=reference,
        paths={name: sample.path for name, sample in both.items()},
        compressed=compressed,
        preflight=ship.preflight(shared, compressed),
        machine=read_machine(),
        vectors=shared.vectors,
        queries=questions.queries(learning),
    )


def _contract(
    config: Config, sources: Sequence[str], images: Images, usable: Sequence[Sample] | None = None
) -> tuple[str, ...]:
    """Who sees which images, a sentence each: shown before any work and kept with the results."""
    made = contract(config, config.distill.method, sources, images, usable)
    unknown = sum(sample.domain == UNLABELLED for sample in (images.train if usable is None else usable))
    counts = dataclasses.replace(
        made.counts,
        calibration=min(config.compress.calibration_images, made.counts.train - unknown),
        guarded=len(images.guarded),
    )
    banner = dataclasses.replace(made, counts=counts).banner()
    if not config.data.held_out:
        banner = (*banner, virtualising.contract(config.guard, len(images.test)))
    if config.distill.method == synthesising.METHOD:
        return (
            *banner,
            synthesising.contract(config),
            f"Beside it, {BASELINE} learns from the same made images.",
        )
    baseline = contract(config, BASELINE, sources, images, usable).banner()[0]
    return (*banner, f"Beside it, {baseline}")


def _stable(machine: Machine) -> Mapping[str, Any]:
    """The machine without what changes from minute to minute, as a key for measurements."""
    plain: dict[str, Any] = json.loads(json.dumps(machine.to_json()))
    plain.pop("load_average", None)
    return plain
