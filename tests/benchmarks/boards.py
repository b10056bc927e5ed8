"""Sysfs trees and tegrastats lines of Jetson boards, written from NVIDIA's and the kernel's documented formats.

They are no dumps of real boards: names, units and layouts are the documented ones, values are plausible.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Board:
    """One board on one JetPack generation.

    `rails` is what each rail must read in watts, `total` which of them add up.
    """

    files: Mapping[str, str]
    rails: Mapping[str, float]
    total: float
    covers: str
    line: str
    jetpack: str
    tensorrt: str
    power_mode: str
    gpu: str


def hwmon(folder: str, channels: Mapping[int, tuple[str, int, int]]) -> dict[str, str]:
    """An INA3221 as JetPack 5 to 7 show it: label, millivolts, milliamperes by channel."""
    files = {f"{folder}/name": "ina3221\n"}
    for number, (label, millivolts, milliamperes) in channels.items():
        files[f"{folder}/in{number}_label"] = f"{label}\n"
        files[f"{folder}/in{number}_input"] = f"{millivolts}\n"
        files[f"{folder}/curr{number}_input"] = f"{milliamperes}\n"
        files[f"{folder}/in{number}_enable"] = "1\n"
    # The chip's own sum of shunt voltages is a channel as well, and no rail.
    files[f"{folder}/in7_label"] = "sum of shunt voltages\n"
    files[f"{folder}/in7_input"] = "1234\n"
    return files


def release(revision: str) -> str:
    major, _, minor = revision.partition(".")
    return f"# R{major} (release), REVISION: {minor}, GCID: 1, BOARD: generic, EABI: aarch64, DATE: Wed\n"


def packages(**versions: str) -> str:
    return "\n\n".join(
        f"Package: {name.replace('_', '-')}\nStatus: install ok installed\nVersion: {version}"
        for name, version in versions.items()
    )


MODES = "< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n< POWER_MODEL ID=1 NAME=25W >\n"
MODES += "< POWER_MODEL ID=2 NAME={} >\n"
I2C = "sys/bus/i2c/drivers/ina3221"

XAVIER = Board(
    files={
        "etc/nv_tegra_release": release("35.4.1"),
        "proc/device-tree/model": "Jetson-AGX\0",
        "proc/device-tree/compatible": "nvidia,p2972-0000\0nvidia,tegra194\0",
        "var/lib/dpkg/status": packages(libnvinfer8="8.5.2-1+cuda11.4"),
        "var/lib/nvpmodel/status": "pmode:0002\n",
        "etc/nvpmodel.conf": MODES.format("MODE_15W"),
        "sys/class/devfreq/17000000.gv11b/cur_freq": "1377000000\n",
        "sys/class/devfreq/17000000.gv11b/max_freq": "1377000000\n",
        **hwmon(
            f"{I2C}/7-0040/hwmon/hwmon5",
            {1: ("GPU", 19000, 100), 2: ("CPU", 19000, 60), 3: ("SOC", 19000, 80)},
        ),
        **hwmon(
            f"{I2C}/7-0041/hwmon/hwmon6",
            {1: ("CV", 19000, 0), 2: ("VDDRQ", 19000, 40), 3: ("SYS5V", 5000, 500)},
        ),
    },
    rails={"GPU": 1.9, "CPU": 1.14, "SOC": 1.52, "CV": 0.0, "VDDRQ": 0.76, "SYS5V": 2.5},
    total=7.82,
    covers="the module's rails GPU \\+ CPU",
    line=(
        "11-02-2023 10:11:12 RAM 3012/31011MB (lfb 5x4MB) SWAP 0/15505MB (cached 0MB) CPU [5%@1190,off,off] "
        "EMC_FREQ 0%@2133 GR3D_FREQ 12%@1377 AUX@38C CPU@40.5C Tdiode@41C GPU@-256C thermal@39.7C "
        "GPU 1900mW/1800mW CPU 1140mW/1100mW SOC 1520mW/1500mW CV 0mW/0mW VDDRQ 760mW/700mW SYS5V 2500mW/2400mW"
    ),
    jetpack="5.1.2",
    tensorrt="8.5.2",
    power_mode="MODE_15W",
    gpu="Volta (tegra194)",
)
ORIN_CHANNELS = {1: ("VDD_IN", 5000, 1200), 2: ("VDD_CPU_GPU_CV", 5000, 400), 3: ("VDD_SOC", 5000, 300)}
ORIN_RAILS = {"VDD_IN": 6.0, "VDD_CPU_GPU_CV": 2.0, "VDD_SOC": 1.5}
ORIN_LINE = "VDD_IN 6000mW/5900mW VDD_CPU_GPU_CV 2000mW/1900mW VDD_SOC 1500mW/1500mW"
ORIN_NANO_5 = Board(
    files={
        "etc/nv_tegra_release": release("35.5.0"),
        "proc/device-tree/model": "NVIDIA Orin Nano Developer Kit\0",
        "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0005\0nvidia,tegra234\0",
        "var/lib/dpkg/status": packages(nvidia_jetpack="5.1.3-b29", libnvinfer8="8.5.2-1+cuda11.4"),
        "var/lib/nvpmodel/status": "pmode:0000\n",
        "etc/nvpmodel.conf": MODES.format("MAXN"),
        "sys/class/devfreq/17000000.ga10b/cur_freq": "306000000\n",
        "sys/class/devfreq/17000000.ga10b/max_freq": "624750000\n",
        **hwmon(f"{I2C}/1-0040/hwmon/hwmon3", ORIN_CHANNELS),
    },
    rails=ORIN_RAILS,
    total=6.0,
    covers="the module's input, VDD_IN",
    line=(
        "07-01-2024 08:00:01 RAM 2300/6480MB (lfb 9x4MB) SWAP 0/3240MB (cached 0MB) CPU [1%@729,0%@729,off] "
        f"EMC_FREQ 0%@2133 GR3D_FREQ 45%@318 CV0@-256C CPU@44.6C SOC2@43C GPU@-256C tj@44.6C {ORIN_LINE}"
    ),
    jetpack="5.1.3",
    tensorrt="8.5.2",
    power_mode="15W",
    gpu="Ampere (tegra234)",
)
ORIN_NANO_6 = Board(
    files={
        "etc/nv_tegra_release": release("36.4.3"),
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
        "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0nvidia,tegra234\0",
        "var/lib/dpkg/status": packages(nvidia_jetpack="6.2+b77", libnvinfer10="10.3.0.30-1+cuda12.5"),
        "var/lib/nvpmodel/status": "pmode:0002 fmode:fanNull\n",
        "etc/nvpmodel.conf": MODES.format("MAXN_SUPER"),
        "usr/local/cuda/version.json": '{"cuda": {"name": "CUDA SDK", "version": "12.6.11"}}',
        "sys/class/devfreq/17000000.gpu/cur_freq": "1020000000\n",
        "sys/class/devfreq/17000000.gpu/max_freq": "1020000000\n",
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
        "sys/class/thermal/thermal_zone0/temp": "51250\n",
        "sys/class/thermal/thermal_zone1/type": "cv0-thermal\n",
        "sys/class/thermal/thermal_zone1/temp": "-256000\n",
        "sys/class/thermal/cooling_device0/type": "pwm-fan\n",
        "sys/class/thermal/cooling_device0/cur_state": "3\n",
        "sys/class/thermal/cooling_device1/type": "cpufreq-cpu0\n",
        "sys/class/thermal/cooling_device1/cur_state": "0\n",
        "sys/class/hwmon/hwmon2/oc1_event_cnt": "0\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1190400\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "1728000\n",
        **hwmon(f"{I2C}/1-0040/hwmon/hwmon1", ORIN_CHANNELS),
    },
    rails=ORIN_RAILS,
    total=6.0,
    covers="the module's input, VDD_IN",
    line=(
        "01-20-2025 12:00:00 RAM 2911/7620MB (lfb 2x4MB) SWAP 0/3810MB (cached 0MB) CPU [3%@1190,0%@729] "
        f"EMC_FREQ 1%@3199 GR3D_FREQ 10%@[1020] NVDEC off cpu@51.25C soc2@50.1C tj@51.2C cv0@-256C {ORIN_LINE}"
    ),
    jetpack="6.2",
    tensorrt="10.3.0.30",
    power_mode="MAXN_SUPER",
    gpu="Ampere (tegra234)",
)
ORIN_NX_6 = Board(
    files={
        "etc/nv_tegra_release": release("36.3.0"),
        "proc/device-tree/model": "NVIDIA Jetson Orin NX Engineering Reference Developer Kit\0",
        "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0000\0nvidia,tegra234\0",
        "usr/lib/aarch64-linux-gnu/libnvinfer.so.8.6.2": "",
        "var/lib/nvpmodel/status": "pmode:0001\n",
        "etc/nvpmodel.conf": MODES.format("MAXN"),
        **hwmon(f"{I2C}/1-0040/hwmon/hwmon4", ORIN_CHANNELS),
    },
    rails=ORIN_RAILS,
    total=6.0,
    covers="the module's input, VDD_IN",
    line=f"RAM 3000/15656MB (lfb 2x4MB) CPU [3%@1190] EMC_FREQ 1%@3199 GR3D_FREQ 0%@[612] tj@51.2C {ORIN_LINE}",
    jetpack="6.0",
    tensorrt="8.6.2",
    power_mode="25W",
    gpu="Ampere (tegra234)",
)
AGX_FIRST = {1: ("VDD_GPU_SOC", 20000, 160), 2: ("VDD_CPU_CV", 20000, 40), 3: ("VIN_SYS_5V0", 5000, 800)}
AGX_SECOND = {1: ("NC", 0, 0), 2: ("VDDQ_VDD2_1V8AO", 5000, 120), 3: ("NC", 0, 0)}
AGX_RAILS = {"VDD_GPU_SOC": 3.2, "VDD_CPU_CV": 0.8, "VIN_SYS_5V0": 4.0, "VDDQ_VDD2_1V8AO": 0.6}
AGX_LINE = (
    "VDD_GPU_SOC 3200mW/3100mW VDD_CPU_CV 800mW/800mW VIN_SYS_5V0 4000mW/4000mW VDDQ_VDD2_1V8AO 600mW/600mW"
)
AGX_ORIN_5 = Board(
    files={
        "etc/nv_tegra_release": release("35.3.1"),
        "proc/device-tree/model": "Jetson AGX Orin Developer Kit\0",
        "proc/device-tree/compatible": "nvidia,p3737-0000+p3701-0005\0nvidia,tegra234\0",
        "var/lib/nvpmodel/status": "pmode:0000\n",
        "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >\n",
        **hwmon(f"{I2C}/1-0040/hwmon/hwmon3", AGX_FIRST),
        **hwmon(f"{I2C}/1-0041/hwmon/hwmon4", AGX_SECOND),
    },
    rails=AGX_RAILS,
    total=8.0,
    covers="VDD_GPU_SOC \\+ VDD_CPU_CV \\+ VIN_SYS_5V0; less than its input",
    line=(
        "RAM 9000/62795MB (lfb 1x4MB) SWAP 0/31397MB (cached 0MB) CPU [0%@729,off] EMC_FREQ 0%@2133 "
        f"GR3D_FREQ 14%@407 NVDLA0_FREQ @1600 CV0@-256C CPU@47.2C Tboard@36C tj@47.2C {AGX_LINE}"
    ),
    jetpack="5.1.1",
    tensorrt="",
    power_mode="MAXN",
    gpu="Ampere (tegra234)",
)
AGX_ORIN_6 = Board(
    files={**AGX_ORIN_5.files, "etc/nv_tegra_release": release("36.4.0")},
    rails=AGX_RAILS,
    total=8.0,
    covers=AGX_ORIN_5.covers,
    line=(
        "RAM 9000/62795MB (lfb 1x4MB) CPU [0%@729,off] EMC_FREQ 0%@3199 GR3D_FREQ 12%@[1300,1298] "
        f"NVDLA0 off cpu@47.2C tj@47.2C {AGX_LINE} NC 0mW/0mW"
    ),
    jetpack="6.1",
    tensorrt="",
    power_mode="MAXN",
    gpu="Ampere (tegra234)",
)
THOR = Board(
    files={
        "etc/nv_tegra_release": release("38.2.1"),
        "proc/device-tree/model": "NVIDIA Jetson AGX Thor Developer Kit\0",
        "proc/device-tree/compatible": "nvidia,p4071-0000+p3834-0008\0nvidia,tegra264\0",
        "var/lib/dpkg/status": packages(libnvinfer10="10.13.3.9-1+cuda13.0"),
        "var/lib/nvpmodel/status": "pmode:0001\n",
        "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=1 NAME=120W >\n",
        "sys/class/devfreq/gpu-gpc-0/cur_freq": "1574000000\n",
        "sys/class/devfreq/gpu-gpc-0/max_freq": "1575000000\n",
        **hwmon(
            f"{I2C}/2-0040/hwmon/hwmon2",
            {1: ("VDD_GPU", 20000, 300), 2: ("VDD_CPU_SOC_MSS", 20000, 350), 3: ("VIN_SYS_5V0", 5000, 1300)},
        ),
        "sys/bus/i2c/drivers/ina238/2-0044/hwmon/hwmon3/name": "ina238\n",
        "sys/bus/i2c/drivers/ina238/2-0044/hwmon/hwmon3/power1_input": "28906000\n",
    },
    rails={"VDD_GPU": 6.0, "VDD_CPU_SOC_MSS": 7.0, "VIN_SYS_5V0": 6.5, "VIN": 28.906},
    total=28.906,
    covers="the board's input, VIN",
    line=(
        "RAM 3429/125749MB (lfb 120x4MB) CPU [0%,5%,off]@2601 EMC_FREQ @4266 GR3D_FREQ @[1574,1574,1574] "
        "NVENC0_FREQ @1691 VIC off cpu@49.75C/49.75C tj@51.218C/51.218C gpu@51.218C/51.218C "
        "VDD_GPU 6000mW/6000mW/6330mW VDD_CPU_SOC_MSS 7000mW/7000mW/7000mW VIN_SYS_5V0 6500mW/6500mW/6500mW "
        "VIN 28906mW/14453mW/28906mW"
    ),
    jetpack="7.0",
    tensorrt="10.13.3.9",
    power_mode="120W",
    gpu="Blackwell (tegra264)",
)
NANO_4 = Board(
    files={
        "etc/nv_tegra_release": release("32.7.4"),
        "proc/device-tree/model": "NVIDIA Jetson Nano Developer Kit\0",
        "proc/device-tree/compatible": "nvidia,p3450-0000\0nvidia,jetson-nano\0nvidia,tegra210\0",
        "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/rail_name_0": "POM_5V_IN\n",
        "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/in_power0_input": "2500\n",
        "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/rail_name_1": "POM_5V_GPU\n",
        "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/in_power1_input": "200\n",
        "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/rail_name_2": "POM_5V_CPU\n",
        "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/in_power2_input": "600\n",
    },
    rails={"POM_5V_IN": 2.5, "POM_5V_GPU": 0.2, "POM_5V_CPU": 0.6},
    total=2.5,
    covers="the module's input, POM_5V_IN",
    line=(
        "RAM 1500/3956MB (lfb 200x4MB) SWAP 0/1978MB (cached 0MB) CPU [12%@1479,off] EMC_FREQ 0% GR3D_FREQ 0% "
        "PLL@33C CPU@36C PMIC@100C GPU@33.5C AO@42C thermal@34.75C POM_5V_IN 2500/2400 POM_5V_GPU 200/180 "
        "POM_5V_CPU 600/550"
    ),
    jetpack="4.6.1",
    tensorrt="",
    power_mode="",
    gpu="Maxwell (tegra210)",
)

BOARDS = {
    "nano-jp4": NANO_4,
    "xavier-jp5": XAVIER,
    "orin-nano-jp5": ORIN_NANO_5,
    "orin-nano-jp6": ORIN_NANO_6,
    "orin-nx-jp6": ORIN_NX_6,
    "agx-orin-jp5": AGX_ORIN_5,
    "agx-orin-jp6": AGX_ORIN_6,
    "thor-jp7": THOR,
}


def write(root: Path, files: Mapping[str, str]) -> Path:
    """Lay files out under a root."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root
