"""How a quantized graph is trained, as plain values that need no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class QatSettings:
    """The defaults are for a graph whose float weights are good already.

    Attributes:
        epochs: passes over the images; 0 leaves training out.
        lr: peak learning rate of the weights, of Adam.
        scale_lr: of the logarithms of the activation scales.
        batch: images a step.
        seed: of batches and flips.
    """

    epochs: int = 2
    lr: float = 1e-4
    scale_lr: float = 1e-3
    batch: int = 48
    seed: int = 0
