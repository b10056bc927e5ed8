"""Which weights a training ends with: the last, a mean, SWAD's valley, or the best on source images kept back.

No rule ever looks at a held-out domain. Rules that choose look at images of the source domains that training
kept back (`feeding.TrainingData.selection`).

Letters used in shapes: S images kept back, C classes.

References:
    SWAD: Cha et al., "SWAD: Domain Generalization by Seeking Flat Minima", NeurIPS 2021, algorithm 1.
    Mean: Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", UAI 2018; here
    every step of the second half counts.
    Towards the start: Wortsman et al., "Robust Fine-Tuning of Zero-Shot Models", CVPR 2022, equation 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from .specs import Rule

Weights = dict[str, Tensor]

CONVERGE, TOLERATE, RATIO = 3, 6, 0.3


class Keeper(Protocol):
    """Watches the weights of a training's last stage and says which ones to end with."""

    def begin(self, weights: Mapping[str, Tensor]) -> None:
        """Take the weights as they are before the first step; the tensors go on to change with the network."""
        ...

    def step(self, weights: Mapping[str, Tensor], share: float) -> None:
        """Look at the weights after a step; ``share`` of the stage's steps are done."""
        ...

    def judge(self, loss: float, weights: Mapping[str, Tensor]) -> None:
        """Take the loss on the images kept back."""
        ...

    def final(self) -> Weights | None:
        """The weights to end with; None for the last ones."""
        ...

    def state(self) -> Weights:
        """What a checkpoint must hold for an exact resume."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from `state`."""
        ...


class Mean:
    """A running mean of weights, in float32; integer tensors are taken as they are last."""

    def __init__(self) -> None:
        self.count = 0
        self.weights: Weights = {}

    def add(self, weights: Mapping[str, Tensor], times: int = 1) -> None:
        """Add weights, ``times`` of them at once if they are a mean themselves."""
        self.count += times
        for name, tensor in weights.items():
            if name not in self.weights or not tensor.is_floating_point():
                self.weights[name] = tensor.detach().clone()
            else:
                self.weights[name].lerp_(tensor.detach(), times / self.count)


class Last:
    """The weights of the last step."""

    def begin(self, weights: Mapping[str, Tensor]) -> None:
        """Nothing to keep."""

    def step(self, weights: Mapping[str, Tensor], share: float) -> None:
        """Nothing to keep."""

    def judge(self, loss: float, weights: Mapping[str, Tensor]) -> None:
        """Nothing to choose."""

    def final(self) -> Weights | None:
        """The last ones."""
        return None

    def state(self) -> Weights:
        """Empty."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to restore."""


class SecondHalf(Last):
    """The mean over every step of the second half."""

    def __init__(self) -> None:
        self._mean = Mean()

    def step(self, weights: Mapping[str, Tensor], share: float) -> None:
        """Count the weights once half of the steps are done."""
        if share > 0.5:
            self._mean.add(weights)

    def final(self) -> Weights | None:
        """The mean; None if there was no step."""
        return self._mean.weights or None

    def state(self) -> Weights:
        """The mean so far."""
        return _packed("mean", self._mean)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from it."""
        self._mean = _unpacked("mean", state)


class BestOnSource(Last):
    """The weights with the least loss on source images kept back."""

    def __init__(self) -> None:
        self._loss = float("inf")
        self._best: Weights = {}

    def judge(self, loss: float, weights: Mapping[str, Tensor]) -> None:
        """Keep these weights if they are better than those kept."""
        if loss < self._loss:
            self._loss = loss
            self._best = {name: tensor.detach().clone() for name, tensor in weights.items()}

    def final(self) -> Weights | None:
        """The best; None if nothing was judged."""
        return self._best or None

    def state(self) -> Weights:
        """The best so far and its loss."""
        return {"loss": torch.tensor(self._loss)} | {f"best.{k}": v for k, v in self._best.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from it."""
        self._loss = float(state["loss"])
        self._best = _part("best.", state)


class Swad(Last):
    """The mean of the weights in the valley of the loss on source images kept back.

    Between two judgements every step's weights go into a segment's mean. The valley begins with the segment
    whose loss is not beaten by the `CONVERGE` - 1 after it; its floor is `RATIO` above the mean of these
    losses. A segment belongs to it as long as one of the `TOLERATE` losses from its own on is below the
    floor. Without a valley the last segment is taken.
    """

    def __init__(self) -> None:
        self._segment = Mean()
        self._waiting: list[tuple[float, Mean]] = []
        self._valley = Mean()
        self._floor = float("inf")
        self._begun = self._left = False

    def step(self, weights: Mapping[str, Tensor], share: float) -> None:
        """Count the weights into the running segment."""
        self._segment.add(weights)

    def judge(self, loss: float, weights: Mapping[str, Tensor]) -> None:
        """Close the segment and see whether the valley begins, goes on or is over."""
        if not self._segment.count:
            self._segment.add(weights)
        self._waiting.append((loss, self._segment))
        self._segment = Mean()
        if self._left:
            self._waiting = self._waiting[-1:]
        elif not self._begun:
            self._seek()
        elif len(self._waiting) == TOLERATE:
            self._take()

    def _seek(self) -> None:
        self._waiting = self._waiting[-CONVERGE:]
        losses = [loss for loss, _ in self._waiting]
        if len(losses) == CONVERGE and losses[0] == min(losses):
            self._begun = True
            self._floor = sum(losses) / CONVERGE * (1 + RATIO)

    def _take(self) -> None:
        if min(loss for loss, _ in self._waiting) > self._floor:
            self._left = True
            return
        _, segment = self._waiting.pop(0)
        self._valley.add(segment.weights, segment.count)

    def final(self) -> Weights | None:
        """The valley's mean; the last segment's where there was no valley; None if nothing was judged."""
        if not self._begun:
            return self._waiting[-1][1].weights if self._waiting else None
        while self._waiting and not self._left:
            self._take()
        return self._valley.weights or None

    def state(self) -> Weights:
        """Everything: segments that wait, the valley, the floor."""
        flags = torch.tensor([self._floor, float(self._begun), float(self._left)], dtype=torch.float64)
        state = {"flags": flags, "losses": torch.tensor([v for v, _ in self._waiting], dtype=torch.float64)}
        for at, (_, segment) in enumerate(self._waiting):
            state |= _packed(f"waiting{at}", segment)
        return state | _packed("valley", self._valley) | _packed("segment", self._segment)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from it."""
        floor, begun, left = state["flags"].tolist()
        self._floor, self._begun, self._left = floor, bool(begun), bool(left)
        losses = state["losses"].tolist()
        self._waiting = [(loss, _unpacked(f"waiting{at}", state)) for at, loss in enumerate(losses)]
        self._valley, self._segment = _unpacked("valley", state), _unpacked("segment", state)


class TowardsStart(Last):
    """What another rule chose, mixed with the weights that the stage began with.

    For a start that is good by itself, as a copy of the teacher's encoder is: what training unlearned of it comes
    back, and most of what was learned stays.
    """

    def __init__(self, chooses: Keeper, share: float) -> None:
        """Mix.

        Args:
            chooses: the other rule.
            share: of the start's weights in the mean, 0 to 1.
        """
        self._chooses, self._share = chooses, share
        self._start: Weights = {}
        self._now: Mapping[str, Tensor] = {}

    def begin(self, weights: Mapping[str, Tensor]) -> None:
        """Keep a copy of the start."""
        self._chooses.begin(weights)
        self._now = weights
        self._start = {name: tensor.detach().clone() for name, tensor in weights.items()}

    def step(self, weights: Mapping[str, Tensor], share: float) -> None:
        """For the other rule."""
        self._chooses.step(weights, share)

    def judge(self, loss: float, weights: Mapping[str, Tensor]) -> None:
        """For the other rule, which judges what it would choose by itself."""
        self._chooses.judge(loss, weights)

    def final(self) -> Weights | None:
        """The mean of the start and the other rule's choice; integer tensors are the latter's."""
        chosen = self._chooses.final() or self._now
        return {
            name: tensor.detach().lerp(self._start[name], self._share)
            if tensor.is_floating_point()
            else tensor.detach().clone()
            for name, tensor in chosen.items()
        }

    def state(self) -> Weights:
        """The start, and the other rule's state."""
        start = {f"start.{name}": tensor for name, tensor in self._start.items()}
        return start | {f"chooses.{name}": tensor for name, tensor in self._chooses.state().items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from it."""
        self._start = _part("start.", state)
        self._chooses.restore(_part("chooses.", state))


def keeper(rule: Rule, start_share: float = 0.0) -> Keeper:
    """What a rule does; with a share of the start, mixed with it."""
    return TowardsStart(_chooser(rule), start_share) if start_share > 0 else _chooser(rule)


def _chooser(rule: Rule) -> Keeper:
    match rule:
        case "last":
            return Last()
        case "mean":
            return SecondHalf()
        case "source-best":
            return BestOnSource()
        case "swad":
            return Swad()


def select(network: nn.Module, weights: Weights | None) -> None:
    """Give a network the weights that a keeper chose."""
    if weights is not None:
        network.load_state_dict(weights)


def _packed(name: str, mean: Mean) -> Weights:
    tensors: Weights = {f"{name}.count": torch.tensor(mean.count)}
    return tensors | {f"{name}.weights.{key}": tensor for key, tensor in mean.weights.items()}


def _part(prefix: str, state: Mapping[str, Tensor]) -> Weights:
    return {
        name.removeprefix(prefix): tensor.clone() for name, tensor in state.items() if name.startswith(prefix)
    }


def _unpacked(name: str, state: Mapping[str, Tensor]) -> Mean:
    mean = Mean()
    mean.count = int(state[f"{name}.count"])
    mean.weights = _part(f"{name}.weights.", state)
    return mean
