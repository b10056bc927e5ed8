"""What every power sensor offers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Reading:
    """Power at one moment.

    Attributes:
        watts: Power of what the sensor covers.
        rails: Power of each rail or part, by its own name, in watts.
        temperatures_c: Temperatures that the source tells beside it.
        gpu_mhz: Clock of the GPU, where the source tells it.
    """

    watts: float
    rails: Mapping[str, float] = field(default_factory=dict)
    temperatures_c: Mapping[str, float] = field(default_factory=dict)
    gpu_mhz: float | None = None


@dataclass(frozen=True, slots=True)
class NoSensor:
    """There is nothing to read; `reasons` says what was looked for and why it cannot be used."""

    reasons: tuple[str, ...]


class PowerSensor(Protocol):
    """Reads power."""

    @property
    def name(self) -> str:
        """Which source it is, for example "ina3221"."""
        ...

    @property
    def covers(self) -> str:
        """What its watts are the power of, for people."""
        ...

    def read(self) -> Reading | None:
        """Return the power now, or None where this reading failed."""
        ...

    def close(self) -> None:
        """Let go of the source."""
        ...
