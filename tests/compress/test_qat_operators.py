"""Single operators of quantization-aware training against ONNX Runtime, and those it must not train through."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper

from vlkd_compress.qat import operators
from vlkd_runtime.errors import RefusalError

Arrays = list[npt.NDArray[np.float32]]


def arrays(*shapes: tuple[int, ...]) -> Arrays:
    random = np.random.default_rng(0)
    return [random.normal(size=shape).astype(np.float32) for shape in shapes]


def node_of(kind: str, given: Arrays, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, [f"x{i}" for i in range(len(given))], ["y"], name="it", **attributes)


def by_torch(node: onnx.NodeProto, given: Arrays) -> npt.NDArray[np.float32]:
    attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    call = operators.Call(node, attributes, [torch.from_numpy(array) for array in given], {}, 20)
    made = operators.find(node)(call)
    assert isinstance(made, torch.Tensor)
    return np.asarray(made.numpy())


def by_runtime(node: onnx.NodeProto, given: Arrays) -> npt.NDArray[np.float32]:
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape)
        for name, array in zip(node.input, given, strict=True)
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "one", inputs, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, dict(zip(node.input, given, strict=True)))[0])


IMAGE, FILTER = (1, 4, 9, 9), (6, 4, 3, 3)


@pytest.mark.parametrize(
    ("kind", "shapes", "attributes"),
    [
        pytest.param("Max", [(3, 4), (3, 4), (3, 4)], {}, id="max of three"),
        pytest.param("Min", [(3, 4), (4,), (1,)], {}, id="min, broadcast"),
        pytest.param("Max", [(3, 4)], {}, id="max of one"),
        pytest.param("Conv", [IMAGE, FILTER], {"pads": [1, 0, 2, 1], "strides": [2, 2]}, id="lopsided conv"),
        pytest.param(
            "MaxPool", [IMAGE], {"kernel_shape": [3, 3], "pads": [0, 1, 1, 0]}, id="lopsided max pool"
        ),
        pytest.param("AveragePool", [IMAGE], {"kernel_shape": [3, 3], "pads": [1] * 4}, id="average pool"),
        pytest.param(
            "AveragePool",
            [IMAGE],
            {"kernel_shape": [3, 3], "pads": [0, 0, 1, 1], "count_include_pad": 1},
            id="average pool that counts its padding",
        ),
    ],
)
def test_operators_compute_what_onnx_runtime_does(
    kind: str, shapes: list[tuple[int, ...]], attributes: dict[str, Any]
) -> None:
    given = arrays(*shapes)
    node = node_of(kind, given, **attributes)
    np.testing.assert_allclose(by_torch(node, given), by_runtime(node, given), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "shapes", "attributes", "message"),
    [
        pytest.param("Conv", [IMAGE, FILTER], {"auto_pad": "SAME_UPPER"}, "explicit padding", id="conv"),
        pytest.param(
            "MaxPool",
            [IMAGE],
            {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER"},
            "explicit padding at 'it'",
            id="max pool",
        ),
        pytest.param(
            "AveragePool",
            [IMAGE],
            {"kernel_shape": [3, 3], "pads": [0, 0, 1, 1]},
            "same padding on both sides at 'it'",
            id="average of lopsided padding",
        ),
        pytest.param("Sinh", [IMAGE], {}, "found Sinh at 'it'", id="unknown"),
    ],
)
def test_what_would_be_computed_otherwise_is_refused(
    kind: str, shapes: list[tuple[int, ...]], attributes: dict[str, Any], message: str
) -> None:
    given = arrays(*shapes)
    with pytest.raises(RefusalError, match=message):
        by_torch(node_of(kind, given, **attributes), given)
