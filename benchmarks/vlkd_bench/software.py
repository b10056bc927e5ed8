"""Which GPU, JetPack, TensorRT and CUDA a system has, read from files alone; "" where it does not tell."""

from __future__ import annotations

import json
import re
from pathlib import Path

from vlkd_runtime.targets import jetpack_of

# Tegra chip and the architecture of its GPU.
TEGRA_GPUS = {
    "tegra210": "Maxwell",
    "tegra186": "Pascal",
    "tegra194": "Volta",
    "tegra234": "Ampere",
    "tegra264": "Blackwell",
}


def read(path: Path) -> str:
    """Return a file's text, or nothing where there is no such file."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError):
        return ""


def release_of(root: Path) -> str:
    """Return the Jetson Linux release, for example "36.4.3", or ""."""
    found = re.match(r"# R(\d+) \(release\), REVISION: ([\d.]+)", read(root / "etc/nv_tegra_release"))
    return f"{found[1]}.{found[2]}" if found else ""


def jetpack_version(root: Path) -> str:
    """Return JetPack's version: the installed package's, else the one that brought this Jetson Linux."""
    packaged = _installed(root, r"nvidia-jetpack")
    if packaged:
        return packaged.partition("+")[0].partition("-")[0]
    return jetpack_of(release_of(root))


def tensorrt_version(root: Path) -> str:
    """Return the version of TensorRT's library among the system's packages or files."""
    packaged = _installed(root, r"libnvinfer\d+|libnvinfer-bin|tensorrt")
    if packaged:
        return packaged.partition("-")[0].partition("+")[0]
    for folder in sorted((root / "usr/lib").glob("*-linux-gnu")):
        for path in sorted(folder.glob("libnvinfer.so.*.*.*")):
            return path.name.removeprefix("libnvinfer.so.")
    return ""


def cuda_version(root: Path) -> str:
    """Return the version of the CUDA toolkit."""
    try:
        return str(json.loads(read(root / "usr/local/cuda/version.json"))["cuda"]["version"])
    except (ValueError, KeyError, TypeError):
        return ""


def gpu_names(root: Path) -> tuple[str, ...]:
    """Return the names of the GPUs: a Jetson's by its chip, others as NVIDIA's driver lists them."""
    compatible = read(root / "proc/device-tree/compatible").split("\0")
    for entry in compatible:
        chip = entry.removeprefix("nvidia,")
        if chip in TEGRA_GPUS:
            return (f"{TEGRA_GPUS[chip]} ({chip})",)
    models = []
    for path in sorted((root / "proc/driver/nvidia/gpus").glob("*/information")):
        found = re.search(r"^Model:\s*(.+)$", read(path), re.MULTILINE)
        models.append(found[1].strip() if found else "NVIDIA GPU")
    return tuple(models)


def _installed(root: Path, package: str) -> str:
    """Return the version of the first installed Debian package whose name matches, or ""."""
    for entry in read(root / "var/lib/dpkg/status").split("\n\n"):
        if re.match(rf"Package: ({package})\n", entry) and "\nStatus: install ok installed" in entry:
            version = re.search(r"^Version: (?:\d+:)?(\S+)", entry, re.MULTILINE)
            if version:
                return version[1]
    return ""
