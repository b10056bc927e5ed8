"""Energy per image: power sampled while a bundle runs under steady load, integrated over exactly that time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .benchrecord import PowerUse
from .sensors import NoSensor, PowerSensor, Reading
from .watch import Watch

INTERVAL_S = 0.05
IDLE_SECONDS = 2.0
LEAST_SAMPLES = 10


@dataclass(frozen=True, slots=True)
class Load:
    """A steady load that is over: when it was, by `time.monotonic`, and how many images were classified."""

    start_s: float
    end_s: float
    images: int


def measure_power(
    sensor: PowerSensor | NoSensor, run_load: Callable[[], Load], idle_seconds: float = IDLE_SECONDS
) -> PowerUse:
    """Measure idle power, then power and energy under load; without a sensor nothing is run.

    Args:
        sensor: What `find_sensor` found.
        run_load: Runs the load to its end.
        idle_seconds: How long to watch the idle device first.
    """
    if isinstance(sensor, NoSensor):
        return PowerUse("", "", "no power sensor: " + "; ".join(sensor.reasons))
    try:
        with Watch(lambda: _timed(sensor), INTERVAL_S) as watch:
            started = time.monotonic()
            time.sleep(idle_seconds)
            rested = time.monotonic()
            load = run_load()
        return energy_of(sensor.name, sensor.covers, watch.values, (started, rested), load)
    finally:
        sensor.close()


def _timed(sensor: PowerSensor) -> tuple[float, Reading] | None:
    reading = sensor.read()
    return None if reading is None else (time.monotonic(), reading)


def energy_of(
    name: str,
    covers: str,
    samples: Sequence[tuple[float, Reading]],
    idle: tuple[float, float],
    load: Load,
) -> PowerUse:
    """Integrate readings over the load, by trapezoids, and take off what idling would have used.

    Args:
        name: The sensor's name.
        covers: What its watts are the power of.
        samples: Readings with their times.
        idle: From when to when the device was idle.
        load: From when to when it was busy.
    """
    busy = [(at, reading) for at, reading in samples if load.start_s <= at <= load.end_s]
    resting = [reading.watts for at, reading in samples if idle[0] <= at <= idle[1]]
    if len(busy) < LEAST_SAMPLES or not resting or load.images < 1:
        reason = (
            f"{name} gave {len(busy)} readings during the load and {len(resting)} before it; at least "
            f"{LEAST_SAMPLES} and 1 are needed"
        )
        return PowerUse(name, covers, reason)
    times = np.array([at for at, _ in samples])
    watts = np.array([reading.watts for _, reading in samples])
    inside = times[(times > load.start_s) & (times < load.end_s)]
    grid = np.concatenate(([load.start_s], inside, [load.end_s]))
    curve = np.interp(grid, times, watts)
    joules = float(np.sum(np.diff(grid) * (curve[1:] + curve[:-1]) / 2))
    seconds = load.end_s - load.start_s
    idle_w = float(np.mean(resting))
    rails = sorted({rail for _, reading in busy for rail in reading.rails})
    return PowerUse(
        sensor=name,
        covers=covers,
        reason="",
        idle_w=idle_w,
        load_w=joules / seconds,
        rails_w={
            rail: float(np.mean([reading.rails[rail] for _, reading in busy if rail in reading.rails]))
            for rail in rails
        },
        seconds=seconds,
        samples=len(busy),
        images=load.images,
        joule_per_image=joules / load.images,
        net_joule_per_image=(joules - idle_w * seconds) / load.images,
    )
