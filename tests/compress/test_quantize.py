from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper
from onnxruntime.quantization.calibrate import CalibrationDataReader, CalibrationMethod, create_calibrator

from vlkd_compress.dialect import check_dialect
from vlkd_compress.fold import fold
from vlkd_compress.graph import load
from vlkd_compress.qdq import quantize_weight, smallest_scale
from vlkd_compress.quantize import QuantizationReport, quantize_for_tensorrt
from vlkd_compress.ranges import Method
from vlkd_runtime.errors import CalibrationError, DataError, RefusalError

QUANTIZED = ["block1", "block2", "depthwise", "thin", "odd", "point", "linear"]
KEPT = {
    "stem": "it reads the image",
    "tiny": "fewer than 16 channels",
    "outer": "its weight is not a constant",
    "mixed": "its weight is not a constant",
    "projection": "projection to the embedding",
    "scores": "class-vector product",
}


@pytest.fixture(scope="module")
def quantized(
    float_model: Path, make_pictures: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, QuantizationReport]:
    out = tmp_path_factory.mktemp("int8") / "int8.onnx"
    return out, quantize_for_tensorrt(float_model, make_pictures(8), out, method="minmax")


def outputs(path: Path, images: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    runs = [session.run(["embedding", "logits"], {"image": image}) for image in images]
    return np.concatenate([run[0] for run in runs]), np.concatenate([run[1] for run in runs])


def test_each_convolution_and_linear_layer_is_where_the_rules_put_it(
    quantized: tuple[Path, QuantizationReport],
) -> None:
    path, report = quantized
    model = onnx.load(path)
    producers = {output: node for node in model.graph.node for output in node.output}
    readers = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    int8 = {node.name for node in readers if producers.get(node.input[1], node).op_type == "DequantizeLinear"}
    assert int8 == set(QUANTIZED)
    for node in readers:
        sources = [producers[name].op_type if name in producers else "constant" for name in node.input]
        if node.name in QUANTIZED:
            assert sources[:2] == ["DequantizeLinear", "DequantizeLinear"], node.name
            assert sources[2:] in ([], ["constant"]), node.name
        else:
            assert "DequantizeLinear" not in sources, node.name
    assert sorted(report.quantized) == sorted(QUANTIZED)
    assert (report.convolutions, report.linears, report.images) == (6, 1, 8)
    assert {item.node for item in report.kept_float} == set(KEPT)
    for item in report.kept_float:
        assert KEPT[item.node] in item.reason


def test_only_the_shortcut_of_an_addition_is_quantized_and_other_readers_keep_the_float_tensor(
    quantized: tuple[Path, QuantizationReport],
) -> None:
    nodes = {node.name: node for node in onnx.load(quantized[0]).graph.node}
    assert list(nodes["residual"].input) == ["block2_bn", "stem_bn_relu/dequantized"]
    assert quantized[1].residuals == 1
    assert list(nodes["joined"].input) == ["point_bn", "odd"]  # no quantized layer reads this one
    assert nodes["block1"].input[0] == "stem_bn_relu/dequantized"
    assert nodes["thin"].input[0] == nodes["point"].input[0] == "depthwise_bn_relu/dequantized"
    quantizers = [node for node in nodes.values() if node.op_type == "QuantizeLinear"]
    assert len({node.input[0] for node in quantizers}) == len(quantizers) == len(QUANTIZED) - 1


def test_batch_normalisation_is_folded_and_the_interface_kept(
    quantized: tuple[Path, QuantizationReport],
) -> None:
    model = onnx.load(quantized[0])
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    assert [(item.domain, item.version) for item in model.opset_import] == [("", 20)]
    first = [node.op_type for node in model.graph.node if "image" in node.input]
    assert first == ["Cast"]
    assert [item.name for item in model.graph.output] == ["embedding", "logits"]
    assert not model.metadata_props


def test_result_keeps_the_dialect_and_is_smaller(
    quantized: tuple[Path, QuantizationReport], float_model: Path
) -> None:
    path, report = quantized
    assert check_dialect(path) == ()
    assert (report.float_bytes, report.int8_bytes) == (float_model.stat().st_size, path.stat().st_size)
    assert report.int8_bytes < 0.75 * report.float_bytes


@pytest.mark.parametrize("method", get_args(Method))
def test_outputs_stay_near_the_float_network(
    method: Method, float_model: Path, make_pictures: Callable[..., Any], tmp_path: Path
) -> None:
    out = tmp_path / "int8.onnx"
    quantize_for_tensorrt(float_model, make_pictures(8), out, method=method)
    unseen = make_pictures(12, seed=1)
    (wanted, wanted_logits), (found, found_logits) = outputs(float_model, unseen), outputs(out, unseen)
    assert np.linalg.norm(found, axis=1) == pytest.approx(1.0, abs=1e-5)
    assert (wanted * found).sum(axis=1).min() > 0.99
    assert not np.allclose(wanted, found, atol=1e-6)
    assert np.abs(wanted_logits - found_logits).max() < 4.0


def test_same_inputs_give_the_same_bytes(
    quantized: tuple[Path, QuantizationReport],
    float_model: Path,
    make_pictures: Callable[..., Any],
    tmp_path: Path,
) -> None:
    again = tmp_path / "again.onnx"
    quantize_for_tensorrt(float_model, iter(make_pictures(8)), again, method="minmax")
    assert again.read_bytes() == quantized[0].read_bytes()


def test_scales_agree_with_onnxruntimes_own_calibrator(
    quantized: tuple[Path, QuantizationReport],
    float_model: Path,
    make_pictures: Callable[..., Any],
    tmp_path: Path,
) -> None:
    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(make_pictures(8))

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.left, None)
            return None if image is None else {"image": image}

    folded = onnx.shape_inference.infer_shapes(fold(load(float_model)))
    onnx.save(folded, tmp_path / "folded.onnx")
    calibrator = create_calibrator(
        tmp_path / "folded.onnx", ["Conv", "MatMul"], tmp_path / "augmented.onnx", CalibrationMethod.MinMax
    )
    calibrator.collect_data(Reader())
    ranges = calibrator.compute_data()
    model = onnx.load(quantized[0])
    constants = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    quantizers = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert len(quantizers) == len(QUANTIZED) - 1  # two of them read the same tensor
    for node in quantizers:
        low, high = ranges[node.input[0]].range_value
        wanted = max(abs(float(np.squeeze(low))), abs(float(np.squeeze(high)))) / 127
        assert constants[node.input[1]] == pytest.approx(wanted, rel=1e-5), node.name


@pytest.mark.parametrize("axis", [0, 1])
def test_weights_are_rounded_channel_by_channel(axis: int) -> None:
    value = np.random.default_rng(3).normal(size=(6, 4, 3, 3)).astype(np.float32)
    np.moveaxis(value, axis, 0)[1] = 0.0
    whole, scale = quantize_weight(value, axis)
    assert scale.shape == (value.shape[axis],)
    for channel in range(value.shape[axis]):
        given, made = np.moveaxis(value, axis, 0)[channel], np.moveaxis(whole, axis, 0)[channel]
        step = np.abs(given).max() / 127 if given.any() else float(np.finfo(np.float32).tiny)
        assert scale[channel] == pytest.approx(step, rel=1e-6)
        assert np.abs(made * step - given).max() <= step / 2 * 1.001
    assert np.abs(whole).max() == 127


def test_a_channel_that_normalisation_switched_off_keeps_its_bias(
    float_model: Path, make_pictures: Callable[..., Any], tmp_path: Path
) -> None:
    model = onnx.load(float_model)
    for constant in model.graph.initializer:
        if constant.name in ("block1.gain", "block1.shift"):
            value = numpy_helper.to_array(constant).copy()
            value[3] = 1e-14 if constant.name == "block1.gain" else 0.9
            constant.CopyFrom(numpy_helper.from_array(value, constant.name))
    onnx.save(model, tmp_path / "dead.onnx")
    out = tmp_path / "int8.onnx"
    quantize_for_tensorrt(tmp_path / "dead.onnx", make_pictures(8), out, method="minmax")
    wanted, found = (outputs(path, make_pictures(8))[0] for path in (tmp_path / "dead.onnx", out))
    assert (wanted * found).sum(axis=1).min() > 0.99998


@pytest.mark.parametrize(
    ("bias", "wanted"),
    [
        pytest.param(None, [np.finfo(np.float32).tiny] * 2, id="no bias"),
        pytest.param([0.0, 0.5], [np.finfo(np.float32).tiny, 0.5 / 0.25 / 2**30], id="one bias is zero"),
    ],
)
def test_a_bias_in_units_of_both_scales_fits_into_32_bits(
    bias: list[float] | None, wanted: list[float]
) -> None:
    given = None if bias is None else np.asarray(bias, dtype=np.float32)
    floor = np.broadcast_to(smallest_scale(given, np.float32(0.25)), 2)
    assert floor == pytest.approx(wanted, rel=1e-6)
    _, scale = quantize_weight(np.full((2, 3), 1e-30, dtype=np.float32), 0, floor)
    assert np.all(np.asarray(bias or [0.0, 0.0]) / (scale.astype(np.float64) * 0.25) < 2**31)


def test_keep_float_is_kept(float_model: Path, make_pictures: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / "int8.onnx"
    report = quantize_for_tensorrt(
        float_model, make_pictures(2), out, method="minmax", keep_float=["block1", "linear"]
    )
    assert set(report.quantized) == {"block2", "depthwise", "thin", "odd", "point"}
    assert {item.node for item in report.kept_float if item.reason == "asked to stay float"} == {
        "block1",
        "linear",
    }


def test_an_activation_that_is_always_zero_stays_float(
    make_student: Callable[..., Path], make_pictures: Callable[..., Any], tmp_path: Path
) -> None:
    silent = make_student(tmp_path / "silent.onnx", gain=0.0)
    report = quantize_for_tensorrt(silent, make_pictures(2), tmp_path / "int8.onnx", method="percentile")
    kept = {item.node: item.reason for item in report.kept_float}
    assert "zero on each calibration image" in kept["linear"]


def image(
    shape: tuple[int, ...] = (1, 32, 32, 3), dtype: Any = np.uint8, value: int | None = None
) -> np.ndarray:
    if value is not None:
        return np.full(shape, value, dtype=dtype)
    return (np.arange(np.prod(shape)).reshape(shape) % 251).astype(dtype)


@pytest.mark.parametrize(
    ("images", "options", "error", "match"),
    [
        pytest.param([], {}, CalibrationError, "found none", id="no image"),
        pytest.param([image(value=9)] * 3, {}, CalibrationError, "one flat colour", id="flat images"),
        pytest.param([image(dtype=np.float32)], {}, CalibrationError, "found float32", id="wrong type"),
        pytest.param([image((1, 16, 16, 3))], {}, CalibrationError, "at index 0", id="wrong size"),
        pytest.param([image()], {"keep_float": ["nose"]}, DataError, "found \\['nose'\\]", id="unknown node"),
        pytest.param([image()], {"method": "magic"}, DataError, "found 'magic'", id="unknown method"),
        pytest.param(
            [image()], {"keep_float": QUANTIZED}, RefusalError, "nothing to quantize", id="nothing left"
        ),
    ],
)
def test_refusals(
    images: list[np.ndarray],
    options: dict[str, Any],
    error: type[Exception],
    match: str,
    float_model: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "int8.onnx"
    with pytest.raises(error, match=match):
        quantize_for_tensorrt(float_model, images, out, **{"method": "minmax", **options})
    assert not out.exists()


def test_activations_that_are_not_finite_are_refused(
    make_student: Callable[..., Path], make_pictures: Callable[..., Any], tmp_path: Path
) -> None:
    broken = make_student(tmp_path / "broken.onnx", gain=float("inf"))
    with pytest.raises(CalibrationError, match=r"Expected finite activations, found (inf|nan) in tensor"):
        quantize_for_tensorrt(broken, make_pictures(2), tmp_path / "int8.onnx", method="minmax")


def test_a_graph_without_the_two_outputs_is_refused(
    float_model: Path, make_pictures: Callable[..., Any], tmp_path: Path
) -> None:
    model = onnx.load(float_model)
    del model.graph.output[0]
    onnx.save(model, tmp_path / "one.onnx")
    with pytest.raises(DataError, match=r"outputs 'embedding' and 'logits'.*found \['logits'\]"):
        quantize_for_tensorrt(tmp_path / "one.onnx", make_pictures(2), tmp_path / "o.onnx", method="minmax")


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "junk.onnx").write_bytes(b"not a model")
    with pytest.raises(DataError, match=r"Expected an ONNX model at .*junk\.onnx"):
        quantize_for_tensorrt(tmp_path / "junk.onnx", [image()], tmp_path / "o.onnx", method="minmax")


def test_an_operator_that_the_engine_lacks_is_named() -> None:
    helper, kinds = onnx.helper, onnx.TensorProto
    graph = helper.make_graph(
        [helper.make_node("ImageDecoder", ["bytes"], ["image"], name="decode")],
        "decoder",
        [helper.make_tensor_value_info("bytes", kinds.UINT8, ["N"])],
        [helper.make_tensor_value_info("image", kinds.UINT8, ["H", "W", "C"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    with pytest.raises(
        RefusalError, match=r"Expected a graph that ONNX Runtime .* can run, found: .*ImageDecoder"
    ):
        fold(model)
