"""Which GPU, JetPack, TensorRT and CUDA a system has, read from files alone; "" where it does not tell.

References:
    NVIDIA JetPack release notes and archive, for which Jetson Linux belongs to which JetPack.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

# Jetson Linux release and the JetPack it came with; consulted where the package list does not name JetPack.
JETPACKS = {
    "32.6": "4.6",
    "32.7": "4.6.1",
    "35.1": "5.0.2",
    "35.2.1": "5.1",
    "35.3.1": "5.1.1",
    "35.4.1": "5.1.2",
    "35.5.0": "5.1.3",
    "35.6": "5.1.4",
    "36.2": "6.0",
    "36.3": "6.0",
    "36.4.0": "6.1",
    "36.4.2": "6.1",
    "36.4.3": "6.2",
    "36.4": "6.2.1",
    "38.2": "7.0",
    "38.4": "7.1",
    "39.2": "7.2",
}
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
    release = release_of(root)
    parts = release.split(".")
    for length in (3, 2):
        known = JETPACKS.get(".".join(parts[:length]))
        if known:
            return known
    return ""


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
