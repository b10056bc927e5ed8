"""The doctor against file trees of boards, written from the documented formats, and against this machine."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from vlkd_edge.app import app
from vlkd_edge.doctor import BOARDS, diagnose, engines
from vlkd_edge.probing import BUILD, PythonFacts, System, read_python, read_system
from vlkd_edge.targets import TARGETS, find

LIGHT = {"numpy": "2.0", "PIL": "11.0", "typer": "0.15"}


def package(name: str, version: str) -> str:
    return f"Package: {name}\nStatus: install ok installed\nArchitecture: arm64\nVersion: {version}\n\n"


def board(
    root: Path,
    *,
    release: str,
    model: str,
    chip: str,
    jetpack: str,
    tensorrt: str,
    python: str,
    mode: int,
    modes: str,
) -> Path:
    """Write what a Jetson with JetPack has of the files that the doctor reads."""
    files = {
        "etc/nv_tegra_release": f"# {release}, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan 8 2025\n",
        "proc/device-tree/model": f"{model}\0",
        "proc/device-tree/compatible": f"nvidia,p3768-0000+p3767-0005\0nvidia,p3767-0005\0nvidia,{chip}\0",
        "proc/meminfo": "MemTotal:        7802900 kB\n",
        "var/lib/dpkg/status": package("nvidia-jetpack", jetpack) + package("libnvinfer-bin", tensorrt),
        "var/lib/nvpmodel/status": f"pmode:{mode:04d} fmode:quiet",
        "etc/nvpmodel.conf": modes,
        "usr/local/cuda/version.json": '{"cuda": {"name": "CUDA SDK", "version": "12.6.68"}}',
        f"usr/lib/python{python}/dist-packages/tensorrt/__init__.py": "",
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


TREES: dict[str, dict[str, Any]] = {
    "jetpack 5": {
        "release": "R35 (release), REVISION: 4.1",
        "model": "NVIDIA Jetson Xavier NX Developer Kit",
        "chip": "tegra194",
        "jetpack": "5.1.2-b104",
        "tensorrt": "8.5.2-1+cuda11.4",
        "python": "3.8",
        "mode": 8,
        "modes": "< POWER_MODEL ID=0 NAME=15W_2CORE >\n< POWER_MODEL ID=8 NAME=20W_6CORE >\n< PM_CONFIG DEFAULT=3 >\n",
    },
    "jetpack 6": {
        "release": "R36 (release), REVISION: 4.3",
        "model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
        "chip": "tegra234",
        "jetpack": "6.2+b77",
        "tensorrt": "10.3.0.30-1+cuda12.5",
        "python": "3.10",
        "mode": 2,
        "modes": "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=25W >\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n",
    },
    "jetpack 7": {
        "release": "R38 (release), REVISION: 2.0",
        "model": "NVIDIA Jetson AGX Thor Developer Kit",
        "chip": "tegra264",
        "jetpack": "7.0-b128",
        "tensorrt": "10.13.3.9-1+cuda13.0",
        "python": "3.12",
        "mode": 1,
        "modes": "< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=1 NAME=120W >\n",
    },
}
SEEN = {
    "jetpack 5": ("35.4.1", "5.1.2", "8.5.2", ("3.8",), "20W_6CORE", "jetson-xavier"),
    "jetpack 6": ("36.4.3", "6.2", "10.3.0.30", ("3.10",), "MAXN_SUPER", "jetson-orin-nano"),
    "jetpack 7": ("38.2.0", "7.0", "10.13.3.9", ("3.12",), "120W", "jetson-agx-thor"),
}


@pytest.fixture(params=TREES, ids=lambda name: name.replace(" ", ""))
def jetson(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, System]:
    return request.param, read_system(board(tmp_path, **TREES[request.param]), "aarch64")


def python(version: str, *, isolated: bool = False, **packages: str) -> PythonFacts:
    return PythonFacts(
        version, isolated, LIGHT | packages, ("CPUExecutionProvider",) if "onnxruntime" in packages else ()
    )


def test_boards_are_recognised(jetson: tuple[str, System]) -> None:
    name, system = jetson
    linux, jetpack, tensorrt, modules, mode, target = SEEN[name]
    assert (system.linux, system.jetpack, system.tensorrt) == (linux, jetpack, tensorrt)
    assert (system.tensorrt_module, system.power_mode, system.cuda) == (modules, mode, "12.6.68")
    assert system.is_jetson and system.gpus and system.memory_bytes == 7802900 * 1024
    assert BOARDS[target] in system.board


def test_a_whole_board_lacks_nothing_to_run_its_target_and_says_why_it_is_no_other(
    jetson: tuple[str, System],
) -> None:
    name, system = jetson
    modules, target = SEEN[name][3], SEEN[name][5]
    here = python(f"{modules[0]}.12", tensorrt=SEEN[name][2], onnxruntime="1.20")
    found = diagnose(find(target), here, system)
    assert found.run == ()
    assert "NVIDIA builds for this JetPack" in engines(here, system)["ort-cuda"]["reason"]
    later = diagnose(find(target), here, dataclasses.replace(system, jetpack="9.1")).run
    assert [lack.what.rsplit(";", 1)[1].split(":")[0].strip() for lack in later] == ["this is 9.1"]
    assert [lack.install for lack in found.build][-1] == "" and "x86-64 only" in found.build[-1].what
    other = diagnose(find("jetson-agx-orin"), here, system)
    assert any("a Jetson AGX Orin; this board is NVIDIA Jetson" in lack.what for lack in other.run)
    assert engines(here, system)["tensorrt"] == {"available": True, "reason": ""}
    assert not engines(here, system)["ort-cuda"]["available"]
    assert diagnose(find("cpu-arm"), here, system).run == ()
    assert diagnose(find("cpu-x86"), here, system).run[0].what.startswith("a processor of kind x86_64")


CASES = [
    pytest.param({}, python("3.10.12"), "does not see it", "python3 -m venv --system-site-packages .venv", id="venv"),
    pytest.param(
        {}, python("3.11.9"), "a Python 3.10, which", "/usr/bin/python3.10 -m venv --system-site", id="other Python"
    ),
    pytest.param({"usr": ""}, python("3.10.12"), "TensorRT's Python module", "python3-libnvinfer", id="no module"),
    pytest.param(
        {"tensorrt": "10.2.0-1+cuda12.5"}, python("3.10.12", tensorrt="10.2.0"), "10.2.0 is known", "nvidia-jetpack",
        id="bad TensorRT",
    ),
    pytest.param({"tensorrt": ""}, python("3.10.12"), "TensorRT of JetPack", "-y nvidia-jetpack", id="no TensorRT"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "here", "what", "install"), CASES)
def test_what_a_board_lacks_comes_with_the_line_that_brings_it(
    tmp_path: Path, change: dict[str, str], here: PythonFacts, what: str, install: str
) -> None:
    root = board(tmp_path, **TREES["jetpack 6"] | {k: v for k, v in change.items() if k != "usr"})
    if "usr" in change:
        (root / "usr/lib/python3.10/dist-packages/tensorrt/__init__.py").unlink()
        (root / "usr/lib/python3.10/dist-packages/tensorrt").rmdir()
    if change.get("tensorrt") == "":
        (root / "var/lib/dpkg/status").write_text(package("nvidia-jetpack", "6.2+b77"))
    found = diagnose(find("jetson"), here, read_system(root, "aarch64"))
    matching = [lack for lack in found.run if what in lack.what]
    assert matching and install in matching[0].install, found.run


def test_a_module_for_a_python_that_is_too_old_is_no_way(tmp_path: Path) -> None:
    """JetPack 5 has Python 3.8, which this project does not run on: no line could help."""
    system = read_system(board(tmp_path, **TREES["jetpack 5"]), "aarch64")
    (lack,) = diagnose(find("jetson-xavier"), python("3.10.12", onnxruntime="1.20"), system).run
    assert lack.install == ""
    assert "for 3.10 or later; this JetPack's is for 3.8: use the engine ort-cpu" in lack.what


@pytest.mark.parametrize(
    ("release", "line"),
    [
        ('NAME="Ubuntu"\nID=ubuntu\n', "sudo ubuntu-drivers install"),
        ('ID="debian"\nVERSION_ID="12"\n', "sudo apt-get install -y nvidia-driver"),
        ("ID=fedora\n", ""),
        ("", ""),
    ],
)
def test_the_driver_comes_as_the_system_brings_it(release: str, line: str, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/os-release").write_text(release)
    system = read_system(tmp_path, "x86_64")
    (lack,) = [
        lack for lack in diagnose(find("desktop-rtx"), python("3.11.9"), system).run if "driver" in lack.what
    ]
    assert lack.install == line


def desktop(root: Path) -> System:
    (root / "proc/driver/nvidia/gpus/0000:01:00.0").mkdir(parents=True)
    (root / "proc/driver/nvidia/version").write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n"
    )
    (root / "proc/driver/nvidia/gpus/0000:01:00.0/information").write_text(
        "Model: \t\t NVIDIA GeForce RTX 4070\nIRQ:   \t\t 136\n"
    )
    return read_system(root, "x86_64")


def test_a_desktop(tmp_path: Path) -> None:
    system = desktop(tmp_path)
    assert (system.gpus, system.driver, system.is_jetson) == (
        ("NVIDIA GeForce RTX 4070",),
        "580.65.06",
        False,
    )
    bare = python("3.11.9")
    assert [lack.install for lack in diagnose(find("desktop-trt"), bare, system).run] == [
        "pip install tensorrt-cu13"
    ]
    rtx = {"onnxruntime_ep_nv_tensorrt_rtx": "0.5.0", "tensorrt_bindings": "11.4", "onnxruntime": "1.31"}
    assert diagnose(find("desktop-rtx"), python("3.11.9", **rtx), system).run == ()
    assert (
        "a Jetson Orin Nano; this is a machine of kind x86_64"
        in diagnose(find("jetson"), bare, system).run[0].what
    )
    whole = python("3.11.9", **rtx | dict.fromkeys(BUILD, "1"))
    assert diagnose(find("jetson"), whole, system).build == ()
    (lack,) = diagnose(find("jetson"), python("3.11.9", **dict.fromkeys(BUILD, "1")), system).build
    assert lack.install == "pip install 'vlkd-edge[build]'"


def test_an_empty_machine_lacks_something_for_every_target(tmp_path: Path) -> None:
    system, bare = read_system(tmp_path, "riscv64"), PythonFacts("3.12.1", True, {}, ())
    assert (system.gpus, system.tensorrt, system.linux, system.memory_bytes) == ((), "", "", 0)
    for target in TARGETS:
        found = diagnose(target, bare, system)
        assert found.build and found.run
    states = engines(bare, system)
    assert not any(state["available"] for state in states.values())
    assert all(state["reason"] for state in states.values())


def test_the_verb_tells_of_this_machine() -> None:
    runner = CliRunner()
    answer = json.loads(runner.invoke(app, ["doctor", "--json"]).stdout)
    assert set(answer) == {"python", "system", "engines", "targets"}
    assert set(answer["targets"]) == {target.name for target in TARGETS if not target.alias_of}
    assert answer["python"]["packages"]["numpy"] == read_python().packages["numpy"]
    assert answer["engines"]["ort-cpu"]["available"] == ("onnxruntime" in answer["python"]["packages"])
    text = runner.invoke(app, ["doctor"]).stdout
    assert "cpu-x86: " in text and "engine ort-cpu" in text
    one = runner.invoke(app, ["doctor", "--target", "cpu-x86", "--json"])
    state = json.loads(one.stdout)["targets"]["cpu-x86"]
    assert one.exit_code == (0 if state["build"]["ok"] or state["run"]["ok"] else 1)
