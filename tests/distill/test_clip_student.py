"""Students from a CLIP's image tower: the copy equals the teacher, only what should train does, graphs agree."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch import nn

from vlkd_distill import clip_student, export, feeding, methods, starting, students, training
from vlkd_distill.pixels import PixelStore
from vlkd_distill.specs import MethodName, Settings, StudentSpec
from vlkd_distill.stages import Batch, Stage
from vlkd_distill.teachers import OpenClipTeacher
from vlkd_runtime.errors import ConfigError
from vlkd_runtime.preprocess import prepare
from vlkd_runtime.vectors import ClassVectors

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
VISION: dict[str, dict[str, Any]] = {
    "vit": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
    "vit-average": {
        "image_size": 32,
        "patch_size": 8,
        "width": 32,
        "layers": 2,
        "head_width": 16,
        "pool_type": "avg",
        "final_ln_after_pool": True,
    },
    "resnet": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8},
    "timm": {
        "image_size": 64,
        "timm_model_name": "regnetx_002",
        "timm_pool": "",
        "timm_proj": "linear",
    },
    "timm-mlp": {
        "image_size": 32,
        "timm_model_name": "test_resnet",
        "timm_pool": "avg",
        "timm_proj": "mlp",
    },
}
EXACT = {name: cfg["image_size"] for name, cfg in VISION.items()}


def teacher(kind: str, dim: int = 24) -> OpenClipTeacher:
    torch.manual_seed(5)
    model = open_clip.model.CLIP(dim, VISION[kind], TEXT)
    for module in model.visual.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
    size = EXACT[kind]
    described = open_clip.transform.PreprocessCfg(
        size, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), interpolation="bicubic", resize_mode="squash"
    )
    open_clip.model.set_model_preprocess_cfg(model, dataclasses.asdict(described))
    preprocess = open_clip.transform.image_transform_v2(described, is_train=False)
    return OpenClipTeacher(f"tiny:{kind}", model, preprocess, open_clip.SimpleTokenizer(context_length=16))


def views(size: int, count: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def vectors(dim: int) -> ClassVectors:
    rows = np.random.default_rng(1).standard_normal((3, dim))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return ClassVectors(("a", "b", "c"), rows.astype(np.float32), ((), (), ()), (), "test", "0" * 64, 10.0)


def unit(rows: torch.Tensor) -> np.ndarray:
    own = rows.detach().double().numpy()
    normed: np.ndarray = own / np.linalg.norm(own, axis=1, keepdims=True)
    return normed


@pytest.mark.parametrize("kind", sorted(VISION))
def test_a_copy_embeds_as_its_teacher_before_it_learns(kind: str) -> None:
    source = teacher(kind)
    student = clip_student.from_teacher(source, EXACT[kind]).eval()
    images = views(EXACT[kind])
    with torch.no_grad():
        assert np.abs(unit(student(images)) - source.embed_views(images).numpy()).max() < 1e-5
        features = student.features(images)
    assert features.shape[1] == student.head.in_features
    assert np.abs(unit(features)[:, :4] - source.embed_views(images).numpy()[:, :4]).max() > 1e-3 or (
        kind == "timm-mlp"
    )


def test_the_demo_teachers_copy_embeds_files_as_the_teacher_does(tmp_path: Path) -> None:
    source = OpenClipTeacher.load("demo")
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 256, (90, 70, 3), dtype=np.uint8))
    image.save(tmp_path / "image.png")
    spec = clip_student.teacher_preprocess(source, 64)
    pixels = torch.from_numpy(prepare(tmp_path / "image.png", spec))[None]
    network = students.Deployable(clip_student.from_teacher(source, 64), students.FusedHead(vectors(128)))
    with torch.no_grad():
        embedding, _ = network.eval()(pixels)
    views = pixels.permute(0, 3, 1, 2).float() / 255
    assert np.abs(embedding.numpy() - source.embed_views(views).numpy()).max() < 1e-5
    # The device resizes in two passes, which rounds a pixel by one level at most.
    assert (embedding.numpy() * source.embed_images([image])).sum() > 0.9999


@pytest.mark.parametrize(
    ("mode", "resize"), [("squash", "squash"), ("shortest", "crop"), ("longest", None)], ids=str
)
def test_the_teachers_resizing_as_the_device_knows_it(mode: str, resize: str | None) -> None:
    source = teacher("vit")
    source._model.visual.preprocess_cfg["resize_mode"] = mode  # type: ignore[union-attr, operator, index]
    if resize is None:
        with pytest.raises(ConfigError, match="resizes by 'longest' with 'bicubic'; expected squash"):
            clip_student.teacher_preprocess(source, 48)
    else:
        spec = clip_student.teacher_preprocess(source, 48)
        assert (spec.height, spec.width, spec.resize, spec.interpolation) == (48, 48, resize, "bicubic")


def test_the_copy_trains_whole_and_leaves_the_teacher_alone() -> None:
    source = teacher("vit")
    before = source.embed_views(views(32))
    student = clip_student.from_teacher(source, 32).train()
    assert all(parameter.requires_grad for parameter in student.parameters())
    student(views(32)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in student.parameters())
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1.0)
    assert torch.equal(source.embed_views(views(32)), before)


@pytest.mark.parametrize(("kind", "size"), [("vit", 48), ("resnet", 96), ("timm", 48)])
def test_a_copy_for_another_size(kind: str, size: int) -> None:
    student = clip_student.from_teacher(teacher(kind), size).eval()
    assert torch.isfinite(student(views(size))).all()
    constant = torch.full((1, 3, size, size), 0.3)
    own = torch.full((1, 3, EXACT[kind], EXACT[kind]), 0.3)
    cosine = (unit(student(constant)) * teacher(kind).embed_views(own).numpy()).sum()
    assert cosine > 0.8  # the same plain image, seen with interpolated positions


def test_a_size_the_tower_cannot_take_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"cannot take images of 16 pixels.*its own is 64"):
        clip_student.from_teacher(teacher("resnet"), 16)


def test_visual_prompts_need_a_transformer() -> None:
    with pytest.raises(ConfigError, match="expected a vision transformer of open_clip's own"):
        clip_student.prompted_student(teacher("timm"), 64, 8)


def test_the_projector_by_hand() -> None:
    projector = clip_student.TwoLayerProjector(5, 3, "batch", 0)
    same, other = (clip_student.TwoLayerProjector(5, 3, "batch", seed) for seed in (0, 1))
    assert torch.equal(projector.first.weight, same.first.weight)
    assert not torch.equal(projector.first.weight, other.first.weight)
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(2))
    projector.train().norm.eval()  # as a loop does that keeps the statistics of start weights
    found = projector(x).detach().numpy()
    w1, b1, w2, b2 = (
        p.detach().double().numpy() for p in (*projector.first.parameters(), *projector.second.parameters())
    )
    hidden = x.double().numpy() @ w1.T + b1
    hidden = (hidden - hidden.mean(0)) / np.sqrt(hidden.var(0) + 1e-5)
    assert np.allclose(found, np.maximum(hidden, 0) @ w2.T + b2, atol=1e-5)


def test_any_student_can_have_the_projector() -> None:
    spec = StudentSpec("resnet10t", 32, "none", 0, {"channels": [8, 16, 16, 32], "stem_width": 8})
    plain = students.create(spec, 8)
    student = clip_student.with_projector(plain, 24, "layer", 0).eval()
    assert student(views(32)).shape == (3, 24) and student.backbone is plain.backbone
    assert torch.equal(student.mean, plain.mean)


VECTORS = vectors(24)
METHODS = ("erm", "kd", "vl2v-adip", "vl2v-sd", "promptkd", "vlm-ood", "vlkd")


@pytest.mark.parametrize("kind", ["timm", "timm-mlp", "vit"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_start_from_the_teachers_encoder(method: MethodName, kind: str) -> None:
    source, spec = teacher(kind), StudentSpec("teacher", EXACT[kind], seed=4)
    how = methods.create(Settings(method=method), VECTORS)
    images = views(EXACT[kind])
    with torch.no_grad():
        student, again, other = (
            starting.start(dataclasses.replace(spec, seed=seed), how, lambda: source).eval()
            for seed in (4, 4, 5)
        )
        outputs, embedded = student(images), source.embed_views(images).numpy()
        copied = clip_student.from_teacher(source, EXACT[kind]).eval()
        assert torch.allclose(student.features(images), copied.features(images), atol=1e-5)
        assert torch.equal(outputs, again(images))
        assert outputs.shape == (3, how.outputs())
        if how.predicts_by_vectors and method != "promptkd":  # its own last layer is kept
            assert np.abs(unit(outputs) - embedded).max() < 1e-5
            assert torch.equal(outputs, other(images))
        else:
            assert not torch.allclose(outputs, other(images))


def test_a_student_cannot_start_as_a_teacher_that_shows_only_answers() -> None:
    class Answers:
        name = "answers"

    for method, arch in (("erm", "teacher"), ("vl2v-sd", "tf_efficientnet_lite0")):
        how = methods.create(Settings(method=method), VECTORS)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=r"'answers' shows its answers only.*Take a timm model"):
            starting.start(StudentSpec(arch, 32), how, Answers)  # type: ignore[arg-type, return-value]


def test_promptkds_projector_and_prompts_are_as_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OpenClipTeacher, "load", lambda _: teacher("vit", 16))

    def started(settings: Settings, **options: Any) -> students.Student:
        how = methods.create(settings, VECTORS)
        return starting.start(StudentSpec("clip:small", 32, options=options), how, lambda: teacher("vit", 16))

    paper, other = Settings(method="promptkd"), Settings(method="promptkd", projector_norm="layer")
    student: Any = started(other, tokens=3, layers=1)
    assert student.backbone.prompts.shape[:2] == (1, 3)
    assert isinstance(student.head.norm, nn.LayerNorm)
    usual: Any = started(paper)
    assert isinstance(usual.head.norm, nn.BatchNorm1d)
    assert usual.backbone.prompts.shape[:2] == (2, 4)
    for options in ({"token": 3}, {"tokens": 0}, {"layers": "all"}):
        with pytest.raises(
            ConfigError, match="expected 'tokens' and 'layers' as whole numbers from 1, found"
        ):
            started(paper, **options)


class Towards:
    """Trains everything towards the target."""

    needs_teacher = True
    predicts_by_vectors = True

    def to(self, device: torch.device) -> None:
        assert device.type == "cpu"

    def outputs(self) -> int:
        return 24

    def stages(self) -> tuple[Stage, ...]:
        return (Stage("train", "all", False, 2, 0.01),)

    def loss(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        assert batch.image_target is not None
        return (outputs - batch.image_target).square().mean()


SETTINGS = Settings(
    method="test",
    epochs=1,
    lr=1e-2,
    align_epochs=1,
    align_lr=1e-3,
    batch=4,
    weight_decay=0.01,
    image_weight=0.3,
    soft_weight=0.4,
    soft_temperature=2.0,
    text_temperature=0.1,
    nearest_texts=2,
    style_share=0.5,
    teacher_view="clean_cached",
    batch_norm="train",
    precision="float32",
    seed=0,
)


def test_the_loop_trains_prompts_and_projector_and_nothing_else(tmp_path: Path) -> None:
    from vlkd_bench.samples import Sample

    student = clip_student.prompted_student(teacher("vit", 16), 32, 24, tokens=2, layers=9, seed=3)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    assert before["backbone.prompts"].shape == (2, 2, 32)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    samples = tuple(Sample(tmp_path / str(i), f"d/c/{i}", "d", i % 2) for i in range(8))
    target = np.random.default_rng(1).standard_normal((8, 24)).astype(np.float32)
    data = feeding.TrainingData(PixelStore(samples, pixels, ()), target, None)
    training.train(student, Towards(), SETTINGS, data, tmp_path / "run")
    after = student.state_dict()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert all(name == "backbone.prompts" or name.startswith("head.") for name in changed)
    assert {"backbone.prompts", "head.first.weight", "head.norm.running_mean", "head.second.bias"} <= changed
    again = clip_student.prompted_student(teacher("vit", 16), 32, 24, tokens=2, layers=9, seed=3)
    again.load_state_dict(after)
    assert torch.allclose(again.eval()(views(32)), student(views(32)), atol=1e-5)


@pytest.mark.parametrize("kind", ["vit", "resnet", "timm-mlp", "prompted"])
def test_the_graph_equals_the_network(kind: str, tmp_path: Path) -> None:
    size = EXACT.get(kind, 32)
    if kind == "prompted":
        student = clip_student.prompted_student(teacher("vit", 16), 32, 24, tokens=2)
        assert isinstance(student.head, clip_student.TwoLayerProjector)
        student.head.norm.running_mean.normal_()  # type: ignore[union-attr, operator]
    else:
        student = clip_student.from_teacher(teacher(kind), size)
    network = students.Deployable(
        student.eval().requires_grad_(False), students.FusedHead(vectors(24))
    ).eval()
    export.export(network, size, tmp_path / "model.onnx")
    images = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    export.check_parity(network, tmp_path / "model.onnx", images, max_logit_gap=1e-3, min_cosine=0.99999)
    import onnx

    kinds = {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert not kinds & {"BatchNormalization", "If", "Loop", "NonZero"}
