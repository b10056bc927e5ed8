"""The torch student of a build's output folder, compiled with Torch-TensorRT."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vlkd_bench.leaveout import BASELINE
from vlkd_runtime.errors import ConfigError, DataError, SelfTestError
from vlkd_runtime.manifest import variant_file
from vlkd_runtime.vectors import ClassVectors

from .exporting import find_bundle


@dataclass(frozen=True, slots=True)
class TrainedStudent:
    """Where a build left the parts of its distilled student.

    Attributes:
        weights: the trained weights.
        spec: the student before it learned anything, as `vlkd_distill.specs.StudentSpec` takes it.
        vectors: the class vectors of its head.
    """

    weights: Path
    spec: dict[str, Any]
    vectors: Path


def find_student(build: Path) -> TrainedStudent:
    """Find the distilled student that a build ships, or the newest where it ships none.

    A build with pruned candidates has several; the bundle's float graph says which one it was made of.

    Raises:
        DataError: there is none, or its parts are not together.
    """
    floating = build / "bundle" / variant_file("float32")
    shipped = hashlib.sha256(floating.read_bytes()).hexdigest() if floating.is_file() else ""
    records = []
    for path in build.glob("stages/export-*/stage.json"):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            ships = bool(shipped) and record["files"]["model.onnx"][1] == shipped
            records.append((ships, path.stat().st_mtime, record))
        except (OSError, ValueError, KeyError) as error:
            msg = f"Expected the record of a stage at {path}, found: {error}. Run the build again."
            raise DataError(msg) from error
    records = [item for item in records if item[-1]["stage"] != f"export-{BASELINE}"]
    if not records:
        msg = (
            f"Expected the output folder of a build with a distilled student at {build}, found none: a bundle holds "
            "no torch weights, so give the folder that vlkd-edge build wrote."
        )
        raise DataError(msg)
    inputs = max(records, key=lambda item: item[:2])[-1]["inputs"]
    trained = next(build.glob(f"stages/*-{inputs['trained']}/stage.json"), None)
    vectors = next(build.glob(f"stages/*-{inputs['vectors']}/class_vectors.safetensors"), None)
    weights = trained.parent / "student.safetensors" if trained else None
    if trained is None or weights is None or vectors is None or not weights.is_file():
        msg = f"Expected the stages {inputs['trained']} and {inputs['vectors']} in {build}/stages: run the build again."
        raise DataError(msg)
    return TrainedStudent(
        weights, json.loads(trained.read_text(encoding="utf-8"))["inputs"]["student"], vectors
    )


def export_torch_tensorrt(
    build: Path, out: Path, batch: str, precision: Literal["float32", "float16"]
) -> dict[str, Any]:
    """Compile the student, hold it against the bundle's golden samples, and write it.

    Raises:
        UsageError: no student there, no GPU, or the package is missing.
        RefusalError: it cannot be compiled, or answers otherwise than the bundle.
    """
    from vlkd_distill.torch_tensorrt_engine import TorchTensorRtEngine

    if not batch.isdigit() or int(batch) < 1:
        msg = f"--batch: expected a fixed number of images for torch-tensorrt, found '{batch}'."
        raise ConfigError(msg)
    bundle = find_bundle(build)
    network, size = load_network(find_student(build))
    engine = TorchTensorRtEngine.compile(network, size, batch=int(batch), precision=precision)
    images = np.resize(bundle.golden.images, (int(batch), *bundle.golden.images.shape[1:]))
    found = engine.run(images)
    expected = np.resize(bundle.golden.embedding, (int(batch), bundle.golden.embedding.shape[1]))
    cosine = float((found.embedding * expected).sum(-1).min())
    if not cosine >= bundle.manifest.golden.min_cosine:
        msg = (
            f"engine torch-tensorrt: smallest cosine to the golden embeddings {cosine:.6f}, tolerated "
            f"{bundle.manifest.golden.min_cosine:g}: use the ONNX graph instead."
        )
        raise SelfTestError(msg)
    engine.save(out)
    return {
        "format": "torch-tensorrt",
        "written": str(out),
        "load": f"torch_tensorrt.load({str(out)!r}).module()",
        "bundle": bundle.manifest.digest,
        "input": f"image uint8 ({batch}, {size}, {size}, 3)",
        "precision": precision,
        "parity": {"images": min(int(batch), len(bundle.golden.images)), "smallest_cosine": cosine},
        "engine": engine.info.version,
        "stand_in": bundle.manifest.stand_in,
    }


def load_network(found: TrainedStudent) -> tuple[Any, int]:
    """Put the student together in torch, with its class vectors as head; return it and its image size."""
    from vlkd_distill import checkpoints, students
    from vlkd_distill.specs import StudentSpec

    spec = StudentSpec(**{**found.spec, "pretrained": "none"})  # every weight is overwritten below
    vectors = ClassVectors.load(found.vectors)
    student = students.create(spec, int(vectors.vectors.shape[1]))
    checkpoints.load_weights(found.weights, student)
    return students.Deployable(student, students.FusedHead(vectors)).eval(), spec.image_size
