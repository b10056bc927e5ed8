"""`vlkd-edge bench dg`: train and export every method with every domain left out, and measure what came out."""

from __future__ import annotations

import dataclasses
import json
import shlex
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from vlkd_bench.accuracy import summarise
from vlkd_bench.leaveout import TEACHER, Cell, LeaveOutTable
from vlkd_bench.machine import read_machine
from vlkd_bench.predictions import PredictionRow
from vlkd_distill.specs import MethodName
from vlkd_runtime.atomic import write_bytes, write_text
from vlkd_runtime.errors import ConfigError
from vlkd_runtime.vectors import ClassVectors

from . import learn, ship
from .build import check_beforehand
from .config import Config, DataConfig
from .facts import Images, stand_ins
from .parsing import nearest
from .progress import Live
from .stages import Workspace, locked

ALL = "all"


@dataclass(frozen=True, slots=True)
class Plan:
    """Which cells a table has.

    Attributes:
        methods: distillation methods and baselines.
        held_out: domains, one at a time; ``("all",)`` for each there is.
        seeds: of weights, batches and views.
    """

    methods: tuple[MethodName, ...]
    held_out: tuple[str, ...]
    seeds: tuple[int, ...]


def parse_plan(methods: str, held_out: str, seeds: str) -> Plan:
    """Read comma-separated lists.

    Raises:
        ConfigError: a list is empty or names something twice, a method is unknown, or a seed is no number.
    """
    lists = {"--methods": methods, "--held-out": held_out, "--seeds": seeds}
    words = {key: tuple(word.strip() for word in text.split(",")) for key, text in lists.items()}
    for key, found in words.items():
        if "" in found or len(set(found)) != len(found):
            msg = f"{key}: expected different names with commas between them, found '{lists[key]}'."
            raise ConfigError(msg)
    known = typing.get_args(MethodName)
    for name in words["--methods"]:
        if name not in known:
            msg = f"--methods names '{name}'. Expected some of {', '.join(known)}.{nearest(name, known)}"
            raise ConfigError(msg)
    if not all(word.isdecimal() for word in words["--seeds"]):
        msg = f"--seeds: expected whole numbers from 0, found '{seeds}'."
        raise ConfigError(msg)
    chosen = typing.cast("tuple[MethodName, ...]", words["--methods"])
    return Plan(chosen, words["--held-out"], tuple(map(int, words["--seeds"])))


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
    configs = [dataclasses.replace(config, data=_holding_out(config, name)) for name in domains]
    for one in configs:
        check_beforehand(one)
    with locked(out):
        live = Live(console)
        learning = learn.Learning(config, Workspace(out, cache, live.say), live)
        cells: list[Cell] = []
        for position, one in enumerate(configs):
            live.say(f"held out: {domains[position]} ({position + 1} of {len(domains)})")
            cells += _held_out(dataclasses.replace(learning, config=one), plan)
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
        stand_ins=stand_ins(config),
    )


def _holding_out(config: Config, domain: str) -> DataConfig:
    return dataclasses.replace(config.data, held_out=(domain,))


def _held_out(learning: learn.Learning, plan: Plan) -> list[Cell]:
    """Every cell of one held-out domain."""
    config = learning.config
    dataset = learn.dataset(learning)
    images = Images.split(dataset, config.data.held_out)
    key = learn.teacher_key(config)
    vectors_stage = learn.class_vectors(learning, dataset.classes, key)
    vectors = ClassVectors.load(vectors_stage.folder / "class_vectors.safetensors")
    store = learn.pixels(learning, images.train)
    shared = ship.Shipping(config, learning.workspace, learning.live, learning.spec, vectors)
    asked = shared.read(learn.teacher_predictions(learning, images.test, vectors_stage, key))
    cells = [_cell(config, TEACHER, 0, asked)]
    for seed in plan.seeds:
        seeded = dataclasses.replace(config, distill=dataclasses.replace(config.distill, seed=seed))
        student = dataclasses.replace(learning, config=seeded)
        for method in plan.methods:
            learning.live.say(f"{method}, seed {seed}")
            trained = learn.train(student, method, images.train, store, vectors_stage)
            graph = learn.export(student, method, trained, store, images.train, vectors_stage)
            rows = shared.read(shared.predictions(method, graph, images.test))
            cells.append(_cell(config, method, seed, rows))
    return cells


def _cell(config: Config, method: str, seed: int, rows: Sequence[PredictionRow]) -> Cell:
    domains = summarise(rows).domains
    held_out = config.data.held_out[0]
    sources = [value.accuracy for name, value in domains.items() if name != held_out]
    dataset = "demo" if config.data.root == "demo" else Path(config.data.root).name
    return Cell(dataset, method, held_out, seed, domains[held_out].accuracy, sum(sources) / len(sources))


def command_line(
    plan: Plan, config: Path | None, variables: Sequence[str], settings: Sequence[str], dataset: str | None
) -> str:
    """The command that makes the table again; folders of one machine become their last part."""
    words = ["vlkd-edge", "bench", "dg"]
    if dataset is not None:
        words += ["--dataset", Path(dataset).name]
    words += ["--methods", ",".join(plan.methods), "--held-out", ",".join(plan.held_out)]
    words += ["--seeds", ",".join(map(str, plan.seeds))]
    if config is not None:
        words += ["--config", str(config) if not config.is_absolute() else config.name]
    for variable in variables:
        key, _, value = variable.partition("=")
        words += ["--var", f"{key}={Path(value).name}"]
    words += [word for value in settings for word in ("--set", value)]
    return shlex.join(words)


def write(table: LeaveOutTable, folder: Path, name: str) -> None:
    """Write the table as JSON, Markdown and picture."""
    write_text(folder / f"{name}.json", json.dumps(table.as_json(), indent=1) + "\n")
    write_text(folder / f"{name}.md", table.markdown())
    write_bytes(folder / f"{name}.png", table.picture())
