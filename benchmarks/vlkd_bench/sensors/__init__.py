"""Power sensors: each reads one source, says what it covers, and is silent rather than wrong."""

from .base import NoSensor, PowerSensor, Reading
from .choose import find_sensor

__all__ = ["NoSensor", "PowerSensor", "Reading", "find_sensor"]
