"""How the device was set and how it was doing: clocks, power mode, temperatures, throttling.

Read once before and once after a measurement; what changed in between is said, because a number measured while
a board throttled or changed its power mode is not the number of either state.

References:
    NVIDIA Jetson Linux Developer Guide, "Platform Power and Performance": nvpmodel, soctherm, over-current
    events. Linux kernel, Documentation/admin-guide/pm/cpufreq.rst and driver-api/thermal/sysfs-api.rst.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from .jsonvalues import decode, encode
from .sensors.nvml import GpuState, read_gpu
from .software import read

# A clock that ends this much lower than it began was taken down by something.
CLOCK_DROP = 0.05
# Cooling devices that slow a chip down; fans cool without slowing.
_FAN = re.compile(r"fan", re.IGNORECASE)
_GPU = re.compile(r"gpu|ga10b|gv11b|gp10b|gm20b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class DeviceState:
    """The device at one moment. What it does not tell is None, "" or absent, never zero.

    Attributes:
        power_mode: Name of the power mode (nvpmodel's on a Jetson; the power limit of a GPU in use), or "".
        governor: CPU frequency governor, several joined by ", ", or "".
        cpu_mhz: Current clock of each core.
        cpu_max_mhz: Highest clock the governor may choose, of the fastest core.
        gpu_mhz: Current clock of the GPU.
        gpu_max_mhz: Highest clock the GPU may choose.
        memory_mhz: Clock of the memory.
        temperatures_c: Temperature of each zone that tells one.
        throttling: Counters and states that say that something slowed the chip down, by name: events so far,
            or the current level of a cooling device.
        load_average: Busy tasks, mean over the last minute.
    """

    power_mode: str
    governor: str
    cpu_mhz: tuple[float, ...]
    cpu_max_mhz: float | None
    gpu_mhz: float | None
    gpu_max_mhz: float | None
    memory_mhz: float | None
    temperatures_c: Mapping[str, float]
    throttling: Mapping[str, int]
    load_average: float | None

    def to_json(self) -> dict[str, object]:
        """Return the fields as JSON values."""
        return encode(self)

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> DeviceState:
        """Take back what `to_json` gave.

        Raises:
            DataError: A field is missing or of another type.
        """
        return decode(cls, data)

    def describe(self) -> str:
        """Return one line for people; says so where the system tells nothing."""
        parts = [f"power mode {self.power_mode}"] if self.power_mode else []
        parts += [f"governor {self.governor}"] if self.governor else []
        if self.cpu_mhz:
            parts.append(f"CPU {min(self.cpu_mhz):.0f} to {max(self.cpu_mhz):.0f} MHz")
        if self.gpu_mhz is not None:
            parts.append(f"GPU {self.gpu_mhz:.0f} MHz")
        if self.temperatures_c:
            hottest = max(self.temperatures_c, key=lambda name: self.temperatures_c[name])
            parts.append(f"{hottest} {self.temperatures_c[hottest]:.0f} °C")
        return ", ".join(parts) or "the system tells neither power mode, clocks nor temperatures"


def read_state(
    root: Path = Path("/"),
    *,
    mode: bool = True,
    on_gpu: bool = False,
    ask_driver: Callable[[], GpuState | None] | None = None,
) -> DeviceState:
    """Read the state of this device.

    Args:
        root: Where /sys, /proc, /etc and /var are found; another folder in tests.
        mode: Whether to look for the power mode, for which a board's own tool may have to be run.
        on_gpu: Whether the model runs on a GPU: one that sysfs does not tell of is then asked for by its driver.
        ask_driver: Asks it; NVML is asked if None, and not while `root` is another folder.
    """
    cores = sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq"))
    governors = {read(core / "scaling_governor").strip() for core in cores} - {""}
    current = [_number(core / "scaling_cur_freq") for core in cores]
    highest = [_number(core / "scaling_max_freq") for core in cores]
    gpu = _gpu_clock(root)
    state = DeviceState(
        power_mode=_power_mode(root) if mode else "",
        governor=", ".join(sorted(governors)),
        cpu_mhz=tuple(value / 1e3 for value in current if value),
        cpu_max_mhz=max((value / 1e3 for value in highest if value), default=None),
        gpu_mhz=gpu[0],
        gpu_max_mhz=gpu[1],
        memory_mhz=_megahertz(root / "sys/kernel/debug/bpmp/debug/clk/emc/rate"),
        temperatures_c=_temperatures(root),
        throttling=_throttling(root),
        load_average=_load(root),
    )
    if not on_gpu or state.gpu_mhz is not None:
        return state
    found = (ask_driver or (read_gpu if root == Path("/") else lambda: None))()
    return state if found is None else _with_gpu(state, found)


def _with_gpu(state: DeviceState, gpu: GpuState) -> DeviceState:
    """Add what the driver of a desktop's or server's GPU tells."""
    temperatures = {} if gpu.celsius is None else {gpu.title: gpu.celsius}
    return replace(
        state,
        power_mode=", ".join(part for part in (state.power_mode, gpu.limit) if part),
        gpu_mhz=gpu.mhz,
        gpu_max_mhz=gpu.max_mhz,
        memory_mhz=gpu.memory_mhz if state.memory_mhz is None else state.memory_mhz,
        temperatures_c={**state.temperatures_c, **temperatures},
        throttling={**state.throttling, **gpu.throttling},
    )


def changes(before: DeviceState, after: DeviceState) -> tuple[str, ...]:
    """Say what happened to the device during a measurement that makes its numbers suspect."""
    found = []
    for name, title in (("power_mode", "the power mode"), ("governor", "the CPU governor")):
        first, last = getattr(before, name), getattr(after, name)
        if first != last:
            found.append(f"{title} changed from {first or 'unknown'} to {last or 'unknown'}")
    for name, title in (("cpu_max_mhz", "the CPU's"), ("gpu_max_mhz", "the GPU's")):
        first, last = getattr(before, name), getattr(after, name)
        if first and last and last < first * (1 - CLOCK_DROP):
            found.append(f"{title} highest allowed clock fell from {first:.0f} to {last:.0f} MHz")
    for name, last in after.throttling.items():
        first = before.throttling.get(name, 0)
        if last > first:
            found.append(f"throttling: {name} rose from {first} to {last}")
    return tuple(found)


def _power_mode(root: Path, ask: Callable[[], str] | None = None) -> str:
    """Return the power mode's name; ids differ between boards and JetPack releases."""
    status = re.search(r"pmode:(\d+)", read(root / "var/lib/nvpmodel/status"))
    if status:
        number = int(status[1])
        for mode, name in re.findall(
            r"POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)", read(root / "etc/nvpmodel.conf")
        ):
            if int(mode) == number:
                return str(name)
        return f"mode {number}"
    text = (ask or (_nvpmodel if root == Path("/") else lambda: ""))()
    found = re.search(r"NV Power Mode:\s*(\S+)", text)
    if found:
        return found[1]
    profile = read(root / "sys/firmware/acpi/platform_profile").strip()
    return profile


def _nvpmodel() -> str:
    """Ask the board's own tool, where there is one."""
    tool = shutil.which("nvpmodel")
    if tool is None:
        return ""
    try:
        return subprocess.run([tool, "-q"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _gpu_clock(root: Path) -> tuple[float | None, float | None]:
    """Return the current and the highest clock of the first GPU under devfreq, in MHz."""
    for folder in sorted((root / "sys/class/devfreq").glob("*")):
        if _GPU.search(folder.name):
            current = _megahertz(folder / "cur_freq")
            if current is not None:
                return current, _megahertz(folder / "max_freq")
    return None, None


def _temperatures(root: Path) -> dict[str, float]:
    found = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        # A zone whose sensor is off gives an error or an impossible value (Jetsons: -256 °C) instead of one.
        value = _number(zone / "temp")
        if value is not None and -50_000 < value < 150_000:
            found[read(zone / "type").strip() or zone.name] = value / 1e3
    return found


def _throttling(root: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    for path in sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/*_throttle_count")):
        value = _number(path)
        if value is not None:
            name = f"cpu {path.name.removesuffix('_throttle_count')} thermal events"
            # Counters of one package are repeated for each of its cores.
            found[name] = max(found.get(name, 0), int(value))
    for path in sorted((root / "sys/class/hwmon").glob("hwmon*/oc*_event_cnt")):
        value = _number(path)
        if value is not None:
            found[f"over-current {path.name.removesuffix('_event_cnt')} events"] = int(value)
    for folder in sorted((root / "sys/class/thermal").glob("cooling_device*")):
        title, value = read(folder / "type").strip(), _number(folder / "cur_state")
        if title and value is not None and not _FAN.search(title):
            name = f"cooling {title}"
            found[name] = max(found.get(name, 0), int(value))
    return found


def _load(root: Path) -> float | None:
    first = read(root / "proc/loadavg").split(" ", 1)[0]
    try:
        return float(first)
    except ValueError:
        return os.getloadavg()[0] if root == Path("/") and hasattr(os, "getloadavg") else None


def _megahertz(path: Path) -> float | None:
    value = _number(path)
    return value / 1e6 if value else None


def _number(path: Path) -> float | None:
    """Return the number a one-line file holds, or None."""
    try:
        return float(read(path).strip())
    except ValueError:
        return None
