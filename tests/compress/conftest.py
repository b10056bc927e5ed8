"""Small hand-built students, so that each test knows every node of its graph.

Letters used in shapes: H and W pixels (32), D embedding size (24), C classes (5).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from vlkd_compress.preflight.libraries import find_libraries
from vlkd_runtime.errors import UnavailableError

SIZE, WIDTH, EMBEDDING, CLASSES = 32, 24, 24, 5
Image = npt.NDArray[np.uint8]


class Builder:
    """Collects nodes and constants; each method appends one layer and returns its output's name."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(7)

    def constant(self, name: str, value: Any, dtype: Any = np.float32) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype=dtype), name))
        return name

    def node(self, operator: str, name: str, *inputs: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name

    def conv(
        self, name: str, source: str, ins: int, outs: int, *, kernel: int = 3, group: int = 1, bn: bool = True
    ) -> str:
        shape = (outs, ins // group, kernel, kernel)
        weight = self.random.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
        # Channels of very different size, so that per-tensor weights would lose the small ones.
        weight *= np.geomspace(0.02, 1.0, outs).reshape(-1, 1, 1, 1)
        inputs = [source, self.constant(f"{name}.weight", weight)]
        if not bn:
            inputs.append(self.constant(f"{name}.bias", self.random.normal(size=outs) * 0.1))
        output = self.node("Conv", name, *inputs, pads=[kernel // 2] * 4, group=group)
        if not bn:
            return output
        parts = {
            "gain": self.random.uniform(0.5, 1.5, outs),
            "shift": self.random.normal(size=outs) * 0.1,
            "mean": self.random.normal(size=outs) * 0.1,
            "variance": np.geomspace(0.02, 1.0, outs) ** 2,
        }
        names = [self.constant(f"{name}.{part}", value) for part, value in parts.items()]
        return self.node("BatchNormalization", f"{name}_bn", output, *names)

    def relu(self, source: str) -> str:
        return self.node("Relu", f"{source}_relu", source)


def student(
    path: Path, *, transpose_first: bool = False, dynamic: bool = False, gain: float = 1.0, opset: int = 20
) -> Path:
    """Write a student: stem, residual block, depthwise block, a thin convolution, token layers, head.

    Args:
        path: where to write it.
        transpose_first: let Transpose read the uint8 image before Cast.
        dynamic: leave H and W open.
        gain: multiplies the activations of the last block.
        opset: the opset it states.
    """
    b = Builder()
    if transpose_first:
        x = b.node(
            "Cast", "cast", b.node("Transpose", "nchw", "image", perm=[0, 3, 1, 2]), to=TensorProto.FLOAT
        )
    else:
        x = b.node(
            "Transpose", "nchw", b.node("Cast", "cast", "image", to=TensorProto.FLOAT), perm=[0, 3, 1, 2]
        )
    x = b.node("Sub", "centred", x, b.constant("mean", np.full((1, 3, 1, 1), 127.5)))
    x = b.node("Mul", "normalised", x, b.constant("scale", np.full((1, 3, 1, 1), 1 / 127.5)))
    x = b.relu(b.conv("stem", x, 3, WIDTH))
    y = b.relu(b.conv("block1", x, WIDTH, WIDTH))
    y = b.conv("block2", y, WIDTH, WIDTH)
    x = b.relu(b.node("Add", "residual", y, x))
    x = b.relu(b.conv("depthwise", x, WIDTH, WIDTH, group=WIDTH))
    # Two readers of one tensor; a squeeze to 4 channels, a layer that is too thin for INT8, and back.
    thin = b.relu(b.conv("thin", x, WIDTH, 4, kernel=1, bn=False))
    tiny = b.relu(b.conv("tiny", thin, 4, 4, bn=False))
    odd = b.conv("odd", tiny, 4, WIDTH, kernel=1, bn=False)
    x = b.relu(b.node("Add", "joined", b.conv("point", x, WIDTH, WIDTH, kernel=1), odd))
    x = b.node("Mul", "amplified", x, b.constant("gain", gain))
    x = b.node("GlobalAveragePool", "pooled", x) if dynamic else _tokens(b, x)
    x = b.node("Flatten", "flat", x)
    weight = b.random.normal(size=(EMBEDDING, WIDTH)) / 5
    x = b.node(
        "Gemm",
        "projection",
        x,
        b.constant("p.weight", weight),
        b.constant("p.bias", np.zeros(EMBEDDING)),
        transB=1,
    )
    norm = b.node("ReduceL2", "norm", x, b.constant("axes", [1], np.int64), keepdims=1)
    b.node("Div", "embedding", x, b.node("Max", "safe", norm, b.constant("epsilon", 1e-6)))
    vectors = b.random.normal(size=(EMBEDDING, CLASSES))
    vectors /= np.linalg.norm(vectors, axis=0)
    scores = b.node("MatMul", "scores", "embedding", b.constant("class_vectors", vectors))
    b.node("Mul", "logits", scores, b.constant("logit_scale", 30.0))
    side: list[int | str] = ["H", "W"] if dynamic else [SIZE, SIZE]
    graph = helper.make_graph(
        b.nodes,
        "student",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, [1, *side, 3])],
        [
            helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [1, EMBEDDING]),
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, CLASSES]),
        ],
        b.constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path


def _tokens(b: Builder, x: str) -> str:
    """Attention-like linear layers over the positions: one quantizable, one product of two activations."""
    x = b.node("AveragePool", "patches", x, kernel_shape=[8, 8], strides=[8, 8])
    x = b.node("Reshape", "tokens", x, b.constant("token_shape", [1, WIDTH, 16], np.int64))
    x = b.node("Transpose", "rows", x, perm=[0, 2, 1])
    weight = b.random.normal(size=(WIDTH, WIDTH)) / 5
    y = b.node("MatMul", "linear", x, b.constant("linear.weight", weight))
    y = b.node(
        "MatMul", "mixed", b.node("MatMul", "outer", y, b.node("Transpose", "columns", y, perm=[0, 2, 1])), x
    )
    return b.node("ReduceMean", "pooled", y, b.constant("positions", [1], np.int64), keepdims=0)


def pictures(count: int, seed: int = 0) -> list[Image]:
    """Smooth coloured patches, ``(1, H, W, 3)``: enough structure for activations to differ."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (count, 1, 4, 4, 3))
    return [np.kron(item, np.ones((1, 8, 8, 1))).astype(np.uint8) for item in coarse]


@pytest.fixture(scope="session")
def make_student() -> Callable[..., Path]:
    return student


@pytest.fixture(scope="session")
def make_pictures() -> Callable[..., list[Image]]:
    return pictures


@pytest.fixture(scope="session")
def float_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return student(tmp_path_factory.mktemp("student") / "float.onnx")


@pytest.fixture(scope="session")
def tensorrt() -> None:
    """Skip the test where the real parser is not installed."""
    try:
        find_libraries()
    except UnavailableError as error:
        pytest.skip(str(error))
