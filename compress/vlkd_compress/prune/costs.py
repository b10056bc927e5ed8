"""Multiply-adds and weights of a network's convolutions and linear layers, and what fewer channels save.

Letters used in shapes: H and W pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .channels import ChannelGroup, is_depthwise
from .settings import Unit


@dataclass(slots=True)
class Layer:
    """One convolution or linear layer, as far as its cost goes.

    Attributes:
        places: output positions times kernel size: how often a pair of channels is multiplied.
        kernel: weights of a pair of channels.
        outs: channels that it writes.
        ins: channels that each of these reads.
        depthwise: whether it reads one for each that it writes.
    """

    places: int
    kernel: int
    outs: int
    ins: int
    depthwise: bool

    def cost(self, unit: Unit) -> int:
        """Its multiply-adds, or its weights and biases."""
        pairs = self.outs * (1 if self.depthwise else self.ins)
        # Batch norms are folded before anything ships, so that every convolution has a bias.
        return self.places * pairs if unit == "macs" else self.kernel * pairs + self.outs


Costs = dict[str, Layer]
"""The layers of a network by name."""


def measure(network: nn.Module, example: Tensor) -> Costs:
    """Count one image's work in each layer by running it.

    Args:
        network: in evaluation mode.
        example: views ``(B, 3, H, W)``.
    """
    found: Costs = {}

    def hook(name: str, layer: nn.Module, output: Tensor) -> None:
        if isinstance(layer, nn.Conv2d):
            kernel = layer.kernel_size[0] * layer.kernel_size[1]
            at = output[0, 0].numel() * kernel
            outs, ins = layer.out_channels, layer.in_channels // layer.groups
        else:
            assert isinstance(layer, nn.Linear)
            kernel, at = 1, output[0].numel() // layer.out_features
            outs, ins = layer.out_features, layer.in_features
        before = found.get(name)  # a layer that is used twice works twice
        places = at if before is None else at + before.places
        found[name] = Layer(places, kernel, outs, ins, is_depthwise(layer))

    handles = [
        module.register_forward_hook(lambda layer, _, output, name=name: hook(name, layer, output))
        for name, module in network.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    ]
    try:
        with torch.no_grad():
            network(example[:1])
    finally:
        for handle in handles:
            handle.remove()
    return found


def total(costs: Mapping[str, Layer], unit: Unit) -> int:
    """Multiply-adds of one image, or number of weights and biases."""
    return sum(layer.cost(unit) for layer in costs.values())


def narrow(costs: Costs, group: ChannelGroup, channels: Tensor) -> Costs:
    """The layers that change when some of a group's channels go, changed."""
    changed: Costs = {}
    for slot in group.slots:
        if slot.layer not in costs:
            continue  # a batch norm
        layer = changed.setdefault(slot.layer, copy.copy(costs[slot.layer]))
        gone = len(slot.of(channels))
        if slot.side == "out":
            layer.outs -= gone
        else:
            layer.ins -= gone
    return changed


def saved(costs: Costs, changed: Costs, unit: Unit) -> int:
    """What these changes save."""
    return sum(costs[name].cost(unit) - layer.cost(unit) for name, layer in changed.items())


def least(costs: Costs, groups: Iterable[tuple[ChannelGroup, int]]) -> Costs:
    """The layers when every group has this many channels left.

    A layer's channels may lie in several groups, behind a concatenation, so that each is taken off in turn.
    """
    now = dict(costs)
    for group, kept in groups:
        now |= narrow(now, group, torch.arange(group.size - kept))
    return now
