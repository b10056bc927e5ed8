"""How much memory of a GPU of its own a process holds, through NVIDIA's management library.

References:
    https://docs.nvidia.com/deploy/nvml-api/ (``nvmlDeviceGetComputeRunningProcesses``: PIDs are those of the host,
    so that a process in a container is not found by its own).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .base import NoSensor
from .nvml import open_library

UNSEEN = (
    "NVML lists no memory for the measuring processes: the driver does not tell, or they are in a container whose "
    "process numbers it does not know"
)


class DeviceMemory:
    """All GPUs of this machine; which of them the engine takes is the engine's choice."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._handles = [
            library.nvmlDeviceGetHandleByIndex(index) for index in range(library.nvmlDeviceGetCount())
        ]

    def of(self, process: int) -> int | None:
        """Return the bytes that a process holds now on all GPUs; None where the driver does not tell."""
        found: list[int] = []
        for handle in self._handles:
            try:
                entries = self._library.nvmlDeviceGetComputeRunningProcesses(handle)
            except self._library.NVMLError:
                continue
            found += [
                int(entry.usedGpuMemory)
                for entry in entries
                if entry.pid == process and entry.usedGpuMemory is not None
            ]
        return sum(found) if found else None

    def close(self) -> None:
        """Let go of the library."""
        self._library.nvmlShutdown()


def find_device_memory(
    root: Path = Path("/"), *, on_gpu: bool, library: Any = None
) -> DeviceMemory | NoSensor:
    """Open NVML to read device memory, or say why there is nothing to read.

    Args:
        root: Where /proc is found; another folder in tests.
        on_gpu: Whether the model runs on a GPU.
        library: The module ``pynvml``, or one like it in tests; imported if None.
    """
    if not on_gpu:
        return NoSensor(("the model does not run on a GPU",))
    if (root / "etc/nv_tegra_release").exists():
        return NoSensor(("a Jetson's GPU has no memory of its own: it shares the main memory",))
    library = open_library(library)
    if isinstance(library, NoSensor):
        return library
    try:
        return DeviceMemory(library)
    except library.NVMLError as error:
        library.nvmlShutdown()
        return NoSensor((f"NVML: {error}",))
