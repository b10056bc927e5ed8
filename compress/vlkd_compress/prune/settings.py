"""What pruning is asked for and what it did, as values that need no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vlkd_runtime.errors import ConfigError

Unit = Literal["macs", "size", "latency"]
Importance = Literal["magnitude", "taylor", "worst-domain"]
UNITS: tuple[Unit, ...] = ("macs", "size", "latency")
_WORDS: dict[Unit, str] = {"macs": "multiply-adds", "size": "weights", "latency": "latency"}


@dataclass(frozen=True, slots=True)
class Goal:
    """How small the network shall become.

    Attributes:
        unit: what is counted: multiply-adds, bytes of weights, or measured time.
        share: what may be left of it, above 0 and below 1.
    """

    unit: Unit
    share: float

    @classmethod
    def parse(cls, text: str) -> Goal:
        """Read a goal such as ``macs:0.6``.

        Raises:
            ConfigError: no known unit, or a share that is none.
        """
        head, colon, tail = text.partition(":")
        try:
            share = float(tail)
        except ValueError:
            share = 0.0
        if head not in UNITS or not colon or not 0.0 < share < 1.0:
            msg = (
                f"Expected what may be left of the multiply-adds, the weights or the latency, as macs:0.6, size:0.6 or "
                f"latency:0.6 with a share above 0 and below 1, found '{text}'."
            )
            raise ConfigError(msg)
        return cls(head, share)

    @property
    def name(self) -> str:
        """Short, for names of candidates and stages: ``macs60`` leaves 60 %."""
        return f"{self.unit}{100 * self.share:.3g}"

    @property
    def words(self) -> str:
        """What may be left, in words."""
        return f"{100 * self.share:.3g} % of the {_WORDS[self.unit]}"

    def eased(self, part: float) -> Goal:
        """The goal that asks for only this part of the cut."""
        return Goal(self.unit, round(1.0 - part * (1.0 - self.share), 6))


@dataclass(frozen=True, slots=True)
class PruneSettings:
    """Whether and how channels are taken out of the student, and weights out of its layers.

    Attributes:
        target: what may be left, such as ``macs:0.6``, ``size:0.5`` or ``latency:0.7``; nothing is pruned when empty.
            Latency is measured on this machine, and only for targets whose engine runs here.
        importance: which channels go first. ``magnitude``: those with the smallest weights. ``taylor``: those
            whose removal changes the training loss least. ``worst-domain``: those whose removal raises it least on
            the source domain where it raises it most.
        steps: when the guard says no, which parts of the cut are tried next; the first is usually all of it.
        epochs: passes of distillation that recover what was lost.
        lr: their peak learning rate; half of the distillation's when 0.
        images: train images of each source domain that importance is measured on.
        rounds: how many times importance is measured anew on the way.
        round_to: channels of a layer are kept in multiples of this, which kernels like.
        least: share of its channels that every layer keeps.
        sparsity: ``2:4`` also zeroes two weights in every four input channels, which TensorRT can skip on GPUs
            since Ampere; tried first, and given up before pruning less.
    """

    target: str = ""
    importance: Importance = "worst-domain"
    steps: tuple[float, ...] = (1.0, 0.6, 0.25)
    epochs: int = 3
    lr: float = 0.0
    images: int = 64
    rounds: int = 5
    round_to: int = 8
    least: float = 0.15
    sparsity: Literal["none", "2:4"] = "none"

    @property
    def goal(self) -> Goal | None:
        """The target as a value.

        Raises:
            ConfigError: as `Goal.parse`.
        """
        return Goal.parse(self.target) if self.target else None


@dataclass(frozen=True, slots=True)
class Pruned:
    """What pruning did to a network.

    Attributes:
        dense_macs: multiply-adds of its convolutions and linear layers for one image, before.
        macs: after.
        dense_weights: weights and biases that ship, with batch norms folded, before.
        weights: after.
        sparse_layers: how many layers have two zeros in every four input channels.
        layers: how many convolutions and linear layers there are.
        importance: how channels and weights were chosen.
    """

    dense_macs: int
    macs: int
    dense_weights: int
    weights: int
    sparse_layers: int = 0
    layers: int = 0
    importance: Importance = "magnitude"

    @property
    def words(self) -> tuple[str, ...]:
        """What was done, in words."""
        chosen = {
            "magnitude": "magnitude",
            "taylor": "Taylor expansion of the loss",
            "worst-domain": "worst-domain harm",
        }
        said = []
        if self.macs < self.dense_macs:
            said.append(
                f"pruned to {100 * self.macs / self.dense_macs:.1f} % of the multiply-adds and "
                f"{100 * self.weights / self.dense_weights:.1f} % of the weights by {chosen[self.importance]}"
            )
        if self.sparse_layers:
            said.append(
                f"2:4 sparse in {self.sparse_layers} of {self.layers} layers, which TensorRT uses only with its "
                "sparse-weights flag; not timed on a GPU"
            )
        return tuple(said)
