"""The part of ``overhead.py`` against optimum: the same files, the same network, in turn with a process of optimum's.

This library may take part in several ways at once, as with JPEGs decoded whole and at a fraction; each is a bundle.

Letters: none; times in seconds unless a name says ``_ms``.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
from PIL import Image

from tinymodel import NAMES
from vlkd_runtime import Classifier
from vlkd_runtime.preprocess import jpeg_denominator, prepare

# Bounds: on photographs of a camera's size, decoded as builds have it; and where there is less than that to be gained.
LEAST_FACTOR, LEAST_SHARE, LEAST_PLACE = 2.0, 0.7, 1.0
CHUNK, BATCHES, TRIALS = 40, (1, 4, 8, 16), 4
# What spins after a run, or is being written back, must not fall into the other side's time.
PAUSE_S = 0.05
CHILD = Path(__file__).with_name("overheadchild.py")


Judge: TypeAlias = "Callable[[dict[str, Any]], dict[str, Any]]"


class Optimum:
    """A process with optimum that classifies files when asked."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self._child = child
        self.versions = self._read()

    def classify(self, which: Sequence[int], *, fast: bool, batch: int) -> dict[str, Any]:
        """Classify files by number; gives labels, wall and CPU time."""
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps({"which": list(which), "fast": fast, "batch": batch}) + "\n")
        self._child.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        answer: dict[str, Any] = json.loads(self._child.stdout.readline())
        return answer


@contextmanager
def optimum(python: Path, folder: Path, paths: Sequence[Path], threads: int | None) -> Iterator[Optimum]:
    """Start the process; with no number of threads, everything in it has its own default."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OMP_")}
    environment.pop("PYTHONPATH", None)
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    command = [str(python), str(CHILD), str(folder), str(threads or 0), *map(str, paths)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as child:
        yield Optimum(child)
        assert child.stdin is not None
        child.stdin.close()


def against_optimum(
    python: Path,
    folder: Path,
    bundles: Mapping[str, Path],
    paths: Sequence[Path],
    rounds: int,
    judges: Mapping[str, Judge],
) -> dict[str, dict[str, Any]]:
    """Compare all with their defaults on all processors, and with one thread each.

    Args:
        python: A Python with optimum.
        folder: Where to write the network for it.
        bundles: The same network for this library, by the way it takes part.
        paths: JPEG files.
        rounds: Of ``CHUNK`` images, or of all files if they are fewer, for each side.
        judges: `by_factor`, `by_share` or `by_place`, for each of these ways.

    Returns:
        A row for each bundle.
    """
    transformers_folder(next(iter(bundles.values())), folder)
    with ExitStack() as stack:
        single = {
            name: stack.enter_context(Classifier.load(place, engine="ort-cpu", threads=1, cache=None))
            for name, place in bundles.items()
        }
        with optimum(python, folder, paths, None) as theirs, ExitStack() as inner:
            ours = {
                name: inner.enter_context(Classifier.load(place, cache=None))
                for name, place in bundles.items()
            }
            mode = best_mode(theirs, len(paths))
            whole = in_rounds(theirs, mode, ours, paths, rounds, "wall")
            versions = theirs.versions
        with optimum(python, folder, paths, 1) as theirs:
            one = in_rounds(theirs, {**mode, "batch": 1}, single, paths, rounds // 2, "cpu")
        return {
            name: one_row(whole[name], one[name], where_the_time_goes(single[name], paths), judges[name])
            | {"optimum_at_its_best": mode, "versions": versions}
            for name in bundles
        }


def one_row(
    whole: dict[str, Any], one: dict[str, Any], parts: dict[str, float], judge: Judge
) -> dict[str, Any]:
    """Judge one way of taking part, and say how much there was to be gained."""
    shared = parts["decode_ms"] + parts["network_ms"]
    possible = one["theirs_ms"] / shared
    found = {
        "all_processors": {**whole, "processors": len(os.sched_getaffinity(0))},
        "one_thread": {
            **one,
            "ours_in_parts": parts,
            "ratio_with_decoding_and_network_alone": round(possible, 3),
            "share_of_possible_ratio": round(one["images_per_second_ratio"] / possible, 3),
        },
    }
    arithmetic = (
        f"In one thread, optimum works {one['theirs_ms']:.2f} ms on an image. Of ours, {parts['decode_ms']:.2f} are "
        f"decoding and {parts['network_ms']:.2f} the network: with nothing else to do at all, this library would work "
        f"{possible:.2f} times less, and does {one['images_per_second_ratio']:.2f}."
    )
    return {**judge(found), "arithmetic": arithmetic, **found}


def by_factor(found: dict[str, Any]) -> dict[str, Any]:
    """Ask for so many times optimum's images per second on all processors."""
    return {
        "passed": found["all_processors"]["images_per_second_ratio"] >= LEAST_FACTOR,
        "compared": "images per second on all processors, against least_ratio",
        "least_ratio": LEAST_FACTOR,
    }


def by_share(found: dict[str, Any]) -> dict[str, Any]:
    """Ask for so much of what can be gained, where decoding and the network alone forbid the factor."""
    share, ratio = (
        found["one_thread"]["share_of_possible_ratio"],
        found["all_processors"]["images_per_second_ratio"],
    )
    return {
        "passed": share >= LEAST_SHARE and ratio >= LEAST_PLACE,
        "compared": (
            "share_of_possible_ratio against least_share: how much of the ratio that decoding and the network alone "
            "would allow in one thread is reached there; and images per second on all processors against least_ratio, "
            "never slower than optimum"
        ),
        "least_share": LEAST_SHARE,
        "least_ratio": LEAST_PLACE,
    }


def by_place(found: dict[str, Any]) -> dict[str, Any]:
    """Ask to be no slower than optimum on all processors."""
    return {
        "passed": found["all_processors"]["images_per_second_ratio"] >= LEAST_PLACE,
        "compared": "images per second on all processors, against least_ratio: never slower than optimum",
        "least_ratio": LEAST_PLACE,
    }


def best_mode(theirs: Optimum, count: int) -> dict[str, Any]:
    """Find the image processor and the batch with which optimum is quickest."""
    modes = [{"fast": fast, "batch": batch} for fast in (False, True) for batch in BATCHES]
    which = range(min(count, CHUNK))
    trials = [[theirs.classify(which, **mode)["wall"] for mode in modes] for _ in range(1 + TRIALS)][1:]
    medians = [statistics.median(row[place] for row in trials) for place in range(len(modes))]
    return modes[medians.index(min(medians))]


def in_rounds(
    theirs: Optimum,
    mode: dict[str, Any],
    ours: Mapping[str, Classifier],
    paths: Sequence[Path],
    rounds: int,
    clock: str,
) -> dict[str, dict[str, Any]]:
    """Let all classify the same files in turn, who goes first changing; medians of the rounds, for each of ours."""
    now: Callable[[], float] = time.perf_counter if clock == "wall" else time.process_time
    sides, chunk = [None, *ours], min(CHUNK, len(paths))
    taken: dict[str | None, list[float]] = {side: [] for side in sides}
    same = dict.fromkeys(ours, 0)
    for index in range(rounds + 2):
        which = [(index * chunk + offset) % len(paths) for offset in range(chunk)]
        files = [paths[place] for place in which]
        labels: dict[str | None, list[str]] = {}
        first = index % len(sides)
        for side in sides[first:] + sides[:first]:
            time.sleep(PAUSE_S)
            if side is None:
                answers = theirs.classify(which, **mode)
                labels[side] = answers["labels"]
                taken[side].append(answers[clock])
            else:
                start = now()
                labels[side] = [prediction.label for prediction in ours[side].predict(files)]
                taken[side].append(now() - start)
        for name in ours:
            same[name] += sum(mine == other for mine, other in zip(labels[name], labels[None], strict=True))
    # The first two rounds warm everyone.
    return {
        name: {
            "time": "passed" if clock == "wall" else "CPU",
            "rounds": rounds,
            "images_in_a_round": chunk,
            "same_label_share": round(same[name] / ((rounds + 2) * chunk), 4),
            **_figures(taken[None][2:], taken[name][2:], chunk),
        }
        for name in ours
    }


def _figures(theirs: Sequence[float], ours: Sequence[float], chunk: int) -> dict[str, Any]:
    ratios = sorted(other / mine for other, mine in zip(theirs, ours, strict=True))
    half = len(ratios) ** 0.5
    bounds = [ratios[max(0, min(len(ratios) - 1, int(len(ratios) / 2 + side * half)))] for side in (-1, 1)]
    return {
        "theirs_ms": round(statistics.median(theirs) / chunk * 1e3, 3),
        "ours_ms": round(statistics.median(ours) / chunk * 1e3, 3),
        "images_per_second_ratio": round(statistics.median(ratios), 3),
        "ratio_95_percent": [round(bound, 3) for bound in bounds],
    }


def where_the_time_goes(single: Classifier, paths: Sequence[Path]) -> dict[str, float]:
    """Take one prediction from a file apart, in CPU milliseconds of one thread."""
    images = [prepare(path, single.preprocess) for path in paths]

    def decode(place: int) -> None:
        with Image.open(paths[place]) as image:
            by = jpeg_denominator(*image.size, single.preprocess)
            image.draft(None, (image.width // by, image.height // by))
            image.load()

    steps: dict[str, Callable[[int], object]] = {
        "decode": decode,
        "prepare": lambda place: prepare(paths[place], single.preprocess),
        "network": lambda place: single._engine.run(images[place][None]),
        "whole": lambda place: single.predict(paths[place]),
    }
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(5):
        for place in range(len(paths)):
            for name, step in steps.items():
                start = time.process_time()
                step(place)
                taken[name].append(time.process_time() - start)
    found = {name: float(np.median(values)) * 1e3 for name, values in taken.items()}
    parts = {
        "decode_ms": found["decode"],
        "to_size_ms": found["prepare"] - found["decode"],
        "network_ms": found["network"],
        "rest_ms": found["whole"] - found["prepare"] - found["network"],
    }
    return {name: round(value, 3) for name, value in parts.items()}


def transformers_folder(bundle: Path, folder: Path) -> None:
    """Write the same network as optimum loads it: normalised ``pixel_values`` of any batch in, the rest as it is."""
    model = onnx.load(bundle / "model.onnx")
    graph = model.graph
    side = graph.input[0].type.tensor_type.shape.dim[1].dim_value
    del graph.node[:4], graph.input[:], graph.output[0]
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == "layer0":
                node.input[index] = "pixel_values"
    unused = {"mean", "deviation"}
    kept = [item for item in graph.initializer if item.name not in unused]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    shape = ["N", 3, side, side]
    graph.input.append(onnx.helper.make_tensor_value_info("pixel_values", onnx.TensorProto.FLOAT, shape))
    graph.output[0].type.tensor_type.shape.dim[0].dim_param = "N"
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
        "size": {"height": side, "width": side},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [120 / 255] * 3,
        "image_std": [60 / 255] * 3,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
