from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from vlkd_compress.calibrated import Calibration
from vlkd_compress.cpu import quantize_dynamic_for_cpu, quantize_for_cpu, quantize_weights_for_cpu
from vlkd_compress.fused import count_fused
from vlkd_compress.quantize import quantize_for_tensorrt
from vlkd_compress.ranges import Method
from vlkd_compress.recipes import NAMES, Recipe, make
from vlkd_compress.speed import Speed, summarise, take_turns
from vlkd_runtime.engines import open_engine
from vlkd_runtime.errors import ConfigError, DataError, RefusalError

LAYERS = ["stem", "block1", "block2", "depthwise", "thin", "tiny", "odd", "point", "linear"]


@pytest.fixture(scope="module")
def calibration(float_model: Path, make_pictures: Callable[..., Any]) -> Calibration:
    return Calibration(float_model, make_pictures(8))


def logits(path: Path, images: list[np.ndarray]) -> np.ndarray:
    session = ort.InferenceSession(
        path, providers=["CPUExecutionProvider"], disabled_optimizers=["WeightBiasQuantization"]
    )
    return np.concatenate([session.run(["logits"], {"image": image})[0] for image in images])


@pytest.mark.parametrize("method", get_args(Method))
def test_every_planned_layer_runs_in_integers_and_answers_stay_near(
    method: Method, calibration: Calibration, make_pictures: Callable[..., Any], tmp_path: Path
) -> None:
    out = tmp_path / "int8.onnx"
    report = quantize_for_cpu(calibration, out, method=method)
    assert sorted(report.quantized) == sorted(LAYERS)
    found = count_fused(out, len(report.quantized))
    assert found.whole and found.integer == len(LAYERS)
    # The product of two activations, twice, the projection and the class vectors.
    assert found.floating == 4
    unseen = make_pictures(12, seed=1)
    gap = np.abs(logits(calibration.model, unseen) - logits(out, unseen)).max()
    assert 0 < gap < 4.0


def test_both_dialects_come_from_one_calibration(calibration: Calibration, tmp_path: Path) -> None:
    quantize_for_tensorrt(calibration.model, calibration, tmp_path / "tensorrt.onnx", method="mse")
    seen = {name: calibration.table([name]).tensors[name] for name in ("stem_bn_relu", "normalised")}
    quantize_for_cpu(calibration, tmp_path / "cpu.onnx", method="mse")
    table = calibration.table(seen)
    assert all(table.tensors[name] is value for name, value in seen.items())  # measured once
    low, high = table.asymmetric("stem_bn_relu", "minmax")
    assert low == 0.0 and high == pytest.approx(table.symmetric("stem_bn_relu", "minmax"))
    # ONNX Runtime runs TensorRT's file, but fuses hardly any of its layers.
    assert not (found := count_fused(tmp_path / "tensorrt.onnx", 7)).whole and found.integer < 3
    assert count_fused(tmp_path / "cpu.onnx", 9).integer == 9


def test_activations_are_unsigned_and_weights_signed_by_channel(
    calibration: Calibration, tmp_path: Path
) -> None:
    quantize_for_cpu(calibration, tmp_path / "int8.onnx", method="minmax")
    model = onnx.load(tmp_path / "int8.onnx")
    constants = {item.name: onnx.numpy_helper.to_array(item) for item in model.graph.initializer}
    readers = {node.name: node for node in model.graph.node}
    makers = {name: node for node in model.graph.node for name in node.output}
    for name in ("block1", "depthwise", "point"):
        activation, weight = (makers[readers[name].input[index]] for index in (0, 1))
        assert constants[activation.input[2]].dtype == np.uint8
        assert constants[weight.input[1]].shape == (24,)
        assert not constants[weight.input[2]].any()


@pytest.mark.parametrize("form", ["qdq", "qoperator"])
def test_same_inputs_give_the_same_bytes(form: Any, calibration: Calibration, tmp_path: Path) -> None:
    for name in ("a", "b"):
        quantize_for_cpu(calibration, tmp_path / name, method="percentile", form=form)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert count_fused(tmp_path / "a", len(LAYERS)).whole


def test_layers_kept_in_float_run_in_float(calibration: Calibration, tmp_path: Path) -> None:
    report = quantize_for_cpu(
        calibration, tmp_path / "o.onnx", method="mse", keep_float=["block1", "block2", "depthwise"]
    )
    assert set(LAYERS) - set(report.quantized) == {"block1", "block2", "depthwise"}
    assert count_fused(tmp_path / "o.onnx", len(report.quantized)).integer == len(LAYERS) - 3
    # The addition between layers in float is not quantized for nobody's sake.
    names = {node.name: node.op_type for node in onnx.load(tmp_path / "o.onnx").graph.node}
    assert names["residual"] == "Add"


@pytest.mark.parametrize(
    ("write", "operator"),
    [
        pytest.param(quantize_dynamic_for_cpu, "MatMulInteger", id="dynamic"),
        pytest.param(quantize_weights_for_cpu, "MatMulNBits", id="weights"),
    ],
)
def test_linear_layers_alone(
    write: Callable[..., Any],
    operator: str,
    calibration: Calibration,
    make_pictures: Callable[..., Any],
    tmp_path: Path,
) -> None:
    out = tmp_path / "o.onnx"
    report = write(calibration, out)
    assert report.quantized == ("linear",)
    assert [node.op_type for node in onnx.load(out).graph.node].count(operator) == 1
    unseen = make_pictures(6, seed=2)
    assert np.abs(logits(calibration.model, unseen) - logits(out, unseen)).max() < 4.0
    assert count_fused(out, 1).integer == 1


def test_refusals(calibration: Calibration, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"keep_float to name convolutions.*found \['nose'\]"):
        quantize_for_cpu(calibration, tmp_path / "o", method="mse", keep_float=["nose"])
    with pytest.raises(
        RefusalError, match=r"nothing to quantize.*: \w+, \w+, \w+ and \d more: asked to stay float"
    ):
        quantize_for_cpu(calibration, tmp_path / "o", method="mse", keep_float=LAYERS)
    with pytest.raises(DataError, match="calibration method"):
        quantize_for_cpu(calibration, tmp_path / "o", method="magic")  # type: ignore[arg-type]
    quantize_for_cpu(calibration, tmp_path / "int8.onnx", method="mse")
    with pytest.raises(DataError, match=r"found (De|Q)\w+Linear at .*quantized already"):
        Calibration(tmp_path / "int8.onnx", calibration.images)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("fp16", "fp8")])
def test_every_recipe_for_the_cpu_has_a_name_words_and_a_graph(
    name: str, calibration: Calibration, tmp_path: Path
) -> None:
    recipe = Recipe.named(name, "cpu")
    assert recipe.name == name and len(recipe.steps) == 1
    make(recipe, calibration, tmp_path / "o.onnx")
    kept = recipe.keeping(["linear"], 9)
    assert kept.name.startswith(f"{name}-float1-") and kept.steps[1] == "1 of 9 layers kept in float"


@pytest.mark.parametrize(
    ("name", "dialect", "match"),
    [
        pytest.param("int9", "cpu", "Expected a candidate of int8-minmax", id="unknown"),
        pytest.param("macs60", "cpu", r"A graph alone cannot be pruned and recovered", id="pruning"),
        pytest.param("fp16", "cpu", "for tensorrt only", id="not for the CPU"),
        pytest.param("int8-dynamic", "tensorrt", "for cpu only", id="not for TensorRT"),
    ],
)
def test_recipes_that_make_no_sense(name: str, dialect: Any, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        Recipe.named(name, dialect)


def test_eight_bit_floats_are_written_for_tensorrt(
    calibration: Calibration, make_pictures: Callable[..., Any], tmp_path: Path
) -> None:
    out = tmp_path / "fp8.onnx"
    make(Recipe.named("fp8", "tensorrt"), calibration, out)
    kinds = {item.data_type for item in onnx.load(out).graph.initializer}
    assert onnx.TensorProto.FLOAT8E4M3FN in kinds and onnx.TensorProto.INT8 not in kinds
    unseen = make_pictures(6, seed=3)
    engine = open_engine(out, engine="ort-cpu")
    found = np.concatenate([engine.run(image).logits for image in unseen])
    reference = onnx.reference.ReferenceEvaluator(str(out))
    wanted = np.concatenate([reference.run(["logits"], {"image": image})[0] for image in unseen])
    # Two implementations of the same graph round some values to different neighbours.
    assert np.abs(found - wanted).max() < 1.0


def test_eight_bit_floats_after_a_clip_run_on_the_cpu_for_checking(
    calibration: Calibration, make_pictures: Callable[..., Any], tmp_path: Path
) -> None:
    model = onnx.load(calibration.model)
    for node in model.graph.node:  # ReLU6, which ONNX Runtime's further rewrites cannot merge with FP8
        if node.op_type == "Relu":
            node.op_type = "Clip"
            node.input.extend(["low", "high"])
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.float32(value), name) for name, value in (("low", 0), ("high", 6))
    )
    (tmp_path / "clips.onnx").write_bytes(model.SerializeToString())
    images = make_pictures(6, seed=3)
    make(Recipe.named("fp8", "tensorrt"), Calibration(tmp_path / "clips.onnx", images), tmp_path / "fp8.onnx")
    eight, exact = (
        np.concatenate([engine.run(image).logits for image in images])
        for engine in (open_engine(tmp_path / name, engine="ort-cpu") for name in ("fp8.onnx", "clips.onnx"))
    )
    assert 0 < np.abs(eight - exact).max() < 3.0


def test_a_race_takes_turns_and_tells_the_ratio() -> None:
    now, order = [0], []

    def take(name: str, nanoseconds: int) -> Callable[[], None]:
        def call() -> None:
            order.append(name)
            now[0] += nanoseconds

        return call

    pairs = take_turns(take("float", 3_000_000), take("int8", 1_000_000), seconds=0.0, clock=lambda: now[0])
    assert pairs.shape == (30, 2) and set(map(tuple, pairs)) == {(3.0, 1.0)}
    assert order[10:14] == ["float", "int8", "int8", "float"]  # after five warm-up calls each
    found = summarise(pairs, "test", 1)
    assert found == Speed("test", 1, 30, 3.0, 1.0, 3.0, 3.0, 3.0) and not found.slower
    lost = summarise(pairs[:, ::-1], "test", 1)
    assert lost.slower and "0.33 times the float graph's speed" in lost.describe()
