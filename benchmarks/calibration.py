"""What choosing calibration images buys: even, random, covering, and covering with style views, over seeds and counts.

Needs a finished build, whose float student and data it takes:
    vlkd-edge build --out vlkd-out/calibration
    python benchmarks/calibration.py calibration-ablation --out vlkd-out/calibration --held-out sketch cartoon neon

Every choice is quantized in TensorRT's dialect and answers the same held-out images. Rows that are done are kept in
``OUT/calibration-ablation.jsonl`` and not measured again. The result is ``benchmarks/results/NAME.{json,md}``.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console

from vlkd_bench.machine import read_machine
from vlkd_bench.samples import Sample
from vlkd_bench.tablenotes import how_it_was_made
from vlkd_compress.calibrated import Calibration
from vlkd_compress.calibration import select_by_coverage, select_calibration
from vlkd_compress.ranking import run
from vlkd_compress.recipes import Recipe, make
from vlkd_distill.data import scan
from vlkd_edge import calibrating, configfile, learn
from vlkd_edge.facts import Images
from vlkd_edge.progress import Live
from vlkd_edge.stages import Workspace
from vlkd_runtime.atomic import write_text
from vlkd_runtime.preprocess import prepare

RESULTS = Path(__file__).parent / "results"
WAYS = ("random", "even", "coverage", "coverage + styles")
LEAST = 32  # what the selectors hand out at least; a smaller set is the beginning of that one


def main() -> None:
    """Measure what is not measured yet, then write the table."""
    asked = parse(sys.argv[1:])
    loaded = configfile.load(
        Path(asked.config) if asked.config else configfile.DEMO, asked.var, asked.settings
    )
    live = Live(Console(stderr=True))
    learning = learn.Learning(loaded, Workspace(asked.out, asked.cache or asked.out / "cache"), live)
    dataset = learn.dataset(learning)
    sources = dataset.sources(loaded.data.held_out)
    train = Images.split(dataset, loaded.data.held_out, None).train
    (model,) = asked.out.glob(f"stages/export-{loaded.distill.method}-*/model.onnx")
    # The data folder may hold domains that the build was told to leave alone.
    judges = judging(dataset.root, asked.held_out, dataset.classes, asked.images)
    forbidden = {*asked.held_out, *loaded.data.held_out}
    styled = calibrating.style_views(learning.workspace, live, train, seed=0, held_out=tuple(forbidden))
    pool = (*train, *styled)
    embeddings = learn.teacher_embeddings(learning, pool)
    images = {sample.image: prepare(sample.path, learning.spec) for sample in (*pool, *judges)}
    asked_images = np.stack([images[sample.image] for sample in judges])
    labels = np.asarray([sample.label for sample in judges])
    domains = np.asarray([sample.domain for sample in judges])
    reference = run(model, asked_images).argmax(axis=1) == labels
    done = asked.out / f"{asked.name}.jsonl"
    rows = [json.loads(line) for line in done.read_text().splitlines()] if done.exists() else []
    for count in asked.counts:
        for seed in range(asked.seeds):
            for way in WAYS:
                if any(_same(row, way, count, seed) for row in rows):
                    continue
                chosen = choose(way, train, pool, embeddings, count, seed, forbidden)
                calibration = Calibration(model, [images[sample.image] for sample in chosen])
                for method in asked.methods:
                    right = quantized(calibration, method, asked_images) == labels
                    drops = {
                        name: 100 * float(reference[domains == name].mean() - right[domains == name].mean())
                        for name in asked.held_out
                    }
                    rows.append(
                        {"way": way, "count": count, "seed": seed, "method": method, "drops": drops}
                        | {"worst": max(drops.values())}
                    )
                with done.open("a") as file:
                    file.writelines(json.dumps(row) + "\n" for row in rows[-len(asked.methods) :])
                print(
                    count,
                    seed,
                    way,
                    [round(row["worst"], 2) for row in rows[-len(asked.methods) :]],
                    flush=True,
                )
    table = {
        "command": command(asked),
        "machine": read_machine().describe().partition(", load ")[0],
        "student": loaded.student.arch,
        "options": loaded.student.options,
        "sources": list(sources),
        "train_images": len(train),
        "style_views": len(styled),
        "float": {name: float(reference[domains == name].mean()) for name in asked.held_out},
        "images": {name: int((domains == name).sum()) for name in asked.held_out},
        "rows": rows,
    }
    write_text(RESULTS / f"{asked.name}.json", json.dumps(table, indent=1) + "\n")
    write_text(RESULTS / f"{asked.name}.md", render(table, asked))
    print(f"wrote {asked.name}.json and {asked.name}.md in {RESULTS.name}/")


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", help="name of the result files")
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished build")
    parser.add_argument("--cache", type=Path, help="its cache, where that lies elsewhere")
    parser.add_argument("--config", help="its recipe; the demo if absent")
    parser.add_argument("--var", action="append", default=[], help="as given to the build")
    parser.add_argument("--set", action="append", default=[], help="as given to the build", dest="settings")
    parser.add_argument("--held-out", nargs="+", default=["sketch"], help="domains that judge")
    parser.add_argument("--counts", nargs="+", type=int, default=[16, 64, 256])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--images", type=int, default=320, help="held-out images of each domain")
    parser.add_argument("--methods", nargs="+", default=["percentile", "minmax"])
    parser.add_argument("--remark", default="", help="what the table shows, in a sentence")
    return parser.parse_args(words)


def command(asked: argparse.Namespace) -> str:
    """What to type to get this table again; places are left open."""
    words = ["python benchmarks/calibration.py", asked.name, "--out BUILD", "--held-out", *asked.held_out]
    words += ["--counts", *map(str, asked.counts), "--seeds", str(asked.seeds), "--images", str(asked.images)]
    words += ["--config", shlex.quote(asked.config)] if asked.config else []
    words += [f"--set {shlex.quote(value)}" for value in asked.settings]
    return " ".join(words + (["--remark", shlex.quote(asked.remark)] if asked.remark else []))


def judging(root: Path, domains: Sequence[str], classes: Sequence[str], most: int) -> tuple[Sample, ...]:
    """The same few images of each held-out domain for every choice."""
    found: list[Sample] = []
    for domain in domains:
        here = scan(root, domains=[domain], classes=classes).samples
        order = np.random.default_rng(0).permutation(len(here))[:most]
        found += [here[index] for index in sorted(order)]
    return tuple(found)


def choose(
    way: str,
    train: Sequence[Sample],
    pool: Sequence[Sample],
    embeddings: npt.NDArray[np.float32],
    count: int,
    seed: int,
    forbidden: set[str],
) -> Sequence[Sample]:
    """Calibration images, chosen in one of the ways."""
    most = max(count, LEAST)
    if way == "random":
        order = np.random.default_rng(seed).permutation(len(train))
        return [train[index] for index in order[:count]]
    if way == "even":
        return select_calibration(train, most, seed=seed, forbidden_domains=forbidden)[:count]
    offered = train if way == "coverage" else pool
    chosen = select_by_coverage(
        offered, embeddings[: len(offered)], most, seed=seed, forbidden_domains=forbidden
    )
    return chosen[:count]


def quantized(calibration: Calibration, method: str, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """What the INT8 graph answers."""
    with tempfile.TemporaryDirectory(prefix="vlkd-ablation-") as folder:
        out = Path(folder) / "int8.onnx"
        make(Recipe.named(f"int8-{method}", "tensorrt"), calibration, out)
        return run(out, images).argmax(axis=1)


def _same(row: dict[str, Any], way: str, count: int, seed: int) -> bool:
    return bool(row["way"] == way and row["count"] == count and row["seed"] == seed)


def render(table: dict[str, Any], asked: argparse.Namespace) -> str:
    """The table as Markdown."""
    judged = ", ".join(
        f"{name} ({n}, float {100 * table['float'][name]:.1f} %)" for name, n in table["images"].items()
    )
    student = table["student"] + (f" with {table['options']}" if table["options"] else "")
    lines = [
        "# Calibration images: chosen against random",
        "",
        f"INT8 in TensorRT's dialect of {student}, trained on the demo world's {' and '.join(table['sources'])} "
        f"({table['train_images']} train images to choose from, {table['style_views']} style views of them). Drop in "
        f"points on the worst of {judged}; mean over {asked.seeds} seeds of the choice and its standard error. Every "
        "choice answers the same images, so the columns of a row differ by the calibration alone.",
        "",
        *([table_remark, ""] if (table_remark := asked.remark) else []),
        "| ranges | images | " + " | ".join(WAYS) + " |",
        "|---" * (2 + len(WAYS)) + "|",
    ]
    for method in asked.methods:
        for count in asked.counts:
            cells = []
            for way in WAYS:
                found = [
                    row["worst"]
                    for row in table["rows"]
                    if (row["way"], row["count"], row["method"]) == (way, count, method)
                ]
                error = np.std(found, ddof=1) / np.sqrt(len(found))
                cells.append(f"{np.mean(found):.2f} ± {error:.2f}")
            lines.append(f"| {method} | {count} | {' | '.join(cells)} |")
    lines += how_it_was_made(table["command"], table["machine"])
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
