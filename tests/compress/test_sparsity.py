"""2:4 sparsity: which weights go, which layers stay dense, and that zeros survive export and every number format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from vlkd_compress.calibrated import Calibration
from vlkd_compress.graph import load
from vlkd_compress.prune import sparsity
from vlkd_compress.prune.harm import Probe
from vlkd_compress.prune.sparsegraph import count_sparse, is_sparse
from vlkd_compress.recipes import Recipe, make
from vlkd_distill import export, students
from vlkd_distill.specs import StudentSpec
from vlkd_runtime.errors import RefusalError
from vlkd_runtime.vectors import ClassVectors

SPEC = StudentSpec("resnet10t", 32, options={"channels": [16, 16, 32, 32], "stem_width": 16})


def student() -> students.Student:
    return students.create(SPEC, 16).eval()


def probes() -> list[Probe]:
    views = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return [
        Probe(name, views[i : i + 2], lambda o: o.square().mean()) for i, name in ((0, "day"), (2, "night"))
    ]


@pytest.mark.parametrize("shape", [(8, 16), (8, 16, 3, 3)], ids=["linear", "convolution"])
def test_the_two_that_matter_most_of_every_four_inputs_stay(shape: tuple[int, ...]) -> None:
    saliency = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    found = sparsity.mask(saliency)
    flat, kept = saliency.reshape(8, 16, -1), found.reshape(8, 16, -1)
    for out in range(8):
        for first in range(0, 16, 4):
            for place in range(flat.shape[2]):
                four = flat[out, first : first + 4, place].tolist()
                best = sorted(range(4), key=lambda index: -four[index])[:2]
                assert kept[out, first : first + 4, place].nonzero().flatten().tolist() == sorted(best)


@pytest.mark.parametrize("importance", ["magnitude", "taylor", "worst-domain"])
def test_eligible_layers_become_sparse_and_others_stay_as_they_were(importance: str) -> None:
    network = student()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    names = sparsity.sparsify(network, probes(), importance, protected=("head",))  # type: ignore[arg-type]
    assert len(names) >= 8 and "head.weight" not in names
    for name, tensor in network.state_dict().items():
        if name not in names:
            assert torch.equal(tensor, before[name]), name
            continue
        assert is_sparse(tensor.movedim(1, -1).numpy()), name
        assert torch.equal(tensor[tensor != 0], before[name][tensor != 0])
        assert 0.45 < float((tensor != 0).float().mean()) <= 0.5
    assert "backbone.conv1.0.weight" not in names  # three input channels


def test_saliency_is_half_the_squared_weight_times_the_mean_squared_gradient() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(16, 8, bias=False)
    network = nn.Sequential(layer)
    goals = {"day": 1.0, "night": -3.0}
    asked = [
        Probe(name, torch.randn(2, 16), lambda outputs, goal=goal: (outputs - goal).square().mean())
        for name, goal in goals.items()
    ]
    fishers = []
    for probe in asked:
        (gradient,) = torch.autograd.grad(probe.loss(network(probe.views)), [layer.weight])
        fishers.append(gradient.square())
    for importance, fisher in {
        "worst-domain": torch.maximum(*fishers),
        "taylor": (fishers[0] + fishers[1]) / 2,
    }.items():
        found = sparsity._saliency(network, {"0": layer}, asked, importance)["0"]  # type: ignore[arg-type]
        assert torch.allclose(found, 0.5 * layer.weight.square() * fisher, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Conv2d(16, 8, 3), True),
        (nn.Linear(32, 16), True),
        (nn.Conv2d(16, 16, 3, groups=16), False),
        (nn.Conv2d(3, 16, 3), False),
        (nn.Linear(24, 16), False),
        (nn.Linear(16, 7), False),
    ],
    ids=["convolution", "linear", "depthwise", "stem", "inputs not in sixteens", "outputs not in eights"],
)
def test_shapes_that_sparse_tensor_cores_compute(layer: nn.Conv2d | nn.Linear, expected: bool) -> None:
    assert sparsity.fits(layer) is expected


def test_a_student_without_such_layers_is_refused() -> None:
    with pytest.raises(RefusalError, match=r"no layer for 2:4 sparsity .* multiples of 16 .* multiples of 8"):
        sparsity.sparsify(nn.Sequential(nn.Conv2d(3, 12, 3)), [], "magnitude", protected=())


def test_zeros_survive_export_and_every_number_format(tmp_path: Path) -> None:
    network = student()
    names = sparsity.sparsify(network, probes(), "magnitude", protected=("head",))
    rows = np.linalg.qr(np.random.default_rng(1).standard_normal((16, 2)))[0].T.astype(np.float32)
    vectors = ClassVectors(
        ("a", "b"), np.ascontiguousarray(rows), (("a",), ("b",)), ("{}",), "test", "0" * 64, 10.0
    )
    path = tmp_path / "float.onnx"
    export.export(students.Deployable(network, students.FusedHead(vectors)), 32, path)
    dense = count_sparse(load(path))
    assert len(dense.sparse) == len(names) < dense.layers
    images = list(np.random.default_rng(0).integers(0, 256, (8, 1, 32, 32, 3), dtype=np.uint8))
    calibration = Calibration(path, images)
    for name, dialect in (
        ("int8-minmax", "tensorrt"),
        ("fp16", "tensorrt"),
        ("fp8", "tensorrt"),
        ("int8-percentile", "cpu"),
    ):
        out = tmp_path / f"{name}-{dialect}.onnx"
        make(Recipe.named(name, dialect), calibration, out)  # type: ignore[arg-type]
        assert len(count_sparse(load(out)).sparse) >= len(names), name


@pytest.mark.parametrize(
    ("turned", "axis"), [(False, 0), (True, 1)], ids=["inputs by outputs", "outputs by inputs"]
)
def test_a_products_zeros_count_along_its_inputs(turned: bool, axis: int) -> None:
    weight = np.ones((8, 8), dtype=np.float32)
    index = [slice(None)] * 2
    index[axis] = slice(None, None, 2)
    weight[tuple(index)] = 0.0
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w"], ["y"], name="product", transB=int(turned))],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph)
    assert count_sparse(model).sparse == ("product",)
    other = onnx.ModelProto()
    other.CopyFrom(model)
    other.graph.node[0].attribute[0].i = int(not turned)
    found = count_sparse(other)
    assert found.sparse == () and found.layers == 1


def test_three_of_four_is_not_sparse_and_odd_channels_neither() -> None:
    assert is_sparse(np.asarray([[1.0, 0.0, 0.0, 2.0]])) and not is_sparse(np.asarray([[1.0, 0.0, 3.0, 2.0]]))
    assert not is_sparse(np.zeros((2, 6)))
