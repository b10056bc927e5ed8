"""The race of peers in processes of their own, with peers that are a few lines of Python."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tinymodel import NAMES, tiny_bundle

COMPARE = Path(__file__).parents[2] / "benchmarks/compare"
PEER = """
import json, os, sys, time
from serving import Peer, pixels, serve
setup = json.loads(sys.argv[1])
kind, turns = setup["kind"], 0

def tell(text):
    os.write(setup["answers"], text.encode() + b"\\n")

def babble(text):
    tell(text)
    for _ in sys.stdin:
        tell(text)

def call(image):
    global turns
    turns += 1
    if kind == "dies" and turns > 20:
        sys.exit("out of memory, say")
    if kind == "slow":
        sum(range(20000))
    return image.reshape(-1)[:3].astype(float)

if kind == "late":
    time.sleep(60)
elif kind == "broken":
    raise ImportError("no such package")
elif kind == "babble":
    babble("Hello, I am a library")
elif kind == "list":
    babble("[1]")
elif kind in ("few", "nan", "zero", "text"):
    tell(json.dumps({"versions": {}, "load_s": 1.0}))
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "answers":
            tell(json.dumps({"classes": [0] * 6}))
            continue
        good, calls = [1000], request["calls"]
        bad = {"few": good, "nan": [float("nan")] * calls, "zero": [0] * calls, "text": ["1"] * calls}[kind]
        tell(json.dumps({"wall_ns": bad, "cpu_ns": good * calls}))
elif kind == "classes":
    tell(json.dumps({"versions": {}, "load_s": 1.0}))
    sys.stdin.readline()
    tell(json.dumps({"classes": ["cat"] * 6}))
    sys.stdin.read()
else:
    print("a library that prints")
    serve(lambda setup: Peer(("numpy",), lambda image: image, call, lambda path: int(pixels(path, 4).max() > 0)))
"""


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(COMPARE))
    import turns as module

    return module


@pytest.fixture
def setup(tmp_path: Path) -> dict[str, Any]:
    images = np.random.default_rng(0).integers(1, 256, (6, 4, 4, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    for index, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    (tmp_path / "peer.py").write_text(PEER)
    files = [str(tmp_path / f"{index}.png") for index in range(6)]
    return {"images": str(tmp_path / "images.npy"), "files": files, "threads": 1}


def entrant(turns: ModuleType, setup: dict[str, Any], kind: str, python: str = sys.executable) -> Any:
    script = Path(setup["images"]).with_name("peer.py")
    return turns.Entrant(kind, kind, python, script, {**setup, "kind": kind}, (str(COMPARE),))


BAD = {
    "broken": "exit code 1: ImportError: no such package",
    "babble": "nonsense: Hello",
    "list": "nonsense: .1",
    "few": "nonsense for wall_ns of 2 calls",
    "nan": "nonsense for wall_ns",
    "zero": "take no time",
    "text": "nonsense for wall_ns",
    "classes": "nonsense for the classes of 6 images",
    "dies": "exit code 1: out of memory, say",
}


def test_peers_that_fail_are_told_and_the_others_go_on(turns: ModuleType, setup: dict[str, Any]) -> None:
    import re

    said: list[str] = []
    entrants = [entrant(turns, setup, kind) for kind in ("good", *BAD, "slow")]
    entrants.append(entrant(turns, setup, "absent", python="/no/such/python"))
    results = {
        result.entrant.name: result for result in turns.race(entrants, 6, rounds=6, calls=2, say=said.append)
    }
    assert not results["good"].failed and not results["slow"].failed, said
    failures = {name: result.failed for name, result in results.items() if result.failed}
    assert set(failures) == {*BAD, "absent"} and "cannot be started: No such file" in failures["absent"]
    for name, reason in BAD.items():
        assert re.search(reason, failures[name]), (name, failures[name])
        assert any(name in line and reason.split(":")[0][:9] in line for line in said)
    images = np.load(setup["images"])
    for name in ("good", "slow"):
        result = results[name]
        assert len(result.rounds["array"]) == len(result.rounds["file"]) == 6
        assert list(result.classes) == [int(image.reshape(-1)[:3].argmax()) for image in images]
        assert set(result.versions) == {"numpy"} and result.load_s > 0
    value, (low, high) = turns.ratio(
        results["slow"].rounds["array"], results["good"].rounds["array"], "cpu_ns"
    )
    # Twenty thousand additions against three conversions: not a matter of the machine.
    assert value > 3 and low <= value <= high


def test_a_peer_that_is_late_is_not_waited_for(turns: ModuleType, setup: dict[str, Any]) -> None:
    (result,) = turns.race([entrant(turns, setup, "late")], 6, rounds=5, calls=2, load_s=0.2)
    assert result.failed == "gave no answer within 0 s"


def test_no_process_is_left(
    turns: ModuleType, setup: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []
    real = subprocess.Popen

    def popen(*arguments: Any, **more: Any) -> subprocess.Popen[bytes]:
        started.append(real(*arguments, **more))
        return started[-1]

    def interrupt(text: str) -> None:
        if text.startswith("round 2"):
            raise KeyboardInterrupt

    monkeypatch.setattr(turns.subprocess, "Popen", popen)
    with pytest.raises(KeyboardInterrupt):
        turns.race([entrant(turns, setup, kind) for kind in ("good", "dies")], 6, 9, 2, say=interrupt)
    assert len(started) == 2 and all(process.poll() is not None for process in started)


def test_a_ratio_is_the_median_of_ratios_of_the_same_rounds(turns: ModuleType) -> None:
    rng = np.random.default_rng(1)
    moods = rng.uniform(1, 10, 31)  # the machine is slow in some rounds, for both
    theirs = [{"cpu_ns": 100 * mood} for mood in moods]
    mine = [
        {"cpu_ns": 50 * mood * wobble} for mood, wobble in zip(moods, rng.uniform(0.9, 1.1, 31), strict=True)
    ]
    value, (low, high) = turns.ratio(mine, theirs, "cpu_ns")
    expected = statistics.median(a["cpu_ns"] / b["cpu_ns"] for a, b in zip(mine, theirs, strict=True))
    assert value == pytest.approx(expected) and 0.45 <= low <= value <= high <= 0.55
    assert turns.ratio(theirs, theirs, "cpu_ns") == (1.0, (1.0, 1.0))


def test_every_pinned_package_of_a_peer_is_one_whose_version_it_tells() -> None:
    for name in ("optimum", "openvino"):
        lines = (COMPARE / f"requirements-{name}.txt").read_text().splitlines()
        pinned = {line.partition("==")[0] for line in lines if "==" in line}
        assert all("==" in line or line.startswith("#") for line in lines)
        script = (COMPARE / f"peer_{name}.py").read_text()
        told = {word for word in ("optimum-onnx", "transformers", "onnxruntime", "torch", "openvino", "nncf")
                if f'"{word}"' in script}  # fmt: skip
        assert told and told <= pinned


def test_the_table_has_a_row_for_each_peer_whatever_became_of_it(tmp_path: Path) -> None:
    """The script itself, on a bundle that no torch student belongs to, and without other people's Pythons."""
    tiny_bundle(tmp_path / "out/bundle")
    rng = np.random.default_rng(0)
    for domain, count in (("photo", 12), ("sketch", 3)):
        for name in NAMES:
            (tmp_path / "data" / domain / name).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / domain / name / f"{index}.png")
    words = [
        sys.executable,
        str(COMPARE / "peers.py"),
        str(tmp_path / "out"),
        "--data",
        str(tmp_path / "data"),
    ]
    words += ["--held-out", "sketch", "--rounds", "5", "--calls", "2", "--calibration-images", "32"]
    done = subprocess.run(
        [*words, "--out", str(tmp_path / "table")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    record = json.loads((tmp_path / "table.json").read_text())
    peers = {peer["name"]: peer for peer in record["peers"]}
    assert set(record["not_run"]) == {"optimum", "openvino", "openvino-auto", "nncf"}
    for name in ("torch-eager", "torch-compile"):
        assert "DataError: Expected the output folder of a build" in peers[name]["failed"]
    ours = peers["ours-float32"]
    assert ours["answers_unlike_reference"] == 0 and ours["accuracy"] == peers["onnxruntime"]["accuracy"]
    assert peers["onnxruntime"]["array"]["ratio"] == 1.0 and ours["file"]["ratio"] > 0
    table = (tmp_path / "table.md").read_text()
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(peers) + 4 and len({line.count("|") for line in rows}) == 1
    assert (
        str(tmp_path) not in table.replace(peers["torch-eager"]["failed"], "")
        and "hat" not in record["command"]
    )
