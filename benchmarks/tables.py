"""Runs `vlkd-edge build` over held-out domains and seeds and writes one table of what came out.

Example:
    python benchmarks/tables.py demo-sketch --seeds 0 1 2 --work vlkd-out/tables
    python benchmarks/tables.py pacs-standin --config distill/recipes/pacs-standin.toml \
        --held-out sketch art_painting cartoon photo --var pacs=DATA --var teacher=TEACHER --work vlkd-out/tables

Cells that are done are not run again, so an interrupted table goes on where it was. The result is
``benchmarks/results/NAME.json`` with one row a method, held-out domain and seed, and ``NAME.md`` rendered from it.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlkd_bench.machine import Machine
from vlkd_runtime.atomic import write_text

RESULTS = Path(__file__).parent / "results"
ROLES = ("teacher", "erm", "student", "shipped")


def main() -> None:
    """Run every cell, then write the table."""
    arguments = parse(sys.argv[1:])
    cells = [run(arguments, domain, seed) for domain in arguments.held_out for seed in arguments.seeds]
    table = collect(arguments, cells)
    RESULTS.mkdir(exist_ok=True)
    write_text(RESULTS / f"{arguments.name}.json", json.dumps(table, indent=1) + "\n")
    write_text(RESULTS / f"{arguments.name}.md", render(table))
    print(f"wrote {arguments.name}.json and {arguments.name}.md in {RESULTS.name}/")


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("name", help="name of the result files")
    parser.add_argument("--config", help="recipe; the demo if absent")
    parser.add_argument("--held-out", nargs="+", default=["sketch"], help="domains, one build each")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--var", action="append", default=[], help="passed on to the build")
    parser.add_argument("--set", action="append", default=[], help="passed on to the build", dest="settings")
    parser.add_argument("--note", action="append", default=[], help="a paragraph to put beneath the table")
    parser.add_argument("--work", type=Path, default=Path("vlkd-out/tables"), help="folder of the builds")
    return parser.parse_args(words)


def run(arguments: argparse.Namespace, domain: str, seed: int) -> dict[str, Any]:
    """Build one cell and return its report."""
    out = arguments.work / arguments.name  # one folder for all, so that cells share what they have in common
    command = ["vlkd-edge", "build", "--out", str(out), "--cache", str(arguments.work / "cache"), "--json"]
    command += ["--config", arguments.config] if arguments.config else []
    for option, values in (("--var", arguments.var), ("--set", arguments.settings)):
        command += [word for value in values for word in (option, value)]
    command += ["--set", f"data.held_out={domain}", "--set", f"distill.seed={seed}"]
    print(f"{domain}, seed {seed} ...", flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "vlkd_edge", *command[1:]], stdout=subprocess.PIPE, text=True, check=False
    )
    lines = done.stdout.strip().splitlines()
    report: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    if done.returncode not in (0, 1) or "accuracy" not in report:
        sys.exit(f"the build of {domain}, seed {seed} ended with exit code {done.returncode}; see above")
    report["machine_words"] = Machine.from_json(report["machine"]).describe().partition(", load ")[0]
    return report | {"cell": {"held_out": domain, "seed": seed}}


def collect(arguments: argparse.Namespace, cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Rows of the table, with everything needed to run it again."""
    rows = []
    for cell in cells:
        domain = cell["cell"]["held_out"]
        for role in ROLES:
            accuracy = {k: v for k, v in cell["accuracy"].get(role, {}).items() if k != "held_out"}
            if domain not in accuracy:
                continue
            sources = [value for name, value in accuracy.items() if name != domain]
            rows.append(
                {
                    "dataset": cell["dataset"],
                    "method": cell["method"] if role == "student" else role,
                    "role": role,
                    "held_out": domain,
                    "seed": cell["cell"]["seed"],
                    "accuracy": accuracy[domain],
                    "source_accuracy": sum(sources) / len(sources),
                    "domains": accuracy,
                }
            )
    first = cells[0]
    variables = [f"--var {value.partition('=')[0]}=..." for value in arguments.var]
    threads = os.environ.get("OMP_NUM_THREADS")
    words = [f"OMP_NUM_THREADS={threads}"] if threads else []
    words += ["python benchmarks/tables.py", arguments.name]
    words += ["--config", shlex.quote(arguments.config)] if arguments.config else []
    words += ["--held-out", *arguments.held_out, "--seeds", *map(str, arguments.seeds), *variables]
    words += [f"--set {shlex.quote(value)}" for value in arguments.settings]
    return {
        "command": " ".join(words),
        "machine": ", and ".join(dict.fromkeys(cell["machine_words"] for cell in cells)),
        "teacher": first["teacher"],
        "student": first["student"],
        "method": first["method"],
        "stand_ins": first["stand_ins"],
        "notes": arguments.note,
        "rows": rows,
        "guard": [
            cell["cell"]
            | {
                "candidate": cell["candidates"][-1]["name"],
                "verdict": cell["guard"]["verdict"],
                "domains": cell["guard"]["domains"],
                "preflight": cell["preflight"]["verdict"],
                "size_bytes": cell["size_bytes"],
                "latency_ms": cell["latency_ms"],
            }
            for cell in cells
        ],
        "seconds": [cell["cell"] | {"total": _spent(cell), "stages": cell["stages"]} for cell in cells],
    }


def _spent(cell: dict[str, Any]) -> float:
    """Seconds of all stages, those shared with other cells included: what one build from nothing takes."""
    return round(sum(stage["seconds"] for stage in cell["stages"]), 1)


def render(table: dict[str, Any]) -> str:
    """The table as Markdown."""
    lines = [f"# {table['rows'][0]['dataset']}, held-out domains", ""]
    lines += [f"> {sentence}" for sentence in table["stand_ins"]]
    lines += [
        "",
        f"Teacher {table['teacher']}; student {table['student']}; method {table['method']}. Top-1 accuracy in",
        "percent on test images; mean over seeds, and the standard error of that mean where there are several.",
        "",
    ]
    for domain in dict.fromkeys(row["held_out"] for row in table["rows"]):
        lines += _section(table, domain)
    notes = table.get("notes") or []  # which older tables do not have
    lines += ["## Notes", "", *(line for note in notes for line in (note, ""))] if notes else []
    lines += [
        "## How it was made",
        "",
        f"    {table['command']}",
        "",
        f"Machine: {table['machine']}. One build from nothing:",
        "",
    ]
    lines += [
        f"- held out {cell['held_out']}, seed {cell['seed']}: {cell['total'] / 60:.1f} minutes"
        for cell in table["seconds"]
    ]
    return "\n".join(lines) + "\n"


def _section(table: dict[str, Any], domain: str) -> list[str]:
    rows = [row for row in table["rows"] if row["held_out"] == domain]
    others = [name for name in rows[0]["domains"] if name != domain]
    lines = [f"## Held out: {domain}", ""]
    lines += [f"| model | **{domain}** | " + " | ".join(others) + " |", "|---" * (len(others) + 2) + "|"]
    for role in ROLES:
        mine = [row for row in rows if row["role"] == role]
        if mine:
            cells = [_mean([row["domains"][name] for row in mine]) for name in (domain, *others)]
            title = {"erm": "plain training (ERM)", "student": f"{table['method']} (float)"}.get(role, role)
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
    lines.append("")
    for cell in table["guard"]:
        if cell["held_out"] == domain:
            drop = cell["domains"][domain]
            lines.append(
                f"Seed {cell['seed']}: {cell['candidate']}, guard **{cell['verdict']}** on {drop['n']} images (drop "
                f"{drop['drop']:.2f} points, at most {drop['upper']:.2f}); TensorRT preflight {cell['preflight']}; "
                f"bundle {cell['size_bytes'] / 1e6:.1f} MB."
            )
            lines.append("")
    return lines


def _mean(values: Sequence[float]) -> str:
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{100 * mean:.1f}"
    spread = (sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values)) ** 0.5
    return f"{100 * mean:.1f} ± {100 * spread:.1f}"


if __name__ == "__main__":
    main()
