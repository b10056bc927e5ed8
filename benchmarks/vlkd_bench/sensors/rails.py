"""Which rails of a Jetson add up to its power, board by board.

Rails overlap: a board's input rail feeds all others, and adding them would count everything twice. Sums of rails
are not what a meter at the wall shows either; every total says what it is the total of.

References:
    NVIDIA Jetson Linux Developer Guide r35.6 and r36.4.3, "Software-Based Power Consumption Modeling" of
    the Orin and Xavier series (VDDQ_VDD2_1V8AO is fed from VIN_SYS_5V0); r38, "Jetson Thor Product Family"
    (VIN is measured by an INA238 in front of module and carrier board).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

# Tried in order; the first whose rails are all there counts.
_INPUTS = {
    "VDD_IN": "the module's input, VDD_IN",
    "VIN": "the board's input, VIN (module and carrier board)",
    "POM_5V_IN": "the module's input, POM_5V_IN",
}
_SUMS = (
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
    ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"),
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),
    ("VDD_SYS_GPU", "VDD_SYS_SOC", "VDD_SYS_CPU", "VDD_SYS_DDR", "VDD_4V0_WIFI"),
)
_NOT_CONNECTED = re.compile(r"^NC\d*$|^$", re.IGNORECASE)
_SUM_CHANNEL = re.compile(r"\bsum\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Total:
    """Which rails are added, and what their sum is the power of."""

    rails: tuple[str, ...]
    covers: str


def is_rail(label: str) -> bool:
    """Tell whether a channel's label names a rail: not a free channel, not the chip's own sum of channels."""
    return not (_NOT_CONNECTED.match(label.strip()) or _SUM_CHANNEL.search(label))


def total_of(rails: Mapping[str, object]) -> Total | None:
    """Return which of these rails to add up; None for a board whose rails are not known.

    An unknown board gets no total: a plausible sum of unknown rails could be off by half.
    """
    for name, covers in _INPUTS.items():
        if name in rails:
            return Total((name,), covers)
    for names in _SUMS:
        if all(name in rails for name in names):
            return Total(names, f"the module's rails {' + '.join(names)}; less than its input")
    return None
