"""Desktop and server GPUs through NVIDIA's management library, if the package nvidia-ml-py is there.

References:
    https://docs.nvidia.com/deploy/nvml-api/ (``nvmlDeviceGetViolationStatus``: nanoseconds that a GPU was held below
    its clocks; ``nvmlClocksThrottleReason*``: what holds it now).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class GpuState:
    """How a GPU is set and how it does; what its driver does not tell is None, "" or absent, never zero.

    Attributes:
        title: Its name.
        limit: The power limit that is in force, in words, or "".
        mhz: Clock of its processors now.
        max_mhz: The highest they can have.
        memory_mhz: Clock of its memory now.
        celsius: Temperature.
        throttling: Milliseconds that it was slowed down since the driver was loaded, and whether it is now, by cause.
    """

    title: str
    limit: str
    mhz: float | None
    max_mhz: float | None
    memory_mhz: float | None
    celsius: float | None
    throttling: Mapping[str, int]


def read_gpu(library: Any = None, index: int = 0) -> GpuState | None:
    """Read a GPU's state; None where there is no GPU that NVML tells of.

    Args:
        library: The module ``pynvml``, or one like it in tests; imported if None.
        index: Which GPU.
    """
    library = open_library(library)
    if isinstance(library, NoSensor):
        return None

    def told(name: str, *arguments: Any) -> Any:
        try:
            return getattr(library, f"nvmlDeviceGet{name}")(*arguments)
        except library.NVMLError:
            return None

    def number(name: str, kind: int) -> float | None:
        value = told(name, gpu, kind)
        return None if value is None else float(value)

    try:
        gpu = told("HandleByIndex", index)
        if gpu is None:
            return None
        title, limit = told("Name", gpu), told("EnforcedPowerLimit", gpu)
        causes = {"power": library.NVML_PERF_POLICY_POWER, "heat": library.NVML_PERF_POLICY_THERMAL}
        spent = {cause: told("ViolationStatus", gpu, policy) for cause, policy in causes.items()}
        reasons = told("CurrentClocksThrottleReasons", gpu)
        throttling = {
            f"milliseconds that {cause} slowed the GPU": int(entry.violationTime) // 1_000_000
            for cause, entry in spent.items()
            if entry is not None
        }
        if reasons is not None:
            hot = (
                library.nvmlClocksThrottleReasonSwThermalSlowdown
                | library.nvmlClocksThrottleReasonHwThermalSlowdown
            )
            throttling["GPU slowed by heat at this moment"] = int(bool(reasons & hot))
        return GpuState(
            title=title.decode() if isinstance(title, bytes) else str(title or "GPU"),
            limit=f"GPU limited to {limit / 1e3:.0f} W" if limit else "",
            mhz=number("ClockInfo", library.NVML_CLOCK_SM),
            max_mhz=number("MaxClockInfo", library.NVML_CLOCK_SM),
            memory_mhz=number("ClockInfo", library.NVML_CLOCK_MEM),
            celsius=number("Temperature", library.NVML_TEMPERATURE_GPU),
            throttling=throttling,
        )
    finally:
        library.nvmlShutdown()
