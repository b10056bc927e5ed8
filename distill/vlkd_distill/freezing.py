"""Keeps the first layers of a backbone as they started.

The first layers of a network that starts from large data see lines, colours and textures of every style; training
them on a few source domains takes some of that away, and their gradients are the dearest, as the image is largest
there.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from vlkd_runtime.errors import ConfigError


def freeze_first(backbone: nn.Module, groups: int) -> None:
    """Take the first groups of layers out of training, in place.

    Args:
        backbone: a timm network, or an open_clip tower around one.
        groups: how many, in timm's coarse order: 1 is the stem, 3 the stem and two stages of blocks; 0 does nothing.

    Raises:
        ConfigError: the network has no such order of layers, or no more groups than these.
    """
    if groups == 0:
        return
    from timm.models import group_parameters

    network: Any = getattr(backbone, "trunk", backbone)
    if not hasattr(network, "group_matcher"):
        msg = (
            f"distill.frozen_groups = {groups} needs a timm network, whose layers have an order; found "
            f"{type(network).__name__}. Set it to 0."
        )
        raise ConfigError(msg)
    found: dict[int, list[str]] = group_parameters(network, network.group_matcher(coarse=True))
    if groups >= len(found):
        msg = (
            f"distill.frozen_groups = {groups}: expected fewer than the {len(found)} groups of layers that "
            f"{type(network).__name__} has; nothing of it would learn."
        )
        raise ConfigError(msg)
    for group in sorted(found)[:groups]:
        for name in found[group]:
            network.get_parameter(name).requires_grad_(False)
