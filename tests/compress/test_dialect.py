from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from vlkd_compress.dialect import check_dialect
from vlkd_compress.preflight import run_preflight
from vlkd_compress.quantize import quantize_for_tensorrt
from vlkd_runtime.errors import DataError


@pytest.fixture(scope="module")
def int8_model(
    float_model: Path, make_pictures: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("dialect") / "int8.onnx"
    quantize_for_tensorrt(float_model, make_pictures(4), out, method="minmax")
    return out


def first(model: onnx.ModelProto, operator: str) -> onnx.NodeProto:
    found: list[onnx.NodeProto] = [item for item in model.graph.node if item.op_type == operator]
    return found[0]


def named(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    found: list[onnx.NodeProto] = [item for item in model.graph.node if item.name == name]
    return found[0]


def replace_constant(model: onnx.ModelProto, name: str, value: np.ndarray) -> None:
    constant = next(item for item in model.graph.initializer if item.name == name)
    constant.CopyFrom(numpy_helper.from_array(value, name))


def insert_before(model: onnx.ModelProto, reader: str, *nodes: onnx.NodeProto) -> None:
    index = [item.name for item in model.graph.node].index(reader)
    for offset, new in enumerate(nodes):
        model.graph.node.insert(index + offset, new)


def pair(model: onnx.ModelProto, tensor: str, reader: str, slot: int) -> None:
    """Put a Q/DQ pair in front of one input of a node."""
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(0.05, dtype=np.float32), "extra/scale"))
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(0, dtype=np.int8), "extra/zero"))
    quantize = helper.make_node(
        "QuantizeLinear", [tensor, "extra/scale", "extra/zero"], ["extra/q"], "extra_q"
    )
    back = helper.make_node(
        "DequantizeLinear", ["extra/q", "extra/scale", "extra/zero"], ["extra/dq"], "extra_dq"
    )
    insert_before(model, reader, quantize, back)
    named(model, reader).input[slot] = "extra/dq"


def asymmetric(model: onnx.ModelProto) -> None:
    replace_constant(model, first(model, "QuantizeLinear").input[2], np.asarray(3, dtype=np.int8))


def unsigned(model: onnx.ModelProto) -> None:
    replace_constant(model, first(model, "QuantizeLinear").input[2], np.asarray(128, dtype=np.uint8))


def no_zero_point(model: onnx.ModelProto) -> None:
    for item in model.graph.node:
        if item.op_type in ("QuantizeLinear", "DequantizeLinear") and "weight" not in item.name:
            del item.input[2]


def bad_scale(model: onnx.ModelProto) -> None:
    replace_constant(model, first(model, "QuantizeLinear").input[1], np.asarray(-0.1, dtype=np.float32))


def quantized_bias(model: onnx.ModelProto) -> None:
    conv = named(model, "block1")
    count = 24
    model.graph.initializer.extend(
        [
            numpy_helper.from_array(np.arange(count, dtype=np.int32), "bias/int32"),
            numpy_helper.from_array(np.full(count, 0.01, dtype=np.float32), "bias/scale"),
            numpy_helper.from_array(np.zeros(count, dtype=np.int32), "bias/zero"),
        ]
    )
    names = ["bias/int32", "bias/scale", "bias/zero"]
    insert_before(
        model, conv.name, helper.make_node("DequantizeLinear", names, ["bias/dq"], "bias_dq", axis=0)
    )
    conv.input[2] = "bias/dq"


def one_scale_for_all_channels(model: onnx.ModelProto) -> None:
    weight = next(i for i in model.graph.node if i.output[0] == named(model, "block1").input[1])
    del weight.attribute[:]
    replace_constant(model, weight.input[1], np.asarray(0.01, dtype=np.float32))
    replace_constant(model, weight.input[2], np.asarray(0, dtype=np.int8))


def on_an_add(model: onnx.ModelProto) -> None:
    # The branch that a convolution makes for this addition; the other one may be quantized.
    pair(model, named(model, "residual").input[0], "residual", 0)


def on_class_vectors(model: onnx.ModelProto) -> None:
    pair(model, named(model, "scores").input[0], "scores", 0)


def only_activations(model: onnx.ModelProto) -> None:
    conv = named(model, "block1")
    weight = next(i for i in model.graph.node if i.output[0] == conv.input[1])
    model.graph.initializer.append(
        numpy_helper.from_array(np.ones((24, 24, 3, 3), dtype=np.float32), "plain.weight")
    )
    conv.input[1] = "plain.weight"
    model.graph.node.remove(weight)


def later_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 21


def foreign_operator(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    named(model, "cast").domain = "com.microsoft"


def data_dependent_size(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("NonZero", ["logits"], ["places"], "where"))
    model.graph.output.append(helper.make_tensor_value_info("places", TensorProto.INT64, [2, None]))


def image_read_by_transpose(model: onnx.ModelProto) -> None:
    named(model, "nchw").input[0] = "image"
    named(model, "cast").input[0] = "nchw"
    reader = next(i for i in model.graph.node if "nchw" in i.input and i.name != "cast")
    reader.input[list(reader.input).index("nchw")] = "cast"
    cast = named(model, "cast")
    moved = onnx.NodeProto()
    moved.CopyFrom(cast)
    model.graph.node.remove(cast)
    insert_before(model, reader.name, moved)


def dynamic_size(model: onnx.ModelProto) -> None:
    for axis, letter in ((1, "H"), (2, "W")):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = letter


def no_embedding(model: onnx.ModelProto) -> None:
    del model.graph.output[0]


@dataclass(frozen=True)
class Case:
    """A way to break a graph, the rule that must notice, and what the real parser or builder says of it.

    ``refusal`` is None where TensorRT for RTX builds an engine all the same: there the rule stands alone.
    """

    name: str
    change: Callable[[onnx.ModelProto], None]
    rule: str
    message: str
    refusal: str | None = None


CASES = [
    Case("asymmetric", asymmetric, "symmetric", "zero point 0, found int8 with \\[3\\]", "(?i)zero point"),
    Case("unsigned", unsigned, "symmetric", "found uint8 with \\[128\\]", "(?i)zero point"),
    Case("no zero point", no_zero_point, "symmetric", "one constant zero point per scale"),
    Case("negative scale", bad_scale, "symmetric", "positive and finite", "(?i)scale"),
    Case(
        "quantized bias", quantized_bias, "bias", "expected a float bias", "bias_dq .DequantizeLinear..*Int32"
    ),
    Case(
        "per-tensor weight", one_scale_for_all_channels, "per-channel", "expected \\(24,\\) scales on axis 0"
    ),
    Case("Q/DQ on an Add", on_an_add, "placement", "found Add 'residual'"),
    Case("Q/DQ on class vectors", on_class_vectors, "head", "expected the head in float, found MatMul"),
    Case("float weight", only_activations, "pair", "found only the activations"),
    Case("opset 21", later_opset, "opset", "expected opset 13 to 20, found 21"),
    Case("foreign operator", foreign_operator, "opset", "found com.microsoft.Cast"),
    Case("NonZero", data_dependent_size, "operator", "NonZero has no place", "where .NonZero."),
    Case("Transpose first", image_read_by_transpose, "uint8-input", "found Transpose", "(?i)uint8"),
    Case(
        "dynamic H x W", dynamic_size, "static-shape", "found \\(1, '\\?', '\\?', 3\\)", "(?i)profile|dynamic"
    ),
    Case("no embedding", no_embedding, "outputs", "expected an output 'embedding'"),
]


def broken(case: Case, whole: Path, folder: Path) -> Path:
    model = onnx.load(whole)
    case.change(model)
    path = folder / "broken.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_breach_is_found(
    case: Case, int8_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # onnx's own checker refuses some of these before the rules see them; the rules are what is tested.
    monkeypatch.setattr(onnx.checker, "check_model", lambda *_, **__: None)
    findings = check_dialect(broken(case, int8_model, tmp_path))
    assert case.rule in {finding.rule for finding in findings}
    messages = [finding.message for finding in findings if finding.rule == case.rule]
    assert any(re.search(case.message, message) for message in messages), messages
    assert all(finding.node for finding in findings)


@pytest.mark.usefixtures("tensorrt")
@pytest.mark.parametrize(
    "case", [case for case in CASES if case.refusal is not None], ids=lambda case: case.name
)
def test_the_real_parser_or_builder_refuses_it_too(
    case: Case, int8_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx.checker, "check_model", lambda *_, **__: None)
    result = run_preflight(broken(case, int8_model, tmp_path))
    assert result.verdict == "fail"
    assert result.engine_bytes is None
    assert any(re.search(str(case.refusal), error) for error in result.errors), result.errors


def test_whole_graphs_have_no_findings(float_model: Path, int8_model: Path) -> None:
    assert check_dialect(float_model) == ()
    assert check_dialect(int8_model) == ()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Expected an ONNX model at .*nowhere\.onnx"):
        check_dialect(tmp_path / "nowhere.onnx")
