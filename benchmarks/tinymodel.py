"""A whole bundle around a network of a few numbers, for measurements where the network must cost nothing.

The same arguments always give the same bytes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vlkd_runtime.bundle import write_bundle
from vlkd_runtime.engines import open_engine
from vlkd_runtime.golden import Golden
from vlkd_runtime.manifest import GoldenTolerance, ManifestDraft, ModelSpec, Variant
from vlkd_runtime.preprocess import PreprocessSpec
from vlkd_runtime.selftest import run_batches
from vlkd_runtime.vectors import ClassVectors

SCALE, DIM = 20.0, 16
NAMES = ("cat", "dog", "houseplant")


def tiny_bundle(
    place: Path, *, side: int = 8, convolutions: int = 0, channels: int = 16, jpeg_scale: int = 0
) -> Path:
    """Write a bundle of two variants whose network is a mean, a projection and a product.

    Args:
        place: The folder to make.
        side: Height and width of the input.
        convolutions: How many convolutions to put in front, to make it cost something.
        channels: Their width.
        jpeg_scale: Of the preprocessing.
    """
    rng = np.random.default_rng(11)
    rows = rng.normal(size=(len(NAMES), DIM))
    vectors = ClassVectors(
        NAMES,
        (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32),
        tuple((f"a photo of a {name}.",) for name in NAMES),
        ("a photo of a {}.",),
        "no teacher, numbers out of a hat",
        "00" * 16,
        SCALE,
    )
    model = _model(rng, vectors, side, convolutions, channels).SerializeToString()
    images = rng.integers(0, 256, (4, side, side, 3)).astype(np.uint8)
    output = run_batches(open_engine(model, engine="ort-cpu", threads=1), images)
    spec = ModelSpec("float32", "onnx", 20, (1, side, side, 3), (1, DIM), (1, len(NAMES)))
    tolerance = GoldenTolerance(0.9999, 0.01)
    further = Variant.further("twin", spec, tolerance)
    draft = ManifestDraft(
        name="tiny",
        target="desk",
        model=spec,
        preprocess=PreprocessSpec(side, side, jpeg_scale=jpeg_scale),
        classes=NAMES,
        logit_scale=SCALE,
        golden=tolerance,
        provenance={"made by": "benchmarks/tinymodel.py"},
        stand_in="A network of a few random numbers.",
        further=(further,),
    )
    answers = (output.embedding, output.logits)
    files: dict[str, bytes | Path] = {
        "model.onnx": model,
        further.file: model,
        "class_vectors.safetensors": vectors.to_bytes(),
        "golden.safetensors": Golden(images, *answers, {"twin": answers}).to_bytes(),
        "evidence.json": b"{}\n",
    }
    return write_bundle(place, draft, files)


def _model(
    rng: np.random.Generator, vectors: ClassVectors, side: int, convolutions: int, channels: int
) -> onnx.ModelProto:
    width = channels if convolutions else 3
    constants: dict[str, np.ndarray] = {
        "mean": np.full((), 120, np.float32),
        "deviation": np.full((), 60, np.float32),
        "weight": rng.normal(size=(width, DIM)).astype(np.float32),
        "bias": np.full(DIM, 0.1, np.float32),
        "axes": np.array([2, 3], np.int64),
        "row": np.array([1], np.int64),
        "columns": np.ascontiguousarray(vectors.vectors.T),
        "scale": np.full((), SCALE, np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Sub", ["nchw", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "deviation"], ["layer0"]),
    ]
    for index in range(convolutions):
        inside = 3 if index == 0 else channels
        kernel = rng.normal(size=(channels, inside, 3, 3)) / np.sqrt(9 * inside)
        constants[f"kernel{index}"] = kernel.astype(np.float32)
        nodes += [
            helper.make_node("Conv", [f"layer{index}", f"kernel{index}"], [f"conv{index}"], pads=[1] * 4),
            helper.make_node("Relu", [f"conv{index}"], [f"layer{index + 1}"]),
        ]
    nodes += [
        helper.make_node("ReduceMean", [f"layer{convolutions}", "axes"], ["pooled"], keepdims=0),
        helper.make_node("Gemm", ["pooled", "weight", "bias"], ["projected"]),
        helper.make_node("ReduceL2", ["projected", "row"], ["norm"], keepdims=1),
        helper.make_node("Div", ["projected", "norm"], ["embedding"]),
        helper.make_node("MatMul", ["embedding", "columns"], ["cosine"]),
        helper.make_node("Mul", ["cosine", "scale"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, [1, side, side, 3])],
        [
            helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [1, DIM]),
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, len(NAMES)]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
