"""Students that go on from changed weights: narrow layers are loaded, zeros stay, a killed run resumes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from vlkd_distill import checkpoints, methods, stages, students, training
from vlkd_distill.recovery import Recovering, Recovery, hold_zeros
from vlkd_distill.specs import Settings, StudentSpec
from vlkd_runtime.errors import DataError

from .test_training import SETTINGS, SPEC, seen, vectors

SPARSE = "backbone.layer3.0.conv1.weight"


def method(settings: Settings = SETTINGS) -> stages.Method:
    return methods.create(settings, vectors())


def narrowed(path: Path) -> students.Student:
    """Take the first two channels out between the convolutions of a block, by hand, and store what is left."""
    student = students.create(SPEC, method().outputs()).eval()
    block = student.get_submodule("backbone.layer2.0")
    with torch.no_grad():
        block.conv1.weight = torch.nn.Parameter(block.conv1.weight[2:].clone())
        block.conv2.weight = torch.nn.Parameter(block.conv2.weight[:, 2:].clone())
        for name in ("weight", "bias"):
            setattr(block.bn1, name, torch.nn.Parameter(getattr(block.bn1, name)[2:].clone()))
        for name in ("running_mean", "running_var"):
            setattr(block.bn1, name, getattr(block.bn1, name)[2:].clone())
        weight = student.get_submodule("backbone.layer3.0.conv1").weight
        weight[:, ::2] = 0.0
    checkpoints.save_weights(path, student.requires_grad_(False))
    return student


def test_a_narrower_student_is_loaded_and_answers_the_same(tmp_path: Path) -> None:
    stored = narrowed(tmp_path / "student.safetensors")
    loaded = students.create(SPEC, method().outputs()).eval()
    checkpoints.load_weights(tmp_path / "student.safetensors", loaded)
    views = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded(views), stored(views))
    block = loaded.get_submodule("backbone.layer2.0")
    assert (block.conv1.out_channels, block.conv2.in_channels, block.bn1.num_features) == (14, 14, 14)


def test_depthwise_groups_follow_the_weights(tmp_path: Path) -> None:
    wide = torch.nn.Sequential(torch.nn.Conv2d(6, 6, 3, groups=6), torch.nn.Conv2d(6, 4, 1))
    narrow = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3, groups=3), torch.nn.Conv2d(3, 4, 1))
    checkpoints.save_weights(tmp_path / "w.safetensors", narrow.requires_grad_(False))
    checkpoints.load_weights(tmp_path / "w.safetensors", wide)
    views = torch.rand(2, 3, 5, 5)
    assert torch.equal(wide(views), narrow(views)) and wide[0].groups == 3


@pytest.mark.parametrize(
    "spec",
    [
        dataclasses.replace(SPEC, options={"channels": [8, 16, 32, 64], "stem_width": 8}),
        StudentSpec("resnet18", 32, "none", 0, {}),
    ],
    ids=["wider layers", "other layers"],
)
def test_weights_of_another_network_are_refused(tmp_path: Path, spec: StudentSpec) -> None:
    other = students.create(spec, method().outputs())
    checkpoints.save_weights(tmp_path / "student.safetensors", other.requires_grad_(False))
    with pytest.raises(DataError, match="belong to another network"):
        checkpoints.load_weights(tmp_path / "student.safetensors", students.create(SPEC, method().outputs()))


def recover(start: Path, folder: Path, name: str, stop_after: int = 0, **more: Any) -> students.Student:
    """Recover, and be killed after some steps where any are given."""
    settings = dataclasses.replace(SETTINGS, method=name, **more)
    recovery = Recovery(start, epochs=3, lr=3e-3, zeros=(SPARSE,))
    student = students.create(SPEC, method(settings).outputs())
    checkpoints.load_weights(start, student)
    done = 0

    def count(_stage: str, steps: int, _loss: float) -> None:
        nonlocal done
        done += steps
        if done == stop_after:
            raise KeyboardInterrupt

    return training.train(
        student,
        Recovering(method(settings), recovery),
        settings,
        seen(),
        folder,
        count,
        hold=hold_zeros(student, recovery.zeros),
    )


@pytest.mark.parametrize("name", ["vl2v-adip", "vlm-ood"])
def test_recovery_trains_everything_keeps_zeros_and_resumes(tmp_path: Path, name: str) -> None:
    start = tmp_path / "student.safetensors"
    before = narrowed(start).state_dict()
    whole = recover(start, tmp_path / "whole", name).state_dict()
    with pytest.raises(KeyboardInterrupt):
        recover(start, tmp_path / "cut", name, stop_after=5)
    resumed = recover(start, tmp_path / "cut", name).state_dict()
    assert all(torch.equal(tensor, resumed[key]) for key, tensor in whole.items())
    assert torch.equal(whole[SPARSE] == 0, before[SPARSE] == 0) and int((whole[SPARSE] == 0).sum()) > 0
    # The head too, which vl2v-adip alone would freeze: it read other features.
    for key in (SPARSE, "head.weight", "backbone.conv1.0.weight", "backbone.layer2.0.bn1.weight"):
        assert not torch.equal(whole[key], before[key]), key


def test_a_recovery_goes_back_to_no_part_of_the_damage(tmp_path: Path) -> None:
    start = tmp_path / "student.safetensors"
    narrowed(start)
    plain = recover(start, tmp_path / "plain", "vlkd").state_dict()
    mixing = recover(start, tmp_path / "mixing", "vlkd", start_share=0.5).state_dict()
    assert all(torch.equal(tensor, mixing[key]) for key, tensor in plain.items())
