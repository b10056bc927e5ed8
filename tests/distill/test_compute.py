"""Where tensors are computed. No GPU is needed: torch's fake tensors refuse to mix devices, as a real one would."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from vlkd_distill import compute, methods, students, teachers
from vlkd_distill.augment import random_views
from vlkd_distill.augmentation import Augmentation
from vlkd_distill.prompting import TextTower
from vlkd_distill.recovery import Recovering, Recovery
from vlkd_distill.specs import Settings, StudentSpec
from vlkd_distill.stages import Batch
from vlkd_runtime.errors import ConfigError, UnavailableError
from vlkd_runtime.vectors import ClassVectors

CUDA = torch.device("cuda", 0)
VECTORS = ClassVectors(
    ("a", "b", "c"), np.eye(3, 8, dtype=np.float32), (("a",), ("b",), ("c",)), ("{}",), "test", "0" * 64, 10.0
)
SPEC = StudentSpec("resnet10t", 32, "none", 0, {"channels": [8, 16, 16, 32], "stem_width": 8})


def gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize(
    ("count", "asked", "rank", "expected"),
    [
        (0, "auto", 0, "cpu"),
        (2, "auto", 0, "cuda:0"),
        (2, "auto", 3, "cuda:1"),
        (2, "cpu", 0, "cpu"),
        (2, "cuda", 1, "cuda:1"),
        (2, "cuda:1", 0, "cuda:1"),
    ],
)
def test_the_device_that_is_meant(
    count: int, asked: str, rank: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(monkeypatch, count)
    assert compute.device_of(asked, rank) == torch.device(expected)


@pytest.mark.parametrize(
    ("count", "asked", "error", "match"),
    [
        (
            0,
            "cuda",
            UnavailableError,
            r"expected a GPU that torch can use, found 0 .*distill\.device = 'cpu'",
        ),
        (2, "cuda:2", UnavailableError, "found 2 of them"),
        (2, "meta", ConfigError, "expected 'auto', 'cpu', 'cuda' or 'cuda:N', found 'meta'"),
        (2, "the fast one", ConfigError, "found 'the fast one'"),
    ],
)
def test_a_device_that_is_not_there(
    count: int, asked: str, error: type[Exception], match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(monkeypatch, count)
    with pytest.raises(error, match=match):
        compute.device_of(asked)


def test_gradients_go_from_gpu_to_gpu_where_each_process_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 2)
    assert compute.backend_of(CUDA, 2) == "nccl"
    assert compute.backend_of(CUDA, 3) == "gloo"
    assert compute.backend_of(compute.CPU, 2) == "gloo"


@contextlib.contextmanager
def fake_gpu() -> Iterator[FakeTensorMode]:
    """In here, tensors have a device and no values, and operators refuse tensors of two devices."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode


def moved(module: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """The module as ``.to("cuda")`` would leave it."""
    with mode:
        for part in module.modules():
            for name, parameter in part._parameters.items():
                if parameter is not None:
                    there = torch.empty(parameter.shape, dtype=parameter.dtype, device=CUDA)
                    part._parameters[name] = nn.Parameter(there, parameter.requires_grad)
            for name, buffer in part._buffers.items():
                if buffer is not None:
                    part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=CUDA)
    return module


@pytest.mark.parametrize("recovering", [False, True])
@pytest.mark.parametrize("name", methods.METHODS)
def test_no_part_of_a_loss_stays_behind(name: Any, recovering: bool, tmp_path: Any) -> None:
    settings = Settings(method=name, answers_weight=1.0, relation_weight=1.0, caption_weight=1.0)
    method: Any = methods.create(settings, VECTORS)
    if recovering:
        method = Recovering(method, Recovery(tmp_path, 1, 1e-3))
    plain = students.create(SPEC, method.outputs())
    with fake_gpu() as mode:
        student = moved(plain, mode)
        method.to(CUDA)
        rows = torch.empty(6, 8, device=CUDA)
        batch = Batch(torch.zeros(6, dtype=torch.long, device=CUDA), rows, rows)
        outputs: Any = student(torch.empty(6, 3, 32, 32, device=CUDA))
        assert method.loss(outputs, batch).device == method.logits(outputs).device == CUDA
        # And this is what would happen to a part that stayed.
        behind = Batch(torch.zeros(6, dtype=torch.long), torch.empty(6, 8), torch.empty(6, 8))
        with pytest.raises(RuntimeError, match="same device"):
            method.loss(outputs, behind)


def test_views_are_drawn_on_the_processor_and_computed_where_the_pixels_are() -> None:
    generator = torch.Generator().manual_seed(1)
    with fake_gpu():
        pixels = torch.zeros(4, 32, 32, 3, dtype=torch.uint8, device=CUDA)
        assert random_views(pixels, Augmentation(), generator).device == CUDA
        assert random_views(pixels[:2], Augmentation(), generator, (slice(0, 2), 4)).device == CUDA


def test_a_teacher_embeds_views_where_they_are_and_keeps_itself_on_the_processor() -> None:
    teacher = teachers.OpenClipTeacher.load("demo")
    views = torch.rand(2, 3, 40, 40)
    expected = teacher.embed_views(views)
    there = copy.deepcopy(teacher._model)
    with fake_gpu() as mode:
        teacher._moved[CUDA] = moved(there, mode)
        assert teacher.embed_views(torch.empty(2, 3, 40, 40, device=CUDA)).device == CUDA
        tower = TextTower.of(teacher, CUDA)
        words = torch.empty(1, 2, tower.owner.token_embedding.weight.shape[1], device=CUDA)
        assert tower.encode(torch.zeros(3, 24, dtype=torch.long), words).device == CUDA
    assert torch.equal(teacher.embed_views(views), expected)
    assert teachers.device_for(teacher) == compute.CPU
