"""A training from image files to weights in a process of its own, for `throughput.py`: prints its peak memory.

Example:
    python benchmarks/throughputchild.py FOLDER IMAGES PIXELS EPOCHS

Decodes that many of the folder's files, asks the demo teacher about each, aligns and distills, all by
the product's own code, with a student so small that the images would show beside it.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch

from vlkd_bench.samples import Sample
from vlkd_distill import class_vectors, embeddings, methods, pixels, students, training
from vlkd_distill.feeding import TrainingData
from vlkd_distill.specs import Settings, StudentSpec
from vlkd_distill.teachers import OpenClipTeacher
from vlkd_runtime.preprocess import PreprocessSpec

STUDENT = {"channels": [8, 16, 16, 32], "stem_width": 8}
CLASSES = ("cat", "car")


def peak_mib() -> float:
    """Most memory that was resident so far; ``ru_maxrss`` would begin with that of the parent process."""
    (line,) = [
        text for text in Path("/proc/self/status").read_text().splitlines() if text.startswith("VmHWM:")
    ]
    return int(line.split()[1]) / 2**10


def main() -> None:
    """Train, and print one JSON object."""
    torch.set_num_threads(2)
    files, (count, size, epochs) = sorted(Path(sys.argv[1]).iterdir()), map(int, sys.argv[2:])
    samples = [Sample(file, f"photo/cat/{file.name}", "photo", k % 2) for k, file in enumerate(files[:count])]
    teacher = OpenClipTeacher.load("demo")
    vectors = class_vectors.compute(teacher, CLASSES, ["a photo of a {}"])
    settings = Settings(
        method="vl2v-adip",
        epochs=epochs,
        align_epochs=epochs,
        batch=16,
        teacher_view="clean_cached",
        batch_norm="train",
    )
    method = methods.create(settings, vectors)
    student = students.create(StudentSpec("resnet10t", size, options=STUDENT), method.outputs())
    start_mib = peak_mib()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = pixels.build(folder, samples, PreprocessSpec(size, size, resize="squash"), lambda _: None)
        rows = embeddings.embed(teacher, store.samples, folder / "cache", into=folder / "rows.npy")
        training.train(student, method, settings, TrainingData(store, rows, None), folder)
        stored = store.pixels.nbytes
    print(
        json.dumps(
            {
                "images": count,
                "start_mib": start_mib,
                "peak_mib": peak_mib(),
                "pixels_mib": stored / 2**20,
            }
        )
    )


if __name__ == "__main__":
    main()
