"""Where tensors are computed: a CUDA device where torch has one, otherwise the processor.

Images are decoded, and all random numbers are drawn, on the processor: a training draws the same batches, views and
start weights wherever it runs, and ends with other weights by rounding only.
"""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path

import torch

from vlkd_runtime.errors import ConfigError, UnavailableError, first_line

CPU = torch.device("cpu")
AUTO = "auto"


def device_of(asked: str, rank: int = 0) -> torch.device:
    """Give the device that a setting means.

    Args:
        asked: ``auto``, ``cpu``, ``cuda``, or one of several as ``cuda:1``.
        rank: of this process among those that train together; without a number each takes the next device.

    Raises:
        ConfigError: no name of a device of these kinds.
        UnavailableError: torch has no such device here.
    """
    if asked == AUTO and not torch.cuda.is_available():
        return CPU
    try:
        device = torch.device("cuda" if asked == AUTO else asked)
    except RuntimeError as error:
        msg = f"distill.device: expected 'auto', 'cpu', 'cuda' or 'cuda:N', found '{asked}': {first_line(error)}"
        raise ConfigError(msg) from error
    if device.type == "cpu":
        return CPU
    if device.type != "cuda":
        msg = f"distill.device: expected 'auto', 'cpu', 'cuda' or 'cuda:N', found '{asked}'."
        raise ConfigError(msg)
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) >= found:
        msg = (
            f"distill.device = '{asked}': expected a GPU that torch can use, found {found} of them (torch "
            f"{torch.__version__}). Set distill.device = 'cpu', or install the driver and a torch built for CUDA."
        )
        raise UnavailableError(msg)
    return device if ":" in asked else torch.device("cuda", rank % found)


def describe(device: torch.device) -> str:
    """Name it for people."""
    return "the processor" if device.type == "cpu" else f"{torch.cuda.get_device_name(device)} ({device})"


def backend_of(device: torch.device, processes: int) -> str:
    """Name what sums gradients over processes: NCCL wants a GPU for each of them."""
    alone = device.type == "cuda" and torch.cuda.device_count() >= processes
    return "nccl" if alone else "gloo"


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[None]:
    """bfloat16 where the precision is ``auto`` and the device has it in hardware, float32 elsewhere."""
    if precision == AUTO and _has_bfloat16(device.type):
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


@functools.cache
def _has_bfloat16(kind: str) -> bool:
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "amx_bf16" in flags or "avx512_bf16" in flags
