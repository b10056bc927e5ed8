"""The first layers stay as they started, the rest learns, and what cannot be frozen is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import timm
import torch

from vlkd_distill import freezing, training
from vlkd_distill.specs import Settings
from vlkd_runtime.errors import ConfigError

from .test_training import SETTINGS, fresh, seen, state


@pytest.mark.parametrize("name", ["erm", "vl2v-adip", "vlm-ood"])
def test_the_first_groups_keep_their_weights_and_the_rest_learns(tmp_path: Path, name: str) -> None:
    settings = dataclasses.replace(SETTINGS, method=name, batch_norm="frozen", frozen_groups=3)
    student, method = fresh(settings)
    start = state(student)
    training.train(student, method, settings, seen(), tmp_path)
    now = state(student)
    first = ("backbone.conv1", "backbone.bn1", "backbone.layer1", "backbone.layer2")
    same = {key for key in start if torch.equal(start[key], now[key])}
    kept = {key for key in start if key.startswith(first)}
    assert kept and kept <= same
    learned = {key for key in start if key.startswith(("backbone.layer3", "backbone.layer4"))} - same
    assert any("conv" in key for key in learned) and any("bn" in key for key in learned)


def test_groups_are_counted_from_the_stem() -> None:
    network = timm.create_model("tf_efficientnet_lite0", num_classes=0)
    freezing.freeze_first(network, 3)
    frozen = {name for name, value in network.named_parameters() if not value.requires_grad}
    assert {name.split(".")[0] for name in frozen} == {"conv_stem", "bn1", "blocks"}
    assert {name[:8] for name in frozen if name.startswith("blocks")} == {"blocks.0", "blocks.1"}


def test_too_many_groups_and_a_network_without_an_order_are_refused() -> None:
    network = timm.create_model("resnet10t", num_classes=0)
    with pytest.raises(ConfigError, match=r"frozen_groups = 5: expected fewer than the 5 groups .* ResNet"):
        freezing.freeze_first(network, 5)
    with pytest.raises(ConfigError, match=r"frozen_groups = 1 needs a timm network.*found Linear"):
        freezing.freeze_first(torch.nn.Linear(2, 2), 1)


def test_a_result_depends_on_frozen_groups_only_where_there_are_some() -> None:
    assert "frozen_groups" not in Settings().used() and "frozen_groups" not in Settings().as_json()
    some = Settings(frozen_groups=2)
    assert some.used()["frozen_groups"] == some.as_json()["frozen_groups"] == 2
