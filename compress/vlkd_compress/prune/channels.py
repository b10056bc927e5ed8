"""Groups of channels that can only be taken out of a network together, found by torch-pruning's dependency graph.

A residual addition ties the outputs of all convolutions that write to it; a depthwise convolution and a batch norm go
with the channels that they read. A group here is pruned only if leaving its channels out gives the same function as
setting them to zero: that is tried for every group on a copy of the network, so that what the tracer misunderstands
(attention's reshapes, norms over channels, channels counted by numbers in code) is left whole and not broken.

Letters used in shapes: B images, n channels.

References:
    Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

SAME = 1e-3  # relative gap of outputs: other kernels sum in another order


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """Where one layer meets a group's channels.

    Attributes:
        layer: its name.
        side: whether it writes the channels, or only reads them.
        index: its own channel numbers, ``(m,)``.
        channel: which of the group's channels each is, ``(m,)``.
    """

    layer: str
    side: Literal["out", "in"]
    index: Tensor
    channel: Tensor

    def of(self, channels: Tensor) -> Tensor:
        """The layer's channel numbers that belong to some of the group's channels."""
        return self.index[torch.isin(self.channel, channels)]


@dataclass(frozen=True, slots=True, eq=False)
class ChannelGroup:
    """Channels that go together.

    Attributes:
        name: of a layer that writes them.
        size: how many there are.
        slots: every layer with weights that meets them.
    """

    name: str
    size: int
    slots: tuple[Slot, ...]

    @property
    def readers(self) -> tuple[Slot, ...]:
        """The layers that end the channels' way: without their reading, the channels have no effect."""
        return tuple(slot for slot in self.slots if slot.side == "in")


class Channels:
    """A network's dependency graph, traced once and kept while channels are taken out."""

    def __init__(self, network: nn.Module, example: Tensor, protected: Collection[str]) -> None:
        """Trace the network.

        Args:
            network: in evaluation mode; changed in place by `remove`.
            example: a batch it can read.
            protected: names of layers whose outputs stay as many as they are.
        """
        self.network, self.example = network, example
        self.protected = frozenset(protected)
        self._names = {module: name for name, module in network.named_modules()}
        self._graph = _trace(network, example)
        self._refused: set[str] | None = None

    def groups(self) -> list[ChannelGroup]:
        """The groups that can be pruned, with the channels that are left in them."""
        found = _disjoint([group for group in map(self._group, self._raw()) if group is not None])
        if self._refused is None:
            good = [group for group in found if group.size > 1]
            if not self._separable(good):  # together is the usual case, and one trial instead of many
                wide, good = good, []
                for group in wide:
                    good += [group] if self._separable([*good, group]) else []
            self._refused = {group.name for group in found} - {group.name for group in good}
        return [group for group in found if group.name not in self._refused]

    def remove(self, group: ChannelGroup, channels: Tensor) -> None:
        """Take channels of a group out of every layer that meets them."""
        _remove(self._graph, self.network.get_submodule(group.name), channels.tolist())

    def _raw(self) -> Iterator[list[tuple[object, str, list[int], list[int]]]]:
        """Each dependency group as (module, side, its indices, root indices)."""
        for group in self._graph.get_all_groups():
            yield [
                (
                    item.dep.target.module,
                    "out" if self._graph.is_out_channel_pruning_fn(item.dep.handler) else "in",
                    item.idxs,
                    item.root_idxs,
                )
                for item in group
            ]

    def _group(self, raw: list[tuple[object, str, list[int], list[int]]]) -> ChannelGroup | None:
        """The group with the layers' names; None where it may not be pruned, or not exactly."""
        slots = []
        for module, side, index, channel in raw:
            name = self._names.get(module) if isinstance(module, nn.Module) else None
            if name is None:
                if type(module).__name__ == "_OutputOp" or isinstance(module, nn.Parameter):
                    return None
                continue  # an addition, a concatenation or a reshape has no weights of its own
            if side == "out" and name in self.protected:
                return None
            if not isinstance(module, (nn.Conv2d, nn.Linear, _BatchNorm)):
                return None
            if isinstance(module, nn.Conv2d) and module.groups > 1 and not is_depthwise(module):
                return None
            where = cast("Literal['out', 'in']", side)
            slots.append(Slot(name, where, torch.tensor(index), torch.tensor(channel)))
        if not slots or not any(slot.side == "in" for slot in slots):
            return None
        return ChannelGroup(slots[0].layer, len(slots[0].index), tuple(slots))

    @torch.no_grad()
    def _separable(self, groups: Sequence[ChannelGroup]) -> bool:
        """Whether leaving every other channel of each out is setting it to zero."""
        muted, narrow = copy.deepcopy(self.network), copy.deepcopy(self.network)
        try:
            with torch.enable_grad():
                graph = _trace(narrow, self.example)
            for group in groups:
                some = torch.arange(0, group.size - 1, 2)
                mute(muted, group, some)
                _remove(graph, narrow.get_submodule(group.name), some.tolist())
        except (RuntimeError, IndexError, ValueError, TypeError):
            return False
        return equal(narrow, muted, self.example)


def _disjoint(groups: Sequence[ChannelGroup]) -> list[ChannelGroup]:
    """The groups that share no channel of any layer with another: of others, none could go without the rest."""
    owners: dict[tuple[str, str, int], set[str]] = {}
    for group in groups:
        for slot in group.slots:
            for index in slot.index.tolist():
                owners.setdefault((slot.layer, slot.side, index), set()).add(group.name)
    tangled = {name for names in owners.values() if len(names) > 1 for name in names}
    return [group for group in groups if group.name not in tangled]


def is_depthwise(layer: nn.Module) -> bool:
    """Whether a convolution has one filter for each channel that it reads."""
    return isinstance(layer, nn.Conv2d) and 1 < layer.groups == layer.in_channels == layer.out_channels


@torch.no_grad()
def mute(network: nn.Module, group: ChannelGroup, channels: Tensor) -> None:
    """Set channels of a group to zero in place: the network without them, at full width."""
    for slot in group.slots:
        layer, index = network.get_submodule(slot.layer), slot.of(channels)
        if slot.side == "in":
            cast(Tensor, layer.weight)[:, index] = 0.0
            continue
        for name in ("weight", "bias"):
            tensor = getattr(layer, name, None)
            if tensor is not None:
                tensor[index] = 0.0


@torch.no_grad()
def equal(narrow: nn.Module, wide: nn.Module, views: Tensor) -> bool:
    """Whether two networks give the same outputs up to rounding."""
    try:
        found, expected = narrow(views), wide(views)
    except (RuntimeError, IndexError, ValueError, TypeError):
        return False  # whatever the network's code says of fewer channels, it says no
    gap, scale = float((found - expected).abs().max()), float(expected.abs().max())
    return found.shape == expected.shape and gap <= SAME * max(scale, 1e-6)


def _trace(network: nn.Module, example: Tensor):  # type: ignore[no-untyped-def]  # torch-pruning has no types
    import torch_pruning

    for parameter in network.parameters():
        parameter.requires_grad_(True)
    return torch_pruning.DependencyGraph().build_dependency(network, example[:1], verbose=False)


def _remove(graph, root: nn.Module, channels: list[int]) -> None:  # type: ignore[no-untyped-def]
    pruner = graph.get_pruner_of_module(root)
    graph.get_pruning_group(root, pruner.prune_out_channels, channels).prune()
