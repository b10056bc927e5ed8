from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, numpy_helper

from vlkd_compress.dialect import check_dialect
from vlkd_compress.graph import Graph
from vlkd_compress.half import to_float16
from vlkd_compress.quantize import quantize_for_tensorrt
from vlkd_runtime.errors import CalibrationError, DataError, RefusalError

HEAD = {"norm", "safe", "embedding", "scores", "logits"}


@pytest.fixture(scope="module")
def int8_model(
    float_model: Path, make_pictures: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("half") / "int8.onnx"
    quantize_for_tensorrt(float_model, make_pictures(4), out, method="minmax")
    return out


def run(path: Path, images: list[np.ndarray]) -> np.ndarray:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    # ONNX Runtime 1.31 would quantize the biases of float16 Q/DQ convolutions, through float16, where they
    # overflow; the graph itself has float biases.
    session = ort.InferenceSession(
        path, options, providers=["CPUExecutionProvider"], disabled_optimizers=["WeightBiasQuantization"]
    )
    return np.concatenate([session.run(["embedding"], {"image": image})[0] for image in images])


def computed_types(path: Path) -> dict[str, int]:
    """Node name to the element type of its first output."""
    graph = Graph(onnx.load(path))
    return {node.name: graph.types[node.output[0]] for node in graph.model.graph.node}


def test_all_but_the_head_is_float16(
    float_model: Path, make_pictures: Callable[..., Any], tmp_path: Path
) -> None:
    out = tmp_path / "half.onnx"
    report = to_float16(float_model, make_pictures(4), out)
    types = computed_types(out)
    assert types["cast"] == TensorProto.FLOAT16
    for name, kind in types.items():
        if name in HEAD:
            assert kind == TensorProto.FLOAT, name
        elif not name.endswith("/Cast"):
            assert kind == TensorProto.FLOAT16, name
    assert {item.node for item in report.kept_float} == HEAD
    assert report.half_nodes == len(types) - len(HEAD) - sum(name.endswith("/Cast") for name in types)
    model = onnx.load(out)
    assert [item.type.tensor_type.elem_type for item in model.graph.output] == [TensorProto.FLOAT] * 2
    assert [node.op_type for node in model.graph.node if "image" in node.input] == ["Cast"]
    assert check_dialect(out) == ()
    assert report.half_bytes < 0.65 * report.float_bytes


def test_outputs_stay_near_and_bytes_repeat(
    float_model: Path, make_pictures: Callable[..., Any], tmp_path: Path
) -> None:
    for name in ("one.onnx", "two.onnx"):
        to_float16(float_model, make_pictures(4), tmp_path / name)
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()
    unseen = make_pictures(8, seed=1)
    wanted, found = run(float_model, unseen), run(tmp_path / "one.onnx", unseen)
    assert (wanted * found).sum(axis=1).min() > 0.9999
    assert found.dtype == np.float32


def test_an_int8_graph_keeps_its_int8_and_halves_the_rest(
    int8_model: Path, make_pictures: Callable[..., Any], tmp_path: Path
) -> None:
    out = tmp_path / "mixed.onnx"
    to_float16(int8_model, make_pictures(4), out)
    before, after = onnx.load(int8_model), onnx.load(out)
    for kind in ("QuantizeLinear", "DequantizeLinear"):
        names = [
            [node.name for node in model.graph.node if node.op_type == kind] for model in (before, after)
        ]
        assert names[0] == names[1]
    types = computed_types(out)
    assert types["block1"] == types["residual"] == TensorProto.FLOAT16
    assert check_dialect(out) == ()
    unseen = make_pictures(8, seed=1)
    assert (run(int8_model, unseen) * run(out, unseen)).sum(axis=1).min() > 0.999


def test_scales_too_small_for_float16_are_raised_without_changing_the_weights(
    int8_model: Path, make_pictures: Callable[..., Any], tmp_path: Path
) -> None:
    model = onnx.load(int8_model)
    constants = {item.name: item for item in model.graph.initializer}
    dequantizer = next(
        node for node in model.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in constants
    )
    scale = numpy_helper.to_array(constants[dequantizer.input[1]]).copy()
    scale[0] = 2e-8
    constants[dequantizer.input[1]].CopyFrom(numpy_helper.from_array(scale, dequantizer.input[1]))
    onnx.save(model, tmp_path / "small.onnx")
    to_float16(tmp_path / "small.onnx", make_pictures(2), tmp_path / "half.onnx")
    after = onnx.load(tmp_path / "half.onnx")
    values = {item.name: numpy_helper.to_array(item) for item in after.graph.initializer}
    moved = next(node for node in after.graph.node if node.name == dequantizer.name)
    new_scale, levels = values[moved.input[1]].astype(np.float64), values[moved.input[0]].astype(np.float64)
    old = numpy_helper.to_array(constants[dequantizer.input[0]]).astype(np.float64)
    assert new_scale.min() > 0
    gap = levels * new_scale.reshape(-1, 1, 1, 1) - old * scale.reshape(-1, 1, 1, 1)
    assert np.abs(gap[0]).max() <= 0.6e-6
    assert np.abs(gap[1:]).max() <= np.abs(scale).max() * 127 * 2**-11


def test_overflow_is_refused_and_can_be_kept_float(
    make_student: Callable[..., Path], make_pictures: Callable[..., Any], tmp_path: Path
) -> None:
    loud = make_student(tmp_path / "loud.onnx", gain=3e4)
    out = tmp_path / "half.onnx"
    with pytest.raises(RefusalError, match=r"values up to 32752 .*amplified \(") as caught:
        to_float16(loud, make_pictures(4), out)
    assert not out.exists()
    nodes = [node.name for node in onnx.load(loud).graph.node]
    kept = nodes[nodes.index("amplified") :]
    assert any(f"{name} (" in str(caught.value) for name in kept)
    report = to_float16(loud, make_pictures(4), out, keep_float=kept)
    assert report.largest_activation < 32752
    assert (run(loud, make_pictures(3)) * run(out, make_pictures(3))).sum(axis=1).min() > 0.999


@pytest.mark.parametrize(
    ("images", "keep", "error", "match"),
    [
        pytest.param(0, (), CalibrationError, "found none", id="no image"),
        pytest.param(2, ("nose",), DataError, r"found \['nose'\]", id="unknown node"),
    ],
)
def test_refusals(
    images: int,
    keep: tuple[str, ...],
    error: type[Exception],
    match: str,
    float_model: Path,
    make_pictures: Callable[..., Any],
    tmp_path: Path,
) -> None:
    with pytest.raises(error, match=match):
        to_float16(float_model, make_pictures(images), tmp_path / "half.onnx", keep_float=keep)
