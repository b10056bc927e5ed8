"""Prunes one student by each importance, before and after recovery, and writes what it cost on every domain.

With ``--control`` the unpruned student is trained on for as long as the pruned ones recover, so that what the further
epochs give is told apart from what pruning takes.

Example:
    python benchmarks/pruning.py -c distill/recipes/pacs-standin.toml --var pacs=DATA --var teacher=TEACHER \
        --set compress.prune.target=macs:0.6 --name pacs-pruning --out vlkd-out/pruning

Stages that are done are not run again. The result is ``benchmarks/results/<name>.json`` and ``.md``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from vlkd_bench.accuracy import summarise
from vlkd_bench.machine import read_machine
from vlkd_bench.paired import judge
from vlkd_bench.predictions import PredictionRow
from vlkd_bench.tablenotes import how_it_was_made
from vlkd_compress.prune.settings import Importance, Pruned
from vlkd_compress.speed import race
from vlkd_edge import calibrating, classvectors, configfile, learn, pruning, teach
from vlkd_edge.climbing import LAST, Climber, Start, Task, dialect_of, recipes
from vlkd_edge.config import Config
from vlkd_edge.facts import Images, stand_ins
from vlkd_edge.progress import Live
from vlkd_edge.ship import Shipping
from vlkd_edge.stages import StageResult, Workspace, locked
from vlkd_runtime.atomic import write_text
from vlkd_runtime.preprocess import prepare

RESULTS = Path(__file__).parent / "results"
IMPORTANCES: tuple[Importance, ...] = typing.get_args(Importance)


def main() -> None:
    """Run what is not done, then write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", "-c", type=Path, required=True)
    parser.add_argument("--var", action="append", default=[])
    parser.add_argument("--set", action="append", default=[], dest="settings")
    parser.add_argument("--importance", nargs="+", choices=IMPORTANCES, default=IMPORTANCES)
    parser.add_argument(
        "--recover", nargs="*", choices=IMPORTANCES, help="only these are recovered; all without the option"
    )
    parser.add_argument(
        "--control", action="store_true", help="train the unpruned student on for as long, too"
    )
    parser.add_argument("--name", default="pruning", help="of the two files")
    parser.add_argument("--out", type=Path, default=Path("vlkd-out/pruning"), help="folder of the runs")
    parser.add_argument("--cache", type=Path, help="where teacher embeddings are kept")
    asked = parser.parse_args()
    config = configfile.load(asked.config, asked.var, asked.settings)
    with locked(asked.out):
        runs = Runs.open(config, asked.out, asked.cache or asked.out / "cache")
        recovered = asked.importance if asked.recover is None else asked.recover
        rows = runs.rows(asked.importance, recovered, control=asked.control)
    words = [f"--set {setting}" for setting in asked.settings]
    if tuple(asked.importance) != IMPORTANCES:
        words.append(f"--importance {' '.join(asked.importance)}")
    if asked.recover is not None:
        words.append(f"--recover {' '.join(asked.recover)}")
    words += ["--control"] * asked.control
    words += [f"--var {value.partition('=')[0]}=..." for value in asked.var]
    result = {
        "command": f"python benchmarks/pruning.py -c {asked.config} {' '.join(words)} --name {asked.name}",
        "machine": read_machine().describe().partition(", load ")[0],
        "student": f"{config.student.arch} at {config.student.image_size} px, {config.distill.method}",
        "held_out": list(config.data.held_out),
        "settings": dataclasses.asdict(config.compress.prune),
        "epochs": config.distill.epochs,
        "stand_ins": list(stand_ins(config)),
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    write_text(RESULTS / f"{asked.name}.json", json.dumps(result, indent=1) + "\n")
    write_text(RESULTS / f"{asked.name}.md", render(result))


@dataclasses.dataclass(frozen=True)
class Runs:
    """One trained student with all that its variants share."""

    config: Config
    learning: learn.Learning
    shared: Shipping
    images: Images
    slimming: pruning.Slimming
    climber: Climber

    @classmethod
    def open(cls, config: Config, out: Path, cache: Path) -> Runs:
        """Train the student, or find it trained."""
        live = Live(Console(stderr=True))
        learning = learn.Learning(config, Workspace(out, cache, live.say), live)
        dataset, method = learn.dataset(learning), config.distill.method
        images = Images.split(dataset, config.data.held_out)
        plain = classvectors.class_vectors(learning, dataset.classes, learn.teacher_key(config))
        store = learn.pixels(learning, images.train)
        vectors = teach.vectors_for(learning, method, images.train, store, plain)
        trained = teach.train(learning, method, images.train, store, vectors)
        graph = teach.export(learning, method, trained, store, images.train, vectors)
        shared = Shipping(config, learning.workspace, live, learning.spec, learn.load_vectors(vectors))
        task = Task(
            model=graph.folder / "model.onnx",
            key=graph.key,
            spec=learning.spec,
            names=shared.vectors.names,
            logit_scale=shared.vectors.logit_scale,
            dialect=dialect_of(config.device()),
            calibration=calibrating.choose(
                config,
                learning.workspace,
                live,
                learn.usable(store, images.train),
                shared.vectors.teacher_fingerprint,
                lambda some: learn.teacher_embeddings(learning, some),
            ),
            guarded=images.guarded,
            reference=(),
        )
        slimming = pruning.Slimming(learning, method, trained, graph, store, images.train, vectors)
        return cls(config, learning, shared, images, slimming, Climber(task, learning.workspace, live))

    def rows(
        self, importances: Sequence[Importance], recovered: Sequence[Importance], *, control: bool
    ) -> list[dict[str, Any]]:
        """The table: the student, its INT8, and for each importance unrecovered, recovered and INT8.

        The control has rows of its own, below the student's.
        """
        chosen = recipes(self.config.compress.candidates, self.config.device())
        recipe = next(item for item in chosen if item.kind not in LAST)
        floating = self.slimming.floating
        found = [self._row("unpruned", "float", floating, None)]
        found.append(self._row("unpruned", recipe.name, self.climber.candidate(recipe), None))
        if control:
            longer = self._longer()
            found.append(self._row("unpruned", "trained on, float", longer.stage, None))
            candidate = self.climber.candidate(recipe, longer)
            found.append(self._row("unpruned", f"trained on, {recipe.name}", candidate, None))
        (cut, *_) = pruning.cuts(dataclasses.replace(self.config.compress.prune, sparsity="none"))
        for importance in importances:
            for epochs in (0, self.config.compress.prune.epochs) if importance in recovered else (0,):
                start = self._slim(importance, epochs).start(cut)
                words = "recovered" if epochs else "not recovered"
                found.append(self._row(importance, f"{words}, float", start.stage, start.pruned))
                if epochs:
                    candidate = self.climber.candidate(recipe, start)
                    found.append(self._row(importance, f"{words}, {recipe.name}", candidate, start.pruned))
        return found

    def _slim(self, importance: Importance, epochs: int) -> pruning.Slimming:
        prune = dataclasses.replace(self.config.compress.prune, importance=importance, epochs=epochs)
        compress = dataclasses.replace(self.config.compress, prune=prune)
        learning = dataclasses.replace(
            self.learning, config=dataclasses.replace(self.config, compress=compress)
        )
        return dataclasses.replace(self.slimming, learning=learning)

    def _longer(self) -> Start:
        """The unpruned student after the epochs that a pruned one recovers for, at the same rate."""
        settings, slimming = self.config.compress.prune, self.slimming
        rate = settings.lr or 0.5 * self.config.distill.lr
        changed = teach.Changed(slimming.trained, settings.epochs, rate)
        stage = teach.train(
            self.learning, slimming.method, slimming.samples, slimming.store, slimming.vectors, changed
        )
        return Start(slimming.export(stage), ("trained on",))

    def _answers(self, title: str, graph: StageResult, *, every: bool) -> dict[str, PredictionRow]:
        asked = (*self.images.test, *(self.images.guarded if every else ()))
        once = {sample.image: sample for sample in asked}
        stage = self.shared.predictions(title, graph, tuple(once.values()))
        return {row.image: row for row in self.shared.read(stage)}

    def _row(self, by: str, what: str, graph: StageResult, pruned: Pruned | None) -> dict[str, Any]:
        int8 = (
            "int8" in what
        )  # what may ship is judged on every held-out image, the steps to it on test images
        answers = self._answers(what.replace(", ", "-").replace(" ", "-"), graph, every=int8)
        reference = self._answers("float", self.slimming.floating, every=True)
        held_out = [row for row in answers.values() if row.domain in self.config.data.held_out]
        verdict = judge([reference[row.image] for row in held_out], held_out, self.config.guard.budget())
        model, image = graph.folder / "model.onnx", prepare(self.images.train[0].path, self.learning.spec)
        speed = None
        if not int8 or self.climber.task.dialect == "cpu":
            speed = race(self.slimming.floating.folder / "model.onnx", model, image[np.newaxis])
        tested = summarise([answers[sample.image] for sample in self.images.test]).domains
        return {
            "importance": by,
            "what": what,
            "pruned": None if pruned is None else dataclasses.asdict(pruned),
            "size_bytes": model.stat().st_size,
            "speed": None if speed is None else dataclasses.asdict(speed),
            "accuracy": {name: value.accuracy for name, value in tested.items()},
            "worst_domain": verdict.worst_domain,
            "drop": verdict.worst.drop,
            "upper": verdict.worst.upper,
            "images": verdict.domains[verdict.worst_domain].n,
        }


def render(result: dict[str, Any]) -> str:
    """The table as Markdown."""
    domains = list(result["rows"][0]["accuracy"])
    held_out = result["held_out"]
    control = any(row["what"].startswith("trained on") for row in result["rows"])
    lines = ["# Pruning by importance", ""]
    lines += [f"> {sentence}" for sentence in result["stand_ins"]]
    lines += [
        "",
        f"{result['student']}, {result['epochs']} epochs, held out: {', '.join(held_out)}. Target "
        f"{result['settings']['target']}, recovery {result['settings']['epochs']} epochs of the same distillation"
        + (", for which the unpruned student was trained on, too." if control else "."),
        "Top-1 accuracy in percent on test images, measured on the exported graph through the device library; *drop* "
        "is the worst held-out domain's against the unpruned float student, in points, with the guard's upper bound at "
        "95 % and the number of images, which are all of the domain's for INT8 and its test images for float; *speed* "
        "is that of ONNX Runtime's CPU engine, one thread, in turns with the unpruned float graph.",
        "",
        "| importance | graph | multiply-adds | weights | speed | "
        + " | ".join(f"{name}{' (held out)' if name in held_out else ''}" for name in domains)
        + " | drop, at most |",
        f"|---|---|---|---|---|{'---|' * len(domains)}---|",
    ]
    for row in result["rows"]:
        cut = row["pruned"]
        macs = f"{100 * cut['macs'] / cut['dense_macs']:.1f} %" if cut else "100 %"
        weights = f"{100 * cut['weights'] / cut['dense_weights']:.1f} %" if cut else "100 %"
        speed = f"{row['speed']['ratio']:.2f}" if row["speed"] else ""
        accuracy = " | ".join(f"{100 * row['accuracy'][name]:.1f}" for name in domains)
        drop = f"{row['drop']:.2f}, {row['upper']:.2f} ({row['images']})"
        lines.append(
            f"| {row['importance']} | {row['what']} | {macs} | {weights} | {speed} | {accuracy} | {drop} |"
        )
    lines += how_it_was_made(result["command"], result["machine"])
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
