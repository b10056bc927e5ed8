"""Predictions without end: does memory stay flat, and do threads answer what one thread answers?

Example:
    python benchmarks/soak.py --predictions 1000000 --minutes 10 --out benchmarks/results/soak.json

The network is a few numbers, so that what is exercised is the library around it. Memory is the resident set of
this process, read from the kernel. Ends with exit code 1 where memory grew by 1 % or an answer differed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tinymodel import tiny_bundle
from vlkd_bench.machine import read_machine
from vlkd_runtime import Classifier, Prediction
from vlkd_runtime.atomic import write_text

IMAGES = 64
MOST_GROWTH = 0.01
WARM_UP_SHARE = 0.1


def resident_bytes() -> int:
    """Resident set of this process."""
    fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def growth(samples: Sequence[int]) -> dict[str, float]:
    """Compare the last tenth of the samples with the first tenth after warm-up, by their medians."""
    rest = samples[int(len(samples) * WARM_UP_SHARE) :]
    part = max(1, len(rest) // 10)
    first, last = float(np.median(rest[:part])), float(np.median(rest[-part:]))
    return {
        "after_warm_up_mib": round(first / 2**20, 3),
        "end_mib": round(last / 2**20, 3),
        "growth_share": round(last / first - 1, 6),
        "samples": len(samples),
    }


def in_a_loop(
    classifier: Classifier, images: Any, expected: Sequence[Prediction], count: int
) -> dict[str, Any]:
    """Predict again and again in one thread."""
    samples, wrong = [], 0
    every = max(1, count // 1000)
    start = time.perf_counter()
    for index in range(count):
        which = index % len(images)
        wrong += classifier.predict(images[which]) != expected[which]
        if index % every == 0:
            samples.append(resident_bytes())
    seconds = time.perf_counter() - start
    return {"predictions": count, "wrong": wrong, "seconds": round(seconds, 1), "memory": growth(samples)}


def in_threads(
    classifier: Classifier, sources: Sequence[Any], expected: Sequence[Prediction], count: int, seconds: float
) -> dict[str, Any]:
    """Predict from several threads at once, from arrays and from files, until the time is over."""
    end = time.monotonic() + seconds
    done, wrong = [0] * count, [0] * count
    errors: list[str] = []

    def work(thread: int) -> None:
        rng = np.random.default_rng(thread)
        try:
            while time.monotonic() < end:
                for which in rng.integers(0, len(sources), 50):
                    wrong[thread] += classifier.predict(sources[which]) != expected[which]
                    done[thread] += 1
        except BaseException as error:
            errors.append(repr(error))
            raise

    threads = [threading.Thread(target=work, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    samples = []
    while any(thread.is_alive() for thread in threads):
        samples.append(resident_bytes())
        time.sleep(seconds / 1000)
    for thread in threads:
        thread.join()
    return {
        "threads": count,
        "seconds": seconds,
        "predictions": sum(done),
        "least_in_a_thread": min(done),
        "wrong": sum(wrong),
        "errors": errors,
        "memory": growth(samples),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run both and print one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--predictions", type=int, default=1_000_000)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        place = tiny_bundle(Path(folder) / "bundle")
        rng = np.random.default_rng(1)
        images = rng.integers(0, 256, (IMAGES, 8, 8, 3)).astype(np.uint8)
        sources: list[Any] = list(images)
        for index in range(0, IMAGES, 4):
            sources[index] = Path(folder) / f"{index}.png"
            Image.fromarray(images[index]).save(sources[index])
        with Classifier.load(place, engine="ort-cpu", threads=1, cache=None) as classifier:
            expected = [classifier.predict(image) for image in images]
            loop = in_a_loop(classifier, images, expected, asked.predictions)
            threads = in_threads(classifier, sources, expected, asked.threads, asked.minutes * 60)
            engine = f"{classifier.info.name} {classifier.info.version}"
    parts = (loop, threads)
    passed = all(part["wrong"] == 0 and part["memory"]["growth_share"] < MOST_GROWTH for part in parts)
    record = {
        "passed": passed and not threads["errors"],
        "loop": loop,
        "threads": threads,
        "most_growth_share": MOST_GROWTH,
        "engine": engine,
        "stand_in": "A network of a few random numbers; what is exercised is the library around it.",
        "command": f"python benchmarks/soak.py --predictions {asked.predictions} --minutes {asked.minutes:g} "
        f"--threads {asked.threads}",
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
