"""`vlkd-edge bench dg`: train and export every method with every domain left out, and measure what came out."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from vlkd_bench.accuracy import summarise
from vlkd_bench.disjoint import DisjointTable
from vlkd_bench.leaveout import TEACHER, Cell, LeaveOutTable
from vlkd_bench.machine import read_machine
from vlkd_bench.predictions import PredictionRow
from vlkd_distill.augmentation import Augmentation
from vlkd_distill.data import content_key
from vlkd_distill.datacontract import DataContract
from vlkd_distill.specs import MethodName
from vlkd_runtime.atomic import write_bytes, write_text
from vlkd_runtime.errors import ConfigError
from vlkd_runtime.vectors import ClassVectors

from . import (
    classvectors,
    learn,
    measurable,
    questions,
    sharded,
    ship,
    synthesising,
    teach,
    trainingdata,
    unlabelled,
)
from .build import check_beforehand
from .config import Config
from .facts import Images, closed, contract, stand_ins
from .parsing import nearest
from .progress import Live
from .stages import Workspace, locked, versions

ALL = "all"
KNOWN: tuple[str, ...] = typing.get_args(MethodName)


@dataclass(frozen=True, slots=True)
class Plan:
    """Which cells a table has.

    Attributes:
        methods: distillation methods and baselines, by the names that the table knows.
        held_out: domains, one at a time; ``("all",)`` for each there is.
        seeds: of weights, batches and views.
    """

    methods: tuple[str, ...]
    held_out: tuple[str, ...]
    seeds: tuple[int, ...]


def parse_plan(methods: str, held_out: str, seeds: str, known: Sequence[str]) -> Plan:
    """Read comma-separated lists.

    Args:
        methods: some of ``known``.
        held_out: domains, or ``all``.
        seeds: whole numbers.
        known: names that ``methods`` may hold.

    Raises:
        ConfigError: a list is empty or names something twice, a method is unknown, or a seed is no number.
    """
    lists = {"--methods": methods, "--held-out": held_out, "--seeds": seeds}
    words = {key: tuple(word.strip() for word in text.split(",")) for key, text in lists.items()}
    for key, found in words.items():
        if "" in found or len(set(found)) != len(found):
            msg = f"{key}: expected different names with commas between them, found '{lists[key]}'."
            raise ConfigError(msg)
    for name in words["--methods"]:
        if name not in known:
            msg = f"--methods names '{name}'. Expected some of {', '.join(known)}.{nearest(name, known)}"
            raise ConfigError(msg)
    if not all(word.isdecimal() for word in words["--seeds"]):
        msg = f"--seeds: expected whole numbers from 0, found '{seeds}'."
        raise ConfigError(msg)
    return Plan(words["--methods"], words["--held-out"], tuple(map(int, words["--seeds"])))


def leave_one_out(
    config: Config,
    plan: Plan,
    out: Path,
    cache: Path,
    console: Console,
    command: str,
    earlier: LeaveOutTable | None = None,
    notes: Sequence[str] = (),
) -> LeaveOutTable:
    """Run every cell that is not done yet.

    Args:
        config: data, teacher, student and training; its held-out domains, method and seed are the plan's.
        plan: which cells.
        out: output folder; an interrupted table goes on from what lies there.
        cache: where teacher embeddings are kept.
        console: for people.
        command: what to write down as the way to make the table again.
        earlier: a table whose cells are not run again where all that they depend on is the same, and to which
            the others are added.
        notes: paragraphs to stand below the table, in place of the earlier ones.

    Raises:
        UsageError: the caller's mistake, found before any long work where it can be.
    """
    domains = plan.held_out if plan.held_out != (ALL,) else learn.domains(config)
    configs = [holding_out(config, name) for name in domains]
    runs = [dataclasses.replace(config.distill, method=name) for name in _methods(plan)]
    for one in configs:
        check_beforehand(one, runs)
    empty = _table(config, plan, (), command, ())
    if earlier is not None:
        earlier = _up_to_date(earlier, config, plan, domains, empty.settings)
        earlier.with_more(empty)  # refuses what does not belong in one table before anything is trained
    known = {} if earlier is None else {cell.key: cell for cell in earlier.cells if cell.key}
    with locked(out):
        live = Live(console)
        learning = learn.Learning(config, Workspace(out, cache, live.say), live)
        learn.check_models(learning, _methods(plan))
        cells: list[Cell] = []
        contracts: list[Mapping[str, Any]] = []
        with questions.counting(learning):
            for position, one in enumerate(configs):
                live.say(f"held out: {domains[position]} ({position + 1} of {len(domains)})")
                done, seen = _held_out(dataclasses.replace(learning, config=one), plan, known)
                cells += done
                contracts += [contract.as_json() for contract in seen]
        queries = questions.queries(learning)
    made = dataclasses.replace(
        _table(config, plan, cells, command, contracts),
        notes=tuple(notes),
        queries=None if queries is None else queries.as_json(),
    )
    return made if earlier is None else earlier.with_more(made)


def _methods(plan: Plan) -> tuple[MethodName, ...]:
    return typing.cast("tuple[MethodName, ...]", plan.methods)  # which `parse_plan` has looked at


def _up_to_date(
    earlier: LeaveOutTable, config: Config, plan: Plan, domains: Sequence[str], settings: Mapping[str, Any]
) -> LeaveOutTable:
    """An earlier table without the rows that today's settings change, where the plan makes all of their cells again.

    The cells of other methods stay: their keys say that nothing which they depend on has changed.
    """
    now = json.loads(json.dumps(settings))
    changed = {name for name in {*earlier.settings, *now} if earlier.settings.get(name) != now.get(name)}
    outdated = {
        cell.method
        for cell in earlier.cells
        if cell.method in KNOWN
        and changed
        & dataclasses.replace(config.distill, method=typing.cast("MethodName", cell.method)).used().keys()
    }
    lost = [cell for cell in earlier.cells if cell.method in outdated]
    made_again = {(name, domain, seed) for name in plan.methods for domain in domains for seed in plan.seeds}
    if not changed or not {(cell.method, cell.held_out, cell.seed) for cell in lost} <= made_again:
        return earlier  # the same, or of other settings, which is refused where tables are put together
    return dataclasses.replace(
        earlier,
        cells=tuple(cell for cell in earlier.cells if cell.method not in outdated),
        contract=tuple(one for one in earlier.contract if one["method"] not in outdated),
        settings=now,
    )


def _table(
    config: Config, plan: Plan, cells: Sequence[Cell], command: str, contracts: Sequence[Mapping[str, Any]]
) -> LeaveOutTable:
    distill = config.distill.as_json()
    for name in ("method", "seed", "processes"):
        del distill[name]
    distill.pop("device", None)  # another one rounds otherwise, as another machine does
    return LeaveOutTable(
        cells=tuple(sorted(cells, key=lambda cell: (TEACHER, *plan.methods).index(cell.method))),
        command=command,
        machine=read_machine().describe().partition(", load ")[0],
        teacher=config.teacher.model if config.teacher.model == "demo" else Path(config.teacher.model).name,
        student=config.student.words,
        settings=distill,
        stand_ins=stand_ins(config, plan.methods),
        contract=tuple(contracts),
    )


def holding_out(config: Config, domain: str) -> Config:
    """The same configuration with this domain held out."""
    return dataclasses.replace(config, data=dataclasses.replace(config.data, held_out=(domain,)))


def _held_out(
    learning: learn.Learning, plan: Plan, known: Mapping[str, Cell]
) -> tuple[list[Cell], list[DataContract]]:
    """Every cell of one held-out domain, and what each method saw."""
    config = learning.config
    dataset = learn.dataset(learning)
    images = Images.split(dataset, config.data.held_out)
    images = measurable.only_decodable(learning, dataset, images)
    methods = _methods(plan)
    key = learn.teacher_key(config)
    vectors_stage = classvectors.class_vectors(learning, dataset.classes, key)
    vectors = ClassVectors.load(vectors_stage.folder / "class_vectors.safetensors")
    seen = dict.fromkeys(methods, (images, dataset.sources(config.data.held_out)))
    if synthesising.METHOD in methods:
        with closed(config, dataset):
            made = synthesising.samples(synthesising.stage(learning, vectors_stage), dataset.classes)
        own = dataclasses.replace(images, train=made, not_imported=())
        seen[synthesising.METHOD] = (own, synthesising.domains(made))
    mixed = set()  # methods that learn from images without labels, too
    for method, (own, sources) in seen.items():
        if extra := unlabelled.images_for(config, method):
            mixed.add(method)
            unlabelled.refuse_measured(extra, (*images.test, *images.guarded))
            more = dataclasses.replace(own, train=(*own.train, *extra))
            seen[method] = (more, (*sources, extra[0].domain))
    basis = {
        "teacher": key,
        "vectors": vectors_stage.key,
        "test": content_key(images.test),
        "preprocess": learning.spec.to_json(),
    }
    trained_on = {method: sharded.train_key(config, own.train) for method, (own, _) in seen.items()}
    keys = {
        (method, seed): _key(_seeded(learning, seed), method, trained_on[method], basis)
        for method, (own, _) in seen.items()
        for seed in plan.seeds
    }
    missing = dict.fromkeys(method for (method, _), digest in keys.items() if digest not in known)
    seen = {method: seen[method] for method in missing}
    for method, (own, sources) in seen.items():
        learning.live.banner("Data contract", contract(config, method, sources, own).banner())
        learn.check_known(learning, (*own.train, *own.test))
    with closed(config, dataset):
        stores = {method: learn.pixels(learning, own.train) for method, (own, _) in seen.items()}
    contracts = [
        contract(config, method, sources, own, learn.usable(stores[method], own.train))
        for method, (own, sources) in seen.items()
    ]
    shared = ship.Shipping(config, learning.workspace, learning.live, learning.spec, vectors)
    asked = _digest({"method": TEACHER, **basis})
    cells = [known[asked]] if asked in known else []
    if not cells:
        answers = shared.read(learn.teacher_predictions(learning, images.test, vectors_stage, key))
        cells = [cell(config, TEACHER, 0, answers, asked)]
    for (method, seed), digest in keys.items():
        learning.live.say(f"{method}, seed {seed}" + (": found in the table" if digest in known else ""))
        if digest in known:
            cells.append(known[digest])
            continue
        student = _seeded(learning, seed)
        train, store = seen[method][0].train, stores[method]
        with closed(config, dataset):
            labelled, decoded = train, store
            if method in mixed:
                labelled, decoded = images.train, learn.pixels(student, images.train)
            answered = teach.vectors_for(student, method, labelled, decoded, vectors_stage)
            trained = teach.train(student, method, train, store, answered)
            graph = teach.export(student, method, trained, store, train, answered)
        vectors = learn.load_vectors(answered)
        own_shared = dataclasses.replace(shared, vectors=vectors)
        rows = shared.read(own_shared.predictions(method, graph, images.test))
        cells.append(cell(config, method, seed, rows, digest))
    return cells, contracts


def _seeded(learning: learn.Learning, seed: int) -> learn.Learning:
    distill = dataclasses.replace(learning.config.distill, seed=seed)
    return dataclasses.replace(learning, config=dataclasses.replace(learning.config, distill=distill))


def _key(learning: learn.Learning, method: MethodName, train: str, basis: Mapping[str, Any]) -> str:
    """Hash of all that a cell's result depends on, as far as this project decides it.

    The versions of torch and the processor's arithmetic are left out, so that a table can grow on several
    machines.
    """
    inputs = {
        "train": train,
        "settings": learning.settings(method).used(),
        "augmentation": dataclasses.asdict(Augmentation()),
        "student": dataclasses.asdict(learning.student_spec()),
        "version": versions("vlkd-edge"),
        "prompts": dataclasses.asdict(learning.config.prompts) if method == "promptkd" else None,
        "styles": trainingdata.style_renderer() if method == "vlkd" else None,
    }
    if "prompted_styles" in learning.settings(method).used():
        inputs["restyler"] = synthesising.restyler_key(learning.config)
    if learning.settings(method).reads_captions:
        inputs["captions"] = trainingdata.captions_key(learning.config)
    return _digest({"method": method, **basis, **inputs})


def _digest(inputs: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def cell(config: Config, method: str, seed: int, rows: Sequence[PredictionRow], key: str = "") -> Cell:
    """A measured cell from predictions on the test images of all domains."""
    domains = summarise(rows).domains
    held_out = config.data.held_out[0]
    sources = [value.accuracy for name, value in domains.items() if name != held_out]
    mean = sum(sources) / len(sources)
    return Cell(config.data.name, method, held_out, seed, domains[held_out].accuracy, mean, key)


def command_line(
    verb: Sequence[str],
    plan: Plan,
    config: Path | None,
    variables: Sequence[str],
    settings: Sequence[str],
    dataset: str | None,
) -> str:
    """The command that makes the table again; folders of one machine become their last part."""
    words = ["vlkd-edge", "bench", *verb]
    if dataset is not None:
        words += ["--dataset", sharded.told(dataset)]
    words += ["--methods", ",".join(plan.methods), "--held-out", ",".join(plan.held_out)]
    words += ["--seeds", ",".join(map(str, plan.seeds))]
    if config is not None:
        words += ["--config", str(config) if not config.is_absolute() else config.name]
    for variable in variables:
        key, _, value = variable.partition("=")
        words += ["--var", f"{key}={Path(value).name}"]
    words += [word for value in settings for word in ("--set", value)]
    return shlex.join(words)


def write(table: LeaveOutTable | DisjointTable, folder: Path, name: str) -> None:
    """Write the table as JSON, Markdown and picture."""
    write_text(folder / f"{name}.json", json.dumps(table.as_json(), indent=1) + "\n")
    write_text(folder / f"{name}.md", table.markdown())
    write_bytes(folder / f"{name}.png", table.picture())
