"""What taking a channel out does to the training loss, domain by domain, without taking it out.

Put a gate ``z = 1`` on channel c wherever a layer reads it; taking the channel out is ``z = 0``. For one image i with
loss ``L_i``, one backward pass gives ``g_ic = dL_i / dz`` for all channels at once, because each image has gates of
its own. To the first order ``|g_ic|`` is how much the image's loss changes without the channel.

- *Worst-domain harm* of a channel is ``max over source domains d of  mean over images i of d of  |g_ic|``. A mean over
  all images hides a channel that one domain lives on; a student that keeps what each source domain needs keeps what is
  least redundant for domains not seen. Held-out domains only judge: no image of theirs is looked at.
- *Taylor* importance is the mean of ``|g_ic|`` over all images, whatever their domain.
- *Magnitude* looks at no image: the L2 norm of all weights that meet a channel.

The size and not the sign, because the sign is true for small steps only and ``z = 0`` is none: with the signed second
order, ``- mean g + 1/2 mean g^2``, channels go first that the expansion promises to gain by, and the student is lost.

Letters used in shapes: B images, n channels of a group, m channels that a layer reads, H and W pixels.

References:
    Taylor: Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference", ICLR 2017,
    equation 8. Magnitude over a group: Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023, equation 4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vlkd_runtime.errors import CalibrationError

from .channels import ChannelGroup
from .settings import Importance

Loss = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """Images of one source domain with the loss that training minimises on them.

    Attributes:
        domain: theirs.
        views: ``(B, 3, H, W)``, as the network reads them.
        loss: of the network's outputs on these: a scalar, a mean over images.
    """

    domain: str
    views: Tensor
    loss: Loss


Scores = Mapping[str, Tensor]
"""Importance of each group's channels ``(n,)``, by the group's name."""


def score(
    network: nn.Module, groups: Sequence[ChannelGroup], probes: Sequence[Probe], importance: Importance
) -> Scores:
    """Importance of every channel: those with the lowest go first.

    Args:
        network: in evaluation mode.
        groups: as `channels.Channels.groups` gives them now.
        probes: images of every source domain.
        importance: how.

    Raises:
        CalibrationError: a loss or a gradient is not finite.
    """
    if importance == "magnitude":
        return {group.name: magnitude(network, group) for group in groups}
    seen = gate_gradients(network, groups, probes)
    if importance == "taylor":
        return {name: torch.cat(list(by_domain.values())).abs().mean(0) for name, by_domain in seen.items()}
    return {
        name: torch.stack([rows.abs().mean(0) for rows in by_domain.values()]).amax(0)
        for name, by_domain in seen.items()
    }


def magnitude(network: nn.Module, group: ChannelGroup) -> Tensor:
    """L2 norm ``(n,)`` of all weights that meet each channel, divided by the group's mean."""
    total = torch.zeros(group.size)
    for slot in group.slots:
        weight = network.get_submodule(slot.layer).weight.detach()  # type: ignore[operator]
        rows = weight if slot.side == "out" else weight.transpose(0, 1)
        total.index_add_(0, slot.channel, rows[slot.index].reshape(len(slot.index), -1).square().sum(1))
    norms = total.sqrt()
    return norms / norms.mean().clamp_min(1e-12)


def gate_gradients(
    network: nn.Module, groups: Sequence[ChannelGroup], probes: Sequence[Probe]
) -> dict[str, dict[str, Tensor]]:
    """Gradient of each image's loss for each channel's gate: ``(B, n)`` by group and domain.

    Raises:
        CalibrationError: a loss or a gradient is not finite.
    """
    readers = [(group, slot) for group in groups for slot in group.readers]
    found: dict[str, dict[str, list[Tensor]]] = {group.name: {} for group in groups}
    for probe in probes:
        gates: dict[str, Tensor] = {}
        hooks = [
            network.get_submodule(name).register_forward_pre_hook(_gate(name, gates))
            for name in {slot.layer for _, slot in readers}
        ]
        try:
            with torch.enable_grad():
                # A mean over images leaves each its part; times their number, each has its own gradient.
                loss = probe.loss(network(probe.views)) * len(probe.views)
                names = list(gates)
                gradients = dict(
                    zip(names, torch.autograd.grad(loss, [gates[name] for name in names]), strict=True)
                )
        finally:
            for hook in hooks:
                hook.remove()
        if not all(bool(gradient.isfinite().all()) for gradient in (loss, *gradients.values())):
            msg = (
                f"The loss on images of {probe.domain}, or its gradient, is not finite: nothing can be told of which "
                "channels matter. Look at the training of this student first."
            )
            raise CalibrationError(msg)
        for group in groups:
            total = torch.zeros(len(probe.views), group.size)
            for slot in group.readers:
                total.index_add_(1, slot.channel, gradients[slot.layer][:, slot.index])
            found[group.name].setdefault(probe.domain, []).append(total)
    return {
        name: {domain: torch.cat(rows) for domain, rows in by_domain.items()}
        for name, by_domain in found.items()
    }


def _gate(name: str, gates: dict[str, Tensor]) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor]]:
    """A hook that multiplies what a layer reads by ones, of which each image has its own."""

    def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        (read,) = inputs
        convolution = isinstance(layer, nn.Conv2d)
        channels = read.shape[1 if convolution else -1]
        if name not in gates:  # a layer that is used twice loses a channel in both places
            gates[name] = torch.ones(len(read), channels, requires_grad=True)
        shape = [len(read)] + [1] * (read.dim() - 1)
        shape[1 if convolution else -1] = channels
        return (read * gates[name].view(shape),)

    return hook
