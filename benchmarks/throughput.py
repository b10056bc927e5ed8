"""How fast a student learns with cached teacher embeddings, against plain training of the same student; and memory.

Example:
    python benchmarks/throughput.py benchmarks/results/throughput.json
    python benchmarks/throughput.py benchmarks/results/throughput.json memory    (this section anew, the others stay)

Renders a small demo world, decodes it and asks the demo teacher, as a build does. Epochs of each method and of plain
training take turns in one process, by the product's own loop: a ratio compares an epoch with the plain ones just before
and after it. The memory section runs whole trainings in processes of their own, on some images and on four times as
many.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vlkd_bench.machine import read_machine
from vlkd_distill import class_vectors, data, demo, embeddings, methods, pixels, starting, styled, training
from vlkd_distill.feeding import Feed, TrainingData
from vlkd_distill.specs import MethodName, Settings, StudentSpec
from vlkd_distill.teachers import OpenClipTeacher
from vlkd_runtime.atomic import write_text
from vlkd_runtime.preprocess import PreprocessSpec
from vlkd_runtime.vectors import ClassVectors

THREADS = 2
SIZE = 64
PER_CLASS = 6
ROUNDS = 3
PLAIN: MethodName = "erm"
METHODS: tuple[MethodName, ...] = ("kd", "vl2v-adip", "vlkd")
MAPPED, MEMORY = "mapped", "memory"
SECTIONS = (*METHODS, MAPPED, MEMORY)
STYLES = ("pencil", "grey")
MEANING = {
    "ratio": "images a second of an epoch with cached embeddings, over plain training's: median of the rounds",
    "feeding_share": "share of an epoch in which the network waits for views and targets, decoded pixels among them",
    MAPPED: "plain training on pixels mapped from disk, over plain training on the same pixels in memory; an epoch "
    "decodes nothing, decoding is done once before, by two threads",
    MEMORY: "peak resident memory of decoding, asking the teacher, aligning and distilling, in a process of its own, "
    "for as many steps on few images as on many; start: with all packages and the teacher loaded; from run to run "
    "the heap's peak differs by some tens of MiB",
}
MEMORY_IMAGES = 250
MEMORY_SIZE = 320


@dataclass(frozen=True, slots=True)
class Epoch:
    """One epoch as it ran.

    Attributes:
        images_per_s: from the end of its first step to the end of its last.
        feeding: share of that time in which views and targets were made and the network waited for them.
    """

    images_per_s: float
    feeding: float


@contextmanager
def timed_feed() -> Iterator[list[float]]:
    """Collects the seconds of each call that makes a batch."""
    seconds: list[float] = []
    views = Feed.views

    def timed(self: Feed, *words: Any) -> Any:
        start = time.perf_counter()
        try:
            return views(self, *words)
        finally:
            seconds.append(time.perf_counter() - start)

    Feed.views = timed  # type: ignore[method-assign]
    try:
        yield seconds
    finally:
        Feed.views = views  # type: ignore[method-assign]


def epoch(name: MethodName, vectors: ClassVectors, seen: TrainingData, folder: Path) -> Epoch:
    """Train one epoch from the start weights."""
    settings = Settings(method=name, epochs=1, align_epochs=0, teacher_view="clean_cached", styles=STYLES)
    method = methods.create(settings, vectors)
    student = starting.start(StudentSpec("tf_efficientnet_lite0", SIZE, "package"), method, _no_teacher)
    ends: list[float] = []
    with tempfile.TemporaryDirectory(dir=folder) as place, timed_feed() as feeding:
        training.train(
            student, method, settings, seen, Path(place), lambda *_: ends.append(time.perf_counter())
        )
    took = ends[-1] - ends[0]
    return Epoch((len(ends) - 1) * settings.batch / took, sum(feeding[1:]) / took)


def _no_teacher() -> OpenClipTeacher:
    msg = "no student here is made of its teacher"
    raise AssertionError(msg)


def in_turns(plain: Callable[[], Epoch], other: Callable[[], Epoch]) -> dict[str, Any]:
    """Ratios of an epoch to the mean of the plain ones before and after it."""
    runs = [plain() if k % 2 == 0 else other() for k in range(2 * ROUNDS + 1)]
    base = [run.images_per_s for run in runs[::2]]
    ratios = [
        2 * run.images_per_s / (one + two)
        for run, (one, two) in zip(runs[1::2], itertools.pairwise(base), strict=True)
    ]
    return {
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "images_per_s": round(statistics.median(run.images_per_s for run in runs[1::2]), 1),
        "plain_images_per_s": round(statistics.median(base), 1),
        "feeding_share": round(statistics.median(run.feeding for run in runs[1::2]), 3),
    }


def speed(folder: Path, sections: Sequence[str]) -> dict[str, Any]:
    """Methods against plain training, and mapped pixels against pixels in memory."""
    sources = dict.fromkeys(("photo", "painting"), PER_CLASS)
    demo.write_world(folder / "images", per_class=sources, seed=1)
    found = data.scan(folder / "images")
    spec = PreprocessSpec(SIZE, SIZE, resize="squash")
    start = time.perf_counter()
    store = pixels.build(folder, found.samples, spec, lambda _: None)
    decoding = len(store.samples) / (time.perf_counter() - start)
    teacher = OpenClipTeacher.load("demo")
    vectors = class_vectors.compute(teacher, found.classes, ["a photo of a {}"])
    rows = embeddings.embed(teacher, store.samples, folder / "cache", into=folder / "rows.npy")
    (folder / "styles").mkdir()
    views = None
    if "vlkd" in sections:
        views = styled.build(folder / "styles", store.samples, spec, STYLES, teacher, folder / "cache")
    seen = TrainingData(store, rows, None, views)
    held = TrainingData(dataclasses.replace(store, pixels=np.array(store.pixels)), None, None)

    def run(name: MethodName, what: TrainingData = seen) -> Callable[[], Epoch]:
        return lambda: epoch(name, vectors, what, folder)

    run(PLAIN)()  # warms caches and allocators
    table: dict[str, Any] = {name: in_turns(run(PLAIN), run(name)) for name in METHODS if name in sections}
    if MAPPED in sections:
        table[MAPPED] = in_turns(run(PLAIN, held), run(PLAIN)) | {"decoding_images_per_s": round(decoding, 1)}
    return table


def memory(folder: Path) -> dict[str, Any]:
    """Peak resident memory of whole trainings, on some images and on four times as many."""
    rng = np.random.default_rng(0)
    for index in range(4 * MEMORY_IMAGES):
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        small.resize((MEMORY_SIZE, MEMORY_SIZE)).save(folder / f"{index:05d}.jpg")
    child = Path(__file__).with_name("throughputchild.py")
    found = []
    # As many steps in both: the heap takes some tens of them to find its size.
    for count, epochs in ((MEMORY_IMAGES, 4), (4 * MEMORY_IMAGES, 1)):
        words = [sys.executable, str(child), str(folder), *map(str, (count, MEMORY_SIZE, epochs))]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        found.append({key: round(value, 1) for key, value in json.loads(done.stdout).items()})
    grown = found[1]["peak_mib"] - found[0]["peak_mib"]
    pixels_grown = found[1]["pixels_mib"] - found[0]["pixels_mib"]
    return {"runs": found, "peak_growth_mib": round(grown, 1), "pixels_growth_mib": round(pixels_grown, 1)}


def main() -> None:
    """Measure the sections asked for, and write the file."""
    torch.set_num_threads(THREADS)
    path, sections = Path(sys.argv[1]), tuple(sys.argv[2:]) or SECTIONS
    found = json.loads(path.read_text())["sections"] if path.exists() else {}
    with tempfile.TemporaryDirectory() as place:
        if set(sections) - {MEMORY}:
            (Path(place) / "speed").mkdir()
            found |= speed(Path(place) / "speed", sections)
        if MEMORY in sections:
            (Path(place) / "memory").mkdir()
            found[MEMORY] = memory(Path(place) / "memory")
    whole = {
        "sections": {name: found[name] for name in SECTIONS if name in found},
        "meaning": MEANING,
        "student": f"tf_efficientnet_lite0 at {SIZE} px, batch {Settings().batch}, {THREADS} threads",
        "rounds": ROUNDS,
        "command": "python benchmarks/throughput.py benchmarks/results/throughput.json",
        "machine": read_machine().describe(),
        "stand_in": "The images are the embedded demo world, the teacher is its tiny CLIP.",
    }
    write_text(path, json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
