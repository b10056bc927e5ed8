"""Short versions of the long measurements of benchmarks/, and what their records must say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"


def run(name: str, *arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / name), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    record: dict[str, Any] = json.loads(done.stdout)
    return record


@pytest.mark.slow
def test_soak() -> None:
    record = run("soak.py", "--predictions", "50000", "--minutes", "0.5")
    assert record["passed"]
    assert (record["loop"]["wrong"], record["threads"]["wrong"], record["threads"]["errors"]) == (0, 0, [])
    assert record["threads"]["least_in_a_thread"] > 0


@pytest.mark.slow
def test_fuzz() -> None:
    record = run("fuzz.py", "--bundles", "600", "--images", "600", "--seed", "7")
    assert record["passed"]
    for kind in ("bundles", "images"):
        assert sum(record[kind]["outcomes"].values()) == record[kind]["cases"] == 600
    assert record["bundles"]["outcomes"]["refused: BundleError"] > 400
    assert record["images"]["outcomes"]["decoded"] > 100  # or nothing but the first bytes would be tried


VERSIONS = ("3.10", "3.11", "3.12")
SCRIPT = """
import sys
from vlkd_runtime import Classifier
from vlkd_runtime.verify import verify
heavy = {"torch", "onnx", "matplotlib", "jinja2", "safetensors"}
report = verify(sys.argv[1], public_keys=[__import__("pathlib").Path(sys.argv[2])])
assert report.ok, report
with Classifier.load(sys.argv[1]) as classifier:
    print(classifier.predict(sys.argv[3]).label)
assert not heavy & set(sys.modules)
"""


def interpreter(version: str) -> Path | None:
    home = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    found = sorted(home.glob(f"versions/{version}.*/bin/python{version}"))
    return found[-1] if found else None


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_the_base_install(version: str, tmp_path: Path) -> None:
    """A fresh environment with the base install, an engine and signatures: verify and predict, by verb and call."""
    python = interpreter(version)
    if python is None:
        pytest.skip(f"no Python {version} under pyenv here")
    subprocess.run([str(python), "-m", "venv", str(tmp_path / "venv")], check=True)
    own = tmp_path / "venv" / "bin"
    subprocess.run(
        [str(own / "pip"), "install", "-q", "--disable-pip-version-check", f"{ROOT}[ort,sign]"], check=True
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["VLKD_CACHE"] = str(tmp_path / "cache")
    bundle, key = ROOT / "runtime" / "spec" / "example.vlkd", ROOT / "runtime" / "spec" / "example.pub"
    image = ROOT / "runtime" / "spec" / "decode" / "alpha.png"
    commands = (
        [own / "vlkd-edge", "verify", bundle, "--require-signature", "--public-key", key, "--json"],
        [own / "vlkd-edge", "predict", bundle, image, "--json"],
        [own / "python", "-W", "error", "-c", SCRIPT, bundle, key, image],
    )
    answers = []
    for command in commands:
        done = subprocess.run(
            list(map(str, command)),
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        answers.append(done.stdout)
    assert json.loads(answers[0])["ok"]
    assert json.loads(answers[1])["predictions"][0]["label"] == answers[2].strip()
