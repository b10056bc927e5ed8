"""Records A/A runs: one bundle, process after process exactly as ``vlkd-edge bench`` starts them, nothing changed.

Example:
    nice -n 5 python benchmarks/recordaa.py vlkd-out/bundle --processes 96 --out aa.json
    nice -n 5 python benchmarks/recordaa.py vlkd-out/bundle --processes 96 --in-turn --out aa.json

The tests draw pairs of benches from such files: how often the gate cries wolf is measured on them. So every process
that was started is kept, in its order, whatever it was disturbed by; an interrupted recording keeps none. The
file says on what machine it was, at which priority, and what load the machine had meanwhile. With ``--in-turn`` two
processes at a time take turns, as those of ``bench --against`` do, and stand beside each other in the file.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image

from vlkd_bench.benchrun import TURNS, Plan, process_run
from vlkd_bench.machine import read_machine
from vlkd_bench.processes import start, take_turns
from vlkd_runtime.atomic import write_text
from vlkd_runtime.bundle import Bundle

COLUMNS = (
    "engine, call, end_to_end: n, p05_ms, p50_ms, p90_ms, p95_ms, interrupted; then cold_ms and peak_bytes"
)


def recorded(answer: dict[str, Any]) -> dict[str, Any]:
    """One process, in the columns above."""
    row: dict[str, Any] = {}
    for name, samples in answer["samples_ns"].items():
        run = process_run(samples, (answer["interrupted"] or {}).get(name))
        times = (round(value, 4) for value in (run.p05_ms, run.p50_ms, run.p90_ms, run.p95_ms))
        row[name] = [run.n, *times, run.interrupted]
    return row | {"cold_ms": round(answer["total_ms"], 1), "peak_bytes": answer["peak_resident_bytes"]}


def main() -> None:
    """Record and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--processes", type=int, default=96, help="How many to record.")
    parser.add_argument("--bench", type=int, default=TURNS, help="As many as a bench would have.")
    parser.add_argument("--in-turn", action="store_true", help="Let two at a time take turns.")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    plan = Plan(asked.bundle, processes=asked.bench)
    limit = plan.max_seconds / plan.processes
    rows, loads = [], []
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "golden.png"
        Image.fromarray(Bundle.open(asked.bundle).golden.images[0]).save(image)
        request = {
            "action": "latency",
            "bundle": str(asked.bundle),
            "engine": plan.engine,
            "threads": plan.threads,
            "image": str(image),
            "samples": -(-plan.samples // plan.processes),
            "max_seconds": limit,
        }
        while len(rows) < asked.processes:
            found = take_turns([request, request], limit) if asked.in_turn else [start(request, limit)]
            rows += [recorded(answer) for answer in found]
            loads.append(os.getloadavg()[0])
            print(f"{len(rows)} of {asked.processes}", rows[-1]["call"], file=sys.stderr)
    where = (
        f"{read_machine().describe().partition(', load ')[0]}; "
        f"ONNX Runtime {version('onnxruntime')} on {plan.threads} thread; "
        f"priority nice {os.nice(0)}; load {min(loads):.1f} to {max(loads):.1f}; "
        f"{datetime.now(timezone.utc):%Y-%m-%d}."
    )
    head = {
        "what": "A/A runs: one bundle, one process a line, in the order they ran; nothing changed between them."
        + " Each two took turns, a few calls at a time." * asked.in_turn,
        "where": where,
        "selection": f"All {len(rows)} processes that were started, none left out.",
        "columns": COLUMNS,
    }
    lines = [f" {json.dumps(name)}: {json.dumps(text)}," for name, text in head.items()]
    body = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    write_text(asked.out, "\n".join(["{", *lines, ' "runs": [', body, " ]", "}"]) + "\n")


if __name__ == "__main__":
    main()
