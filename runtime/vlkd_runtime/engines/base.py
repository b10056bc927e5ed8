"""What every inference engine offers, whatever runs underneath.

Letters: N images, H rows, W columns, D sizes of the joint space, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """Which engine it is, for records and messages.

    Attributes:
        name: The name `open_engine` knows it by.
        provider: What executes the graph.
        version: Version of the engine's package.
        threads: Threads it was asked to use; None leaves it to the engine.
        batch: Images per run, fixed by the model.
        device: The GPU it runs on and its driver; empty on a CPU.
    """

    name: str
    provider: str
    version: str
    threads: int | None
    batch: int = 1
    device: str = ""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How to open an engine.

    Attributes:
        threads: How many CPU threads to use; None leaves it to the engine.
        cache: The folder for built engines; None builds anew each time and writes nothing.
        device: Which GPU.
        dla_core: Which deep learning accelerator to run on, where the engine can; None for the GPU.
        workspace_bytes: Most scratch memory of a TensorRT build; None leaves it to TensorRT.
        cuda_graph: Record the work of one run and launch it as a whole, which spares small networks the
            launch of each kernel.
        sparse_weights: Let TensorRT look for weights that are 2:4 sparse and skip their zeros where that is faster.
    """

    threads: int | None = None
    cache: Path | None = None
    device: int = 0
    dla_core: int | None = None
    workspace_bytes: int | None = None
    cuda_graph: bool = True
    sparse_weights: bool = False

    def __post_init__(self) -> None:
        limits = {
            "threads": (1, 1024),
            "device": (0, 255),
            "dla_core": (0, 7),
            "workspace_bytes": (1, 1 << 40),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if value is not None and (type(value) is not int or not low <= value <= high):
                msg = (
                    f"{name}: expected an integer from {low} to {high}, found {value!r}; "
                    "leave it out to let the engine choose"
                )
                raise ConfigError(msg)


@dataclass(frozen=True, slots=True)
class Execution:
    """What an engine really runs, as far as it tells.

    Attributes:
        provider: What executes the graph.
        layers: Layers or operators after the engine's own rewriting.
        int8_ops: Convolutions and linear layers among them that compute in INT8.
        dla_layers: Layers on a deep learning accelerator.
        note: Where a number is missing, why.
    """

    provider: str
    layers: int | None = None
    int8_ops: int | None = None
    dla_layers: int | None = None
    note: str = ""


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


@dataclass(frozen=True, slots=True)
class Prebuilt:
    """An engine built ahead of time.

    Attributes:
        plan: Its bytes.
        version: The version of the runtime that it was built for.
    """

    plan: bytes = field(repr=False)
    version: str


class OpenedEngine(Engine, Protocol):
    """An engine that `open_engine` gave, which can account for what it runs."""

    @property
    def origin(self) -> str:
        """Say how it came about: made of the model, found in the cache, built and why, or brought along."""
        ...

    @property
    def folder(self) -> Path | None:
        """Give the cache folder that holds the engine, where it is in one."""
        ...

    @property
    def identity(self) -> dict[str, str]:
        """Give all that its answers depend on beside the bundle: versions, device, driver, options."""
        ...

    def execution(self) -> Execution:
        """Say what really runs."""
        ...


@dataclass(frozen=True, slots=True)
class Considered:
    """One engine or variant that was looked at.

    Attributes:
        name: Which one.
        taken: Whether it is in use.
        reason: Why, or why not.
    """

    name: str
    taken: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Selection:
    """What runs, and why nothing else does.

    Attributes:
        engine: The engine in use.
        variant: The bundle's variant in use.
        engines: Every engine that was looked at, in order of preference.
        variants: Every variant of the bundle, best for this engine first.
        origin: How the engine came about; for one that was built though the bundle brings one, why.
        execution: What the engine says it runs; None where it was not asked.
        self_test: What the self-test came to, and whether it was run now or before.
    """

    engine: str
    variant: str
    engines: tuple[Considered, ...] = ()
    variants: tuple[Considered, ...] = ()
    origin: str = ""
    execution: Execution | None = None
    self_test: dict[str, object] = field(default_factory=dict)
