"""`vlkd-edge bench dg`: train and export every method with every domain left out, and measure what came out."""

from __future__ import annotations

import dataclasses
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
from vlkd_distill.datacontract import DataContract
from vlkd_distill.specs import MethodName
from vlkd_runtime.atomic import write_bytes, write_text
from vlkd_runtime.errors import ConfigError
from vlkd_runtime.vectors import ClassVectors

from . import learn, ship, synthesising, teach
from .build import check_beforehand
from .config import Config
from .facts import Images, contract, stand_ins
from .parsing import nearest
from .progress import Live
from .stages import Workspace, locked

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
    config: Config, plan: Plan, out: Path, cache: Path, console: Console, command: str
) -> LeaveOutTable:
    """Run every cell that is not done yet.

    Args:
        config: data, teacher, student and training; its held-out domains, method and seed are the plan's.
        plan: which cells.
        out: output folder; an interrupted table goes on from what lies there.
        cache: where teacher embeddings are kept.
        console: for people.
        command: what to write down as the way to make the table again.

    Raises:
        UsageError: the caller's mistake, found before any long work where it can be.
    """
    domains = plan.held_out if plan.held_out != (ALL,) else learn.domains(config)
    configs = [holding_out(config, name) for name in domains]
    for one in configs:
        check_beforehand(one)
    with locked(out):
        live = Live(console)
        learning = learn.Learning(config, Workspace(out, cache, live.say), live)
        cells: list[Cell] = []
        contracts: list[Mapping[str, Any]] = []
        for position, one in enumerate(configs):
            live.say(f"held out: {domains[position]} ({position + 1} of {len(domains)})")
            done, seen = _held_out(dataclasses.replace(learning, config=one), plan)
            cells += done
            contracts += [contract.as_json() for contract in seen]
    distill = dataclasses.asdict(config.distill)
    for name in ("method", "seed"):
        del distill[name]
    return LeaveOutTable(
        cells=tuple(sorted(cells, key=lambda cell: (TEACHER, *plan.methods).index(cell.method))),
        command=command,
        machine=read_machine().describe().partition(", load ")[0],
        teacher=config.teacher.model if config.teacher.model == "demo" else Path(config.teacher.model).name,
        student=f"{config.student.arch} at {config.student.image_size} px, start weights {config.student.pretrained}",
        settings=distill,
        stand_ins=stand_ins(config, plan.methods),
        contract=tuple(contracts),
    )


def holding_out(config: Config, domain: str) -> Config:
    """The same configuration with this domain held out."""
    return dataclasses.replace(config, data=dataclasses.replace(config.data, held_out=(domain,)))


def _held_out(learning: learn.Learning, plan: Plan) -> tuple[list[Cell], list[DataContract]]:
    """Every cell of one held-out domain, and what each method saw."""
    config = learning.config
    dataset = learn.dataset(learning)
    images = Images.split(dataset, config.data.held_out)
    methods = typing.cast("tuple[MethodName, ...]", plan.methods)
    key = learn.teacher_key(config)
    vectors_stage = learn.class_vectors(learning, dataset.classes, key)
    vectors = ClassVectors.load(vectors_stage.folder / "class_vectors.safetensors")
    seen = dict.fromkeys(methods, (images, dataset.sources(config.data.held_out)))
    if synthesising.METHOD in methods:
        made = synthesising.samples(synthesising.stage(learning, vectors_stage), dataset.classes)
        own = Images.split(dataset, config.data.held_out, made)
        seen[synthesising.METHOD] = (own, synthesising.domains(made))
    for method, (own, sources) in seen.items():
        learning.live.banner("Data contract", contract(config, method, sources, own).banner())
    stores = {method: learn.pixels(learning, own.train) for method, (own, _) in seen.items()}
    contracts = [
        contract(config, method, sources, own, learn.usable(stores[method], own.train))
        for method, (own, sources) in seen.items()
    ]
    shared = ship.Shipping(config, learning.workspace, learning.live, learning.spec, vectors)
    asked = shared.read(learn.teacher_predictions(learning, images.test, vectors_stage, key))
    cells = [cell(config, TEACHER, 0, asked)]
    for seed in plan.seeds:
        seeded = dataclasses.replace(config, distill=dataclasses.replace(config.distill, seed=seed))
        student = dataclasses.replace(learning, config=seeded)
        for method in methods:
            learning.live.say(f"{method}, seed {seed}")
            train, store = seen[method][0].train, stores[method]
            answered = teach.vectors_for(student, method, train, store, vectors_stage)
            trained = teach.train(student, method, train, store, answered)
            graph = teach.export(student, method, trained, store, train, answered)
            rows = shared.read(shared.predictions(method, graph, images.test))
            cells.append(cell(config, method, seed, rows))
    return cells, contracts


def cell(config: Config, method: str, seed: int, rows: Sequence[PredictionRow]) -> Cell:
    """A measured cell from predictions on the test images of all domains."""
    domains = summarise(rows).domains
    held_out = config.data.held_out[0]
    sources = [value.accuracy for name, value in domains.items() if name != held_out]
    return Cell(
        config.data.name, method, held_out, seed, domains[held_out].accuracy, sum(sources) / len(sources)
    )


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
        words += ["--dataset", f"{'wds:' * dataset.startswith('wds:')}{Path(dataset).name}"]
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
