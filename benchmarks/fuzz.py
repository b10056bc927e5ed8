"""Thousands of damaged bundles and images: nothing may crash, hang, be taken for whole, or write elsewhere.

Example:
    python benchmarks/fuzz.py --bundles 10000 --images 10000 --out benchmarks/results/fuzz.json

Each case is a mutation chosen for what it may break: bits, lengths, truncations, members and central directories
of the archive, JSON values under a digest that fits again, tensors' headers, protobuf fields of the graph, segments
of image files, scans without end, large empty images, bombs. Cases run in child processes; a child that dies or takes
more than five seconds for a case is a finding. An audit hook of Python's reports each file that is opened for writing,
made, renamed or removed outside the cache folder; it does not see native code, so that home and temporary folder of
the children are empty ones of their own, and a file left there is a finding, too. Ends with exit code 1 where anything
was found.

What counts as accepted wrongly: a bundle that opens although its bytes are not the original's. A resealed
bundle, whose hashes all fit again, is another whole bundle and may open; with a signature it may not.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from vlkd_bench.machine import read_machine
from vlkd_runtime.atomic import write_text

LONGEST_CASE_S = 5.0
CASES_IN_A_CHILD = 2500
# Empty folders of the children, and the variables that lead there.
OWN = {"home": "HOME", "temporary": "TMPDIR"}
CHILD = Path(__file__).with_name("fuzzchild.py")


def run_children(kind: str, count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Run the cases in children of some thousand each; go on behind a case that kills its child."""
    outcomes: Counter[str] = Counter()
    mutations: Counter[str] = Counter()
    findings: list[dict[str, Any]] = []
    slowest = 0.0
    start = 0
    while start < count:
        end = min(start + CASES_IN_A_CHILD, count)
        lines, code = run_child(kind, start, end, seed, folder)
        for line in lines:
            outcomes[line["outcome"]] += 1
            mutations[line["mutation"]] += 1
            slowest = max(slowest, line["seconds"])
            if line["finding"]:
                findings.append(line)
        findings += [
            {"case": start, "finding": f"left outside the cache: {name}"} for name in left_in(folder)
        ]
        start += len(lines)
        if start < end:
            findings.append({"case": start, "finding": f"the child ended with {code}"})
            outcomes["crash or hang"] += 1
            start += 1
    return {
        "cases": count,
        "outcomes": dict(sorted(outcomes.items())),
        "mutations": dict(sorted(mutations.items())),
        "slowest_case_s": round(slowest, 3),
        "findings": findings[:50],
        "number_of_findings": len(findings),
    }


def run_child(kind: str, start: int, end: int, seed: int, folder: Path) -> tuple[list[dict[str, Any]], str]:
    """Run one child until it ends or a case takes too long."""
    command = [sys.executable, "-W", "error", str(CHILD), kind, str(start), str(end), str(seed), str(folder)]
    lines: list[dict[str, Any]] = []
    for name in OWN:
        (folder / name).mkdir(exist_ok=True)
    environment = {**os.environ, "VLKD_CACHE": str(folder / "cache")}
    environment |= {variable: str(folder / name) for name, variable in OWN.items()}
    environment.pop("XDG_CACHE_HOME", None)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as child:
        assert child.stdout is not None
        lines.extend(json.loads(text) for text in child.stdout)
        code = child.wait()
    return lines, f"signal {-code}" if code < 0 else f"exit code {code}"


def left_in(folder: Path) -> list[str]:
    """Name what a child, or native code in it, has left in the folders that were empty."""
    return [
        f"{name}/{path.name}" for name in OWN for path in sorted((folder / name).rglob("*")) if path.is_file()
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run both kinds and print one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundles", type=int, default=10_000)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args(arguments)
    begun = time.monotonic()
    parts: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind, count in (("bundles", asked.bundles), ("images", asked.images)):
            place = Path(folder) / kind
            (place / "cache").mkdir(parents=True, mode=0o700)
            parts[kind] = run_children(kind, count, asked.seed, place)
    record = {
        "passed": not any(part["number_of_findings"] for part in parts.values()),
        **parts,
        "longest_case_allowed_s": LONGEST_CASE_S,
        "seconds": round(time.monotonic() - begun, 1),
        "stand_in": "The bundle is one of a few random numbers; the images are random and drawn.",
        "command": f"python benchmarks/fuzz.py --bundles {asked.bundles} --images {asked.images} --seed {asked.seed}",
        "machine": read_machine().describe(),
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    text = json.dumps(record, indent=1)
    if asked.out is not None:
        write_text(asked.out, text + "\n")
    print(text)
    return 0 if record["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
