"""What every inference engine offers, whatever runs underneath.

Letters: N images, H rows, W columns, D sizes of the joint space, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """Which engine it is, for records and messages.

    Attributes:
        name: The name `open_engine` knows it by.
        provider: What executes the graph.
        version: Version of the engine's package.
        threads: Threads it was asked to use; None leaves it to the engine.
        batch: Images per run, fixed by the model.
    """

    name: str
    provider: str
    version: str
    threads: int | None
    batch: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class EngineOutput:
    """What the model says of a batch.

    Attributes:
        embedding: Unit rows, (N, D) float32.
        logits: logit_scale times the cosine with each class vector, (N, C) float32.
    """

    embedding: npt.NDArray[np.float32]
    logits: npt.NDArray[np.float32]


class Engine(Protocol):
    """A loaded model that can be run from several threads."""

    @property
    def info(self) -> EngineInfo:
        """Say which engine this is."""
        ...

    def run(self, images: npt.NDArray[np.uint8]) -> EngineOutput:
        """Run one batch, (batch, H, W, 3) uint8 RGB, of exactly the model's shape."""
        ...

    def close(self) -> None:
        """Let go of the model; running after this is an error, closing again is not."""
        ...
