"""What a bench looks like while it runs: the last calls' latency, power, temperatures and clocks, twice a second.

The measured process writes each duration into a ring in shared memory, between two timed calls; this side reads the
ring and the sensors in a thread of its own. The measured process thus never waits, prints or formats anything, and
what the thread takes is itself measured and said.
"""

from __future__ import annotations

import mmap
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .devicestate import DeviceState, changes, read_state
from .latency import MIN_SAMPLES_FOR_P99, percentile
from .sensors import NoSensor, PowerSensor, Reading

WINDOW = MIN_SAMPLES_FOR_P99
INTERVAL_S = 0.5


class Ring:
    """The last durations of one process, in a file that two processes map.

    Args:
        path: The file; made if there is none.
    """

    def __init__(self, path: Path) -> None:
        size = 8 * (1 + WINDOW)
        if not path.exists():
            path.write_bytes(bytes(size))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), size)
        self._cells = memoryview(self._map).cast("q")

    def clear(self) -> None:
        """Forget what it holds, as the writing side does when it begins."""
        self._cells[0] = 0

    def add(self, nanoseconds: int) -> None:
        """Put in one duration; two stores, no system call."""
        count = self._cells[0]
        self._cells[1 + count % WINDOW] = nanoseconds
        self._cells[0] = count + 1

    def read(self) -> tuple[int, npt.NDArray[np.int64]]:
        """Return how many were put in, and the last ones in no order."""
        count = self._cells[0]
        return count, np.array(self._cells[1 : 1 + min(count, WINDOW)], dtype=np.int64)

    def close(self) -> None:
        """Let go of the file."""
        self._cells.release()
        self._map.close()


@dataclass(frozen=True, slots=True)
class Glimpse:
    """One look at a bench and its device; what the system does not tell is None, "" or absent.

    Attributes:
        seconds: Since the bench began.
        phase: What it is doing.
        calls: Timed calls of the process that is being measured, or was last; 0 before the first.
        p50_ms: Median of its last 1000 calls on a prepared image.
        p99_ms: Their 99th percentile; None while there are fewer than 1000.
        watts: Power now.
        sensor: What the watts are the power of, or why there are none.
        temperatures_c: Temperature of each zone.
        cpu_mhz: Clock of each core.
        gpu_mhz: Clock of the GPU.
        changes: What has happened to the device since the bench began that makes its numbers suspect.
    """

    seconds: float
    phase: str
    calls: int
    p50_ms: float | None
    p99_ms: float | None
    watts: float | None
    sensor: str
    temperatures_c: Mapping[str, float]
    cpu_mhz: tuple[float, ...]
    gpu_mhz: float | None
    changes: tuple[str, ...]


class Observer:
    """Looks at a bench twice a second and hands each glimpse on.

    Args:
        tell: Called with each glimpse, in the observer's thread.
        ring: File of the ring.
        sensor: What `find_sensor` found, for this observer alone.
        root: Where /proc and /sys are found.
        interval_s: Time between two glimpses.
    """

    def __init__(
        self,
        tell: Callable[[Glimpse], None],
        ring: Path,
        sensor: PowerSensor | NoSensor,
        root: Path = Path("/"),
        interval_s: float = INTERVAL_S,
    ) -> None:
        self.phase = "starting"
        self._tell, self._sensor, self._root, self._interval = tell, sensor, root, interval_s
        self._ring = Ring(ring)
        self._ring.clear()
        self._first = read_state(root, mode=False)
        self._began = time.monotonic()
        self._busy_s = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Observer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._ring.close()
        if not isinstance(self._sensor, NoSensor):
            self._sensor.close()

    @property
    def share_of_core(self) -> float:
        """Processor time that watching took so far, as a share of one core."""
        return self._busy_s / max(time.monotonic() - self._began, 1e-9)

    def look(self) -> Glimpse:
        """Look once."""
        count, durations = self._ring.read()
        ordered = np.sort(durations).astype(np.float64) / 1e6
        state = read_state(self._root, mode=False)
        reading, sensor = self._power()
        return Glimpse(
            seconds=time.monotonic() - self._began,
            phase=self.phase,
            calls=count,
            p50_ms=percentile(ordered, 0.5) if count else None,
            p99_ms=percentile(ordered, 0.99) if count >= MIN_SAMPLES_FOR_P99 else None,
            watts=reading.watts if reading else None,
            sensor=sensor,
            # The system's own word comes first; a desktop's GPU is told by its driver alone.
            temperatures_c={**(reading.temperatures_c if reading else {}), **state.temperatures_c},
            cpu_mhz=state.cpu_mhz,
            gpu_mhz=reading.gpu_mhz if state.gpu_mhz is None and reading else state.gpu_mhz,
            changes=self._changes(state),
        )

    def _power(self) -> tuple[Reading | None, str]:
        if isinstance(self._sensor, NoSensor):
            return None, "no power sensor: " + "; ".join(self._sensor.reasons)
        reading = self._sensor.read()
        return reading, self._sensor.covers if reading else f"no reading of {self._sensor.covers}"

    def _changes(self, state: DeviceState) -> tuple[str, ...]:
        return changes(self._first, state)

    def _follow(self) -> None:
        while not self._stop.wait(self._interval):
            self._tell(self.look())
            self._busy_s = time.thread_time()
