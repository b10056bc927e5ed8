"""What torchrun, and Accelerate by means of it, tells a process that it starts. No torch is needed to read it."""

from __future__ import annotations

import os
from dataclasses import dataclass

from vlkd_runtime.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Launch:
    """This process among those that were started together.

    Attributes:
        rank: which one it is, on all machines; the first, 0, does the whole work and the others help it to train.
        count: how many there are.
        local: which one it is on its own machine.
        neighbours: how many this machine has, itself among them.
    """

    rank: int
    count: int
    local: int
    neighbours: int


def launched() -> Launch | None:
    """Where this process stands, or None if no launcher started it, or this one alone.

    Raises:
        ConfigError: the launcher's variables are no numbers that belong together.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    words = [os.environ.get(name, "") for name in names]
    numbers = [int(word) if word.isdecimal() else -1 for word in words]
    rank, count, local, neighbours = numbers
    if not (0 <= rank < count and 0 <= local < neighbours <= count):
        told = ", ".join(f"{name}={word}" for name, word in zip(names, words, strict=True))
        msg = (
            f"Expected of torchrun a rank below WORLD_SIZE, found {told}. Start all processes by torchrun or "
            "'accelerate launch', or without TORCHELASTIC_RUN_ID in the environment."
        )
        raise ConfigError(msg)
    return Launch(rank, count, local, neighbours) if count > 1 else None
