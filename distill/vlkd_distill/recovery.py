"""Training that goes on from weights that something outside changed, such as pruning: the method's loss, one stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .specs import ProjectorNorm
from .stages import Batch, Method, Stage, Start


@dataclass(frozen=True, slots=True)
class Recovery:
    """How a changed student learns again what it lost.

    Attributes:
        weights: its weights now, as `checkpoints.save_weights` writes them; layers may be narrower than the
            architecture's.
        epochs: passes over the training images.
        lr: peak learning rate.
        zeros: names of tensors whose zeros stay zero, such as sparse weights.
    """

    weights: Path
    epochs: int
    lr: float
    zeros: tuple[str, ...] = ()


class Recovering:
    """A method that skips its own stages: everything trains, by the same loss, for as long as the recovery says.

    Alignment has been done, and a method that froze its head did so for a head that read other features.
    """

    def __init__(self, method: Method, recovery: Recovery) -> None:
        self._method, self._recovery = method, recovery
        self.needs_teacher: bool = method.needs_teacher
        self.predicts_by_vectors: bool = method.predicts_by_vectors
        self.uses_styles: bool = method.uses_styles
        self.start: Start = method.start
        self.projector_norm: ProjectorNorm = method.projector_norm

    def to(self, device: torch.device) -> None:
        """Compute there from now on."""
        self._method.to(device)

    def outputs(self) -> int:
        """Width of the student's head, which no recovery changes."""
        return self._method.outputs()

    def stages(self) -> tuple[Stage, ...]:
        """One stage that trains everything."""
        how = self._recovery
        return (Stage("recover", "all", False, how.epochs, how.lr, rate="compress.prune.lr"),)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The method's own loss."""
        return self._method.loss(outputs, batch)

    def logits(self, outputs: Tensor) -> Tensor:
        """The method's own answers."""
        return self._method.logits(outputs)


def hold_zeros(network: nn.Module, names: Sequence[str]) -> Callable[[], None]:
    """Return what puts the zeros that these tensors have now back in place, for after each step.

    Args:
        network: owns the tensors.
        names: of its parameters; an unknown one is a defect of the caller.
    """
    own = dict(network.named_parameters())
    kept = [(own[name], own[name].detach() != 0) for name in names]

    @torch.no_grad()
    def hold() -> None:
        for tensor, mask in kept:
            tensor.mul_(mask)

    return hold
