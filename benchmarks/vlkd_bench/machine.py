"""What a measurement ran on: enough to refuse a comparison across machines, nothing that names the machine.

Host names, user names, addresses and paths are left out on purpose: records are shared.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .jsonvalues import decode, encode
from .software import cuda_version, gpu_names, jetpack_version, tensorrt_version

# Instruction sets that change the speed of a network on a CPU; x86 names, then Arm's.
ISA_OF_INTEREST = (
    "avx2",
    "fma",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx_vnni",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimdhp",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
)


@dataclass(frozen=True, slots=True)
class Machine:
    """A fingerprint of hardware and software, without a name.

    Attributes:
        cpu_model: The processor's own name, or its architecture where it tells none.
        logical_cores: Cores the system has.
        usable_cores: Cores this process may use.
        isa: Instruction sets that matter for speed, in a fixed order.
        memory_bytes: Main memory.
        os: System and kernel.
        architecture: For example "x86_64" or "aarch64".
        python: Version of Python.
        load_average: Mean number of busy tasks over the last minute, when measured.
        board: The board's name where the device tree tells it (a Jetson's does), or "".
        jetson_release: First line of the Jetson Linux release file, or "".
        gpu: Its GPUs, or "".
        jetpack: Version of JetPack, or "".
        tensorrt: Version of TensorRT that the system has installed, or "".
        cuda: Version of CUDA that the system has installed, or "".
    """

    cpu_model: str
    logical_cores: int
    usable_cores: int
    isa: tuple[str, ...]
    memory_bytes: int
    os: str
    architecture: str
    python: str
    load_average: float
    board: str
    jetson_release: str
    gpu: str = ""
    jetpack: str = ""
    tensorrt: str = ""
    cuda: str = ""

    def to_json(self) -> dict[str, object]:
        """Return the fields as JSON values."""
        return encode(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Machine:
        """Take back what `to_json` gave.

        Raises:
            DataError: A field is missing or of another type.
        """
        return decode(cls, data)

    def describe(self) -> str:
        """Return one line for people."""
        memory = f"{self.memory_bytes / 2**30:.0f} GiB" if self.memory_bytes else "memory unknown"
        parts = [self.board] if self.board else []
        if self.gpu and not self.board:
            parts.append(self.gpu)
        parts += [self.cpu_model, f"{self.usable_cores} of {self.logical_cores} cores", memory, self.os]
        versions = (("JetPack", self.jetpack), ("TensorRT", self.tensorrt))
        parts += [f"{name} {version}" for name, version in versions if version]
        return ", ".join([*parts, f"Python {self.python}", f"load {self.load_average:.1f}"])


def read_machine(root: Path = Path("/")) -> Machine:
    """Read the fingerprint of this machine.

    Args:
        root: Where /proc and /etc are found; another folder in tests.
    """
    cpu = _read(root / "proc/cpuinfo")
    logical = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else logical
    try:
        load = os.getloadavg()[0]
    except OSError:
        load = 0.0
    flags = set((_field(cpu, "flags") or _field(cpu, "Features")).split())
    return Machine(
        cpu_model=_field(cpu, "model name") or _field(cpu, "Hardware") or platform.machine(),
        logical_cores=logical,
        usable_cores=usable,
        isa=tuple(name for name in ISA_OF_INTEREST if name in flags),
        memory_bytes=_memory_bytes(_read(root / "proc/meminfo")),
        os=f"{platform.system()} {platform.release()}",
        architecture=platform.machine(),
        python=platform.python_version(),
        load_average=load,
        board=_read(root / "proc/device-tree/model").strip("\0 \n"),
        jetson_release=_read(root / "etc/nv_tegra_release").split("\n", 1)[0].strip(),
        gpu=", ".join(gpu_names(root)),
        jetpack=jetpack_version(root),
        tensorrt=tensorrt_version(root),
        cuda=cuda_version(root),
    )


def _read(path: Path) -> str:
    """Return a file's text, or nothing where there is no such file."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _field(text: str, name: str) -> str:
    """Return the value of the first ``name : value`` line of /proc text, or nothing."""
    for line in text.split("\n"):
        key, colon, value = line.partition(":")
        if colon and key.strip() == name:
            return value.strip()
    return ""


def _memory_bytes(meminfo: str) -> int:
    """Return the main memory that /proc/meminfo reports, or 0."""
    amount = _field(meminfo, "MemTotal").split()
    return int(amount[0]) * 1024 if amount and amount[0].isdigit() else 0
