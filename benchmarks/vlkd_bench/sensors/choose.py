"""Which power sensor to use on this machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .base import NoSensor, PowerSensor
from .ina3221 import open_ina3221
from .nvml import open_nvml
from .rapl import open_rapl
from .tegrastats import open_tegrastats


def find_sensor(root: Path = Path("/"), *, on_gpu: bool = False) -> PowerSensor | NoSensor:
    """Open the sensor that covers what runs the model, or say why there is none.

    A Jetson's own rails come first: they cover CPU and GPU alike. Elsewhere a GPU's sensor says nothing about a
    model that runs on the CPU, and the other way round, so only the one that fits is taken.

    Args:
        root: Where /sys is found; another folder in tests, where no program is started.
        on_gpu: Whether the model runs on a GPU.
    """
    here = root == Path("/")
    sources: list[Callable[[], PowerSensor | NoSensor]] = [lambda: open_ina3221(root)]
    sources += [open_tegrastats] if here else []
    if on_gpu:
        sources += [open_nvml] if here else []
    else:
        sources.append(lambda: open_rapl(root))
    reasons: list[str] = []
    for source in sources:
        found = source()
        if not isinstance(found, NoSensor):
            return found
        reasons += found.reasons
    return NoSensor(tuple(reasons))
