"""Models that were altered, or made to reach outside their bundle."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from vlkd_runtime.bundle import write_bundle
from vlkd_runtime.errors import BundleError
from vlkd_runtime.onnxfile import check_model


def hide_weights(tensor: onnx.TensorProto) -> None:
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    tensor.ClearField("raw_data")


def outside_in_constant(model: onnx.ModelProto) -> None:
    tensor = onnx.numpy_helper.from_array(model_weight(model))
    hide_weights(tensor)
    model.graph.node.append(onnx.helper.make_node("Constant", [], ["unused"], value=tensor))


def outside_in_subgraph(model: onnx.ModelProto) -> None:
    tensor = onnx.numpy_helper.from_array(model_weight(model), "inner")
    hide_weights(tensor)
    inner = onnx.helper.make_graph([], "inner", [], [], [tensor])
    model.graph.node.append(onnx.helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner))


def outside_in_function(model: onnx.ModelProto) -> None:
    tensor = onnx.numpy_helper.from_array(model_weight(model))
    hide_weights(tensor)
    node = onnx.helper.make_node("Constant", [], ["y"], value=tensor)
    model.functions.append(onnx.helper.make_function("d", "f", [], ["y"], [node], []))


def model_weight(model: onnx.ModelProto) -> Any:
    return onnx.numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == "weight"))


def two_graphs(model: onnx.ModelProto) -> bytes:
    data = model.SerializeToString()
    return data + onnx.ModelProto(graph=onnx.GraphProto(name="second")).SerializeToString()


def field(number: int, content: bytes) -> bytes:
    """Write one length-delimited protobuf field."""
    size, length = len(content), b""
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


def nested(model: onnx.ModelProto) -> bytes:
    graph = b""
    for _ in range(5000):
        graph = field(1, field(5, field(6, graph)))
    return model.SerializeToString() + field(7, graph)


@pytest.mark.parametrize(
    ("harm", "match"),
    [
        pytest.param(
            lambda m: hide_weights(m.graph.initializer[2]), "weights in other files", id="initializer"
        ),
        pytest.param(outside_in_constant, "weights in other files", id="constant"),
        pytest.param(outside_in_subgraph, "weights in other files", id="subgraph"),
        pytest.param(outside_in_function, "weights in other files", id="function"),
        pytest.param(two_graphs, "expected one graph, found 2", id="two-graphs"),
        pytest.param(nested, "nested too deeply", id="nested"),
        pytest.param(
            lambda m: m.graph.ClearField("input"), "expected the inputs image .*found none", id="no-input"
        ),
        pytest.param(lambda m: m.opset_import.pop(), "expected opset 20 .*found 0", id="no-opset"),
    ],
)
def test_models(harm: Callable[[onnx.ModelProto], Any], match: str, tiny: Any, tmp_path: Path) -> None:
    model = onnx.load_from_string(tiny.files["model.onnx"])
    data = harm(model)
    data = data if isinstance(data, bytes) else model.SerializeToString()
    with pytest.raises(BundleError, match=match) as caught:
        write_bundle(tmp_path / "out", tiny.draft, {**tiny.files, "model.onnx": data})
    assert "model.onnx" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_random_damage_to_models_gives_a_bundle_error_or_none(tiny: Any) -> None:
    rng = np.random.default_rng(13)
    whole = tiny.files["model.onnx"]
    refused = 0
    for _ in range(1500):
        damaged = bytearray(whole)
        for position in rng.integers(0, len(whole), rng.integers(1, 6)):
            damaged[position] = rng.integers(0, 256)
        try:
            check_model(bytes(damaged[: rng.integers(1, len(whole) + 300)]), tiny.draft.model, where="m.onnx")
        except BundleError as error:
            refused += 1
            assert str(error).startswith("m.onnx: ")
    assert refused > 1000


def test_names_of_classes_cannot_steer_a_terminal(tiny: Any, tmp_path: Path) -> None:
    draft = dataclasses.replace(tiny.draft, classes=("cat", "dog\x1b[2J", "houseplant"))
    with pytest.raises(BundleError, match="printable text"):
        write_bundle(tmp_path / "out", draft, tiny.files)
