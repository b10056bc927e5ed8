"""The ``doctor`` verb: what this machine has, what each target lacks here, and the line that installs it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlkd_runtime.targets import JETPACKS, Target

from .probing import BUILD, PythonFacts, System

if TYPE_CHECKING:
    from rich.console import Console

INSTALL_BASICS = "pip install numpy pillow"
INSTALL_BUILD = "pip install 'vlkd-edge[build]'"
INSTALL_ORT = "pip install 'vlkd-edge[ort]'"
INSTALL_RTX_PLUGIN = "pip install 'vlkd-edge[ort]' onnxruntime-ep-nv-tensorrt-rtx-cu13"
INSTALL_RTX = "pip install tensorrt_rtx"
INSTALL_TRT = "pip install tensorrt-cu13"
INSTALL_CUDA = "pip uninstall -y onnxruntime && pip install onnxruntime-gpu"
INSTALL_JETPACK = "sudo apt-get update && sudo apt-get install -y nvidia-jetpack"
INSTALL_JETSON_MODULE = "sudo apt-get install -y python3-libnvinfer"
INSTALL_CUDA_JETSON = "install the onnxruntime-gpu wheel that NVIDIA builds for this JetPack; PyPI has none"
INSTALL_DRIVER = {
    "ubuntu": "sudo ubuntu-drivers install",
    # The package is in Debian's component non-free.
    "debian": "sudo apt-get install -y nvidia-driver",
}
INSTALL_SIGN = "pip install 'vlkd-edge[sign]'"
OLDEST_PYTHON = (3, 10)
OPEN_VENV = "python3 -m venv --system-site-packages .venv"
# Ultralytics and others refuse it for wrong answers: https://github.com/ultralytics/ultralytics (its export checks)
BAD_TENSORRT = ("10.2.0",)
# Words in a board's name, for each target that is a board.
BOARDS = {
    "jetson-orin-nano": "Orin Nano",
    "jetson-orin-nx": "Orin NX",
    "jetson-agx-orin": "AGX Orin",
    "jetson-agx-thor": "Thor",
    "jetson-xavier": "Xavier",
}
# Architectures of the targets that are processors.
PROCESSORS = {"cpu-x86": "x86_64", "cpu-arm": "aarch64"}


@dataclass(frozen=True, slots=True)
class Lack:
    """Something that is missing.

    Attributes:
        what: in a sentence's part, for people.
        install: the line that brings it; empty where no line can.
    """

    what: str
    install: str


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What a target lacks here.

    Attributes:
        target: its name.
        build: what is missing to build for it on this machine.
        run: what is missing to run its bundles on this machine.
    """

    target: str
    build: tuple[Lack, ...]
    run: tuple[Lack, ...]


def diagnose(target: Target, python: PythonFacts, system: System) -> Diagnosis:
    """Tell what a target lacks on this machine."""
    runs = {
        "onnxruntime-cpu": _runs_on_cpu,
        "tensorrt-rtx": _runs_on_rtx,
        "tensorrt": _runs_on_jetson if target.name in BOARDS or target.jetpack else _runs_on_tensorrt,
    }
    return Diagnosis(
        target.name,
        tuple(_builds(target, python, system)),
        (*_basics(python), *runs[target.engine](target, python, system)),
    )


def engines(python: PythonFacts, system: System) -> dict[str, dict[str, Any]]:
    """Tell of each of the runtime's engines whether its parts are here; only a self-test shows that it works."""
    has, providers, gpu = python.packages, python.providers, bool(system.gpus)
    no_gpu = "" if gpu else "no NVIDIA GPU with a driver"
    plugin = (
        ""
        if "onnxruntime_ep_nv_tensorrt_rtx" in has
        else f"no plugin of TensorRT for RTX: {INSTALL_RTX_PLUGIN}"
    )
    rtx = "" if "tensorrt_rtx" in has else f"no Python module tensorrt_rtx: {INSTALL_RTX}"
    ort = "" if "onnxruntime" in has else f"no onnxruntime: {INSTALL_ORT}"

    def provider(name: str) -> str:
        line = INSTALL_CUDA_JETSON if system.is_jetson else INSTALL_CUDA
        return ort or ("" if name in providers else f"this onnxruntime has no {name}: {line}")

    module = "" if "tensorrt" in has else f"no Python module tensorrt: {_module_line(python, system)}"
    reasons = {
        "tensorrt": no_gpu or module,
        "tensorrt-rtx": no_gpu or rtx,
        "ort-tensorrt": no_gpu or provider("TensorrtExecutionProvider"),
        "ort-tensorrt-rtx": no_gpu or ort or plugin,
        "ort-cuda": no_gpu or provider("CUDAExecutionProvider"),
        "ort-cpu": ort,
    }
    return {name: {"available": not reason, "reason": reason} for name, reason in reasons.items()}


def _basics(python: PythonFacts) -> Iterator[Lack]:
    missing = [module for module in ("numpy", "PIL") if module not in python.packages]
    if missing:
        yield Lack(f"packages that everything needs: {', '.join(missing)}", INSTALL_BASICS)


def _builds(target: Target, python: PythonFacts, system: System) -> Iterator[Lack]:
    missing = [module for module in BUILD if module not in python.packages]
    if missing:
        yield Lack(f"packages for a build: {', '.join(missing)}", INSTALL_BUILD)
    if target.engine == "onnxruntime-cpu":
        return
    if system.architecture != "x86_64":
        yield Lack(
            "TensorRT for RTX, which the preflight asks, exists for x86-64 only: build on such a machine", ""
        )
    elif not {"onnxruntime_ep_nv_tensorrt_rtx", "tensorrt_bindings"} <= set(python.packages):
        yield Lack("TensorRT for RTX, which the preflight asks", INSTALL_BUILD)


def _runs_on_cpu(target: Target, python: PythonFacts, system: System) -> Iterator[Lack]:
    wanted = PROCESSORS.get(target.name, system.architecture)
    if system.architecture != wanted:
        yield Lack(f"a processor of kind {wanted}; this is {system.architecture}", "")
    if "onnxruntime" not in python.packages:
        yield Lack("onnxruntime", INSTALL_ORT)


def _runs_on_rtx(target: Target, python: PythonFacts, system: System) -> Iterator[Lack]:
    yield from _driver(system)
    plugin = {"onnxruntime", "onnxruntime_ep_nv_tensorrt_rtx"} <= set(python.packages)
    if not plugin and "tensorrt_rtx" not in python.packages:
        yield Lack("TensorRT for RTX, as ONNX Runtime's plugin or as its own module", INSTALL_RTX_PLUGIN)


def _runs_on_tensorrt(target: Target, python: PythonFacts, system: System) -> Iterator[Lack]:
    yield from _driver(system)
    if "tensorrt" not in python.packages:
        yield Lack("the Python module tensorrt", INSTALL_TRT)
    yield from _bad_version(python.packages.get("tensorrt", ""), INSTALL_TRT)


def _runs_on_jetson(target: Target, python: PythonFacts, system: System) -> Iterator[Lack]:
    word = BOARDS.get(target.name, "")
    if not system.is_jetson:
        yield Lack(
            f"a {target.title}; this is {system.board or 'a machine'} of kind {system.architecture}", ""
        )
        return
    if word and word not in system.board:
        yield Lack(f"a {target.title}; this board is {system.board or 'unknown'}", "")
    if not system.tensorrt:
        yield Lack("TensorRT of JetPack", INSTALL_JETPACK)
    yield from _bad_version(system.tensorrt, INSTALL_JETPACK)
    if "tensorrt" not in python.packages:
        yield Lack(_module_problem(python, system), _module_line(python, system))
    releases = [item for item in JETPACKS if item.release in target.jetpack]
    if system.jetpack and releases and not any(_same(system.jetpack, item.release) for item in releases):
        known = ", ".join(item.release for item in releases)
        yield Lack(
            f"a JetPack that this target knows ({known}); this is {system.jetpack}: measure before you trust",
            "",
        )


def _module_problem(python: PythonFacts, system: System) -> str:
    mine = ".".join(python.version.split(".")[:2])
    if not system.tensorrt_module:
        return "TensorRT's Python module"
    if mine not in system.tensorrt_module:
        wanted = " or ".join(system.tensorrt_module)
        if not _usable(system):
            oldest = ".".join(map(str, OLDEST_PYTHON))
            return (
                f"TensorRT's Python module for {oldest} or later; this JetPack's is for {wanted}: use the engine "
                "ort-cpu, or a newer JetPack where the board takes one"
            )
        return f"a Python {wanted}, which TensorRT's module is for; this is {mine}"
    return "TensorRT's Python module is installed, but this virtual environment does not see it"


def _module_line(python: PythonFacts, system: System) -> str:
    if not system.is_jetson:
        return INSTALL_TRT
    mine = ".".join(python.version.split(".")[:2])
    if not system.tensorrt_module:
        return INSTALL_JETSON_MODULE
    if mine not in system.tensorrt_module:
        usable = _usable(system)
        return OPEN_VENV.replace("python3", f"/usr/bin/python{usable[-1]}", 1) if usable else ""
    return OPEN_VENV


def _usable(system: System) -> list[str]:
    """Give the Pythons with TensorRT's module that can run this project, the newest last."""
    versions = sorted(tuple(map(int, version.split("."))) for version in system.tensorrt_module)
    return [".".join(map(str, version)) for version in versions if version >= OLDEST_PYTHON]


def _driver(system: System) -> Iterator[Lack]:
    if not system.gpus:
        yield Lack("an NVIDIA GPU, or its driver", INSTALL_DRIVER.get(system.distribution, ""))


def _bad_version(version: str, install: str) -> Iterator[Lack]:
    if any(_same(version, bad) for bad in BAD_TENSORRT):
        yield Lack(f"another TensorRT: {version} is known for wrong answers", install)


def _same(version: str, release: str) -> bool:
    """Whether a version is of a release: 6.2.1 of 6.2, but 6.20 not."""
    parts = release.split(".")
    return version.split(".")[: len(parts)] == parts


def report(
    targets: Sequence[Target], python: PythonFacts, system: System, *, as_json: bool, console: Console
) -> dict[str, Diagnosis]:
    """Print what is here and what is missing; return the diagnoses by target."""
    found = _diagnoses(targets, python, system)
    if as_json:
        print(json.dumps(_plain(found, python, system)))
    else:
        for line in _lines(found, python, system):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    return found


def examine(targets: Sequence[Target], python: PythonFacts, system: System) -> dict[str, Any]:
    """Return what ``--json`` prints."""
    return _plain(_diagnoses(targets, python, system), python, system)


def _diagnoses(targets: Sequence[Target], python: PythonFacts, system: System) -> dict[str, Diagnosis]:
    return {target.name: diagnose(target, python, system) for target in targets if not target.alias_of}


def _plain(found: dict[str, Diagnosis], python: PythonFacts, system: System) -> dict[str, Any]:
    def side(lacks: tuple[Lack, ...]) -> dict[str, Any]:
        return {"ok": not lacks, "missing": [dataclasses.asdict(lack) for lack in lacks]}

    return {
        "python": {**dataclasses.asdict(python), "packages": dict(python.packages)},
        "system": {**dataclasses.asdict(system), "is_jetson": system.is_jetson},
        "engines": engines(python, system),
        "targets": {name: {"build": side(item.build), "run": side(item.run)} for name, item in found.items()},
    }


def _lines(found: dict[str, Diagnosis], python: PythonFacts, system: System) -> Iterator[str]:
    gib = system.memory_bytes / 2**30
    yield f"Python      {python.version}{', a virtual environment of its own' if python.isolated else ''}"
    shown = ", ".join(f"{module} {version}" for module, version in python.packages.items())
    yield f"packages    {shown or 'none'}"
    yield f"machine     {', '.join(filter(None, (system.board, system.architecture, f'{gib:.1f} GiB')))}"
    if system.is_jetson:
        yield f"JetPack     {system.jetpack or 'unknown'} (Jetson Linux {system.linux})"
        yield f"power mode  {system.power_mode or 'unknown'}"
    yield f"GPU         {', '.join(system.gpus) or 'none found'}{f', driver {system.driver}' * bool(system.driver)}"
    yield f"TensorRT    {system.tensorrt or python.packages.get('tensorrt') or 'none'}; CUDA {system.cuda or 'none'}"
    yield ""
    for name, state in engines(python, system).items():
        yield f"engine {name:<17}{'here' if state['available'] else state['reason']}"
    signing = "here" if "cryptography" in python.packages else f"no package cryptography: {INSTALL_SIGN}"
    yield f"{'signatures':<24}{signing}"
    for name, item in found.items():
        yield ""
        yield f"{name}: {_word('build for it', item.build)}; {_word('run it', item.run)}"
        for lack in dict.fromkeys((*item.build, *item.run)):
            yield f"  missing: {lack.what}"
            if lack.install:
                yield f"    {lack.install}"


def _word(what: str, lacks: tuple[Lack, ...]) -> str:
    return f"{'can' if not lacks else 'cannot'} {what} here"
