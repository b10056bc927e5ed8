"""Every rule of the preflight, with a graph that keeps it and one that breaks it."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from vlkd_compress.graph import Graph, name_nodes
from vlkd_compress.preflight import RULES, run_preflight
from vlkd_compress.preflight.checks import with_batch
from vlkd_compress.preflight.judge import check_model
from vlkd_compress.preflight.memory import BUILDER_BYTES, activations, forecast
from vlkd_runtime.targets import TARGETS, Target

sys.path.insert(0, str(Path(__file__).parent))
from rule_graphs import (
    asymmetric,
    attribute,
    big_kernel,
    brain_float,
    changed,
    computed_shape,
    deconvolution,
    dequantize_at,
    double,
    float_weight,
    hard_swish,
    huge_layer,
    insert,
    long_row,
    mixed_types,
    one_weight_scale,
    open_sides,
    pooled,
    profile,
    quantized_bias,
    tiny,
    uint8_transpose,
    wide,
)

BY_NAME = {target.name: target for target in TARGETS}


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
