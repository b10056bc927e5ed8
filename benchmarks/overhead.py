"""What the library costs over what one would write by hand, and against optimum; everything as ratios of pairs.

Example:
    python benchmarks/overhead.py --optimum-python VENV/bin/python --out benchmarks/results/overhead.json

Three comparisons on one network of about 5 ms, calls of both sides in turn. What counts is the CPU time of the
process: one thread works on each side, so that on an idle machine this is the time that passes, and on a busy one
the waiting for others is left out.

- ``predict`` on a prepared array against the bare ``InferenceSession.run`` of the same graph;
- ``predict`` on a JPEG file against a hand-written loop of Pillow, numpy and ONNX Runtime;
- ``predict`` file by file against ``ORTModelForImageClassification`` with its image processor,
  which run in a Python of their own (their packages pin others than this project's).

Ends with exit code 1 where one misses its bound.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from PIL import Image

from tinymodel import NAMES, tiny_bundle
from vlkd_bench.machine import read_machine
from vlkd_runtime import Classifier, Prediction
from vlkd_runtime.atomic import write_text

SIDE, CONVOLUTIONS, CHANNELS = 96, 9, 32
CHUNK = 10
MOST_SHARE, MOST_MS, LEAST_HAND, LEAST_OPTIMUM = 0.03, 0.15, 0.95, 2.0
CHILD = Path(__file__).with_name("overheadchild.py")


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
    half = len(pairs) ** 0.5
    ordered = sorted(ratios)
    low, high = (
        ordered[max(0, min(len(ordered) - 1, int(len(ordered) / 2 + side * half)))] for side in (-1, 1)
    )
    return {
        "pairs": len(pairs),
        "ours_ms": round(statistics.median(ours for ours, _ in pairs) * 1e3, 4),
        "theirs_ms": round(statistics.median(theirs for _, theirs in pairs) * 1e3, 4),
        "gap_ms": round(statistics.median(gaps) * 1e3, 4),
        "ratio": round(statistics.median(ratios), 4),
        "ratio_95_percent": [round(low, 4), round(high, 4)],
    }


def session_of(model: bytes) -> Any:
    """A bare session with the options that the engine sets."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def by_hand(session: Any, path: Path) -> tuple[str, float]:
    """Write the loop one would write without the library."""
    image = Image.open(path).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
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


def transformers_folder(bundle: Path, folder: Path) -> None:
    """Write the same network as optimum loads it: normalised ``pixel_values`` in, the rest as it is."""
    model = onnx.load(bundle / "model.onnx")
    graph = model.graph
    del graph.node[:4], graph.input[:], graph.output[0]
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == "layer0":
                node.input[index] = "pixel_values"
    shape = [1, 3, SIDE, SIDE]
    graph.input.append(onnx.helper.make_tensor_value_info("pixel_values", onnx.TensorProto.FLOAT, shape))
    onnx.checker.check_model(model)
    folder.mkdir()
    onnx.save(model, folder / "model.onnx")
    labels = dict(enumerate(NAMES))
    config = {
        "model_type": "resnet",
        "architectures": ["ResNetForImageClassification"],
        "id2label": labels,
        "label2id": {name: index for index, name in labels.items()},
    }
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": SIDE, "width": SIDE},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [120 / 255] * 3,
        "image_std": [60 / 255] * 3,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


def against_optimum(
    python: Path, folder: Path, paths: Sequence[Path], classifier: Classifier, count: int
) -> dict[str, Any]:
    """Let a process with optimum classify the same files in turn with this one; each times itself."""
    command = [str(python), str(CHILD), str(folder), *map(str, paths)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        versions = json.loads(child.stdout.readline())
        rounds, same = [], 0
        for index in range(count // CHUNK + 1):
            chunk = [(index * CHUNK + offset) % len(paths) for offset in range(CHUNK)]
            theirs, labels = 0.0, []
            for which in chunk:
                child.stdin.write(f"{which}\n")
                child.stdin.flush()
                answer = json.loads(child.stdout.readline())
                theirs += float(answer["seconds"])
                labels.append(answer["label"])
            files = [paths[which] for which in chunk]
            found: list[Prediction] = []
            one = seconds(lambda: found.extend(map(classifier.predict, files)))  # noqa: B023
            same += sum(label == prediction.label for label, prediction in zip(labels, found, strict=True))
            rounds.append((theirs, one))
        child.stdin.close()
    images = len(rounds) * CHUNK
    rounds = rounds[1:]  # the first warms both
    return {
        "rounds": len(rounds),
        "images_in_a_round": CHUNK,
        "same_label_share": round(same / images, 4),
        "theirs_ms": round(statistics.median(theirs for theirs, _ in rounds) / CHUNK * 1e3, 3),
        "ours_ms": round(statistics.median(one for _, one in rounds) / CHUNK * 1e3, 3),
        "images_per_second_ratio": round(statistics.median(theirs / one for theirs, one in rounds), 3),
        "versions": versions,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparisons and print one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--optimum-python", type=Path, help="a Python with optimum-onnx; left out if absent")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = tiny_bundle(folder / "bundle", side=SIDE, convolutions=CONVOLUTIONS, channels=CHANNELS)
        paths = photographs(folder, 40)
        session = session_of((bundle / "model.onnx").read_bytes())
        image = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
        with Classifier.load(bundle, engine="ort-cpu", threads=1, cache=None) as classifier:
            both = ["embedding", "logits"]
            arrays = in_turn(
                lambda _: classifier.predict(image),
                lambda _: session.run(both, {"image": image[None]}),
                asked.pairs,
            )
            hand = in_turn(
                lambda index: classifier.predict(paths[index % len(paths)]),
                lambda index: by_hand(session, paths[index % len(paths)]),
                asked.pairs,
            )
            optimum: dict[str, Any] | str = "not run: no --optimum-python"
            if asked.optimum_python is not None:
                transformers_folder(bundle, folder / "hf")
                optimum = against_optimum(
                    asked.optimum_python, folder / "hf", paths, classifier, asked.pairs // 2
                )
    share = round(arrays["gap_ms"] / arrays["theirs_ms"], 5)
    passed = share <= MOST_SHARE and arrays["gap_ms"] <= MOST_MS and hand["ratio"] >= LEAST_HAND
    if isinstance(optimum, dict):
        passed = passed and optimum["images_per_second_ratio"] >= LEAST_OPTIMUM
    record = {
        "passed": passed,
        "arrays": {**arrays, "overhead_share": share, "most_share": MOST_SHARE, "most_ms": MOST_MS},
        "jpeg_by_hand": {**hand, "least_ratio": LEAST_HAND},
        "jpeg_optimum": optimum,
        "least_ratio_optimum": LEAST_OPTIMUM,
        "time": "CPU time of each side's process, one thread",
        "stand_in": "The network is a few random convolutions of about 5 ms; the photographs are drawn, 640 by 480.",
        "command": f"python benchmarks/overhead.py --pairs {asked.pairs} --optimum-python PYTHON",
        "onnxruntime": onnxruntime.__version__,
        "machine": read_machine().describe(),
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    text = json.dumps(record, indent=1)
    if asked.out is not None:
        write_text(asked.out, text + "\n")
    print(text)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
