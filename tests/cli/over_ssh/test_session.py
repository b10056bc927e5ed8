"""``bench --on`` against a device that is this machine: a program called ssh on PATH, and where there is one, sshd."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import stat
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from vlkd_bench.benchrecord import load_bench_records
from vlkd_bench.benchrun import Plan
from vlkd_edge.over_ssh.runner import request_of

sys.path.insert(0, str(Path(__file__).parent))
from ssh_devices import FAST, Device, alive, executable, wait_for


@pytest.mark.parametrize("way", ["fake", "sshd"])
def test_it_measures_there_and_brings_the_records_back(
    request: pytest.FixtureRequest, way: str, odd: Path, images: Path, tmp_path: Path
) -> None:
    device: Device = request.getfixturevalue(way)
    log, base = tmp_path / "log.jsonl", tmp_path / "base.jsonl"
    words = ("--data", images, "--domains", "photo,sketch", "--against", odd, "--against-record", base)
    done = device.bench(odd, *FAST, *words, "--watch", "--record", log, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(log.read_text())
    (record,), (other,) = load_bench_records(log), load_bench_records(base)
    assert (record.host, record.how.split(",")[0]) == (device.host.rpartition("@")[2], "over ssh")
    assert record.accuracy is not None and set(record.accuracy.domains) == {"photo", "sketch"}
    assert record.accuracy.dataset == "my 'images', 12 images"
    assert record.interleaved_with == other.bundle.digest == other.interleaved_with
    assert "@" not in record.command and f"--on {record.host}" in record.command
    assert any("watched while it ran" in note for note in record.notes)
    assert device.runs == [] and not (device.home / "x").exists()
    assert len(list(device.kept.glob("data/*/*/*/*/*.png"))) == 12
    assert stat.S_IMODE(device.kept.stat().st_mode) == 0o700


def test_the_second_time_nothing_is_copied_and_clean_leaves_nothing(
    device: Device, odd: Path, tmp_path: Path
) -> None:
    calls = []
    for words in ((), ("--clean",)):
        done = device.bench(odd, *FAST, "--record", tmp_path / "log.jsonl", *words)
        assert done.returncode == 0, done.stderr
        calls.append((tmp_path / "calls").read_text().count("\n"))
    # Two requests fewer, for the code and the bundle.
    assert calls[1] - calls[0] == calls[0] - 2
    assert len(load_bench_records(tmp_path / "log.jsonl")) == 2
    assert not device.kept.exists() and list((device.home / ".cache/vlkd-edge").iterdir()) == []


def test_a_dropped_connection_is_taken_up_again(device: Device, odd: Path, tmp_path: Path) -> None:
    device.drop()
    done = device.bench(odd, *FAST, "--record", tmp_path / "log.jsonl")
    assert done.returncode == 0, done.stderr
    assert "lost the connection to device" in done.stderr and "picking up" not in done.stderr
    assert not (tmp_path / "drop").exists() and device.runs == []
    assert len(load_bench_records(tmp_path / "log.jsonl")) == 1


def test_over_sshd_a_connection_killed_mid_run_is_picked_up(
    sshd: Device, answer: dict[str, Any], odd: Path, tmp_path: Path
) -> None:
    sshd.stub.mkdir()
    sshd.pretend(answer)
    process = sshd.begin(odd, *FAST, "--record", tmp_path / "log.jsonl")
    server = (tmp_path / "server.pid").read_text()

    def lost() -> bool:
        # Between two requests there is no connection to kill.
        for child in Path(f"/proc/{server}/task/{server}/children").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)
        return bool(select.select([process.stderr], [], [], 0)[0])

    wait_for(lost)
    sshd.open_gate()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0 and "lost the connection to 127.0.0.1" in errors, errors
    assert load_bench_records(tmp_path / "log.jsonl")[0].host == "127.0.0.1"
    assert sshd.runs == []


def test_a_run_is_kept_there_until_its_record_is_kept_here(device: Device, odd: Path, tmp_path: Path) -> None:
    device.drop()
    log = tmp_path / "log.jsonl"
    lost = device.bench(odd, *FAST, "--record", log, "--reconnect-minutes", "0")
    assert lost.returncode == 2 and "the same command picks it up" in lost.stderr
    assert not log.exists() and len(device.runs) == 1
    full = device.bench(odd, *FAST, "--record", "/dev/full")
    assert full.returncode == 2 and "No space left on device" in full.stderr, full.stderr
    assert (device.runs[0] / "answer.json").exists()
    done = device.bench(odd, *FAST, "--record", log)
    assert done.returncode == 0 and "picking up the run that began on device" in done.stderr, done.stderr
    assert len(load_bench_records(log)) == 1 and device.runs == []


def test_an_interrupt_stops_the_run_on_the_device(device: Device, odd: Path, tmp_path: Path) -> None:
    (device.stub / "gate").unlink()
    process = device.begin(odd, *FAST, "--record", tmp_path / "log.jsonl")
    runner = int((device.runs[0] / "pid").read_text())
    assert alive(runner)
    twice = device.bench(odd, *FAST)
    assert twice.returncode == 2 and "another vlkd-edge bench that does" in twice.stderr, twice.stderr
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130 and "No record was written" in errors, errors
    assert device.runs == [] and not (tmp_path / "log.jsonl").exists()
    assert not alive(runner)


def test_a_run_that_was_killed_is_told_and_forgotten(device: Device, odd: Path) -> None:
    (device.stub / "gate").unlink()
    process = device.begin(odd, *FAST)
    os.killpg(int((device.runs[0] / "pid").read_text()), signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2 and "no last words: killed, out of memory" in errors, errors
    assert device.runs == []


@pytest.mark.parametrize(
    ("answer", "code", "message"),
    [
        pytest.param(
            {"error": {"kind": "DataError", "message": "Expected a data folder"}},
            2,
            "on device: Expected a data folder",
            id="caller",
        ),
        pytest.param(
            {"error": {"kind": "SelfTestError", "message": "Expected the golden"}},
            1,
            "on device: Exp",
            id="no",
        ),
        pytest.param({"records": [{"schema": 1}]}, 2, "expected schema 2, found 1", id="schema"),
    ],
)
def test_an_error_of_the_bench_there_is_that_error_here(
    device: Device, odd: Path, answer: dict[str, Any], code: int, message: str
) -> None:
    device.pretend(answer)
    done = device.bench(odd, *FAST)
    assert done.returncode == code and message in done.stderr, done.stderr
    assert device.runs == []


def test_what_the_device_lacks_is_said_with_the_line_that_brings_it(
    device: Device, odd: Path, answer: dict[str, Any], tmp_path: Path
) -> None:
    bare = executable(tmp_path / 'a "bare" python/python3', f'#!/bin/sh\nexec {sys.executable} -S -E "$@"\n')
    done = device.bench(odd, *FAST, "--python", bare, "--clean")
    assert (
        done.returncode == 2 and "found no numpy and no PIL. Run there: pip install numpy" in done.stderr
    ), done.stderr
    device.pretend(answer, engine=False)
    done = device.bench(odd, *FAST, "--clean")
    assert done.returncode == 2 and "found none; no onnxruntime: pip install it" in done.stderr, done.stderr
    done = device.bench(odd, *FAST, "--clean", "--engine", "ort-cpu")
    assert done.returncode == 2 and "Expected the engine ort-cpu on device" in done.stderr, done.stderr
    assert not device.kept.exists()


def test_data_is_copied_or_there_already(device: Device, odd: Path, images: Path) -> None:
    done = device.bench(odd, *FAST, "--data", images, "--remote-data", "there")
    assert done.returncode == 2 and "give one of them" in done.stderr
    plain = {
        "plan": asdict(Plan(odd)),
        "data": "there",
        "domains": [],
        "split": "all",
        "command": "",
        "watch": False,
    }
    assert request_of(plain).data == Path.home() / "there"


def test_options_for_a_device_need_one(odd: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vlkd_edge", "bench", str(odd), "--clean"], capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 2 and "expected --on USER@HOST" in done.stderr
