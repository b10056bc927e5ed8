"""What a bench shows while it runs."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from vlkd_bench.latency import measure_together
from vlkd_bench.observing import WINDOW, Glimpse, Observer, Ring
from vlkd_bench.sensors import NoSensor, Reading


def write(path: str, values: list[int]) -> None:
    ring = Ring(Path(path))
    ring.clear()
    for value in values:
        ring.add(value)
    ring.close()


@pytest.mark.parametrize("count", [0, 1, WINDOW - 1, WINDOW, 2 * WINDOW + 7])
def test_a_ring_gives_the_last_durations_of_another_process(tmp_path: Path, count: int) -> None:
    values = [1000 + 7 * i for i in range(count)]
    here = Ring(tmp_path / "ring")
    script = (
        "import json, sys; from pathlib import Path; from vlkd_bench.observing import Ring\n"
        "ring = Ring(Path(sys.argv[1])); ring.clear()\n"
        "for value in json.load(sys.stdin): ring.add(value)\n"
    )
    words = [sys.executable, "-c", script, str(tmp_path / "ring")]
    subprocess.run(words, input=json.dumps(values), text=True, check=True)
    found, durations = here.read()
    here.close()
    assert (found, sorted(durations.tolist())) == (count, values[-WINDOW:])


class Meter:
    name, covers = "fake", "the whole board"

    def __init__(self) -> None:
        self.closed = False

    def read(self) -> Reading | None:
        return Reading(7.25, {}, {"gpu-thermal": 99.0, "board": 40.0}, 918.0)

    def close(self) -> None:
        self.closed = True


def board(root: Path, celsius: int) -> Path:
    for name, text in {
        "sys/class/thermal/thermal_zone0/type": "gpu-thermal",
        "sys/class/thermal/thermal_zone0/temp": str(1000 * celsius),
        "sys/class/thermal/cooling_device0/type": "cpufreq",
        "sys/class/thermal/cooling_device0/cur_state": "0",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1510400",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


def test_a_glimpse_has_latency_power_temperature_clocks_and_throttling(tmp_path: Path) -> None:
    root, sensor = board(tmp_path / "root", 54), Meter()
    ring, seen, told = Ring(tmp_path / "ring"), threading.Event(), list[Glimpse]()

    def tell(glimpse: Glimpse) -> None:
        told.append(glimpse)
        if glimpse.changes:
            seen.set()

    durations = np.random.default_rng(0).integers(1_000_000, 2_000_000, 1500).tolist()
    with Observer(tell, tmp_path / "ring", sensor, root, interval_s=0.01) as observer:
        observer.phase = "process 1 of 1"
        for duration in durations:
            ring.add(duration)
        board(root, 61)
        (root / "sys/class/thermal/cooling_device0/cur_state").write_text("2\n")
        assert seen.wait(30)
        last = observer.look()
    ring.close()
    # A second, obvious way to a percentile: the value that this share of the sorted window does not exceed.
    window = sorted(durations[-WINDOW:])
    assert (last.calls, last.p50_ms, last.p99_ms) == (1500, window[499] / 1e6, window[989] / 1e6)
    assert (last.watts, last.sensor, last.temperatures_c) == (
        7.25,
        "the whole board",
        {"gpu-thermal": 61.0, "board": 40.0},
    )
    assert last.cpu_mhz == (1510.4,) and last.gpu_mhz == 918.0 and last.phase == "process 1 of 1"
    assert last.changes == ("throttling: cooling cpufreq rose from 0 to 2",)
    assert sensor.closed and 0 < observer.share_of_core < 1


def test_what_the_system_does_not_tell_is_said_and_a_p99_waits_for_1000_calls(tmp_path: Path) -> None:
    nothing = NoSensor(("RAPL: no energy counter",))
    with Observer(lambda _: None, tmp_path / "ring", nothing, tmp_path, interval_s=60) as observer:
        empty = observer.look()
        write(str(tmp_path / "ring"), [1_000_000] * 999)
        some = observer.look()
    assert (empty.p50_ms, empty.watts, empty.temperatures_c, empty.cpu_mhz) == (None, None, {}, ())
    assert empty.sensor == "no power sensor: RAPL: no energy counter"
    assert (some.p50_ms, some.p99_ms) == (1.0, None)


def test_the_hook_after_a_round_is_outside_what_is_timed() -> None:
    now = 0

    def spend(nanoseconds: int) -> None:
        nonlocal now
        now += nanoseconds

    series = measure_together(
        {"call": lambda: spend(1_000_000)},
        min_samples=20,
        clock=lambda: now,
        after=lambda samples: spend(50_000_000 + len(samples["call"])),
    )
    assert series.samples_ns["call"] == [1_000_000] * len(series.samples_ns["call"])


def test_the_hook_before_a_round_is_outside_what_is_timed_and_outside_the_limit() -> None:
    now, seen = 0, list[int]()

    def spend(nanoseconds: int) -> None:
        nonlocal now
        now += nanoseconds

    def wait(rounds: int) -> None:
        seen.append(rounds)
        spend(10**9)

    series = measure_together(
        {"call": lambda: spend(1_000_000)}, min_samples=20, max_seconds=2.0, clock=lambda: now, before=wait
    )
    assert series.samples_ns["call"] == [1_000_000] * 20 and not series.truncated
    assert seen == list(range(20))


GLIMPSE = Glimpse(12.3, "process 2 of 8", 1500, 1.234, 2.5, 7.25, "VDD_IN", {"gpu": 54.0, "cpu": 60.0},
                  (1510.0, 1190.0), 918.0, ("throttling: x rose from 0 to 1",))  # fmt: skip
SILENT = Glimpse(0.5, "starting", 0, None, None, None, "no power sensor: RAPL: none", {}, (), None, ())


def test_the_panel_and_the_line_say_all_of_it() -> None:
    from vlkd_edge.watching import Watching, panel, sparks

    assert sparks((1.0, 2.0, 3.0)) == "▁▅█" and sparks((1.0, 1.0)) == "▁▁"
    console = Console(record=True, width=100, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    with console.file:
        console.print(panel(GLIMPSE, (1.2, 1.3)))
        shown = Watching(console)
        shown.glimpse(SILENT)
        shown.glimpse(GLIMPSE)
    text = console.export_text()
    for part in ("p50 1.234 ms, p99 2.500 ms (last 1000 of 1500 calls)", "7.25 W (VDD_IN)", "cpu 60 °C, gpu 54 °C",
                 "CPU 1190 to 1510 MHz, GPU 918 MHz", "throttling: x rose", "▁█  1.200 to 1.300 ms",
                 "no call timed yet; no power sensor: RAPL: none; no temperature told; no clocks told"):  # fmt: skip
        assert part in text, (part, text)
