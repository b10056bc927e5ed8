"""The examples, run as a user runs them."""

from __future__ import annotations

import configparser
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlkd_runtime import Classifier
from vlkd_runtime.bundle import sign_bundle
from vlkd_runtime.signing import write_keys

EXAMPLES = Path(__file__).parents[2] / "runtime" / "examples"


def run(name: str, *arguments: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture
def labels(folder: Path, tiny: Any) -> list[str]:
    with Classifier.load(folder, threads=1) as classifier:
        return [prediction.label for prediction in classifier.predict(tiny.golden.images)]


@pytest.mark.parametrize("kind", ["folder", "film"])
def test_camera(kind: str, folder: Path, tiny: Any, labels: list[str], tmp_path: Path) -> None:
    """Three frames of each sample; a broken one among them is told and passed over."""
    place = tmp_path / "frames"
    place.mkdir()
    for index in range(12):
        Image.fromarray(tiny.golden.images[index // 3]).save(
            place / f"{index:02d}.jpg", quality=100, subsampling=0
        )
    source, broken = place, 0
    if kind == "folder":
        (place / "99.jpg").write_bytes(b"no image")
        broken = 1
    else:
        source = tmp_path / "film.mjpeg"
        source.write_bytes(b"".join(path.read_bytes() for path in sorted(place.iterdir())))
    done = run("camera.py", "--bundle", folder, "--source", source, "--threshold", 0, "--hold", 2)
    assert done.returncode == 0, done.stderr
    expected = [label for index, label in enumerate(labels) if index == 0 or label != labels[index - 1]]
    assert [line.split()[2] for line in done.stdout.splitlines()] == expected
    assert f"{12 + broken} frames" in done.stderr
    assert done.stderr.count("99.jpg") == broken


def test_camera_without_a_bundle(tmp_path: Path) -> None:
    done = run("camera.py", "--bundle", tmp_path / "gone.vlkd", "--source", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "No such file" in done.stderr


def test_a_camera_that_is_not_there(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cv2.py").write_text(
        "class VideoCapture:\n"
        "    def __init__(self, source): assert source == 7\n"
        "    def isOpened(self): return False\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    done = run("camera.py", "--bundle", folder, "--source", "7")
    assert (done.returncode, done.stdout) == (2, "")
    assert "7: no such file or folder, and OpenCV opens no camera" in done.stderr


def converse(
    service: subprocess.Popen[str],
    listening: socket.socket,
    inbox: Path,
    cache: Path,
    tiny: Any,
    labels: list[str],
) -> None:
    assert service.stdout is not None
    assert listening.recv(99) == b"READY=1"
    assert list(cache.rglob("selftest.json"))
    for index, image in enumerate(tiny.golden.images):
        Image.fromarray(image).save(inbox / f"{index}.part", "PNG")
        (inbox / f"{index}.part").rename(inbox / f"{index}.png")
        answer = json.loads(service.stdout.readline())
        assert (answer["image"], answer["label"]) == (f"{index}.png", labels[index])
    (inbox / "broken.part").write_bytes(b"no image")
    (inbox / "broken.part").rename(inbox / "broken.png")
    assert "no image of a known format" in json.loads(service.stdout.readline())["error"]
    service.send_signal(signal.SIGTERM)
    # The queue of a listener that was behind is full; what was sent while it was is lost, and nothing hung.
    assert service.wait(60) == 0
    assert listening.recv(99) == b"WATCHDOG=1"


def test_service(folder: Path, tiny: Any, labels: list[str], tmp_path: Path) -> None:
    """As systemd runs it: a notify socket, a cache folder, SIGTERM at the end."""
    key, public = tmp_path / "m.key", tmp_path / "m.pub"
    write_keys(key, public)
    sign_bundle(folder, key)
    inbox, cache = tmp_path / "inbox", tmp_path / "cache"
    inbox.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(60)
        environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), "CACHE_DIRECTORY": str(cache)}
        environment.pop("VLKD_CACHE")
        command = [
            sys.executable,
            "-W",
            "error",
            str(EXAMPLES / "service.py"),
            "--every",
            "0.02",
            "--threshold",
            "0",
        ]
        command += ["--bundle", str(folder), "--public-key", str(public), "--inbox", str(inbox)]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        ) as service:
            try:
                converse(service, listening, inbox, cache, tiny, labels)
            finally:
                service.kill()
    assert list(inbox.iterdir()) == []


def test_a_service_with_an_unsigned_bundle_stays_down(folder: Path, tmp_path: Path) -> None:
    write_keys(tmp_path / "m.key", tmp_path / "m.pub")
    done = run("service.py", "--bundle", folder, "--public-key", tmp_path / "m.pub", "--inbox", tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "expected a signature" in done.stderr


def test_the_unit_runs_the_service_as_it_is() -> None:
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(EXAMPLES / "vlkd.service")
    service = unit["Service"]
    flags = [word for word in service["ExecStart"].split() if word.startswith("--")]
    assert flags == ["--bundle", "--public-key", "--inbox"]
    assert all(flag in (EXAMPLES / "service.py").read_text() for flag in flags)
    assert (service["Type"], service["CacheDirectory"], service["CacheDirectoryMode"]) == (
        "notify",
        "vlkd",
        "0700",
    )
