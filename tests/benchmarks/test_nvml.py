"""A GPU's power, state and memory through stand-ins for NVIDIA's management library."""

from __future__ import annotations

import types
from pathlib import Path

import pytest

from vlkd_bench.devicestate import DeviceState, changes, read_state
from vlkd_bench.sensors import NoSensor, Reading
from vlkd_bench.sensors.devicememory import DeviceMemory, find_device_memory
from vlkd_bench.sensors.nvml import GpuState, Nvml, open_nvml, read_gpu


def library(milliwatts: int | None, celsius: int | None = None) -> types.SimpleNamespace:
    """A stand-in for the module pynvml."""

    class NVMLError(Exception):
        pass

    def power(_: object) -> int:
        if milliwatts is None:
            raise NVMLError("Not Supported")
        return milliwatts

    def temperature(_: object, kind: int) -> int:
        if celsius is None:
            raise NVMLError("Not Supported")
        return celsius + kind

    closed: list[bool] = []
    lists = {
        0: [
            types.SimpleNamespace(pid=7, usedGpuMemory=2**20),
            types.SimpleNamespace(pid=9, usedGpuMemory=None),
        ],
        1: [types.SimpleNamespace(pid=7, usedGpuMemory=2**10)],
    }

    def processes(handle: int) -> list[types.SimpleNamespace]:
        if handle not in lists:
            raise NVMLError("Not Supported")
        return lists[handle]

    return types.SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: closed.append(True),
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetName=lambda _: b"NVIDIA RTX",
        NVML_TEMPERATURE_GPU=0,
        NVML_CLOCK_SM=1,
        nvmlDeviceGetPowerUsage=power,
        nvmlDeviceGetCount=lambda: 3,
        nvmlDeviceGetComputeRunningProcesses=processes,
        nvmlDeviceGetTemperature=temperature,
        nvmlDeviceGetClockInfo=lambda _, kind: 1800 + kind,
        closed=closed,
    )


def test_nvml_reads_the_board() -> None:
    sensor = open_nvml(library(71_500))
    assert isinstance(sensor, Nvml)
    assert sensor.read() == Reading(71.5, {"NVIDIA RTX": 71.5})
    warm = open_nvml(library(71_500, celsius=48))
    assert isinstance(warm, Nvml)
    assert warm.read() == Reading(71.5, {"NVIDIA RTX": 71.5}, {"NVIDIA RTX": 48.0}, 1801.0)
    assert "GPU board NVIDIA RTX" in sensor.covers


def desktop(milliseconds: int = 0, reasons: int | None = 0) -> types.SimpleNamespace:
    """A stand-in for pynvml on a desktop GPU that heat slowed for so long; its power policy is not told."""
    module = library(71_500, celsius=48)

    def refuse(*_: object) -> None:
        raise module.NVMLError("Not Supported")

    def violations(handle: object, policy: int) -> types.SimpleNamespace:
        return types.SimpleNamespace(violationTime=1_000_000 * milliseconds) if policy == 1 else refuse()

    more = {
        "NVML_CLOCK_MEM": 2,
        "NVML_PERF_POLICY_POWER": 0,
        "NVML_PERF_POLICY_THERMAL": 1,
        "nvmlClocksThrottleReasonSwThermalSlowdown": 0x20,
        "nvmlClocksThrottleReasonHwThermalSlowdown": 0x40,
        "nvmlDeviceGetEnforcedPowerLimit": lambda _: 320_000,
        "nvmlDeviceGetMaxClockInfo": lambda _, kind: 2500 + kind,
        "nvmlDeviceGetViolationStatus": violations,
        "nvmlDeviceGetCurrentClocksThrottleReasons": refuse if reasons is None else lambda _: reasons,
    }
    for name, value in more.items():
        setattr(module, name, value)
    return module


def test_a_desktop_gpus_state_is_its_drivers(tmp_path: Path) -> None:
    module = desktop()
    state = read_state(tmp_path, on_gpu=True, ask_driver=lambda: read_gpu(module))
    assert (state.power_mode, state.gpu_mhz, state.gpu_max_mhz) == ("GPU limited to 320 W", 1801.0, 2501.0)
    assert (state.memory_mhz, state.temperatures_c) == (1802.0, {"NVIDIA RTX": 48.0})
    assert state.throttling == {
        "milliseconds that heat slowed the GPU": 0,
        "GPU slowed by heat at this moment": 0,
    }
    assert DeviceState.from_json(state.to_json()) == state and module.closed == [True]
    hot = read_state(tmp_path, on_gpu=True, ask_driver=lambda: read_gpu(desktop(12, 0x44)))
    assert changes(state, hot) == (
        "throttling: milliseconds that heat slowed the GPU rose from 0 to 12",
        "throttling: GPU slowed by heat at this moment rose from 0 to 1",
    )
    # A model on the CPU has nothing to do with it.
    assert read_state(tmp_path, ask_driver=lambda: pytest.fail("asked")).gpu_mhz is None


def test_what_a_driver_does_not_tell_of_a_gpu_is_absent(tmp_path: Path) -> None:
    module = desktop(reasons=None)
    for name in ("EnforcedPowerLimit", "Temperature", "MaxClockInfo", "ViolationStatus", "Name"):
        setattr(module, f"nvmlDeviceGet{name}", module.nvmlDeviceGetCurrentClocksThrottleReasons)
    assert read_gpu(module) == GpuState("GPU", "", 1801.0, None, 1802.0, None, {})
    module.nvmlDeviceGetHandleByIndex = module.nvmlDeviceGetName
    assert read_gpu(module) is None

    def fail() -> None:
        raise module.NVMLError("no driver")

    module.nvmlInit = fail
    nothing = read_state(tmp_path, on_gpu=True, ask_driver=lambda: read_gpu(module))
    assert (nothing.gpu_mhz, nothing.gpu_max_mhz, nothing.power_mode) == (None, None, "")


def test_device_memory_is_that_of_one_process_on_every_gpu(tmp_path: Path) -> None:
    module = library(None)
    found = find_device_memory(tmp_path, on_gpu=True, library=module)
    assert isinstance(found, DeviceMemory)
    assert (found.of(7), found.of(8), found.of(9)) == (2**20 + 2**10, None, None)
    found.close()
    assert module.closed == [True]


@pytest.mark.parametrize(
    ("on_gpu", "files", "broken", "reason"),
    [
        pytest.param(False, (), "", "does not run on a GPU", id="on the CPU"),
        pytest.param(True, ("etc/nv_tegra_release",), "", "shares the main memory", id="on a Jetson"),
        pytest.param(True, (), "nvmlInit", "NVML: no driver", id="no driver"),
        pytest.param(True, (), "nvmlDeviceGetCount", "NVML: no driver", id="driver gone"),
    ],
)
def test_no_device_memory_says_why(
    tmp_path: Path, on_gpu: bool, files: tuple[str, ...], broken: str, reason: str
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("# R36 (release), REVISION: 4.0")
    module = library(1)

    def fail() -> None:
        raise module.NVMLError("no driver")

    if broken:
        setattr(module, broken, fail)
    found = find_device_memory(tmp_path, on_gpu=on_gpu, library=module)
    assert isinstance(found, NoSensor) and reason in found.reasons[0]
    assert module.closed == ([True] if broken == "nvmlDeviceGetCount" else [])


def test_nvml_that_tells_no_power_is_let_go() -> None:
    module = library(None)
    found = open_nvml(module)
    assert isinstance(found, NoSensor) and "does not tell its power" in found.reasons[0]
    assert module.closed == [True]
