"""NVIDIA's tegrastats, where the sensors themselves cannot be read: one line of text per interval.

Its format changes with every JetPack (``VDD_IN 3203/3203``, ``VDD_IN 5059mW/5059mW``,
``VIN 124486mW/36487mW/124486mW``; ``GR3D_FREQ 45%@318``, ``0%@[0,0]``, ``@[1574,1574,1574]``), so every entry is
looked for by itself and what is not there is left out.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from collections.abc import Mapping
from dataclasses import dataclass

from .base import NoSensor, Reading
from .rails import is_rail, total_of

INTERVAL_MS = 100
FIRST_LINE_SECONDS = 3.0
_RAIL = re.compile(r"(?<=\s)([A-Z][A-Z0-9_]*) (\d+)(?:mW)?/(\d+)(?:mW)?(?:/\d+mW)?(?=\s|$)")
_GPU = re.compile(r"GR3D_FREQ (?:(\d+)%)?(?:@\[?([\d,]+)\]?)?")
_MEMORY = re.compile(r"EMC_FREQ (?:(\d+)%)?(?:@(\d+))?")
_TEMPERATURE = re.compile(r"([A-Za-z][\w-]*)@(-?\d+(?:\.\d+)?)C")
_USED = re.compile(r"RAM (\d+)/(\d+)MB")


@dataclass(frozen=True, slots=True)
class TegraLine:
    """One line of tegrastats; what it does not hold is None or absent.

    Attributes:
        rails: Power of each rail now, in watts.
        gpu_load: Share of time the GPU was busy, in [0, 1].
        gpu_mhz: Clock of the GPU, of its fastest cluster.
        memory_mhz: Clock of the memory.
        temperatures_c: Temperature of each zone.
        memory_used_bytes: Main memory in use, which the GPU shares.
    """

    rails: Mapping[str, float]
    gpu_load: float | None
    gpu_mhz: float | None
    memory_mhz: float | None
    temperatures_c: Mapping[str, float]
    memory_used_bytes: int | None


def parse_line(line: str) -> TegraLine:
    """Read one line; unknown entries are passed over."""
    # "RAM 3429/7620MB" and "SWAP 0/3810MB" have the shape of old rails but a unit of their own, which
    # the pattern's end refuses.
    rails = {name: int(now) / 1e3 for name, now, _ in _RAIL.findall(line) if is_rail(name)}
    gpu, memory, used = _GPU.search(line), _MEMORY.search(line), _USED.search(line)
    clocks = [int(value) for value in gpu[2].split(",") if value] if gpu and gpu[2] else []
    return TegraLine(
        rails=rails,
        gpu_load=int(gpu[1]) / 100 if gpu and gpu[1] else None,
        gpu_mhz=float(max(clocks)) if clocks else None,
        memory_mhz=float(memory[2]) if memory and memory[2] else None,
        temperatures_c={
            name: float(value) for name, value in _TEMPERATURE.findall(line) if -50 < float(value) < 150
        },
        memory_used_bytes=int(used[1]) * 2**20 if used else None,
    )


class Tegrastats:
    """Runs tegrastats and keeps its last line."""

    name = "tegrastats"

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, text=True
        )
        self._line: TegraLine | None = None
        self._arrived = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()
        self._arrived.wait(FIRST_LINE_SECONDS)

    @property
    def covers(self) -> str:
        """What its watts are the power of."""
        total = total_of(self._line.rails) if self._line else None
        return total.covers if total else "nothing known"

    @property
    def line(self) -> TegraLine | None:
        """The last line, or None where none came."""
        return self._line

    def read(self) -> Reading | None:
        """Return the power of the last line, or None where tegrastats ended or tells no total."""
        line = self._line
        total = total_of(line.rails) if line else None
        if line is None or total is None or self._process.poll() is not None:
            return None
        watts = sum(line.rails[name] for name in total.rails)
        return Reading(watts, line.rails, line.temperatures_c, line.gpu_mhz)

    def close(self) -> None:
        """End the process that was started here."""
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._thread.join(5)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _follow(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._line = parse_line(line)
            self._arrived.set()
        self._arrived.set()


def open_tegrastats(command: list[str] | None = None) -> Tegrastats | NoSensor:
    """Start tegrastats.

    Args:
        command: Another program that prints such lines; the system's tegrastats if None.
    """
    if command is None:
        tool = shutil.which("tegrastats")
        if tool is None:
            return NoSensor(("tegrastats: not installed",))
        command = [tool, "--interval", str(INTERVAL_MS)]
    try:
        sensor = Tegrastats(command)
    except OSError as error:
        return NoSensor((f"tegrastats: cannot be started: {error}",))
    if sensor.read() is None:
        found = ", ".join(sensor.line.rails) if sensor.line and sensor.line.rails else "no rail"
        sensor.close()
        return NoSensor((f"tegrastats: its lines show {found}, which no known board's total is made of",))
    return sensor
