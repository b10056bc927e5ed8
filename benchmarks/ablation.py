"""Trains vlkd with one part changed at a time and writes what each part buys on a held-out style of the demo world.

Example:
    python benchmarks/ablation.py --seeds 0 1 2 --work vlkd-out/ablation

Cells that are done are not run again. The result is ``benchmarks/results/vlkd-ablation.json`` and ``.md``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from vlkd_bench.tablenotes import how_it_was_made
from vlkd_runtime.atomic import write_text

ROOT = Path(__file__).parent
RECIPE = ROOT.parent / "cli" / "vlkd_edge" / "demo.toml"
VARIANTS: dict[str, tuple[str, ...]] = {
    "vlkd": (),
    "no style views": ("distill.style_share=0.0",),
    "style views only": ("distill.style_share=1.0",),
    "pencil and edges only": ('distill.styles=["pencil", "edges"]',),
    "without pencil and edges": ('distill.styles=["grey", "poster", "paint", "palette"]',),
    "no labels": ("distill.cls_weight=0.0",),
    "no distance to the teacher": ("distill.distance_weight=0.0",),
    "no divergence": ("distill.answers_weight=0.0",),
    "with relations": ("distill.relation_weight=5.0",),
    "no alignment": ("distill.align_epochs=0",),
    "mean of weights": ("distill.weights=mean",),
    "SWAD": ("distill.weights=swad",),
    "source-best": ("distill.weights=source-best",),
}


def main() -> None:
    """Run every variant, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--work", type=Path, default=Path("vlkd-out/ablation"), help="folder of the runs")
    arguments = parser.parse_args()
    tables = {name: run(name, arguments.seeds, arguments.work) for name in VARIANTS}
    plain = run("", arguments.seeds, arguments.work)
    rows = [row | {"variant": ""} for row in plain["rows"]]
    rows += [row | {"variant": name} for name, table in tables.items() for row in table["rows"] if _own(row)]
    command = f"python benchmarks/ablation.py --seeds {' '.join(map(str, arguments.seeds))}"
    common = {key: plain[key] for key in ("machine", "teacher", "student", "stand_ins", "settings")}
    result = {"command": command, **common, "variants": VARIANTS, "rows": rows}
    (ROOT / "results").mkdir(exist_ok=True)
    write_text(ROOT / "results" / "vlkd-ablation.json", json.dumps(result, indent=1) + "\n")
    write_text(ROOT / "results" / "vlkd-ablation.md", render(result))


def run(name: str, seeds: list[int], work: Path) -> dict[str, Any]:
    """One variant's table; the methods it is held against where there is no name."""
    methods = "vlkd" if name else "erm,kd,vl2v-adip"
    words = ["bench", "dg", "--config", str(RECIPE), "--methods", methods, "--held-out", "sketch", "--json"]
    words += [
        "--seeds",
        ",".join(map(str, seeds)),
        "--out",
        str(work),
        "--name",
        (name or "plain").replace(" ", "-"),
    ]
    words += [word for value in VARIANTS.get(name, ()) for word in ("--set", value)]
    print(name or methods, flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "vlkd_edge", *words], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"'{name or methods}' ended with exit code {done.returncode}; see above")
    table: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return table


def _own(row: dict[str, Any]) -> bool:
    return bool(row["method"] == "vlkd")


def render(result: dict[str, Any]) -> str:
    """The table as Markdown, with each variant's difference from vlkd, seed by seed."""
    base = {row["seed"]: row["accuracy"] for row in result["rows"] if row["variant"] == "vlkd"}
    lines = ["# vlkd, one part changed at a time", ""]
    lines += [f"> {sentence}" for sentence in result["stand_ins"]]
    lines += [
        "",
        f"Held out: sketch; sources photo and painting. Teacher {result['teacher']}; student {result['student']}.",
        "Top-1 accuracy in percent on test images of the held-out style, mean over seeds; *against vlkd* is the mean",
        "difference of the same seeds in points, ± its standard error.",
        "",
        "| what | sketch | against vlkd | sources |",
        "|---|---|---|---|",
    ]
    for title, rows in _groups(result["rows"]).items():
        gaps = [row["accuracy"] - base[row["seed"]] for row in rows if row["method"] != "teacher"]
        against = "" if title in ("vlkd", "teacher") else _mean(gaps, "+")
        accuracy, source = (_mean([row[key] for row in rows]) for key in ("accuracy", "source_accuracy"))
        lines.append(f"| {title} | {accuracy} | {against} | {source} |")
    lines += how_it_was_made(result["command"], result["machine"], result["settings"])
    return "\n".join(lines) + "\n"


def _groups(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["variant"] or row["method"], []).append(row)
    return groups


def _mean(values: list[float], sign: str = "") -> str:
    mean = sum(values) / len(values)
    if len(values) < 2:
        return f"{100 * mean:{sign}.1f}"
    spread = (sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values)) ** 0.5
    return f"{100 * mean:{sign}.1f} ± {100 * spread:.1f}"


if __name__ == "__main__":
    main()
