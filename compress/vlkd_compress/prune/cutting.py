"""Takes channels out of a network until it is as small as asked for, those first that matter least for what they cost.

Blocks of a group's least important channels compete by importance for each multiply-add (or weight) that they save,
as layers do on the ladder by harm for each microsecond. In rounds: after each, importance is measured anew on what is
left, and batch norms are told what the cut did to their inputs (`norms`).

Letters used in shapes: B images, n channels of a group, H and W pixels.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vlkd_runtime.errors import RefusalError

from . import costs as counting
from . import norms
from .channels import ChannelGroup, Channels, equal, mute
from .costs import Costs
from .harm import Probe, Scores, score
from .settings import Goal, Pruned, PruneSettings, Unit

LATENCY_TRIALS, NEAR = 5, 0.03
NORM_IMAGES = 16  # of each probe: a mean over images and places needs no more

Tell = Callable[[str], None]


def prune(
    network: nn.Module,
    goal: Goal,
    probes: Sequence[Probe],
    settings: PruneSettings,
    *,
    protected: Collection[str],
    tell: Tell = lambda _: None,
) -> Pruned:
    """Take channels out of a network, in place, until no more multiply-adds or weights are left than asked for.

    Args:
        network: in evaluation mode.
        goal: in multiply-adds or weights.
        probes: images of every source domain, with the loss.
        settings: which channels, and how few may be left.
        protected: names of layers whose outputs stay as many as they are: the projection into the space of the class
            vectors, or a classifier.
        tell: called with a line after each round.

    Raises:
        RefusalError: nothing can be pruned, or not as much.
        CalibrationError: as `harm.score`.
    """
    unit = goal.unit
    network.eval()
    channels = Channels(network, probes[0].views[:2], protected)
    dense = counting.measure(network, channels.example)
    _check(dense, channels.groups(), goal, settings)
    floors = {group.name: _floor(group.size, settings) for group in channels.groups()}
    start, wanted = counting.total(dense, unit), int(goal.share * counting.total(dense, unit))
    for number in range(settings.rounds):
        costs, groups = counting.measure(network, channels.example), channels.groups()
        budget = start - (start - wanted) * (number + 1) // settings.rounds
        scores = score(network, groups, probes, settings.importance)
        cut = select(costs, groups, scores, floors, unit, budget, settings.round_to)
        _take(channels, groups, cut, probes)
        left = counting.total(counting.measure(network, channels.example), unit)
        tell(f"round {number + 1} of {settings.rounds}: {100 * left / start:.1f} % left")
    now = counting.measure(network, channels.example)
    return Pruned(
        dense_macs=counting.total(dense, "macs"),
        macs=counting.total(now, "macs"),
        dense_weights=counting.total(dense, "size"),
        weights=counting.total(now, "size"),
        layers=len(now),
        importance=settings.importance,
    )


def unpruned(network: nn.Module, example: Tensor) -> Pruned:
    """Count a network that keeps all its channels.

    Args:
        network: in evaluation mode.
        example: views ``(B, 3, H, W)``.
    """
    costs = counting.measure(network, example)
    macs, weights = counting.total(costs, "macs"), counting.total(costs, "size")
    return Pruned(macs, macs, weights, weights, layers=len(costs))


def select(
    costs: Costs,
    groups: Sequence[ChannelGroup],
    scores: Scores,
    floors: Mapping[str, int],
    unit: Unit,
    budget: int,
    block: int,
) -> dict[str, Tensor]:
    """Choose channels to take out, by group: cheapest importance for each unit saved first, until within budget.

    The last block may save far more than was left to save; then what matters most is given back as far as it fits.

    Args:
        costs: of the network's layers now.
        groups: what can be taken out.
        scores: importance of each group's channels.
        floors: how many channels a group keeps at least.
        unit: what the budget counts.
        budget: how many may be left.
        block: channels are kept in multiples of this.
    """
    order = {group.name: scores[group.name].argsort(stable=True) for group in groups}
    blocks: dict[str, list[int]] = {name: [] for name in order}
    now = dict(costs)
    while counting.total(now, unit) > budget:
        best: tuple[float, ChannelGroup, int, Costs] | None = None
        for group in groups:
            taken = sum(blocks[group.name])
            left = group.size - taken
            size = left % block or block
            if left - size < floors[group.name]:
                continue
            next_ones = order[group.name][taken : taken + size]
            changed = counting.narrow(now, group, next_ones)
            price = float(scores[group.name][next_ones].sum()) / counting.saved(now, changed, unit)
            if best is None or price < best[0]:
                best = price, group, size, changed
        if best is None:
            break
        _, group, size, changed = best
        now |= changed
        blocks[group.name].append(size)
    while True:
        fitting: dict[str, float] = {}
        for group in groups:
            if not blocks[group.name]:
                continue
            fewer = {name: sum(sizes) for name, sizes in blocks.items()}
            last = order[group.name][: fewer[group.name]][-blocks[group.name][-1] :]
            fewer[group.name] -= len(last)
            if counting.total(_without(costs, groups, order, fewer), unit) <= budget:
                fitting[group.name] = float(scores[group.name][last].sum())
        if not fitting:
            return {name: order[name][: sum(sizes)] for name, sizes in blocks.items() if sizes}
        blocks[max(fitting, key=lambda name: fitting[name])].pop()


def _without(
    costs: Costs, groups: Sequence[ChannelGroup], order: Mapping[str, Tensor], taken: Mapping[str, int]
) -> Costs:
    """The layers after so many of each group's channels went."""
    now = dict(costs)
    for group in groups:
        if taken[group.name]:
            now |= counting.narrow(now, group, order[group.name][: taken[group.name]])
    return now


def _take(
    channels: Channels, groups: Sequence[ChannelGroup], cut: Mapping[str, Tensor], probes: Sequence[Probe]
) -> None:
    """Take the chosen channels out and let the batch norms follow.

    Raises:
        RefusalError: what is left is another function than the network with these channels at zero.
    """
    network, muted = channels.network, copy.deepcopy(channels.network)
    views = torch.cat([probe.views[:NORM_IMAGES] for probe in probes])
    before = norms.observe(network, views)
    kept = {name: torch.ones(len(mean), dtype=torch.bool) for name, (mean, _) in before.items()}
    for group in groups:
        if group.name not in cut:
            continue
        for slot in group.slots:
            if slot.layer in kept:
                kept[slot.layer][slot.of(cut[group.name])] = False
        mute(muted, group, cut[group.name])
        channels.remove(group, cut[group.name])
    left = {name: (mean[kept[name]], variance[kept[name]]) for name, (mean, variance) in before.items()}
    counted = all(len(mean) == network.get_submodule(name).num_features for name, (mean, _) in left.items())
    if not counted or not equal(network, muted, channels.example):
        msg = (
            "Expected the same answers without the channels as with their weights at zero, found others: the student's "
            "code ties channels in a way that the dependency graph does not see. Leave compress.prune.target empty, or "
            "take another student."
        )
        raise RefusalError(msg)
    norms.follow(network, left, views)


def _floor(size: int, settings: PruneSettings) -> int:
    """How many of its channels a group keeps at least: a multiple of the block, or all of a group that is thinner."""
    block = settings.round_to
    return min(size, max(block, math.ceil(settings.least * size / block) * block))


def _check(dense: Costs, groups: Sequence[ChannelGroup], goal: Goal, settings: PruneSettings) -> None:
    """Refuse a goal that cannot be reached.

    Raises:
        RefusalError: no group can be pruned, or all of them together save too little.
    """
    thinner = [(group, _floor(group.size, settings)) for group in groups]
    if all(kept == group.size for group, kept in thinner):
        msg = (
            f"Found no channels to take out of this student: of {len(groups)} groups none has more than it keeps "
            f"(compress.prune: least = {settings.least:g}, round_to = {settings.round_to}), or its layers are of kinds "
            "that cannot lose channels. Take another student, or leave compress.prune.target empty."
        )
        raise RefusalError(msg)
    whole = counting.total(dense, goal.unit)
    reachable = counting.total(counting.least(dense, thinner), goal.unit) / whole
    if reachable > goal.share:
        msg = (
            f"Expected to leave {goal.words} (compress.prune.target), but with every group at its least width "
            f"{100 * reachable:.3g} % would be left (compress.prune: least = {settings.least:g}, round_to = "
            f"{settings.round_to}). Ask for more to be left, lower these, or take a smaller student."
        )
        raise RefusalError(msg)


@dataclass(frozen=True, slots=True)
class Timed:
    """A network that was pruned until it was fast enough.

    Attributes:
        network: what is left.
        pruned: what was done.
        share: its time by the unpruned network's.
    """

    network: nn.Module
    pruned: Pruned
    share: float


def prune_to_latency(
    network: nn.Module,
    goal: Goal,
    cut: Callable[[nn.Module, Goal], Pruned],
    time_share: Callable[[nn.Module], float],
    *,
    tell: Tell = lambda _: None,
) -> Timed:
    """Find how many multiply-adds may be left for a network to take no longer than asked for.

    Time is no function of multiply-adds, so that shares of these are tried until the time is met and not undercut by
    more than a few hundredths.

    Args:
        network: unpruned; left as it is.
        goal: in latency.
        cut: prunes a copy to a goal in multiply-adds, in place.
        time_share: a network's measured time by the unpruned network's.
        tell: called with a line after each trial.

    Raises:
        RefusalError: no share of the multiply-adds that was tried is fast enough, or none can be reached.
    """
    fast: Timed | None = None
    low, high, share, times = 0.0, 1.0, goal.share, list[float]()
    for _ in range(LATENCY_TRIALS):
        trial = copy.deepcopy(network)
        try:
            pruned = cut(trial, Goal("macs", round(share, 4)))
        except RefusalError:  # it cannot lose as many
            low, share = share, (share + high) / 2
            continue
        measured = time_share(trial)
        times.append(measured)
        tell(f"{100 * share:.1f} % of the multiply-adds take {100 * measured:.1f} % of the time")
        if measured <= goal.share:
            fast, low = Timed(trial, pruned, measured), share
            if measured >= goal.share - NEAR:
                break
        else:
            high = share
        # On the line through this point and the unpruned network, where the time should be just short enough.
        share = 1.0 - (1.0 - goal.share + NEAR / 2) * (1.0 - share) / max(1.0 - measured, 1e-3)
        if not low < share < high:
            share = (low + high) / 2
    if fast is None:
        found = (
            f"{100 * min(times):.3g} % at best" if times else "no share of its multiply-adds that can be left"
        )
        msg = (
            f"Expected a student that takes {goal.words} (compress.prune.target), found {found}. Ask for less, or "
            "take a student whose time lies in its convolutions."
        )
        raise RefusalError(msg)
    return fast
