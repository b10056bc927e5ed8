"""Trains vlkd with one part changed at a time and writes what each part buys on held-out domains.

Example:
    python benchmarks/ablation.py --seeds 0 1 2 --work vlkd-out/ablation
    python benchmarks/ablation.py --name pacs-teacher-128-ablation --config distill/recipes/pacs-teacher-128.toml \
        --var pacs=DATA --var teacher=TEACHER --held-out all --only "no style views" "weights of the end alone"

Without a recipe it is the demo world's. Cells that are done are not run again. The result is
``benchmarks/results/NAME.json`` and ``.md``.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlkd_bench.tablenotes import how_it_was_made
from vlkd_runtime.atomic import write_text

RESULTS = Path(__file__).parent / "results"
DEMO = Path(__file__).parents[1] / "cli" / "vlkd_edge" / "demo.toml"
WHOLE, TEACHER = "vlkd", "teacher"
VARIANTS: dict[str, tuple[str, ...]] = {
    WHOLE: (),
    "no style views": ("distill.style_share=0.0",),
    "style views only": ("distill.style_share=1.0",),
    "pencil and edges only": ('distill.styles=["pencil", "edges"]',),
    "without pencil and edges": ('distill.styles=["grey", "poster", "paint", "palette"]',),
    "no labels": ("distill.cls_weight=0.0",),
    "no distance to the teacher": ("distill.distance_weight=0.0",),
    "with divergence": ("distill.answers_weight=1.0",),
    "no divergence": ("distill.answers_weight=0.0",),
    "with relations": ("distill.relation_weight=5.0",),
    "no alignment": ("distill.align_epochs=0",),
    "mean of weights": ("distill.weights=mean",),
    "SWAD": ("distill.weights=swad",),
    "source-best": ("distill.weights=source-best",),
    "weights of the end alone": ("distill.start_share=0.0",),
}
# The demo's recipe has no divergence and keeps no share of the start.
USUAL = tuple(name for name in VARIANTS if name not in (WHOLE, "no divergence", "weights of the end alone"))


def main() -> None:
    """Run every variant, then write the table."""
    arguments = parse(sys.argv[1:])
    result = collect(arguments)
    RESULTS.mkdir(exist_ok=True)
    write_text(RESULTS / f"{arguments.name}.json", json.dumps(result, indent=1) + "\n")
    write_text(RESULTS / f"{arguments.name}.md", render(result))


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--name", default="vlkd-ablation", help="name of the result files")
    parser.add_argument("--config", type=Path, default=DEMO, help="recipe; the demo's if absent")
    parser.add_argument("--var", action="append", default=[], help="passed on to the tables")
    parser.add_argument("--held-out", default="sketch", help="domains with commas between them, or 'all'")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--only", nargs="+", choices=tuple(VARIANTS)[1:], default=USUAL, help="variants")
    parser.add_argument("--methods", default="erm,kd,vl2v-adip", help="to stand beside vlkd")
    parser.add_argument("--work", type=Path, default=Path("vlkd-out/ablation"), help="folder of the runs")
    return parser.parse_args(words)


def collect(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run what is not there yet and give one table."""
    plain = run(arguments, "", arguments.methods)
    rows = [row | {"variant": ""} for row in plain["rows"]]
    variants = (WHOLE, *arguments.only)
    for name in variants:
        table = run(arguments, name, WHOLE)
        rows += [row | {"variant": name} for row in table["rows"] if row["method"] == WHOLE]
    common = {key: plain[key] for key in ("machine", "teacher", "student", "stand_ins", "settings")}
    sources = list(dict.fromkeys(name for one in plain["contract"] for name in one["sources"]))
    changed = {name: VARIANTS[name] for name in variants}
    return {"command": spelled(arguments), **common, "sources": sources, "variants": changed, "rows": rows}


def spelled(arguments: argparse.Namespace) -> str:
    """The command that makes the same table: no folder of this machine stands in it."""
    words = ["python", "benchmarks/ablation.py"]
    if arguments.config != DEMO:
        words += ["--name", arguments.name, "--config", str(arguments.config)]
        for value in arguments.var:
            name, _, folder = value.partition("=")
            words += ["--var", f"{name}={Path(folder).name}"]
        words += ["--held-out", arguments.held_out, "--methods", arguments.methods, "--only", *arguments.only]
    return shlex.join([*words, "--seeds", *map(str, arguments.seeds)])


def run(arguments: argparse.Namespace, name: str, methods: str) -> dict[str, Any]:
    """One variant's table; the methods it is held against where there is no name."""
    words = ["bench", "dg", "--config", str(arguments.config), "--methods", methods, "--json"]
    words += ["--held-out", arguments.held_out, "--seeds", ",".join(map(str, arguments.seeds))]
    words += ["--out", str(arguments.work), "--name", (name or "plain").replace(" ", "-")]
    for option, values in (("--var", arguments.var), ("--set", VARIANTS.get(name, ()))):
        words += [word for value in values for word in (option, value)]
    print(name or methods, flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "vlkd_edge", *words], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"'{name or methods}' ended with exit code {done.returncode}; see above")
    table: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return table


def render(result: Mapping[str, Any]) -> str:
    """The table as Markdown, with each variant's difference from vlkd, seed by seed."""
    groups = _groups(result["rows"])
    domains = list(dict.fromkeys(row["held_out"] for row in result["rows"]))
    several = len(domains) > 1
    columns = [*domains, *(["mean"] if several else []), "against vlkd", "sources"]
    lines = ["# vlkd, one part changed at a time", ""]
    lines += [f"> {sentence}" for sentence in result["stand_ins"]]
    lines += [
        "",
        f"{_held_out(result, domains)} Teacher {result['teacher']}; student {result['student']}.",
        "Top-1 accuracy in percent on test images of the held-out domain, mean over seeds; *against vlkd* is the mean",
        "difference of the same seeds in points, ± its standard error.",
        "",
        f"| what | {' | '.join(columns)} |",
        "|" + "---|" * (1 + len(columns)),
    ]
    base = _by_seed(groups[WHOLE], "accuracy")
    for title, rows in groups.items():
        found = _by_seed(rows, "accuracy")
        cells = [_mean([row["accuracy"] for row in rows if row["held_out"] == name]) for name in domains]
        cells += [_mean(list(found.values()))] if several else []
        gaps = [value - base[seed] for seed, value in found.items()] if title not in (WHOLE, TEACHER) else []
        cells += [_mean(gaps, "+") if gaps else "", _mean(list(_by_seed(rows, "source_accuracy").values()))]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    lines += how_it_was_made(result["command"], result["machine"], result["settings"])
    return "\n".join(lines) + "\n"


def _held_out(result: Mapping[str, Any], domains: Sequence[str]) -> str:
    if len(domains) > 1:
        return "Held out: one domain at a time."
    return f"Held out: {domains[0]}; sources {' and '.join(result['sources'])}."


def _groups(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["variant"] or row["method"], []).append(row)
    return groups


def _by_seed(rows: Sequence[Mapping[str, Any]], key: str) -> dict[int, float]:
    """Means over the held-out domains."""
    found: dict[int, list[float]] = {}
    for row in rows:
        found.setdefault(row["seed"], []).append(row[key])
    return {seed: statistics.fmean(values) for seed, values in found.items()}


def _mean(values: Sequence[float], sign: str = "") -> str:
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{100 * mean:{sign}.1f}"
    return f"{100 * mean:{sign}.1f} ± {100 * statistics.stdev(values) / len(values) ** 0.5:.1f}"


if __name__ == "__main__":
    main()
