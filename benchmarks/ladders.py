"""Climbs the ladder for several held-out domains, in TensorRT's dialect and in ONNX Runtime's CPU dialect: one table.

Example:
    python benchmarks/ladders.py pacs-ladder --config distill/recipes/pacs-standin.toml \
        --held-out sketch art_painting cartoon photo --var pacs=DATA --var teacher=TEACHER --work vlkd-out/ladders

Each held-out domain is a `vlkd-edge build` for the recipe's target, and then a `vlkd-edge compress` of its float
student for this machine's processor. What is done is not done again. The result is ``benchmarks/results/NAME.json``,
and ``NAME.md`` rendered from it.
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
from vlkd_bench.tablenotes import how_it_was_made
from vlkd_runtime.atomic import write_text

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Climb for every domain, then write the table."""
    arguments = parse(sys.argv[1:])
    cells = [cell(arguments, domain) for domain in arguments.held_out]
    table = {
        "command": command(arguments),
        "machine": ", and ".join(dict.fromkeys(item.pop("machine") for item in cells)),
        "stand_ins": cells[0]["stand_ins"],
        "note": arguments.note,
        "cells": cells,
    }
    RESULTS.mkdir(exist_ok=True)
    write_text(RESULTS / f"{arguments.name}.json", json.dumps(table, indent=1) + "\n")
    write_text(RESULTS / f"{arguments.name}.md", render(table, arguments.title or arguments.name))
    print(f"wrote {arguments.name}.json and {arguments.name}.md in {RESULTS.name}/")


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", help="name of the result files")
    parser.add_argument("--title", default="", help="heading of the table")
    parser.add_argument("--note", default="", help="a sentence below it")
    parser.add_argument("--config", help="recipe; the demo if absent")
    parser.add_argument("--held-out", nargs="+", default=["sketch"], help="domains, one build each")
    parser.add_argument("--var", action="append", default=[], help="passed on to the build")
    parser.add_argument("--set", action="append", default=[], help="passed on to the build", dest="settings")
    parser.add_argument("--no-cpu", action="store_true", help="leave the CPU dialect out")
    parser.add_argument("--work", type=Path, default=Path("vlkd-out/ladders"), help="folder of the builds")
    return parser.parse_args(words)


def command(arguments: argparse.Namespace) -> str:
    """What to type to get this table again; places are left open."""
    threads = os.environ.get("OMP_NUM_THREADS")
    words = [f"OMP_NUM_THREADS={threads}"] if threads else []
    words += ["python benchmarks/ladders.py", arguments.name, "--held-out", *arguments.held_out]
    words += ["--config", shlex.quote(arguments.config)] if arguments.config else []
    words += [f"--var {value.partition('=')[0]}=..." for value in arguments.var]
    words += [f"--set {shlex.quote(value)}" for value in arguments.settings]
    for option in ("title", "note"):
        words += [f"--{option} {shlex.quote(value)}" for value in (getattr(arguments, option),) if value]
    return " ".join(words + ["--no-cpu"] * arguments.no_cpu)


def cell(arguments: argparse.Namespace, domain: str) -> dict[str, Any]:
    """Build with one domain held out, then compress the float student for the processor."""
    out = arguments.work / arguments.name / domain
    words = ["--config", arguments.config] if arguments.config else []
    for option, values in (("--var", arguments.var), ("--set", arguments.settings)):
        words += [word for value in values for word in (option, value)]
    words += ["--set", f"data.held_out={domain}"]
    print(f"{domain}: build ...", flush=True)
    build = edge("build", *words, "--out", str(out), "--cache", str(arguments.work / "cache"))
    ladder = json.loads((out / "ladder.json").read_text())
    made = {
        "held_out": domain,
        "dataset": build["dataset"],
        "student": build["student"],
        "method": build["method"],
        "stand_ins": build["stand_ins"],
        "target": build["target"] if isinstance(build["target"], str) else build["target"]["name"],
        "accuracy": {role: build["accuracy"][role][domain] for role in ("erm", "student")},
        "tensorrt": climbed(ladder) | {"preflight": (build["preflight"] or {}).get("verdict")},
        "cpu": None,
        "machine": Machine.from_json(build["machine"]).describe().partition(", load ")[0],
    }
    if not arguments.no_cpu:
        print(f"{domain}: processor ...", flush=True)
        floats = sorted(
            out.glob(f"stages/export-{build['method']}-*/model.onnx"), key=lambda path: path.stat().st_mtime
        )
        root = data_root(arguments, out)
        found = edge(
            *("compress", str(floats[-1]), "--data", str(root), "--held-out", domain, "--target", "cpu-x86"),
            *("--out", str(out / "cpu")),
        )
        made["cpu"] = climbed(found)
    return made


def data_root(arguments: argparse.Namespace, out: Path) -> Path:
    """Where the build's images lie."""
    from vlkd_edge import configfile

    loaded = configfile.load(
        Path(arguments.config) if arguments.config else configfile.DEMO, arguments.var, arguments.settings
    )
    return next(out.glob("stages/data-*/images")) if loaded.data.root == "demo" else Path(loaded.data.root)


def edge(*words: str) -> dict[str, Any]:
    """Run a verb and return its JSON; a guard that says no is an answer, too."""
    done = subprocess.run(
        [sys.executable, "-m", "vlkd_edge", *words, "--json"], stdout=subprocess.PIPE, text=True, check=False
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode not in (0, 1) or not lines:
        sys.exit(f"vlkd-edge {words[0]} ended with exit code {done.returncode}; see above")
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def climbed(ladder: dict[str, Any]) -> dict[str, Any]:
    """What the table needs of a climb."""
    wanted = ("name", "steps", "kept_float", "verdict", "worst", "size_bytes", "speed", "fused")
    return {
        "chosen": ladder["chosen"],
        "budget": {key: ladder["budget"][key] for key in ("worst_points", "mean_points", "confidence")},
        "candidates": [{key: item[key] for key in wanted} for item in ladder["candidates"]],
        "worst_layers": [group["layers"] for group in (ladder["ranking"] or {"groups": []})["groups"][:3]],
    }


def render(table: dict[str, Any], title: str) -> str:
    """The table as Markdown."""
    first = table["cells"][0]
    budget = first["tensorrt"]["budget"]
    lines = [f"# {title}", ""]
    lines += [f"> {sentence}" for sentence in table["stand_ins"]] + [""] * bool(table["stand_ins"])
    lines += [
        f"Student {first['student']}, method {first['method']}, data {first['dataset']}. Drops in points of top-1 "
        f"accuracy on the held-out domain, with their upper bounds; budget {budget['worst_points']:g} for the worst "
        f"domain at {100 * budget['confidence']:g} % confidence, shared among the rungs.",
        "",
    ]
    lines += [table["note"], ""] * bool(table["note"])
    lines += [
        "| held out | float | first in INT8, drop | chosen | drop | kept in float | preflight |",
        "|---|---|---|---|---|---|---|",
    ]
    for item in table["cells"]:
        lines.append(_summary(item, item["tensorrt"]))
    if any(item["cpu"] for item in table["cells"]):
        lines += [
            "",
            "The same float students in ONNX Runtime's CPU dialect, one thread, in turns with the float graph:",
            "",
            "| held out | chosen | drop | faster than float (95 % interval) | layers in integers | size |",
            "|---|---|---|---|---|---|",
        ]
        lines += [_processor(item) for item in table["cells"] if item["cpu"]]
    for item in table["cells"]:
        for what, key in ((f"TensorRT's dialect ({item['target']})", "tensorrt"), ("the processor", "cpu")):
            if item[key]:
                lines += ["", f"## The ladder for {item['held_out']}, {what}", "", *_ladder(item[key])]
    lines += how_it_was_made(table["command"], table["machine"])
    return "\n".join(lines) + "\n"


def _drop(candidate: dict[str, Any] | None) -> str:
    if candidate is None or candidate["worst"] is None:
        return "not judged"
    return f"{candidate['worst']['drop']:.2f}, at most {candidate['worst']['upper']:.2f}"


def _chosen(climb: dict[str, Any]) -> dict[str, Any] | None:
    return next((item for item in climb["candidates"] if item["name"] == climb["chosen"]), None)


def _summary(item: dict[str, Any], climb: dict[str, Any]) -> str:
    chosen = _chosen(climb)
    first = next((one for one in climb["candidates"] if one["name"].startswith("int8")), None)
    kept = "" if chosen is None else str(len(chosen["kept_float"]) or "nothing that was planned in INT8")
    if chosen is not None and chosen["name"].startswith("fp16"):
        kept = "everything, in 16 bits"
    cells = (
        *(item["held_out"], f"{100 * item['accuracy']['student']:.1f}"),
        f"{first['name']}: {_drop(first)} ({first['verdict']})" if first else "none",
        *(climb["chosen"] or "**none**", _drop(chosen), kept, climb["preflight"] or "not run"),
    )
    return f"| {' | '.join(cells)} |"


def _processor(item: dict[str, Any]) -> str:
    chosen = _chosen(item["cpu"])
    if chosen is None:
        return f"| {item['held_out']} | **none** | {_drop(None)} | | | |"
    speed, fused = chosen["speed"], chosen["fused"]
    ratio = f"{speed['ratio']:.2f} ({speed['ratio_low']:.2f} to {speed['ratio_high']:.2f})" if speed else ""
    count = f"{fused['integer']} of {fused['planned']} planned" if fused else ""
    size = f"{chosen['size_bytes'] / 1e6:.2f} MB"
    return f"| {item['held_out']} | {chosen['name']} | {_drop(chosen)} | {ratio} | {count} | {size} |"


def _ladder(climb: dict[str, Any]) -> list[str]:
    lines = ["| candidate | what was done | drop | verdict |", "|---|---|---|---|"]
    for item in climb["candidates"]:
        name = f"**{item['name']}**" if item["name"] == climb["chosen"] else item["name"]
        lines.append(f"| {name} | {'; '.join(item['steps'])} | {_drop(item)} | {item['verdict']} |")
    if climb["worst_layers"]:
        named = (
            group[0] if len(group) == 1 else f"{group[0]} to {group[-1]}" for group in climb["worst_layers"]
        )
        lines += ["", f"Dearest by margin flips for what they save: {', '.join(named)}."]
    return lines


if __name__ == "__main__":
    main()
