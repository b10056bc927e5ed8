"""`vlkd-edge bench disjoint`: train on the images of some classes, measure on classes that nothing trained on.

An unseen class is predicted by its vector alone: the student maps images into the teacher's space, and the
class vectors of the part that is measured are put in place of those it trained with.

PromptKD is measured as its authors do, from base to novel classes: prompts are learned from a few labelled images of
the seen classes alone, all class vectors come from these prompts, and the student then matches the teacher over all of
them on images without labels, those of unseen classes among them. That is transductive, and no other row is:
``promptkd-seen`` is shown images of seen classes only, and compares with the others.

References:
    Li et al., "PromptKD: Unsupervised Prompt Distillation for Vision-Language Models", CVPR 2024, section 4.1.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from rich.console import Console

from vlkd_bench.disjoint import CE_ONLY, DisjointCell, DisjointTable
from vlkd_bench.leaveout import TEACHER
from vlkd_bench.machine import read_machine
from vlkd_bench.predictions import read_predictions, write_predictions
from vlkd_bench.samples import Sample
from vlkd_distill import splits
from vlkd_distill.data import DomainDataset, content_key
from vlkd_distill.datacontract import DataContract
from vlkd_distill.specs import MethodName
from vlkd_runtime import Classifier
from vlkd_runtime.errors import ConfigError
from vlkd_runtime.vectors import ClassVectors

from . import classvectors, learn, measurable, questions, ship, teach
from .build import check_beforehand
from .config import Config
from .facts import Images, closed, contract, stand_ins
from .leaveout import ALL, Plan, holding_out
from .progress import Live
from .stages import StageResult, Workspace, locked, versions

# A classifier of its own logits has none for a class it never saw; data-free sees no image of any class.
_CANNOT: frozenset[MethodName] = frozenset({"erm", "kd", "data-free"})
_OFF: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        CE_ONLY: ("distance_weight", "contrast_weight", "proximity_weight", "caption_weight"),
        "ce-distance": ("contrast_weight", "proximity_weight", "caption_weight"),
        "ce-distance-contrast": ("proximity_weight", "caption_weight"),
    }
)
"""Parts of vlm-ood that can be measured by a name of their own: the weights that are 0."""

PROMPTED: MethodName = "promptkd"
PROMPTED_SEEN = "promptkd-seen"
KNOWN: tuple[str, ...] = (
    *_OFF,
    *(name for name in typing.get_args(MethodName) if name not in _CANNOT),
    PROMPTED_SEEN,
)
HALF = "novel"


@dataclass(frozen=True, slots=True)
class Parts:
    """One division of the classes.

    Attributes:
        classes: all class names in label order.
        seen: those whose images are learned from.
        unseen: those met only when measured.
    """

    classes: tuple[str, ...]
    seen: tuple[str, ...]
    unseen: tuple[str, ...]

    @classmethod
    def of(cls, classes: Sequence[str], unseen: str, seed: int, where: str = "the data") -> Parts:
        """Divide classes as ``--unseen`` says: ``novel``, a number, a share below 1, or names.

        Args:
            classes: all class names in label order.
            unseen: which of them are.
            seed: of the choice.
            where: what to call the data in messages.

        Raises:
            ConfigError: there are too few classes, too few are left to learn from, or one does not exist.
        """
        least = 2 if unseen == HALF else 3
        if len(classes) < least:
            msg = (
                f"Expected at least {least} classes in {where}, to learn from some and to measure on the others, found "
                f"{len(classes)} ({', '.join(classes)}). Add images of other classes, or name more with data.classes."
            )
            raise ConfigError(msg)
        if unseen == HALF:
            return cls(tuple(classes), *splits.base_novel(classes))
        words = tuple(word.strip() for word in unseen.split(","))
        wanted: int | float | tuple[str, ...] = words
        if len(words) == 1 and words[0] not in classes:
            try:
                wanted = float(words[0]) if "." in words[0] else int(words[0])
            except ValueError:
                wanted = words
        return cls(tuple(classes), *splits.class_disjoint(classes, wanted, seed))


def class_disjoint(
    config: Config,
    plan: Plan,
    unseen: str,
    out: Path,
    cache: Path,
    console: Console,
    command: str,
    notes: Sequence[str] = (),
) -> DisjointTable:
    """Run every cell that is not done yet.

    Args:
        config: data, teacher, student and training; its held-out domains, method and seed are the plan's.
        plan: which cells.
        unseen: which classes are unseen, see `Parts.of`.
        out: output folder; an interrupted table goes on from what lies there.
        cache: where teacher embeddings are kept.
        console: for people.
        command: what to write down as the way to make the table again.
        notes: sentences to put beneath the table.

    Raises:
        UsageError: the caller's mistake, found before any long work where it can be.
    """
    if config.data.unlabelled:
        msg = (
            "data.unlabelled: a table of unseen classes must know what is seen, and images without labels may show any "
            "class: leave the folder out."
        )
        raise ConfigError(msg)
    domains = plan.held_out if plan.held_out != (ALL,) else learn.domains(config)
    configs = [holding_out(config, name) for name in domains]
    runs = [_with(config, name, plan.seeds[0]).distill for name in plan.methods]
    for one in configs:
        check_beforehand(one, runs)
    named = learn.class_names(config)
    if named:  # otherwise they are read with the images, and divided before anything is asked or trained
        Parts.of(named, unseen, plan.seeds[0], config.data.root)
    with locked(out):
        live = Live(console)
        learning = learn.Learning(config, Workspace(out, cache, live.say), live)
        learn.check_models(learning, [how.method for how in runs])
        cells: list[DisjointCell] = []
        contracts: list[Mapping[str, typing.Any]] = []
        with questions.counting(learning):
            for position, one in enumerate(configs):
                live.say(f"held out: {domains[position]} ({position + 1} of {len(domains)})")
                for seed in plan.seeds:
                    done, seen = _seed(dataclasses.replace(learning, config=one), plan, unseen, seed)
                    cells += done
                    contracts += seen
        queries = questions.queries(learning)
    distill = config.distill.as_json()
    for name in ("method", "seed"):
        del distill[name]
    distill.pop("device", None)
    return DisjointTable(
        cells=tuple(sorted(cells, key=lambda cell: (TEACHER, *plan.methods).index(cell.method))),
        command=command,
        machine=read_machine().describe().partition(", load ")[0],
        teacher=config.teacher.model if config.teacher.model == "demo" else Path(config.teacher.model).name,
        student=config.student.words,
        settings=distill | {"templates": config.teacher.templates, "attributes": config.teacher.attributes},
        stand_ins=stand_ins(config),
        contract=tuple(contracts),
        queries=None if queries is None else queries.as_json(),
        notes=tuple(notes),
    )


@dataclass(frozen=True, slots=True)
class _Tested:
    """One part of the classes, as it is measured: test images labelled by the part, and its vectors."""

    samples: tuple[Sample, ...]
    vectors: StageResult


def _seed(
    learning: learn.Learning, plan: Plan, unseen: str, seed: int
) -> tuple[list[DisjointCell], list[Mapping[str, typing.Any]]]:
    """Every cell of one held-out domain and seed, and what each method saw."""
    config = learning.config
    dataset = learn.dataset(learning)
    parts = Parts.of(dataset.classes, unseen, seed, config.data.root)
    images = measurable.only_decodable(learning, dataset, Images.split(dataset, config.data.held_out))
    shown = dataclasses.replace(images, train=splits.restrict(images.train, parts.classes, parts.seen))
    runs = {name: dataclasses.replace(learning, config=_with(config, name, seed)) for name in plan.methods}
    for name, run in runs.items():
        may_see = images if name == PROMPTED else shown
        banner = _contract(run, dataset, may_see, parts, name).banner()
        learning.live.banner(f"Data contract, {name}", (*banner, _setting(name)))
    key = learn.teacher_key(config)
    every = classvectors.class_vectors(learning, dataset.classes, key)
    learn.check_known(learning, (*(images if PROMPTED in runs else shown).train, *images.test))
    with closed(config, dataset, parts.unseen):
        store = learn.pixels(learning, shown.train)
    tested = _parts(learning, parts, images, every)

    def cell(method: str, on_unseen: StageResult, on_seen: StageResult) -> DisjointCell:
        rows = (
            read_predictions(stage.folder / "predictions.jsonl", names)
            for stage, names in ((on_unseen, parts.unseen), (on_seen, parts.seen))
        )
        return DisjointCell.measure(
            (config.data.name, method, config.data.held_out[0], seed), parts.unseen, *rows
        )

    asked = [learn.teacher_predictions(learning, part.samples, part.vectors, key) for part in tested]
    cells = [cell(TEACHER, *asked)]
    contracts: list[Mapping[str, typing.Any]] = []
    for name, run in runs.items():
        learning.live.say(f"{name}, seed {seed}")
        method = run.config.distill.method
        train, pixels, vectors, own = shown.train, store, tested[1].vectors, tested
        with closed(config, dataset, parts.unseen):
            if method == PROMPTED:
                vectors = teach.vectors_for(run, method, train, store, vectors, every)
                own = _parts(learning, parts, images, vectors)
        with closed(config, dataset, () if name == PROMPTED else parts.unseen):
            if name == PROMPTED:
                train = images.train
                pixels = learn.pixels(run, train)
            trained = teach.train(run, method, train, pixels, vectors)
            graph = teach.export(run, method, trained, pixels, train, vectors)
        cells.append(cell(name, *[_answers(run, name, graph, part) for part in own]))
        all_seen = dataclasses.replace(images, train=train)
        seen = _contract(run, dataset, all_seen, parts, name, learn.usable(pixels, train)).as_json()
        text = f"{seen['text']} {_setting(name)}"
        contracts.append(seen | {"method": name, "seed": seed, "text": text})
    return cells, contracts


def _parts(
    learning: learn.Learning, parts: Parts, images: Images, every: StageResult
) -> tuple[_Tested, _Tested]:
    """The unseen and the seen classes as they are measured: each by its own vectors alone."""
    unseen, seen = (
        _Tested(splits.restrict(images.test, parts.classes, names), _slice(learning, every, names))
        for names in (parts.unseen, parts.seen)
    )
    return unseen, seen


def _setting(name: str) -> str:
    """Whether a row is shown images of unseen classes, in words."""
    if name == PROMPTED:
        return "Transductive: unlabelled train images of the unseen classes are learned from, too."
    return "Inductive: no image of an unseen class is learned from."


def _with(config: Config, name: str, seed: int) -> Config:
    """The configuration that a name of the table stands for."""
    method = "vlm-ood" if name in _OFF else PROMPTED if name == PROMPTED_SEEN else name
    changes: dict[str, typing.Any] = {"method": method, "seed": seed}
    changes |= dict.fromkeys(_OFF.get(name, ()), 0.0)
    return dataclasses.replace(config, distill=dataclasses.replace(config.distill, **changes))


def _contract(
    run: learn.Learning,
    dataset: DomainDataset,
    images: Images,
    parts: Parts,
    name: str,
    usable: Sequence[Sample] | None = None,
) -> DataContract:
    config = run.config
    sources = dataset.sources(config.data.held_out)
    unseen = () if name == PROMPTED else parts.unseen
    prompted = f"each of the {len(parts.seen)} seen classes alone"
    return contract(config, config.distill.method, sources, images, usable, unseen, prompted)


def _slice(learning: learn.Learning, every: StageResult, names: tuple[str, ...]) -> StageResult:
    """The vectors of some classes, as a stage of their own."""

    def work(folder: Path) -> None:
        splits.slice_vectors(_load(every), names).save(folder / "class_vectors.safetensors")

    return learning.workspace.stage("vectors-part", {"vectors": every.key, "names": list(names)}, work)


def _answers(learning: learn.Learning, title: str, graph: StageResult, part: _Tested) -> StageResult:
    """What the exported graph's embeddings say among the classes of one part."""
    stored = _load(part.vectors)

    def work(folder: Path) -> None:
        model = graph.folder / "model.onnx"
        with Classifier.from_model(
            model,
            learning.spec,
            stored.names,
            logit_scale=stored.logit_scale,
            threads=2,
            vectors=stored,
        ) as classifier:
            rows = ship.watched(learning.live, f"evaluating {title}", classifier, part.samples)
        write_predictions(folder / "predictions.jsonl", rows, stored.names)

    inputs = {
        "model": graph.key,
        "vectors": part.vectors.key,
        "images": content_key(part.samples),
        "preprocess": learning.spec.to_json(),
        **versions("onnxruntime", "pillow", "vlkd-edge"),
    }
    return learning.workspace.stage(f"evaluate-{title}", inputs, work)


def _load(stage: StageResult) -> ClassVectors:
    return ClassVectors.load(stage.folder / "class_vectors.safetensors")
