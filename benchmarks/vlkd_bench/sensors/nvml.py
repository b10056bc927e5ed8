"""Desktop and server GPUs through NVIDIA's management library, if the package nvidia-ml-py is there."""

from __future__ import annotations

from typing import Any

from .base import NoSensor, Reading


class Nvml:
    """One GPU board."""

    name = "nvml"

    def __init__(self, library: Any, index: int) -> None:
        self._library = library
        self._handle = library.nvmlDeviceGetHandleByIndex(index)
        title = library.nvmlDeviceGetName(self._handle)
        self._title = title.decode() if isinstance(title, bytes) else str(title)

    @property
    def covers(self) -> str:
        """What its watts are the power of."""
        return f"the GPU board {self._title}, without the host"

    def read(self) -> Reading | None:
        """Return the power now, or None where the driver does not tell."""
        try:
            watts = self._library.nvmlDeviceGetPowerUsage(self._handle) / 1e3
        except self._library.NVMLError:
            return None
        return Reading(watts, {self._title: watts}, *self._condition())

    def _condition(self) -> tuple[dict[str, float], float | None]:
        """Return temperature and clock of the GPU, as far as the driver tells them."""
        try:
            celsius = self._library.nvmlDeviceGetTemperature(self._handle, self._library.NVML_TEMPERATURE_GPU)
            clock = self._library.nvmlDeviceGetClockInfo(self._handle, self._library.NVML_CLOCK_SM)
        except self._library.NVMLError:
            return {}, None
        return {self._title: float(celsius)}, float(clock)

    def close(self) -> None:
        """Let go of the library."""
        self._library.nvmlShutdown()


def open_library(library: Any = None) -> Any:
    """Start NVML: the module ``pynvml``, or one like it in tests; or a `NoSensor` that says why not."""
    if library is None:
        try:
            import pynvml
        except ImportError:
            return NoSensor(("NVML: the package nvidia-ml-py is not installed",))
        library = pynvml
    try:
        library.nvmlInit()
    except library.NVMLError as error:
        return NoSensor((f"NVML: {error}",))
    return library


def open_nvml(library: Any = None, index: int = 0) -> Nvml | NoSensor:
    """Open one GPU.

    Args:
        library: The module ``pynvml``, or one like it in tests; imported if None.
        index: Which GPU.
    """
    library = open_library(library)
    if isinstance(library, NoSensor):
        return library
    try:
        sensor = Nvml(library, index)
    except library.NVMLError as error:
        library.nvmlShutdown()
        return NoSensor((f"NVML: {error}",))
    if sensor.read() is None:
        sensor.close()
        return NoSensor(("NVML: this GPU does not tell its power",))
    return sensor
