"""Checkpoints of a running training: weights and optimizer state in one safetensors file, never a pickle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor, nn

from vlkd_runtime.atomic import write_bytes
from vlkd_runtime.errors import DataError, first_line
from vlkd_runtime.tensorfile import read_tensors, write_tensors

from .narrowing import fit

FILE = "checkpoint.safetensors"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A place in a training to go on from.

    Attributes:
        stage: index of the stage that was running.
        epoch: epochs of it that are done.
        weights: the student's state.
        optimizer: the optimizer's state, keyed ``<parameter>.<entry>``.
        kept: what decides which weights to end with; see `averaging`.
    """

    stage: int
    epoch: int
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    kept: dict[str, Tensor] = field(default_factory=dict)


def save(
    folder: Path,
    student: nn.Module,
    optimizer: torch.optim.Optimizer,
    stage: int,
    epoch: int,
    kept: Mapping[str, Tensor] = MappingProxyType({}),
) -> None:
    """Write a checkpoint atomically; the one before is replaced."""
    tensors = {f"kept.{name}": tensor for name, tensor in kept.items()}
    tensors |= {f"student.{name}": tensor for name, tensor in student.state_dict().items()}
    for index, entries in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in entries.items()}
    arrays = {name: np.ascontiguousarray(tensor.detach().cpu().numpy()) for name, tensor in tensors.items()}
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / FILE, write_tensors(arrays, {"stage": str(stage), "epoch": str(epoch)}))


def load(folder: Path) -> Checkpoint | None:
    """Read the checkpoint of a folder, if there is one that is whole; without it training starts over."""
    path = folder / FILE
    if not path.exists():
        return None
    try:
        arrays, metadata = read_tensors(path.read_bytes(), where=str(path))
    except DataError:
        return None
    parts: dict[str, dict[str, Tensor]] = {"student": {}, "optimizer": {}, "kept": {}}
    for name, array in arrays.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = torch.from_numpy(np.array(array))
    return Checkpoint(int(metadata["stage"]), int(metadata["epoch"]), *parts.values())


def restore(checkpoint: Checkpoint, student: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put weights and optimizer state back."""
    student.load_state_dict(checkpoint.weights)
    state = optimizer.state_dict()
    entries: dict[int, dict[str, Tensor]] = {}
    for name, tensor in checkpoint.optimizer.items():
        index, _, entry = name.partition(".")
        entries.setdefault(int(index), {})[entry] = tensor
    state["state"] = entries
    optimizer.load_state_dict(state)


def save_weights(path: Path, student: nn.Module) -> None:
    """Write a finished student's weights."""
    arrays = {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in student.state_dict().items()}
    write_bytes(path, write_tensors(arrays, {}))


def load_weights(path: Path, student: nn.Module) -> None:
    """Read weights that `save_weights` wrote; where they are of a pruned network, this one becomes as narrow.

    Raises:
        DataError: they belong to another network.
    """
    arrays, _ = read_tensors(path.read_bytes(), where=str(path))
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    fit(student, tensors)
    try:
        student.load_state_dict(tensors)
    except RuntimeError as error:
        msg = f"The weights in {path} belong to another network: {first_line(error)}"
        raise DataError(msg) from error
