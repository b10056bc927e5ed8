"""Quantization-aware training: the rounded network against ONNX Runtime, its gradients, and what training does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper

from vlkd_compress.calibrated import Calibration
from vlkd_compress.dialect import check_dialect
from vlkd_compress.graph import Graph
from vlkd_compress.qat import training
from vlkd_compress.qat.network import QuantizedGraph
from vlkd_compress.qat.quantize import quantize_with_training
from vlkd_compress.qat.rounding import fake_quantize, weight_scale
from vlkd_compress.qat.settings import QatSettings
from vlkd_compress.qat.training import Answers
from vlkd_compress.qdq import scale_weight, smallest_scale
from vlkd_compress.quantize import plan_for_tensorrt, quantize_for_tensorrt
from vlkd_runtime.errors import RefusalError


def agree(own: Answers, floating: Answers, rows: np.ndarray) -> torch.Tensor:
    return (own.logits - floating.logits).square().mean()


def answers(path: Path, images: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(["logits"], {"image": image[None]})[0] for image in images])


def network(calibration: Calibration) -> QuantizedGraph:
    plan = plan_for_tensorrt(calibration, method="percentile")
    return QuantizedGraph(
        Graph(calibration.folded()),
        plan.quantized,
        plan.residuals,
        plan.ranges,
        frozen=calibration.head.class_product,
    )


@pytest.fixture(scope="module")
def images(make_pictures: Callable[..., list[np.ndarray]]) -> np.ndarray:
    return np.concatenate(make_pictures(96))


@pytest.fixture(scope="module")
def calibration(float_model: Path, images: np.ndarray) -> Calibration:
    return Calibration(float_model, images[:32])


def test_the_rounded_network_answers_as_the_qdq_graph(
    float_model: Path, calibration: Calibration, images: np.ndarray, tmp_path: Path
) -> None:
    quantize_for_tensorrt(float_model, calibration, tmp_path / "int8.onnx", method="percentile")
    graph, some = network(calibration), images[40:56]
    with torch.no_grad():
        rounded = graph(torch.from_numpy(some))[1].numpy()
        graph.rounds = False
        plain = graph(torch.from_numpy(some))[1].numpy()
    floating, quantized = answers(float_model, some), answers(tmp_path / "int8.onnx", some)
    assert np.abs(floating - quantized).max() > 0.01  # rounding shows
    np.testing.assert_allclose(plain, floating, atol=1e-4)
    # A sum that differs in its last bit may round to the next level; such images are few.
    gaps = np.abs(rounded - quantized).max(axis=1)
    assert np.median(gaps) < 1e-4 and gaps.max() < 0.1 * np.abs(floating - quantized).max()


def test_gradients_are_straight_through_and_learned_steps() -> None:
    values = np.asarray([-40.0, -3.2, -0.26, 0.0, 0.49, 1.51, 31.0, 90.0])
    scale, highest, lowest = 0.25, 127, -128
    into = np.arange(1.0, 9.0)
    expected, by_value, by_scale = [], [], 0.0
    for value, gradient in zip(values, into, strict=True):  # one value at a time
        level = value / scale
        if level < lowest or level > highest:
            whole = lowest if level < lowest else highest
            by_value.append(0.0)
            by_scale += gradient * whole
        else:
            whole = round(level)
            by_value.append(gradient)
            by_scale += gradient * (whole - level)
        expected.append(whole * scale)
    given = torch.tensor(values, requires_grad=True)
    step = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    made = fake_quantize(given, step)
    made.backward(torch.tensor(into))
    np.testing.assert_allclose(made.detach().numpy(), expected)
    assert given.grad is not None and step.grad is not None
    np.testing.assert_allclose(given.grad.numpy(), by_value)
    assert float(step.grad) == pytest.approx(by_scale)


def test_weight_scales_are_those_of_the_writer() -> None:
    random = np.random.default_rng(0)
    weight = (random.normal(size=(6, 4, 3, 3)) * np.geomspace(1e-9, 1, 6)[:, None, None, None]).astype(
        np.float32
    )
    bias = random.normal(size=6).astype(np.float32)
    _, expected = scale_weight(weight, 0, smallest_scale(bias, np.float32(0.02)))
    found = weight_scale(torch.from_numpy(weight), 0, torch.from_numpy(bias), torch.tensor(0.02))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


def test_training_moves_the_int8_graph_where_the_loss_wants_it_and_keeps_the_dialect(
    float_model: Path, calibration: Calibration, images: np.ndarray, tmp_path: Path
) -> None:
    def swapped(own: Answers, floating: Answers, rows: np.ndarray) -> torch.Tensor:
        return (own.logits - floating.logits.flip(1)).square().mean()

    quantize_for_tensorrt(float_model, calibration, tmp_path / "plain.onnx", method="percentile")
    settings = QatSettings(epochs=4, lr=3e-3, scale_lr=1e-2, batch=16)
    report = quantize_with_training(
        calibration, images, swapped, tmp_path / "trained.onnx", method="percentile", settings=settings
    )
    goal = answers(float_model, images)[:, ::-1]
    before, after = (
        np.square(answers(tmp_path / name, images) - goal).mean() for name in ("plain.onnx", "trained.onnx")
    )
    assert after < 0.5 * before
    assert not check_dialect(tmp_path / "trained.onnx") and not list(tmp_path.glob("*.safetensors"))
    plain, trained = (
        {item.name: numpy_helper.to_array(item) for item in onnx.load(tmp_path / name).graph.initializer}
        for name in ("plain.onnx", "trained.onnx")
    )
    assert plain.keys() == trained.keys() and report.residuals == 1
    assert np.array_equal(plain["class_vectors"], trained["class_vectors"])
    assert any(not np.array_equal(plain[name], trained[name]) for name in plain if name.endswith("/scale"))


def test_an_interrupted_training_ends_where_an_uninterrupted_one_does(
    calibration: Calibration, images: np.ndarray, tmp_path: Path
) -> None:
    settings = QatSettings(epochs=3, batch=32)
    whole, cut = network(calibration), network(calibration)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    training.train(whole, images, agree, settings, tmp_path / "a")
    seen: list[int] = []

    def stop(done: int, loss: float) -> None:
        seen.append(done)
        if len(seen) == 5:  # in the second epoch
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.train(cut, images, agree, settings, tmp_path / "b", stop)
    resumed, counted = network(calibration), []
    training.train(resumed, images, agree, settings, tmp_path / "b", lambda done, _: counted.append(done))
    assert counted[0] == 3 and sum(counted) == training.steps(len(images), settings) == 9
    for name, value in whole.values().items():
        assert np.array_equal(value, resumed.values()[name]), name
    assert whole.ranges() == resumed.ranges()


def test_what_cannot_be_trained_is_refused(
    calibration: Calibration, images: np.ndarray, tmp_path: Path
) -> None:
    with pytest.raises(RefusalError, match=r"at least 64 source images .* found 8"):
        training.train(network(calibration), images[:8], agree, QatSettings(), tmp_path)
    with pytest.raises(RefusalError, match=r"finite loss .* found nan at step 0"):
        training.train(
            network(calibration),
            images,
            lambda own, _, __: own.logits.sum() * torch.nan,
            QatSettings(),
            tmp_path,
        )
    model = calibration.folded()
    next(node for node in model.graph.node if node.op_type == "Relu").op_type = "Selu"
    plan = plan_for_tensorrt(calibration, method="minmax")
    with pytest.raises(RefusalError, match="found Selu at 'stem"):
        QuantizedGraph(Graph(model), plan.quantized, plan.residuals, plan.ranges)
