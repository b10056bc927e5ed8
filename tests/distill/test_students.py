"""Students: the same start for every method, honest errors, and a graph equal to the network."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from vlkd_distill import export, students
from vlkd_distill.specs import StudentSpec
from vlkd_runtime.errors import ConfigError, ParityError, TrainingError
from vlkd_runtime.vectors import ClassVectors

SPEC = StudentSpec("resnet10t", 32, "none", 0, {"channels": [8, 16, 16, 32], "stem_width": 8})


def vectors() -> ClassVectors:
    rows = np.eye(3, 8, dtype=np.float32)
    return ClassVectors(("a", "b", "c"), rows, (("a",), ("b",), ("c",)), ("{}",), "test", "0" * 64, 10.0)


def network() -> students.Deployable:
    return students.Deployable(students.create(SPEC, 8).eval(), students.FusedHead(vectors())).eval()


def images(count: int = 4) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def test_same_spec_same_backbone_whatever_the_head() -> None:
    one, two = students.create(SPEC, 8), students.create(SPEC, 3)
    assert all(
        torch.equal(a, b)
        for a, b in zip(one.backbone.state_dict().values(), two.backbone.state_dict().values(), strict=True)
    )
    other = students.create(dataclasses.replace(SPEC, seed=1), 8)
    assert not torch.equal(one.backbone.conv1[0].weight, other.backbone.conv1[0].weight)  # type: ignore[union-attr, index]


def test_fused_head_is_scaled_cosine() -> None:
    projected = torch.from_numpy(np.random.default_rng(1).standard_normal((5, 8))).float()
    embedding, logits = students.FusedHead(vectors())(projected)
    p = projected.double().numpy()
    by_hand = 10.0 * (p / np.linalg.norm(p, axis=1, keepdims=True)) @ vectors().vectors.T.astype(np.float64)
    assert np.allclose(logits.numpy(), by_hand, atol=1e-5)
    assert np.allclose(embedding.norm(dim=1).numpy(), 1, atol=1e-6)


def test_packaged_weights_are_the_real_ones() -> None:
    student = students.create(StudentSpec("tf_efficientnet_lite0", 64, "package"), 8)
    scratch = students.create(StudentSpec("tf_efficientnet_lite0", 64, "none"), 8)
    loaded, random = (s.backbone.state_dict()["bn2.running_var"] for s in (student, scratch))
    assert not torch.equal(loaded, random)
    assert torch.isfinite(loaded).all() and loaded.min() > 0


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        pytest.param(StudentSpec("resnet81", 64), "no model 'resnet81'.*Did you mean", id="typo"),
        pytest.param(
            StudentSpec("resnet18", 64, "package"),
            "No package carries weights for 'resnet18'",
            id="no package",
        ),
    ],
)
def test_unknown_students_are_refused_early(spec: StudentSpec, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        students.check(spec)


def test_export_is_equal_to_the_network_and_reproducible(tmp_path: Path) -> None:
    export.export(network(), 32, tmp_path / "one.onnx")
    export.export(network(), 32, tmp_path / "two.onnx")
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()
    parity = export.check_parity(
        network(), tmp_path / "one.onnx", images(), max_logit_gap=1e-3, min_cosine=0.99999
    )
    assert parity.agreement == 1.0 and parity.images == 4


def test_exported_graph_is_what_the_device_expects(tmp_path: Path) -> None:
    export.export(network(), 32, tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    assert model.opset_import[0].version == export.OPSET
    image = model.graph.input[0]
    assert (image.name, image.type.tensor_type.elem_type) == ("image", onnx.TensorProto.UINT8)
    assert [d.dim_value for d in image.type.tensor_type.shape.dim] == [1, 32, 32, 3]
    assert [output.name for output in model.graph.output] == ["embedding", "logits"]
    assert [node.op_type for node in model.graph.node if "image" in node.input] == ["Cast"]
    assert not {node.op_type for node in model.graph.node} & {"BatchNormalization", "If", "Loop", "NonZero"}


@pytest.mark.parametrize("value", [0.0, float("nan")], ids=["zero", "not finite"])
def test_a_student_that_says_nothing_is_blamed_on_its_training(tmp_path: Path, value: float) -> None:
    broken = network()
    with torch.no_grad():
        broken.student.head.weight.fill_(value)
        broken.student.head.bias.fill_(value)
    export.export(broken, 32, tmp_path / "model.onnx")
    with pytest.raises(TrainingError, match=r"for 4 of 4 images: its training ran away .*distill\.lr"):
        export.check_parity(broken, tmp_path / "model.onnx", images(), max_logit_gap=1e-3, min_cosine=0.99999)


def test_a_graph_of_other_weights_fails_parity(tmp_path: Path) -> None:
    export.export(network(), 32, tmp_path / "model.onnx")
    other = students.Deployable(
        students.create(dataclasses.replace(SPEC, seed=9), 8).eval(), students.FusedHead(vectors())
    )
    with pytest.raises(ParityError, match="differs from the network"):
        export.check_parity(
            other.eval(), tmp_path / "model.onnx", images(), max_logit_gap=1e-3, min_cosine=0.99999
        )
