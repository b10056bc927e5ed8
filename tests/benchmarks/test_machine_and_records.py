from __future__ import annotations

import errno
import json
import platform
import socket
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from vlkd_bench.machine import Machine, read_machine
from vlkd_bench.records import DamagedLine, Record, append_record, read_records
from vlkd_runtime.errors import DataError


def jetson(root: Path) -> Path:
    files = {
        "proc/cpuinfo": "model name\t: ARMv8 Processor rev 1 (v8l)\nFeatures\t: fp asimd asimddp\n",
        "proc/meminfo": "MemTotal:        7802820 kB\nMemFree: 1 kB\n",
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.0, BOARD: generic\nmore\n",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_a_jetson_is_recognised(tmp_path: Path) -> None:
    machine = read_machine(jetson(tmp_path))
    assert machine.board == "NVIDIA Jetson Orin Nano Developer Kit"
    assert machine.jetson_release == "# R36 (release), REVISION: 4.0, BOARD: generic"
    assert machine.cpu_model == "ARMv8 Processor rev 1 (v8l)"
    assert machine.isa == ("asimd", "asimddp")
    assert machine.memory_bytes == 7802820 * 1024
    assert machine.describe().startswith("NVIDIA Jetson Orin Nano Developer Kit, ARMv8")


def test_a_machine_of_another_version_is_refused() -> None:
    with pytest.raises(DataError, match=r"Expected the fields cpu_model, .* found board: measure again"):
        Machine.from_json({"board": "x"})


def test_a_system_that_tells_nothing(tmp_path: Path) -> None:
    machine = read_machine(tmp_path)
    assert machine.cpu_model == platform.machine()
    assert (machine.isa, machine.memory_bytes, machine.board, machine.jetson_release) == ((), 0, "", "")
    assert "memory unknown" in machine.describe()


def test_this_machine_is_not_named() -> None:
    machine = read_machine()
    assert machine.logical_cores >= machine.usable_cores >= 1
    text = json.dumps(machine.to_json(), allow_nan=False)
    assert Machine.from_json(json.loads(text)) == machine
    assert socket.gethostname() not in text
    assert str(Path.home()) not in text


WHEN = datetime(2024, 5, 6, 9, 0, tzinfo=timezone(timedelta(hours=2)))


def test_records_are_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "log" / "runs.jsonl"
    first = append_record(path, "bench", {"p50_ms": 1.5, "name": "line\u2028end"}, when=WHEN)
    append_record(path, "build", {})
    log = read_records(path)
    assert log.records[0] == first == Record("bench", "2024-05-06T07:00:00+00:00", first.data)
    assert [record.kind for record in log.records] == ["bench", "build"]
    assert log.damaged == ()


def test_a_truncated_line_is_reported_and_costs_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    append_record(path, "one", {})
    append_record(path, "two", {"x": 1})
    whole = path.read_bytes()
    path.write_bytes(whole[:-12])
    log = read_records(path)
    assert [record.kind for record in log.records] == ["one"]
    assert [item.line for item in log.damaged] == [2]
    append_record(path, "three", {})
    log = read_records(path)
    assert [record.kind for record in log.records] == ["one", "three"]
    assert [item.line for item in log.damaged] == [2]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not JSON"),
        ("[]", "expected an object, found list"),
        ('{"schema": 99}', "expected schema 2, found 99"),
        ('{"schema": 2, "kind": "a", "when": 3}', "a text 'when'"),
        ("\udcff", "not JSON"),
    ],
    ids=["cut", "no object", "other version", "wrong types", "not UTF-8"],
)
def test_unreadable_lines_are_reported(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "runs.jsonl"
    append_record(path, "one", {})
    path.write_bytes(path.read_bytes() + line.encode("utf-8", "surrogateescape") + b"\n")
    log = read_records(path)
    assert len(log.records) == 1
    (damaged,) = log.damaged
    assert isinstance(damaged, DamagedLine)
    assert damaged.line == 2
    assert reason in damaged.reason


@pytest.mark.parametrize("value", [float("nan"), object()], ids=["nan", "no JSON value"])
def test_values_outside_json_are_refused(tmp_path: Path, value: object) -> None:
    path = tmp_path / "runs.jsonl"
    with pytest.raises(DataError, match="Nothing was written"):
        append_record(path, "one", {"x": value})
    assert not path.exists()


def test_a_field_of_the_records_head_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no field called when"):
        append_record(tmp_path / "runs.jsonl", "one", {"when": 3})


FULL = """
import resource, sys
from pathlib import Path
from vlkd_bench.records import append_record
path = Path(sys.argv[1])
size = path.stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 40, size + 40))
try:
    append_record(path, "two", {"x": "y" * 1000})
except OSError as error:
    print(error.errno, error.filename)
"""


def test_a_full_disk_costs_the_new_record_alone(tmp_path: Path) -> None:
    """The limit on a file's size stands in for the disk's end: both cut a write in the middle."""
    path = tmp_path / "runs.jsonl"
    append_record(path, "one", {"x": 1})
    before = path.read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == [str(errno.EFBIG), str(path)]
    assert path.read_bytes() == before
    append_record(path, "three", {})
    assert [record.kind for record in read_records(path).records] == ["one", "three"]


def test_a_missing_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Expected a log of records"):
        read_records(tmp_path / "none.jsonl")
