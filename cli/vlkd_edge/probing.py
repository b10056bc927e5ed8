"""What a machine has, read from files and package metadata alone: nothing is imported that could be slow or crash.

References:
    NVIDIA Jetson Linux Developer Guide: ``/etc/nv_tegra_release``, the device tree, nvpmodel.
    NVIDIA driver README, chapter "Using the /proc file system interface": ``/proc/driver/nvidia``.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vlkd_bench import software
from vlkd_bench.devicestate import read_state
from vlkd_bench.machine import read_machine
from vlkd_runtime.ortimport import import_onnxruntime

# Module, and the distributions that may bring it.
PACKAGES: dict[str, tuple[str, ...]] = {
    "numpy": ("numpy",),
    "PIL": ("pillow",),
    "typer": ("typer",),
    "cryptography": ("cryptography",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "onnxruntime_ep_nv_tensorrt_rtx": ("onnxruntime-ep-nv-tensorrt-rtx-cu13",),
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt_bindings": ("tensorrt-cu13-bindings", "tensorrt-cu12-bindings"),
    "tensorrt_rtx": ("tensorrt_rtx", "tensorrt-rtx"),
    "torch": ("torch",),
    "torchvision": ("torchvision",),
    "timm": ("timm",),
    "open_clip": ("open_clip_torch",),
    "onnx": ("onnx",),
    "onnxscript": ("onnxscript",),
    "safetensors": ("safetensors",),
    "jinja2": ("jinja2",),
    "matplotlib": ("matplotlib",),
    "transformers": ("transformers",),
    "optimum": ("optimum-onnx", "optimum"),
    "torch_tensorrt": ("torch-tensorrt",),
}
BUILD = (
    *("torch", "torchvision", "timm", "open_clip", "onnx", "onnxscript", "onnxruntime"),
    *("safetensors", "jinja2", "matplotlib"),
)


@dataclass(frozen=True, slots=True)
class PythonFacts:
    """This Python and what is installed in it.

    Attributes:
        version: for example ``3.10.12``.
        isolated: whether it is a virtual environment that does not see the system's packages.
        packages: module to version, ``"?"`` where the version is not stated; only what is installed.
        providers: what ONNX Runtime was built with; being listed does not mean that it works.
    """

    version: str
    isolated: bool
    packages: Mapping[str, str]
    providers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class System:
    """The machine below Python; empty where it does not tell.

    Attributes:
        architecture: ``x86_64`` or ``aarch64``.
        distribution: of Linux, as its release file calls it: ``ubuntu``, ``debian``.
        board: name of the board, a Jetson's for one.
        linux: release of Jetson Linux.
        jetpack: version of JetPack.
        tensorrt: version of TensorRT's library among the system's packages.
        tensorrt_module: Python versions for which the system has TensorRT's module, ``3.10``.
        cuda: version of the CUDA toolkit.
        driver: version of NVIDIA's driver.
        gpus: their names.
        power_mode: the board's.
        memory_bytes: main memory.
    """

    architecture: str
    distribution: str
    board: str
    linux: str
    jetpack: str
    tensorrt: str
    tensorrt_module: tuple[str, ...]
    cuda: str
    driver: str
    gpus: tuple[str, ...]
    power_mode: str
    memory_bytes: int

    @property
    def is_jetson(self) -> bool:
        """Whether this is one of NVIDIA's boards."""
        return bool(self.linux)


def read_python() -> PythonFacts:
    """Look at this Python; ONNX Runtime alone is imported, to ask what it was built with."""
    found = {}
    for module, distributions in PACKAGES.items():
        if _present(module):
            found[module] = next(filter(None, map(_version, distributions)), "?")
    return PythonFacts(
        version=".".join(map(str, sys.version_info[:3])),
        isolated=sys.prefix != sys.base_prefix and not _sees_system(Path(sys.prefix)),
        packages=found,
        providers=_providers() if "onnxruntime" in found else (),
    )


def read_system(root: Path = Path("/"), architecture: str = "") -> System:
    """Look at the machine.

    Args:
        root: where /proc, /etc and /usr are found; another folder in tests.
        architecture: to say instead of this machine's own.
    """
    machine = read_machine(root)
    modules = sorted(
        path.parent.parent.name.removeprefix("python")
        for path in (root / "usr/lib").glob("python3*/dist-packages/tensorrt")
    )
    driver = re.search(
        r"Kernel Module(?: for \S+)?\s+([\d.]+)", software.read(root / "proc/driver/nvidia/version")
    )
    return System(
        architecture=architecture or machine.architecture,
        distribution=_distribution(software.read(root / "etc/os-release")),
        board=machine.board,
        linux=software.release_of(root),
        jetpack=software.jetpack_version(root),
        tensorrt=software.tensorrt_version(root),
        tensorrt_module=tuple(modules),
        cuda=software.cuda_version(root),
        driver=driver[1] if driver else "",
        gpus=software.gpu_names(root),
        power_mode=read_state(root).power_mode,
        memory_bytes=machine.memory_bytes,
    )


def _distribution(release: str) -> str:
    found = re.search(r'^ID="?([\w.-]+)"?$', release, re.MULTILINE)
    return found[1] if found else ""


def _present(module: str) -> bool:
    """Whether a module could be imported, without doing so; a broken installation counts as none."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _sees_system(prefix: Path) -> bool:
    """Whether a virtual environment was made with --system-site-packages."""
    return "include-system-site-packages = true" in software.read(prefix / "pyvenv.cfg").lower()


def _providers() -> tuple[str, ...]:
    try:
        onnxruntime = import_onnxruntime()
    except Exception:  # a broken installation raises what it likes; the doctor goes on
        return ()
    return tuple(onnxruntime.get_available_providers())
