"""A network of a few numbers, computed a second time in numpy, and a whole bundle around it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from vlkd_runtime.bundle import pack, write_bundle
from vlkd_runtime.engines import building
from vlkd_runtime.engines.base import EngineOptions
from vlkd_runtime.golden import Golden
from vlkd_runtime.manifest import GoldenTolerance, ManifestDraft, ModelSpec
from vlkd_runtime.preprocess import PreprocessSpec
from vlkd_runtime.vectors import ClassVectors

SIDE, DIM, SCALE = 8, 4, 20.0
NAMES = ("cat", "dog", "houseplant")
MEAN, DEVIATION = 120.0, 60.0


@dataclass(frozen=True)
class Tiny:
    """The network's weights, its graph, and everything that goes into its bundle."""

    weight: np.ndarray
    vectors: ClassVectors
    golden: Golden
    draft: ManifestDraft
    files: dict[str, bytes]

    def reference(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Compute embedding and logits in float64, one image and one class at a time."""
        embeddings, logits = [], []
        for image in images:
            mean = ((image.astype(np.float64) - MEAN) / DEVIATION).mean(axis=(0, 1))
            embedding = mean @ self.weight.astype(np.float64) + 0.1
            embedding = embedding / np.sqrt((embedding**2).sum())
            embeddings.append(embedding)
            logits.append([SCALE * float(embedding @ row.astype(np.float64)) for row in self.vectors.vectors])
        return np.array(embeddings), np.array(logits)


def make_model(
    weight: np.ndarray, vectors: np.ndarray, *, batch: int = 1, opset: int = 20, **names: str
) -> onnx.ModelProto:
    """Build uint8 NHWC -> Cast -> Transpose -> normalise -> mean -> Gemm -> unit length -> logits."""
    image, embedding = names.get("image", "image"), names.get("embedding", "embedding")
    constants = {
        "mean": np.float32(MEAN),
        "deviation": np.float32(DEVIATION),
        "weight": weight.astype(np.float32),
        "bias": np.full(weight.shape[1], 0.1, np.float32),
        "axes": np.array([2, 3], np.int64),
        "row": np.array([1], np.int64),
        "columns": np.ascontiguousarray(vectors.T),
        "scale": np.float32(SCALE),
    }
    nodes = [
        helper.make_node("Cast", [image], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Sub", ["nchw", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "deviation"], ["normal"]),
        helper.make_node("ReduceMean", ["normal", "axes"], ["pooled"], keepdims=0),
        helper.make_node("Gemm", ["pooled", "weight", "bias"], ["projected"]),
        helper.make_node("ReduceL2", ["projected", "row"], ["norm"], keepdims=1),
        helper.make_node("Div", ["projected", "norm"], [embedding]),
        helper.make_node("MatMul", [embedding, "columns"], ["cosine"]),
        helper.make_node("Mul", ["cosine", "scale"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(image, TensorProto.UINT8, [batch, SIDE, SIDE, 3])],
        [
            helper.make_tensor_value_info(embedding, TensorProto.FLOAT, [batch, weight.shape[1]]),
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, len(vectors)]),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def unit_rows(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    vectors = rng.normal(size=(rows, columns))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def make_tiny(batch: int = 1) -> Tiny:
    rng = np.random.default_rng(7)
    weight = rng.normal(size=(3, DIM)).astype(np.float32)
    vectors = ClassVectors(
        names=NAMES,
        vectors=unit_rows(rng, len(NAMES), DIM),
        prompts=tuple((f"a photo of a {name}.",) for name in NAMES),
        templates=("a photo of a {}.",),
        teacher="tiny-teacher",
        teacher_fingerprint="ab" * 16,
        logit_scale=SCALE,
    )
    model = make_model(weight, vectors.vectors, batch=batch).SerializeToString()
    images = rng.integers(0, 256, (4, 1, 1, 3)) * np.ones((1, SIDE, SIDE, 1))
    images = (images * rng.uniform(0.8, 1.0, (4, SIDE, SIDE, 1))).astype(np.uint8)
    empty = np.zeros((1, 1), np.float32)
    draft = ManifestDraft(
        name="tiny",
        target="desk",
        model=ModelSpec("float32", "float", 20, (batch, SIDE, SIDE, 3), (batch, DIM), (batch, len(NAMES))),
        preprocess=PreprocessSpec(SIDE, SIDE),
        classes=NAMES,
        logit_scale=SCALE,
        golden=GoldenTolerance(min_cosine=0.9999, max_logit_gap=0.01),
        provenance={"built_by": "tests"},
        stand_in="numbers out of a hat",
    )
    tiny = Tiny(weight, vectors, empty, draft, {})  # type: ignore[arg-type]
    embedding, logits = tiny.reference(images)
    golden = Golden(images, embedding.astype(np.float32), logits.astype(np.float32))
    files = {
        "model.onnx": model,
        "class_vectors.safetensors": vectors.to_bytes(),
        "golden.safetensors": golden.to_bytes(),
        "evidence.json": b'{"accuracy": {"mean": 0.5}}\n',
    }
    return Tiny(weight, vectors, golden, draft, files)


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    return make_tiny()


@pytest.fixture(scope="session")
def make_tiny_batched() -> Callable[[int], Tiny]:
    return make_tiny


@pytest.fixture(scope="session")
def build_model() -> Callable[..., onnx.ModelProto]:
    return make_model


@pytest.fixture
def folder(tiny: Tiny, tmp_path: Path) -> Path:
    """A fresh bundle folder that a test may damage."""
    return write_bundle(tmp_path / "tiny", tiny.draft, tiny.files)


@pytest.fixture(scope="session")
def packed(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a whole archive."""
    place = tmp_path_factory.mktemp("packed")
    folder = write_bundle(place / "tiny", tiny.draft, tiny.files)
    return pack(folder, place / "tiny.vlkd").read_bytes()


@pytest.fixture
def archive(packed: bytes, tmp_path: Path) -> Path:
    """A fresh archive that a test may damage."""
    path = tmp_path / "tiny.vlkd"
    path.write_bytes(packed)
    return path


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Stand in for the child process that builds; the list has one entry for each build."""
    plans: list[bytes] = []

    def build(model: bytes, timing: bytes, module: str, options: EngineOptions) -> Any:
        plans.append(b"plan:%d" % len(plans))
        return plans[-1], b"timing" + timing, {"seconds": 1.0, "layers": 9, "timing": "new"}

    monkeypatch.setattr(building, "run_build", build)
    return plans
