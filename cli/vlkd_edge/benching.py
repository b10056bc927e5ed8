"""The ``bench`` verb: latency of a bundle on the machine at hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vlkd_bench.latency import measure
from vlkd_bench.machine import read_machine
from vlkd_runtime import Classifier


def bench(bundle: Path, *, samples: int, threads: int, engine: str) -> dict[str, Any]:
    """Time predictions of a bundle's first golden image, prepared beforehand.

    Returns:
        A record: bundle, target, engine, provider, threads, latency and machine.
    """
    from vlkd_runtime.bundle import Bundle

    opened = Bundle.open(bundle)
    image = opened.golden.images[0]
    with Classifier.load(opened, engine=engine, threads=threads) as classifier:
        stats = measure(lambda: classifier.predict(image), min_samples=samples)
        info = classifier.info
    machine = read_machine()
    record = {
        "bundle": str(bundle),
        "digest": opened.manifest.digest,
        "name": opened.manifest.name,
        "target": opened.manifest.target,
        "stand_in": opened.manifest.stand_in,
        "engine": info.name,
        "provider": info.provider,
        "engine_version": info.version,
        "threads": threads,
        "timed": "predict() on one prepared image: engine call and probabilities; no decoding, no resizing",
        "latency_ms": {"p50": stats.p50_ms, "p90": stats.p90_ms, "p99": stats.p99_ms},
        "latency": stats.to_json(),
        "machine": machine.to_json(),
        "machine_words": machine.describe(),
        "size_bytes": sum(len(data) for data in opened.files.values()),
    }
    plain: dict[str, Any] = json.loads(json.dumps(record))
    return plain


def render(record: dict[str, Any]) -> str:
    """A record as lines for people."""
    latency = record["latency"]
    p99 = "needs 1000 calls" if latency["p99_ms"] is None else f"{latency['p99_ms']:.3f} ms"
    lines = [
        f"{record['name']} for {record['target']}, {record['engine']} {record['engine_version']} "
        f"({record['provider']}), {record['threads']} thread{'s' * (record['threads'] > 1)}",
        f"on {record['machine_words']}",
        f"p50 {latency['p50_ms']:.3f} ms   p90 {latency['p90_ms']:.3f} ms   p99 {p99}   "
        f"max {latency['max_ms']:.3f} ms   n {latency['n']}",
        f"timed: {record['timed']}",
        *(f"note: {note}" for note in latency["notes"]),
    ]
    if record["target"].startswith("jetson") and "Jetson" not in record["machine_words"]:
        lines.append(f"note: this is not the {record['target']}; measure there for its numbers")
    return "\n".join(lines)
