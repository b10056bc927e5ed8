"""Energy counters of x86 processors (RAPL), through the kernel's powercap tree.

References:
    Linux kernel, Documentation/power/powercap/powercap.rst.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ..software import read
from .base import NoSensor, Reading


@dataclass(slots=True)
class Counter:
    """A counter of microjoules that starts again at zero after `span`."""

    path: Path
    span: float
    last: float = field(init=False)

    def __post_init__(self) -> None:
        self.last = self.value()

    def value(self) -> float:
        """Return the counter.

        Raises:
            OSError: It may not be read.
            ValueError: It holds no number.
        """
        return float(self.path.read_text())

    def joules(self) -> float:
        """Return the energy since the last call."""
        now = self.value()
        used = now - self.last if now >= self.last else now - self.last + self.span
        self.last = now
        return used / 1e6


class Rapl:
    """The processor packages; the power is the mean since the reading before."""

    name = "rapl"

    def __init__(self, counters: dict[str, Counter], clock: Callable[[], float]) -> None:
        self._counters, self._clock = counters, clock
        self._then = clock()

    @property
    def covers(self) -> str:
        """What its watts are the power of."""
        return f"the CPU package{'s' * (len(self._counters) > 1)}, without memory, disks and power supply"

    def read(self) -> Reading | None:
        """Return the mean power since the reading before, or None where no time has passed."""
        now = self._clock()
        seconds = now - self._then
        if seconds <= 0:
            return None
        try:
            rails = {name: counter.joules() / seconds for name, counter in self._counters.items()}
        except (OSError, ValueError):
            return None
        self._then = now
        return Reading(sum(rails.values()), rails)

    def close(self) -> None:
        """Nothing is held open."""


def open_rapl(root: Path, clock: Callable[[], float] = time.monotonic) -> Rapl | NoSensor:
    """Find the packages under `root`; zones inside a package are part of it and are left out."""
    zones = sorted((root / "sys/class/powercap").glob("intel-rapl:*"))
    counters = {}
    for zone in zones:
        title = read(zone / "name").strip()
        if not re.fullmatch(r"intel-rapl:\d+", zone.name) or not title.startswith("package"):
            continue
        try:
            span = float(read(zone / "max_energy_range_uj"))
            counters[title] = Counter(zone / "energy_uj", span)
        except PermissionError:
            return NoSensor(
                (f"RAPL: {zone.name}/energy_uj may be read by root only (CVE-2020-8694); grant read access",)
            )
        except (OSError, ValueError):
            continue
    if not counters:
        return NoSensor(("RAPL: no energy counter of a processor package in sysfs",))
    return Rapl(counters, clock)
