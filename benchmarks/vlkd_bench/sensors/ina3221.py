"""The Jetsons' power monitors, read through sysfs: INA3221, and the INA238 of Thor's input.

Layouts: JetPack 5 to 7 have hwmon folders (``in1_label``, ``in1_input`` in mV, ``curr1_input`` in mA; an INA238 has
``power1_input`` in µW); JetPack 4 has iio folders (``rail_name_0``, ``in_power0_input`` in mW).

References:
    Linux kernel, Documentation/hwmon/ina3221.rst and ina238.rst; NVIDIA Jetson Linux Developer Guide.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..software import read
from .base import NoSensor, Reading
from .rails import Total, is_rail, total_of

_CHIPS = ("ina3221", "ina238")


@dataclass(frozen=True, slots=True)
class Channel:
    """One rail: the files whose product is its power, in the unit that `scale` brings to watts."""

    files: tuple[Path, ...]
    scale: float

    def watts(self) -> float | None:
        """Return the rail's power, or None where a file cannot be read."""
        value = self.scale
        for path in self.files:
            try:
                value *= float(read(path))
            except ValueError:
                return None
        return value


class Ina3221:
    """All rails of a board, and the total that its rule gives."""

    name = "ina3221"

    def __init__(self, channels: dict[str, Channel], total: Total) -> None:
        self._channels, self._total = channels, total

    @property
    def covers(self) -> str:
        """What its watts are the power of."""
        return self._total.covers

    def read(self) -> Reading | None:
        """Return the power now, or None where a rail of the total cannot be read."""
        rails = {name: channel.watts() for name, channel in self._channels.items()}
        known = {name: watts for name, watts in rails.items() if watts is not None}
        if any(name not in known for name in self._total.rails):
            return None
        return Reading(sum(known[name] for name in self._total.rails), known)

    def close(self) -> None:
        """Nothing is held open."""


def open_ina3221(root: Path) -> Ina3221 | NoSensor:
    """Find the board's rails under `root`."""
    channels = _hwmon(root) or _iio(root)
    if not channels:
        return NoSensor(("INA3221: no power monitor of a Jetson in sysfs",))
    total = total_of(channels)
    if total is None:
        return NoSensor(
            (f"INA3221: rails {', '.join(channels)} are of no known board, so their total is unknown",)
        )
    sensor = Ina3221(channels, total)
    if sensor.read() is None:
        return NoSensor((f"INA3221: {', '.join(total.rails)} cannot be read; is the user allowed to?",))
    return sensor


def _hwmon(root: Path) -> dict[str, Channel]:
    folders = {path.resolve(): path for path in (root / "sys/bus/i2c/drivers").glob("ina*/*/hwmon/hwmon*")}
    for path in (root / "sys/class/hwmon").glob("hwmon*"):
        if read(path / "name").strip() in _CHIPS:
            folders.setdefault(path.resolve(), path)
    channels: dict[str, Channel] = {}
    for folder in sorted(folders.values(), key=str):
        for number in (1, 2, 3):
            label = read(folder / f"in{number}_label").strip()
            if not is_rail(label) or read(folder / f"in{number}_enable").strip() == "0":
                continue
            files = (folder / f"in{number}_input", folder / f"curr{number}_input")
            if all(path.exists() for path in files):
                channels.setdefault(label, Channel(files, 1e-6))
        power = folder / "power1_input"
        if power.exists() and read(folder / "name").strip() == "ina238":
            channels.setdefault(read(folder / "label").strip() or "VIN", Channel((power,), 1e-6))
    return channels


def _iio(root: Path) -> dict[str, Channel]:
    channels: dict[str, Channel] = {}
    for folder in sorted((root / "sys/bus/i2c/drivers/ina3221x").glob("*/iio*")):
        for number in (0, 1, 2):
            label = read(folder / f"rail_name_{number}").strip()
            power = folder / f"in_power{number}_input"
            if is_rail(label) and power.exists():
                channels.setdefault(label, Channel((power,), 1e-3))
    return channels
