from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import vlkd_runtime

FORBID = """
import sys

class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ImportError(name + " is forbidden here")

sys.meta_path.insert(0, Forbidden())
"""
HEAVY = ("torch", "torchvision", "timm", "open_clip", "onnx", "safetensors", "matplotlib", "jinja2")


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )


def test_import_needs_numpy_and_pillow_only() -> None:
    code = FORBID.format(names=(*HEAVY, "onnxruntime")) + (
        "import vlkd_runtime, vlkd_runtime.verify, vlkd_runtime.engines\n"
        "plugins = sorted(m for m in sys.modules if m.startswith('PIL.') and m.endswith('ImagePlugin'))\n"
        "assert not plugins, plugins\n"
        "files = [m for m, module in sys.modules.items() if getattr(module, '__file__', None)]\n"
        "outside = {m.partition('.')[0] for m in files} - set(sys.stdlib_module_names)\n"
        "print(sorted(m for m in outside if not m.startswith('_') and '-' not in m))\n"
    )
    result = run(code)
    assert result.returncode == 0, result.stderr
    loaded = set(result.stdout.strip("[]\n").replace("'", "").split(", "))
    assert {"PIL", "numpy", "vlkd_runtime"} <= loaded
    # What the interpreter itself starts with (site hooks of editable installs) is not ours to forbid.
    bare = run(
        "import sys; print(sorted({m.partition('.')[0] for m in sys.modules} - set(sys.stdlib_module_names)))"
    )
    allowed = set(bare.stdout.strip("[]\n").replace("'", "").split(", ")) | {"PIL", "numpy", "vlkd_runtime"}
    assert loaded - allowed == set()


def test_a_bundle_runs_without_torch(folder: Path) -> None:
    code = FORBID.format(names=HEAVY) + (
        "import numpy, vlkd_runtime\n"
        f"with vlkd_runtime.Classifier.load({str(folder)!r}, threads=1) as classifier:\n"
        "    print(classifier.predict(numpy.zeros((9, 9), numpy.uint8)).label)\n"
    )
    result = run(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() in ("cat", "dog", "houseplant")


def test_a_bundle_is_checked_without_an_engine(folder: Path) -> None:
    code = FORBID.format(names=(*HEAVY, "onnxruntime")) + (
        "import vlkd_runtime\n"
        f"print(vlkd_runtime.Bundle.open({str(folder)!r}).manifest.name)\n"
        "try:\n"
        f"    vlkd_runtime.Classifier.load({str(folder)!r})\n"
        "except vlkd_runtime.UnavailableError as error:\n"
        "    print(error)\n"
    )
    result = run(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("tiny\n")
    assert "pip install 'vlkd-edge[ort]'" in result.stdout


@pytest.mark.parametrize("name", vlkd_runtime.__all__)
def test_the_face_is_there(name: str) -> None:
    assert getattr(vlkd_runtime, name).__doc__


@pytest.mark.parametrize("asked", [True, False])
def test_onnx_runtime_sends_nothing_and_leaves_nothing(asked: bool, folder: Path, tmp_path: Path) -> None:
    """Its own import would, since 1.29: a database in the user's home, and a server's name looked up."""
    code = (
        "import numpy, vlkd_runtime\n"
        f"with vlkd_runtime.Classifier.load({str(folder)!r}, threads=1, cache=None) as classifier:\n"
        "    classifier.predict(numpy.zeros((9, 9), numpy.uint8))\n"
        if asked
        else "import vlkd_compress, onnxruntime\n"
    )
    environment = {key: value for key, value in os.environ.items() if key not in _WHERE}
    home = tmp_path / "home"
    home.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**environment, "HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    assert not [path for path in home.rglob("*") if path.is_file()]


_WHERE = ("XDG_CACHE_HOME", "ORT_DISABLE_TELEMETRY", "VLKD_CACHE")
