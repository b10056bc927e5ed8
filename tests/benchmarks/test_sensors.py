"""Every power reader against the trees and lines of every board and JetPack generation."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vlkd_bench.devicestate import DeviceState, changes, read_state
from vlkd_bench.machine import read_machine
from vlkd_bench.powermeter import Load, energy_of, measure_power
from vlkd_bench.sensors import NoSensor, Reading, find_sensor
from vlkd_bench.sensors.ina3221 import Ina3221, open_ina3221
from vlkd_bench.sensors.rapl import Rapl, open_rapl
from vlkd_bench.sensors.tegrastats import Tegrastats, open_tegrastats, parse_line

_spec = importlib.util.spec_from_file_location("boards", Path(__file__).with_name("boards.py"))
assert _spec and _spec.loader
boards = importlib.util.module_from_spec(_spec)
sys.modules["boards"] = boards
_spec.loader.exec_module(boards)

EVERY = pytest.mark.parametrize("name", sorted(boards.BOARDS))


def test_every_generation_is_here() -> None:
    assert sorted(boards.BOARDS) == [
        "agx-orin-jp5",
        "agx-orin-jp6",
        "nano-jp4",
        "orin-nano-jp5",
        "orin-nano-jp6",
        "orin-nx-jp6",
        "thor-jp7",
        "xavier-jp5",
    ]


@EVERY
def test_rails_and_total_through_sysfs(name: str, tmp_path: Path) -> None:
    board = boards.BOARDS[name]
    sensor = find_sensor(boards.write(tmp_path, board.files))
    assert isinstance(sensor, Ina3221)
    reading = sensor.read()
    assert reading is not None
    assert reading.rails == pytest.approx(board.rails)
    assert reading.watts == pytest.approx(board.total)
    assert board.covers.replace("\\", "") in sensor.covers


@EVERY
def test_tegrastats_tells_the_same(name: str) -> None:
    board = boards.BOARDS[name]
    line = parse_line(board.line)
    assert line.rails == pytest.approx(board.rails)
    assert line.memory_used_bytes and line.memory_used_bytes >= 1500 * 2**20
    assert line.temperatures_c and all(0 < value < 150 for value in line.temperatures_c.values())
    program = f"import time\nwhile True: print({board.line!r}, flush=True); time.sleep(0.05)"
    sensor = open_tegrastats([sys.executable, "-c", program])
    assert isinstance(sensor, Tegrastats)
    try:
        reading = sensor.read()
        assert reading is not None and reading.watts == pytest.approx(board.total)
        assert board.covers.replace("\\", "") in sensor.covers
    finally:
        sensor.close()


@pytest.mark.parametrize(
    ("text", "load", "megahertz"),
    [
        pytest.param("GR3D_FREQ 45%@318", 0.45, 318.0, id="one clock"),
        pytest.param("GR3D_FREQ 0%@[0,0]", 0.0, 0.0, id="clusters"),
        pytest.param("GR3D_FREQ @[1574,1574,1570]", None, 1574.0, id="no load"),
        pytest.param("GR3D_FREQ 7%", 0.07, None, id="no clock"),
        pytest.param("RAM 1/2MB", None, None, id="neither"),
    ],
)
def test_the_gpus_entry_of_every_generation(text: str, load: float | None, megahertz: float | None) -> None:
    line = parse_line(f"RAM 1/2MB {text} tj@40C")
    assert (line.gpu_load, line.gpu_mhz) == (load, megahertz)


@EVERY
def test_machine_and_power_mode(name: str, tmp_path: Path) -> None:
    board = boards.BOARDS[name]
    root = boards.write(tmp_path, board.files)
    machine, state = read_machine(root), read_state(root)
    found = (machine.jetpack, machine.tensorrt, machine.gpu, state.power_mode)
    assert found == (board.jetpack, board.tensorrt, board.gpu, board.power_mode)
    assert DeviceState.from_json(state.to_json()) == state


def test_the_state_of_a_board(tmp_path: Path) -> None:
    root = boards.write(tmp_path, boards.ORIN_NANO_6.files)
    state = read_state(root)
    assert (state.governor, state.cpu_mhz, state.cpu_max_mhz) == ("schedutil", (1190.4,), 1728.0)
    assert (state.gpu_mhz, state.gpu_max_mhz) == (1020.0, 1020.0)
    assert state.temperatures_c == {"cpu-thermal": 51.25}  # the sensor of cv0 is off: -256 °C
    assert state.throttling == {"over-current oc1 events": 0, "cooling cpufreq-cpu0": 0}  # fans slow nothing
    assert read_machine(root).cuda == "12.6.11"
    assert changes(state, read_state(root)) == ()
    boards.write(
        root,
        {
            "var/lib/nvpmodel/status": "pmode:0000\n",
            "sys/class/hwmon/hwmon2/oc1_event_cnt": "4\n",
            "sys/class/devfreq/17000000.gpu/max_freq": "612000000\n",
        },
    )
    assert changes(state, read_state(root)) == (
        "the power mode changed from MAXN_SUPER to 15W",
        "the GPU's highest allowed clock fell from 1020 to 612 MHz",
        "throttling: over-current oc1 events rose from 0 to 4",
    )


def test_a_system_that_tells_nothing_has_no_sensor_and_no_zeros(tmp_path: Path) -> None:
    found = find_sensor(tmp_path)
    assert isinstance(found, NoSensor)
    assert len(found.reasons) == 2 and "INA3221" in found.reasons[0] and "RAPL" in found.reasons[1]
    use = measure_power(found, lambda: pytest.fail("nothing must run"))
    assert use.reason.startswith("no power sensor: INA3221") and use.load_w is use.joule_per_image is None
    state = read_state(tmp_path)
    assert (state.cpu_mhz, state.gpu_mhz, state.power_mode, state.load_average) == ((), None, "", None)
    assert "tells neither" in state.describe()


def test_a_board_of_unknown_rails_gets_no_total(tmp_path: Path) -> None:
    files = boards.hwmon(f"{boards.I2C}/1-0040/hwmon/hwmon1", {1: ("VDD_NEW", 5000, 100)})
    found = open_ina3221(boards.write(tmp_path, files))
    assert isinstance(found, NoSensor) and "VDD_NEW are of no known board" in found.reasons[0]


def test_a_rail_that_cannot_be_read_gives_no_reading(tmp_path: Path) -> None:
    root = boards.write(tmp_path, boards.ORIN_NANO_6.files)
    sensor = open_ina3221(root)
    assert isinstance(sensor, Ina3221)
    (root / boards.I2C / "1-0040/hwmon/hwmon1/curr1_input").write_text("\n")
    assert sensor.read() is None
    assert isinstance(open_ina3221(root), NoSensor)


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        pytest.param(["/nowhere/tegrastats"], "cannot be started", id="not there"),
        pytest.param([sys.executable, "-c", "print('RAM 1/2MB')"], "show no rail", id="no rails"),
        pytest.param([sys.executable, "-c", ""], "show no rail", id="no lines"),
        pytest.param([sys.executable, "-c", "print(' VDD_X 1mW/1mW')"], "show VDD_X", id="unknown rails"),
    ],
)
def test_a_tegrastats_that_tells_no_power(command: list[str], reason: str) -> None:
    found = open_tegrastats(command)
    assert isinstance(found, NoSensor) and reason in found.reasons[0]


def rapl(root: Path, **microjoules: int) -> Path:
    for zone, value in microjoules.items():
        number = zone.removeprefix("p").replace("_", ":")
        folder = f"sys/class/powercap/intel-rapl:{number}"
        title = "core" if ":" in number else f"package-{number}"
        boards.write(
            root,
            {
                f"{folder}/name": title,
                f"{folder}/energy_uj": str(value),
                f"{folder}/max_energy_range_uj": "1000000",
            },
        )
    return root


def test_rapl_adds_packages_and_counts_past_its_end(tmp_path: Path) -> None:
    times: Iterator[float] = iter([0.0, 2.0, 2.0])
    sensor = open_rapl(rapl(tmp_path, p0=900_000, p1=100_000, p0_0=5), lambda: next(times))
    assert isinstance(sensor, Rapl)
    rapl(tmp_path, p0=300_000, p1=300_000, p0_0=999)
    reading = sensor.read()
    # 0.4 J past the end of the first counter and 0.2 J on the second, in two seconds; core 0:0 is in package 0.
    assert reading is not None
    assert reading.rails == pytest.approx({"package-0": 0.2, "package-1": 0.1})
    assert reading.watts == pytest.approx(0.3)
    assert sensor.read() is None  # no time has passed


def test_rapl_without_access_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = rapl(tmp_path, p0=1)
    plain = Path.read_text

    def refuse(path: Path, *arguments: str, **named: str) -> str:
        if path.name == "energy_uj":
            raise PermissionError
        return plain(path, *arguments, **named)

    monkeypatch.setattr(Path, "read_text", refuse)
    found = open_rapl(root)
    assert isinstance(found, NoSensor) and "root only" in found.reasons[0]


def test_a_jetsons_own_tree_comes_before_the_driver(tmp_path: Path) -> None:
    root = boards.write(tmp_path / "board", boards.ORIN_NANO_6.files)
    assert read_state(root, on_gpu=True, ask_driver=lambda: pytest.fail("asked")).gpu_mhz == 1020.0


def test_energy_is_the_integral_over_the_load_alone() -> None:
    """Power ramps from 2 to 4 W during the load of 2 s; before it is 1 W, after it is nonsense."""
    samples = [(i / 10, Reading(1.0, {"A": 1.0})) for i in range(10)]
    samples += [(1 + i / 10, Reading(2 + i / 10, {"A": 2 + i / 10})) for i in range(21)]
    samples += [(3.1 + i / 10, Reading(99.0, {"A": 99.0})) for i in range(10)]
    use = energy_of("x", "everything", samples, (0.0, 0.95), Load(1.0, 3.0, 60))
    assert use.load_w == pytest.approx(3.0) and use.idle_w == pytest.approx(1.0)
    assert use.joule_per_image == pytest.approx(6.0 / 60)
    assert use.net_joule_per_image == pytest.approx(4.0 / 60)
    assert use.rails_w == pytest.approx({"A": 3.0})


def test_too_few_readings_give_no_energy() -> None:
    use = energy_of("x", "everything", [(0.0, Reading(1.0)), (1.5, Reading(1.0))], (0, 0.5), Load(1, 2, 5))
    assert use.joule_per_image is None and "gave 1 readings during the load" in use.reason


class Constant:
    """A sensor of constant power."""

    name, covers = "constant", "a test"

    def __init__(self) -> None:
        self.closed = False

    def read(self) -> Reading:
        return Reading(5.0, {"A": 5.0})

    def close(self) -> None:
        self.closed = True


def test_a_meter_reads_while_the_load_runs_and_lets_go() -> None:
    import time

    def load() -> Load:
        start = time.monotonic()
        time.sleep(1.0)
        return Load(start, time.monotonic(), 10)

    sensor = Constant()
    use = measure_power(sensor, load, idle_seconds=0.3)
    assert sensor.closed and use.reason == "" and use.samples and use.samples >= 10
    assert use.load_w == pytest.approx(5.0) and use.net_joule_per_image == pytest.approx(0.0, abs=1e-9)
