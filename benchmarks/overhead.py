"""What the library costs over what one would write by hand, and against optimum; everything as ratios of pairs.

Example:
    python benchmarks/overhead.py --optimum-python VENV/bin/python --out benchmarks/results/overhead.json

Three comparisons on networks of about 5 ms of random numbers, both sides in turn:

- ``predict`` on a prepared array against the bare ``InferenceSession.run`` of the same graph, one thread each;
- ``predict`` on a JPEG file against a hand-written loop of Pillow, numpy and ONNX Runtime, one thread each;
- ``predict`` of a list of JPEG files against ``ORTModelForImageClassification`` with its image processor, both with
  their defaults on all processors. Optimum takes its quicker processor and its best batch, found beforehand.

The first two count the CPU time of the process: one thread works on each side, so that on an idle machine this is the
time that passes, and on a busy one the waiting for others is left out. The third counts the time that passes, because
work side by side is what it is about; beside it stands what both take with one thread, in CPU time, and how much of
that is decoding and the network, which nobody can leave out.

Each row says when it was measured and on how busy a machine. Optimum runs in a Python of its own (its packages pin
others than this project's). Ends with exit code 1 where a bound is missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image

from overheadoptimum import against_optimum
from tinymodel import NAMES, tiny_bundle
from vlkd_bench.machine import read_machine
from vlkd_runtime import Classifier
from vlkd_runtime.atomic import write_text

# Height and width, convolutions and their channels: what makes 5 ms of each size.
NETWORKS = ((96, 9, 32), (224, 4, 16))
ROWS = ("arrays", "jpeg_by_hand", "jpeg_optimum")
MOST_SHARE, MOST_MS, LEAST_HAND = 0.03, 0.15, 0.95


def seconds(call: Callable[[], object]) -> float:
    """Time one call, on the CPU."""
    start = time.process_time()
    call()
    return time.process_time() - start


def in_turn(ours: Callable[[int], object], theirs: Callable[[int], object], count: int) -> dict[str, Any]:
    """Time both sides in turn, which goes first changing each time; medians of the pairs."""
    pairs = []
    for index in range(count + count // 10):
        if index % 2:
            first = seconds(lambda: theirs(index))  # noqa: B023  (called at once)
            pairs.append((seconds(lambda: ours(index)), first))  # noqa: B023
        else:
            first = seconds(lambda: ours(index))  # noqa: B023
            pairs.append((first, seconds(lambda: theirs(index))))  # noqa: B023
    pairs = pairs[count // 10 :]
    ratios = [theirs / ours for ours, theirs in pairs]
    gaps = [ours - theirs for ours, theirs in pairs]
    return {
        "pairs": len(pairs),
        "ours_ms": round(statistics.median(ours for ours, _ in pairs) * 1e3, 4),
        "theirs_ms": round(statistics.median(theirs for _, theirs in pairs) * 1e3, 4),
        "gap_ms": round(statistics.median(gaps) * 1e3, 4),
        "ratio": round(statistics.median(ratios), 4),
        "ratio_95_percent": median_interval(ratios),
    }


def median_interval(values: Sequence[float]) -> list[float]:
    """Bounds of the median at 95 %, from order statistics."""
    ordered, half = sorted(values), len(values) ** 0.5
    places = (int(len(ordered) / 2 + side * half) for side in (-1, 1))
    return [round(ordered[max(0, min(len(ordered) - 1, place))], 4) for place in places]


def session_of(model: bytes) -> Any:
    """A bare session with the options that the engine sets."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def by_hand(session: Any, path: Path, side: int) -> tuple[str, float]:
    """Write the loop one would write without the library."""
    image = Image.open(path).convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
    logits = session.run(["logits"], {"image": np.asarray(image)[None]})[0][0]
    weights = np.exp(logits - logits.max())
    probabilities = weights / weights.sum()
    best = int(probabilities.argmax())
    return NAMES[best], float(probabilities[best])


def photographs(folder: Path, count: int) -> list[Path]:
    """JPEG files of a camera's kind: smooth shapes, some noise, 640 by 480."""
    rng = np.random.default_rng(5)
    paths = []
    for index in range(count):
        rough = Image.fromarray(rng.integers(0, 256, (12, 16, 3)).astype(np.uint8))
        pixels = np.asarray(rough.resize((640, 480), Image.Resampling.BICUBIC)).astype(np.int16)
        noisy = np.clip(pixels + rng.normal(0, 4, pixels.shape), 0, 255).astype(np.uint8)
        paths.append(folder / f"{index}.jpg")
        Image.fromarray(noisy).save(paths[-1], quality=90)
    return paths


def measure(folder: Path, asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Give the rows that are asked for, one after another."""
    paths = photographs(folder, 40)
    for number, (side, convolutions, channels) in enumerate(NETWORKS):
        bundle = tiny_bundle(
            folder / f"bundle{side}", side=side, convolutions=convolutions, channels=channels
        )
        session = session_of((bundle / "model.onnx").read_bytes())
        with Classifier.load(bundle, engine="ort-cpu", threads=1, cache=None) as classifier:
            for row, found in one_network(bundle, classifier, session, paths, side, number == 0, asked):
                yield {
                    "row": row,
                    "pixels": f"{side} x {side}",
                    **found,
                    "machine": read_machine().describe(),
                    "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                }


def one_network(
    bundle: Path,
    classifier: Classifier,
    session: Any,
    paths: Sequence[Path],
    side: int,
    first: bool,
    asked: argparse.Namespace,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of one network: the first two on the first one, where they cost the largest share."""
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3)).astype(np.uint8)
    both = ["embedding", "logits"]
    if first and "arrays" in asked.rows:
        arrays = in_turn(
            lambda _: classifier.predict(image),
            lambda _: session.run(both, {"image": image[None]}),
            asked.pairs,
        )
        share = round(arrays["gap_ms"] / arrays["theirs_ms"], 5)
        bounds = {"most_share": MOST_SHARE, "most_ms": MOST_MS}
        passed = share <= MOST_SHARE and arrays["gap_ms"] <= MOST_MS
        yield "arrays", {"passed": passed, **arrays, "overhead_share": share, **bounds}
    if first and "jpeg_by_hand" in asked.rows:
        hand = in_turn(
            lambda index: classifier.predict(paths[index % len(paths)]),
            lambda index: by_hand(session, paths[index % len(paths)], side),
            asked.pairs,
        )
        yield "jpeg_by_hand", {"passed": hand["ratio"] >= LEAST_HAND, **hand, "least_ratio": LEAST_HAND}
    if "jpeg_optimum" in asked.rows and asked.optimum_python is not None:
        folder = bundle.with_name(f"hf{side}")
        yield (
            "jpeg_optimum",
            against_optimum(asked.optimum_python, folder, bundle, paths, classifier, side, asked.rounds),
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparisons and print one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS)
    parser.add_argument("--optimum-python", type=Path, help="a Python with optimum-onnx; left out if absent")
    parser.add_argument("--out", type=Path, help="rows that are there and not measured now are kept")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        rows = list(measure(Path(name), asked))
    if asked.out is not None and asked.out.exists():
        fresh = {row["row"] for row in rows}
        rows = [row for row in json.loads(asked.out.read_text())["rows"] if row["row"] not in fresh] + rows
    record = {
        "passed": all(row["passed"] for row in rows),
        "rows": sorted(rows, key=lambda row: ROWS.index(row["row"])),
        "stand_in": "The networks are a few random convolutions of about 5 ms; the photographs are drawn, 640 by 480.",
        "command": "python benchmarks/overhead.py --optimum-python PYTHON",
        "onnxruntime": onnxruntime.__version__,
    }
    text = json.dumps(record, indent=1)
    if asked.out is not None:
        write_text(asked.out, text + "\n")
    print(text)
    return 0 if record["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
