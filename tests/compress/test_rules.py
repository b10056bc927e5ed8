"""Every rule of the preflight, with a graph that keeps it and one that breaks it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from vlkd_compress.graph import Graph, name_nodes
from vlkd_compress.preflight import RULES, run_preflight
from vlkd_compress.preflight.checks import PROFILE_KEY, with_batch
from vlkd_compress.preflight.judge import check_model
from vlkd_compress.preflight.memory import BUILDER_BYTES, activations, forecast
from vlkd_runtime.targets import TARGETS, Target

BY_NAME = {target.name: target for target in TARGETS}
WIDTH = 16


def tiny(*, int8: bool = False, half: bool = False, batch: int | str = 1, opset: int = 20) -> onnx.ModelProto:
    """Two convolutions, a projection, a head; with Q/DQ on the second convolution, or in float16."""
    kind = np.float16 if half else np.float32
    random = np.random.default_rng(0)
    axes = {} if opset >= 18 else {"axes": [1]}
    constants = {
        "w1": random.normal(size=(WIDTH, 3, 3, 3)).astype(kind),
        "w2": random.normal(size=(WIDTH, WIDTH, 3, 3)).astype(kind),
        "b2": np.zeros(WIDTH, kind),
        "p": random.normal(size=(WIDTH, 8)).astype(np.float32),
        "axes": np.asarray([1], np.int64),
        "epsilon": np.asarray(1e-6, np.float32),
        "vectors": np.eye(8, 3, dtype=np.float32),
    }
    rows = [
        ("Cast", "cast", ["image"], {"to": TensorProto.FLOAT16 if half else TensorProto.FLOAT}),
        ("Transpose", "nchw", ["cast"], {"perm": [0, 3, 1, 2]}),
        ("Conv", "conv1", ["nchw", "w1"], {"pads": [1] * 4}),
        ("Relu", "relu", ["conv1"], {}),
    ]
    second = ["relu", "w2", "b2"]
    if int8:
        constants |= {
            "w2/int8": np.ones((WIDTH, WIDTH, 3, 3), np.int8),
            "w2/scale": np.full(WIDTH, 0.01, kind),
            "w2/zero": np.zeros(WIDTH, np.int8),
            "a/scale": np.asarray(0.1, kind),
            "a/zero": np.asarray(0, np.int8),
        }
        rows += [
            ("QuantizeLinear", "quantize", ["relu", "a/scale", "a/zero"], {}),
            ("DequantizeLinear", "dequantize", ["quantize", "a/scale", "a/zero"], {}),
            ("DequantizeLinear", "weight", ["w2/int8", "w2/scale", "w2/zero"], {"axis": 0}),
        ]
        second = ["dequantize", "weight", "b2"]
    rows += [
        ("Conv", "conv2", second, {"pads": [1] * 4}),
        ("GlobalAveragePool", "pool", ["conv2"], {}),
        ("Flatten", "flat", ["pool"], {}),
        *([("Cast", "float", ["flat"], {"to": TensorProto.FLOAT})] if half else []),
        ("MatMul", "projection", ["float" if half else "flat", "p"], {}),
        ("ReduceL2", "norm", ["projection", "axes"][: 1 + (opset >= 18)], {"keepdims": 1} | axes),
        ("Max", "safe", ["norm", "epsilon"], {}),
        ("Div", "embedding", ["projection", "safe"], {}),
        ("MatMul", "logits", ["embedding", "vectors"], {}),
    ]
    nodes = [
        helper.make_node(op, inputs, [name], name=name, **attributes) for op, name, inputs, attributes in rows
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, [batch, 8, 8, 3])],
        [
            helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [batch, 8]),
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 3]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    found: list[onnx.NodeProto] = [item for item in model.graph.node if item.name == name]
    return found[0]


def constant(model: onnx.ModelProto, name: str, value: np.ndarray) -> None:
    old = [item for item in model.graph.initializer if item.name == name]
    for item in old:
        model.graph.initializer.remove(item)
    model.graph.initializer.append(numpy_helper.from_array(value, name))


def insert(
    model: onnx.ModelProto, reader: str, slot: int, operator: str, *more: str, **attributes: object
) -> None:
    """Put a node named ``extra`` in front of one input of a node."""
    target = node(model, reader)
    fresh = helper.make_node(operator, [target.input[slot], *more], ["extra"], name="extra", **attributes)
    target.input[slot] = "extra"
    model.graph.node.insert([item.name for item in model.graph.node].index(reader), fresh)


def changed(change: Callable[[onnx.ModelProto], None], **options: object) -> onnx.ModelProto:
    model = tiny(**options)  # type: ignore[arg-type]
    change(model)
    return model


def attribute(name: str, key: str, value: object) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        target = node(model, name)
        for item in [item for item in target.attribute if item.name == key]:
            target.attribute.remove(item)
        target.attribute.append(helper.make_attribute(key, value))

    return change


def profile(text: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        helper.set_model_props(model, {PROFILE_KEY: text})

    return change


def open_sides(model: onnx.ModelProto) -> None:
    for axis, letter in ((1, "H"), (2, "W")):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = letter


def uint8_transpose(model: onnx.ModelProto) -> None:
    first, second = node(model, "cast"), node(model, "nchw")
    first.op_type, second.op_type = "Transpose", "Cast"
    moved = list(first.attribute)
    del first.attribute[:]
    first.attribute.extend(second.attribute)
    del second.attribute[:]
    second.attribute.extend(moved)


def asymmetric(model: onnx.ModelProto) -> None:
    constant(model, "a/zero", np.asarray(3, np.int8))


def hard_swish(model: onnx.ModelProto) -> None:
    insert(model, "conv2", 0, "HardSwish")


def quantized_bias(model: onnx.ModelProto) -> None:
    constant(model, "b2", np.zeros(WIDTH, np.int32))
    constant(model, "b2/scale", np.full(WIDTH, 0.001, np.float32))
    insert(model, "conv2", 2, "DequantizeLinear", "b2/scale", axis=0)


def one_weight_scale(model: onnx.ModelProto) -> None:
    constant(model, "w2/scale", np.asarray(0.01, np.float32))
    constant(model, "w2/zero", np.asarray(0, np.int8))
    del node(model, "weight").attribute[:]


def dequantize_at(reader: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        insert(model, reader, 0, "QuantizeLinear", "a/scale", "a/zero")
        node(model, "extra").output[0] = "extra/int8"
        back = helper.make_node(
            "DequantizeLinear", ["extra/int8", "a/scale", "a/zero"], ["extra"], name="back"
        )
        model.graph.node.insert([item.name for item in model.graph.node].index(reader), back)

    return change


def float_weight(model: onnx.ModelProto) -> None:
    node(model, "conv2").input[1] = "w2"


def mixed_types(model: onnx.ModelProto) -> None:
    constant(model, "epsilon", np.asarray(1e-6, np.float16))


def double(model: onnx.ModelProto) -> None:
    insert(model, "relu", 0, "Cast", to=TensorProto.DOUBLE)


def brain_float(model: onnx.ModelProto) -> None:
    insert(model, "pool", 0, "Cast", to=TensorProto.BFLOAT16)


def computed_shape(model: onnx.ModelProto) -> None:
    insert(model, "flat", 0, "Identity")
    node(model, "extra").op_type = "Reshape"
    node(model, "extra").input.append("shape")
    model.graph.node.insert(0, helper.make_node("Shape", ["image"], ["shape"], name="shape_of"))


def wide(model: onnx.ModelProto) -> None:
    for dim, size in zip(model.graph.input[0].type.tensor_type.shape.dim, (1, 16384, 16384, 3), strict=True):
        dim.dim_value = size


def long_row(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 8200


def pooled(window: int) -> Callable[[onnx.ModelProto], None]:
    return lambda model: insert(
        model, "conv2", 0, "MaxPool", kernel_shape=[window] * 2, pads=[window // 2] * 4, strides=[1, 1]
    )


def deconvolution(
    kernel: tuple[int, int], strides: list[int], **more: object
) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        constant(model, "w3", np.zeros((WIDTH, WIDTH, *kernel), np.float16))
        insert(model, "conv2", 0, "ConvTranspose", "w3", strides=strides, **more)

    return change


def huge_layer(model: onnx.ModelProto) -> None:
    """A dilated convolution over a wide image, whose rows fill the accelerator's buffer."""
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 1024
    attribute("conv2", "dilations", [8, 8])(model)


def big_kernel(model: onnx.ModelProto) -> None:
    constant(model, "w2", np.zeros((WIDTH, WIDTH, 33, 33), np.float16))
    attribute("conv2", "pads", [16] * 4)(model)


@dataclass(frozen=True)
class Case:
    """A rule, graphs on both sides of it, and where the breach is."""

    rule: str
    good: Callable[[], onnx.ModelProto]
    bad: Callable[[], onnx.ModelProto]
    node: str
    target: str = "jetson-orin-nano"
    bad_target: str = ""
    accelerator: bool = False


def int8() -> onnx.ModelProto:
    return tiny(int8=True)


def half() -> onnx.ModelProto:
    return tiny(half=True)


DLA = "jetson-orin-nx"
CASES = [
    Case("VP001", tiny, lambda: tiny(opset=21), "model"),
    Case("VP001", lambda: tiny(opset=18), lambda: tiny(opset=18), "model", bad_target="jetson-xavier"),
    Case("VP002", tiny, lambda: changed(lambda m: insert(m, "flat", 0, "NonZero")), "extra"),
    Case("VP003", tiny, lambda: changed(double), "extra"),
    Case("VP004", tiny, lambda: changed(uint8_transpose), "cast"),
    Case("VP005", tiny, lambda: changed(open_sides), "image"),
    Case("VP006", lambda: changed(profile("1:4:16"), batch="N"), lambda: tiny(batch="N"), "image"),
    Case("VP006", tiny, lambda: changed(profile("4:2:16"), batch="N"), "image"),
    Case("VP006", tiny, lambda: changed(profile("1:2:16")), "image"),
    Case("VP007", tiny, lambda: changed(lambda m: m.graph.output.pop(0) and None), "embedding"),
    Case("VP008", tiny, lambda: changed(mixed_types), "safe"),
    Case("VP009", tiny, lambda: changed(computed_shape), "shape_of"),
    Case("VP010", int8, lambda: changed(asymmetric, int8=True), "quantize"),
    Case("VP011", int8, lambda: changed(one_weight_scale, int8=True), "conv2"),
    Case("VP012", int8, lambda: changed(quantized_bias, int8=True), "conv2"),
    Case("VP013", int8, lambda: changed(dequantize_at("pool"), int8=True), "back"),
    Case("VP014", int8, lambda: changed(float_weight, int8=True), "conv2"),
    Case("VP015", int8, lambda: changed(dequantize_at("logits"), int8=True), "logits"),
    Case("VP020", lambda: changed(brain_float), lambda: changed(brain_float), "extra", bad_target="jetson-xavier"),
    Case("VP020", half, half, "cast", bad_target="cpu-x86"),
    Case("VP021", tiny, lambda: changed(wide), "relu"),
    Case("VP022", int8, int8, "conv2", bad_target="desktop-rtx"),
    Case("VP030", half, half, "model", DLA, "jetson-agx-thor", True),
    Case("VP031", half, lambda: changed(hard_swish, half=True), "extra", DLA, "", True),
    Case("VP032", half, lambda: changed(attribute("conv2", "strides", [9, 9]), half=True), "conv2", DLA, "", True),
    Case("VP032", half, lambda: changed(big_kernel, half=True), "conv2", DLA, "", True),
    Case("VP032", half, lambda: changed(attribute("conv2", "pads", [1, 1, 1, 3]), half=True), "conv2", DLA, "", True),
    Case("VP032", half, lambda: changed(attribute("conv2", "dilations", [33, 1]), half=True), "conv2", DLA, "", True),
    *(
        Case(
            "VP032",
            lambda fine=fine: changed(fine, half=True),
            lambda change=change: changed(change, half=True),
            "extra",
            DLA,
            "",
            True,
        )
        for fine, change in (
            (deconvolution((22, 22), [1, 1]), deconvolution((23, 23), [1, 1])),
            (deconvolution((32, 3), [1, 1]), deconvolution((33, 3), [1, 1])),
            (deconvolution((3, 3), [32, 1]), deconvolution((3, 3), [33, 1])),
            (deconvolution((64, 1), [1, 1]), deconvolution((64, 2), [1, 1])),
            (deconvolution((3, 3), [2, 2]), deconvolution((3, 3), [1, 1], pads=[1] * 4)),
            (deconvolution((1, 96), [1, 64]), deconvolution((3, 3), [1, 1], dilations=[2, 2])),
        )
    ),
    Case("VP033", lambda: changed(pooled(5), half=True), lambda: changed(pooled(9), half=True), "extra", DLA, "", True),
    Case("VP034", half, lambda: changed(long_row, half=True), "conv1", DLA, "", True),
    Case("VP034", half, lambda: changed(profile("1:1:2"), half=True, batch="N"), "model", DLA, "", True),
    Case("VP035", half, tiny, "conv1", DLA, "", True),
    Case("VP036", half, int8, "quantize", DLA, "", True),
    Case("VP037", half, lambda: changed(huge_layer, half=True), "conv2", DLA, "", True),
]  # fmt: skip


def rulings(model: onnx.ModelProto, target: Target, accelerator: bool) -> dict[str, list[str]]:
    name_nodes(model)
    found: dict[str, list[str]] = {}
    for breach in check_model(model, target, accelerator_core=accelerator).breaches:
        found.setdefault(breach.id, []).append(breach.node)
    return found


def test_each_rule_has_a_case_and_ids_are_its_own() -> None:
    assert {case.rule for case in CASES} == {rule.id for rule in RULES}
    assert len({rule.id for rule in RULES}) == len({rule.name for rule in RULES}) == len(RULES) == 26
    assert all(rule.reason.endswith(".") and rule.source and rule.asks for rule in RULES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_a_graph_on_each_side_of_each_rule(case: Case) -> None:
    target = BY_NAME[case.target]
    assert case.rule not in rulings(case.good(), target, case.accelerator)
    found = rulings(case.bad(), BY_NAME[case.bad_target or case.target], case.accelerator)
    assert case.node in found[case.rule]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_whole_graphs_keep_every_rule_of_every_target(target: Target) -> None:
    assert rulings(tiny(opset=target.opset), target, False) == {}
    advised = {"VP022": ["conv2"]} if target.engine == "tensorrt-rtx" else {}
    if target.newest_opset >= 20:
        assert rulings(int8(), target, False) == advised


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.accelerator], ids=lambda rule: rule.id)
def test_the_accelerators_rules_hold_only_where_it_is_meant(rule: object) -> None:
    bad = next(case for case in CASES if case.rule == getattr(rule, "id"))  # noqa: B009
    assert bad.rule not in rulings(bad.bad(), BY_NAME[bad.bad_target or bad.target], False)


WORKED = [
    pytest.param(
        lambda: changed(asymmetric, int8=True), "VP010", "quantize", "(?i)zero point", id="asymmetric activations"
    ),
    pytest.param(lambda: changed(quantized_bias, int8=True), "VP012", "conv2", "Int32", id="quantized bias"),
    pytest.param(lambda: changed(open_sides), "VP005", "image", "(?i)profile|dynamic", id="dynamic H x W"),
]  # fmt: skip


@pytest.mark.usefixtures("tensorrt")
@pytest.mark.parametrize(("make", "rule", "where", "heard"), WORKED)
def test_worked_counter_examples_are_refused_by_rule_and_by_builder(
    make: Callable[[], onnx.ModelProto], rule: str, where: str, heard: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(make().SerializeToString())
    plain = run_preflight(path).to_json()
    assert plain["verdict"] == "fail"
    assert (rule, where) in {(item["id"], item["node"]) for item in plain["rules"]}
    assert plain["engine"]["name"] == "TensorRT for RTX"
    assert plain["engine_bytes"] is None
    assert any(re.search(heard, error) for error in plain["errors"]), plain["errors"]


@pytest.mark.usefixtures("tensorrt")
def test_an_open_batch_with_a_profile_is_built_and_an_engine_is_kept(tmp_path: Path) -> None:
    path, engine = tmp_path / "model.onnx", tmp_path / "engine"
    path.write_bytes(changed(profile("1:4:16"), batch="N").SerializeToString())
    result = run_preflight(path, BY_NAME["desktop-rtx"], keep_engine=engine)
    assert (result.verdict, result.findings, result.errors) == ("pass", (), ())
    assert engine.stat().st_size == result.engine_bytes
    assert result.peak_bytes is not None and result.forecast is not None
    # The constant for the builder is said to be an upper bound of what was seen: hold it.
    assert result.peak_bytes < BUILDER_BYTES["tensorrt-rtx"]


def test_a_processors_engine_is_onnx_runtime(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(int8().SerializeToString())
    result = run_preflight(path, BY_NAME["cpu-x86"])
    assert (result.verdict, result.engine, result.findings) == ("pass", "ONNX Runtime", ())
    assert result.peak_bytes is not None and result.peak_bytes < BUILDER_BYTES["onnxruntime-cpu"]
    path.write_bytes(changed(mixed_types).SerializeToString())
    result = run_preflight(path, BY_NAME["cpu-x86"])
    assert result.verdict == "fail" and "refuses the graph" in result.reason


@pytest.mark.parametrize(
    "make", [tiny, int8, half, lambda: changed(pooled(5)), lambda: with_batch(tiny(batch="N"), 7)]
)
def test_activations_are_those_that_live_at_once(make: Callable[[], onnx.ModelProto]) -> None:
    """The reference walks every step and asks of every tensor whether it is made and still needed."""
    model = make()
    name_nodes(model)
    graph = Graph(model)
    nodes = list(model.graph.node)
    itemsize = {TensorProto.FLOAT: 4, TensorProto.FLOAT16: 2, TensorProto.INT8: 1, TensorProto.UINT8: 1}
    most, where = 0, ""
    for step, current in enumerate(nodes):
        total = 0
        for tensor in (*graph.inputs, *graph.producers):
            made = -1 if tensor in graph.inputs else nodes.index(graph.producers[tensor])
            readers = [i for i, item in enumerate(nodes) if tensor in item.input]
            needed = len(nodes) if tensor in graph.outputs else max(readers)
            if made <= step <= needed and tensor != "weight":  # a dequantized constant is folded
                shape = [size or 0 for size in graph.shapes[tensor]]
                total += int(np.prod(shape)) * itemsize[graph.types[tensor]]
        if total > most:
            most, where = total, current.name
    assert activations(graph) == (most, where)


def test_the_forecast_adds_up() -> None:
    graph = Graph(tiny())
    found = forecast(graph, "tensorrt")
    assert found is not None
    stored = sum(numpy_helper.to_array(item).nbytes for item in graph.model.graph.initializer)
    assert found.weights == stored
    assert found.builder == BUILDER_BYTES["tensorrt"] + 3 * stored
    assert found.total == stored + found.builder + found.activations
    small = dataclasses.replace(BY_NAME["jetson"], memory_gib=2.0, reserved_gib=1.0)
    name_nodes(graph.model)
    assert [item.id for item in check_model(graph.model, small).breaches] == ["VP021"]
