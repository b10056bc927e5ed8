"""`vlkd-edge bench data-free`: students that learned from made images beside one that learned from real ones."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich.console import Console

from vlkd_bench.datafree import REAL, DataFreeTable, MadeImages
from vlkd_bench.leaveout import BASELINE, TEACHER, Cell
from vlkd_bench.machine import read_machine
from vlkd_bench.samples import Sample
from vlkd_distill.data import DomainDataset
from vlkd_distill.specs import MethodName
from vlkd_distill.synthspecs import SynthesisSettings
from vlkd_runtime.atomic import write_bytes, write_text
from vlkd_runtime.errors import ConfigError
from vlkd_runtime.vectors import ClassVectors

from . import classvectors, learn, measurable, questions, sharded, ship, synthesising, teach
from .build import check_beforehand
from .config import Config
from .facts import Images, closed, contract, stand_ins
from .leaveout import cell
from .parsing import nearest
from .progress import Live
from .stages import StageResult, Workspace, locked

MEANING: Mapping[str, str] = MappingProxyType(
    {
        TEACHER: "the teacher's zero-shot answers",
        BASELINE: "plain training on the real train images of the source domains, labels and all",
        REAL: "the loss of data-free, on the same real train images",
        "single": "made images, one plain prompt a class",
        "mix": "made images, Mix-Prompt in sentence space",
        "random": "made images, Random-Prompt in sentence space",
        "contrastive": "made images, Contrastive-Prompt in sentence space",
        "contrastive-named": "as contrastive, with prompts that may name the held-out domain: it is described, though "
        "not seen",
        "inversion-single": "one plain prompt a class, images by inversion of the teacher",
        "inversion-contrastive": "Contrastive-Prompt in token space, images by inversion of the teacher",
    }
)
ROWS = tuple(name for name in MEANING if name != TEACHER)


@dataclass(frozen=True, slots=True)
class Plan:
    """Which rows a table has.

    Attributes:
        rows: names of `ROWS`.
        held_out: the domain that nothing learns from.
        seeds: of prompts, images, weights, batches and views.
        inversion_images: images a class of the inversion rows, which are dear; as many as the others when None.
    """

    rows: tuple[str, ...]
    held_out: str
    seeds: tuple[int, ...]
    inversion_images: int | None = None


def parse_plan(rows: str, held_out: str, seeds: str, inversion_images: int | None = None) -> Plan:
    """Read comma-separated lists.

    Raises:
        ConfigError: an unknown row, one named twice, or a seed that is no number.
    """
    names = tuple(word.strip() for word in rows.split(","))
    for name in names:
        if name not in ROWS:
            msg = f"--rows names '{name}'. Expected some of {', '.join(ROWS)}.{nearest(name, ROWS)}"
            raise ConfigError(msg)
    words = tuple(word.strip() for word in seeds.split(","))
    if not all(word.isdecimal() for word in words) or len(set(words)) != len(words):
        msg = f"--seeds: expected different whole numbers from 0, found '{seeds}'."
        raise ConfigError(msg)
    if len(set(names)) != len(names):
        msg = f"--rows: expected each row once, found '{rows}'."
        raise ConfigError(msg)
    return Plan(names, held_out, tuple(map(int, words)), inversion_images)


def run(
    config: Config,
    plan: Plan,
    out: Path,
    cache: Path,
    console: Console,
    command: str,
    notes: Sequence[str] = (),
) -> DataFreeTable:
    """Make the images and train the students that are not there yet.

    Every made set has as many images a class as there are real train images a class, so that all students take
    the same number of steps; inversion rows have fewer where the plan says so.

    Args:
        config: data, teacher, student, training and synthesis.
        plan: which rows.
        out: output folder; an interrupted table goes on from what lies there.
        cache: where teacher embeddings are kept.
        console: for people.
        command: what to write down as the way to make the table again.
        notes: sentences to put beneath the table.

    Raises:
        UsageError: the caller's mistake, found before any long work where it can be.
    """
    data = dataclasses.replace(config.data, held_out=(plan.held_out,))
    distill = dataclasses.replace(config.distill, method=synthesising.METHOD)
    config = dataclasses.replace(config, data=data, distill=distill)
    check_beforehand(config, real=not {BASELINE, REAL}.isdisjoint(plan.rows))
    with locked(out):
        live = Live(console)
        learning = learn.Learning(config, Workspace(out, cache, live.say), live)
        contracts: dict[str, Mapping[str, Any]] = {}
        with questions.counting(learning):
            cells, made, per_class = _rows(learning, plan, contracts)
        queries = questions.queries(learning)
    settings = {k: v for k, v in config.distill.used().items() if k != "seed"}
    synthesis = {k: v for k, v in config.synthesis.used().items() if k not in ("rule", "space", "seed")}
    return DataFreeTable(
        cells=cells,
        made=made,
        meaning={name: MEANING[name] for name in (TEACHER, *plan.rows)},
        command=command,
        machine=read_machine().describe().partition(", load ")[0],
        teacher=config.teacher.model if config.teacher.model == "demo" else Path(config.teacher.model).name,
        student=config.student.words,
        settings=settings
        | {f"synthesis.{k}": v for k, v in synthesis.items()}
        | {"synthesis.images_per_class": per_class, "excluded": list(synthesising.excluded(config))},
        stand_ins=stand_ins(config),
        notes=tuple(notes),
        contract=tuple(contracts.values()),
        queries=None if queries is None else queries.as_json(),
    )


def _rows(
    learning: learn.Learning, plan: Plan, contracts: dict[str, Mapping[str, Any]]
) -> tuple[tuple[Cell, ...], tuple[MadeImages | None, ...], int]:
    config = learning.config
    dataset = learn.dataset(learning)
    images = measurable.only_decodable(learning, dataset, Images.split(dataset, config.data.held_out))
    per_class = len(images.train) // len(dataset.classes)
    vectors_stage = classvectors.class_vectors(learning, dataset.classes, learn.teacher_key(config))
    vectors = ClassVectors.load(vectors_stage.folder / "class_vectors.safetensors")
    shared = ship.Shipping(config, learning.workspace, learning.live, learning.spec, vectors)
    asked = learn.teacher_predictions(learning, images.test, vectors_stage, learn.teacher_key(config))
    cells = [cell(config, TEACHER, 0, shared.read(asked))]
    found: list[MadeImages | None] = [None]
    for seed in plan.seeds:
        for name in plan.rows:
            learning.live.say(f"{name}, seed {seed}")
            count = per_class
            if name.startswith("inversion-") and plan.inversion_images is not None:
                count = plan.inversion_images
            row = dataclasses.replace(learning, config=_configured(config, name, seed, count))
            method: MethodName = BASELINE if name == BASELINE else synthesising.METHOD
            if name in (BASELINE, REAL):
                seen, described = images.train, None
            else:
                with closed(config, dataset):
                    stage = synthesising.stage(row, vectors_stage)
                seen, described = synthesising.samples(stage, dataset.classes), _described(stage)
            with closed(config, dataset):
                store = learn.pixels(row, seen)
            usable = learn.usable(store, seen)
            if name not in contracts:  # the same for every seed
                shown = dataclasses.replace(images, train=tuple(seen))
                contracts[name] = _announced(row, name, dataset, shown, usable)
            with closed(config, dataset):
                graph = _trained(row, method, seen, store, vectors_stage)
            answers = shared.read(shared.predictions(name, graph, images.test))
            cells.append(cell(config, name, seed, answers))
            found.append(described or MadeImages(len(usable)))
    order = sorted(range(len(cells)), key=lambda k: (TEACHER, *plan.rows).index(cells[k].method))
    return tuple(cells[k] for k in order), tuple(found[k] for k in order), per_class


def _announced(
    learning: learn.Learning,
    name: str,
    dataset: DomainDataset,
    images: Images,
    usable: Sequence[Sample],
) -> Mapping[str, Any]:
    """Show who sees what in a row, and give it as plain values."""
    config = learning.config
    if name in (BASELINE, REAL):
        # On real images, the loss of data-free looks at what naive distillation looks at.
        method: MethodName = BASELINE if name == BASELINE else "kd"
        sources = dataset.sources(config.data.held_out)
    else:
        method, sources = synthesising.METHOD, synthesising.domains(images.train)
    agreed = contract(config, method, sources, images, usable)
    _, *rest = agreed.banner()
    learning.live.banner("Data contract", (f"{name}: {agreed.text}", *rest))
    return agreed.as_json() | {"method": name}


def _trained(
    learning: learn.Learning,
    method: MethodName,
    seen: Sequence[Sample],
    store: StageResult,
    vectors: StageResult,
) -> StageResult:
    trained = teach.train(learning, method, seen, store, vectors)
    return teach.export(learning, method, trained, store, seen, vectors)


def _configured(config: Config, name: str, seed: int, per_class: int) -> Config:
    """The configuration of one row."""
    changes: dict[str, object] = {"seed": seed, "images_per_class": per_class}
    if name.startswith("inversion-"):
        changes["synthesiser"] = "inversion"
    rule = name.removeprefix("inversion-").removesuffix("-named")
    if rule in ("single", "mix", "random", "contrastive"):
        changes["rule"] = rule
    if name == "inversion-contrastive":
        changes["space"] = "token"
    if name.endswith("-named"):
        changes["exclude_held_out"] = False
    synthesis: SynthesisSettings = dataclasses.replace(config.synthesis, **changes)  # type: ignore[arg-type]
    return dataclasses.replace(
        config, synthesis=synthesis, distill=dataclasses.replace(config.distill, seed=seed)
    )


def _described(stage: StageResult) -> MadeImages:
    plain = json.loads((stage.folder / f"{synthesising.REPORT}.json").read_text())
    accepted = plain["accepted"] if plain["judge"] else plain["consistency"]
    return MadeImages(plain["images"], accepted, plain["distance"], plain["vendi"])


def command_line(
    plan: Plan, config: Path | None, settings: Sequence[str], notes: Sequence[str], dataset: str | None
) -> str:
    """The command that makes the table again; folders of one machine become their last part."""
    words = ["vlkd-edge", "bench", "data-free"]
    if dataset is not None:
        words += ["--dataset", sharded.told(dataset)]
    words += ["--held-out", plan.held_out, "--seeds", ",".join(map(str, plan.seeds))]
    if plan.inversion_images is not None:
        words += ["--inversion-images", str(plan.inversion_images)]
    if plan.rows != ROWS:
        words += ["--rows", ",".join(plan.rows)]
    if config is not None:
        words += ["--config", str(config) if not config.is_absolute() else config.name]
    words += [word for value in settings for word in ("--set", value)]
    words += [word for value in notes for word in ("--note", value)]
    return shlex.join(words)


def write(table: DataFreeTable, folder: Path, name: str) -> None:
    """Write the table as JSON, Markdown and picture."""
    picture = table.picture()
    write_text(folder / f"{name}.json", json.dumps(table.as_json(), indent=1) + "\n")
    write_text(folder / f"{name}.md", table.markdown())
    write_bytes(folder / f"{name}.png", picture)
