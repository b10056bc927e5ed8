"""The gate as a CI runs it: bench with data, accept a baseline, slow down, drop a domain, interrupt."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from vlkd_bench.benchrun import Plan
from vlkd_bench.benchrun import run as run_bench
from vlkd_bench.processes import take_turns
from vlkd_bench.sensors.devicememory import DeviceMemory
from vlkd_runtime.errors import UnavailableError

FAST = ("--samples", "40", "--processes", "3", "--no-throughput", "--no-power")


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a verb in a process of its own, where torch cannot be imported."""
    script = (
        "import sys\nsys.modules.update(dict.fromkeys(('torch', 'timm', 'open_clip')))\n"
        f"sys.argv = ['vlkd-edge', *{[str(word) for word in arguments]!r}]\n"
        "from vlkd_edge.__main__ import main\nmain()\n"
    )
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=600
    )


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two domains of three classes, noise for pictures, and a file that is none."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for domain in ("photo", "sketch"):
        for name in ("cat", "dog", "fish"):
            folder = root / domain / name
            folder.mkdir(parents=True)
            for i in range(6):
                Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    (root / "sketch/dog/torn.png").write_bytes(b"no picture")
    return root


@pytest.fixture(scope="module")
def measured(bundle: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One record, as ``bench --json`` prints it."""
    done = run("bench", bundle, "--data", images, *FAST, "--json")
    assert done.returncode == 0, done.stderr
    path = tmp_path_factory.mktemp("record") / "now.json"
    path.write_text(done.stdout)
    return path


def changed(path: Path, out: Path, *, slower: float = 1.0, lose: str = "") -> Path:
    """The record with every latency scaled, or with a domain whose right answers became wrong."""
    from dataclasses import replace

    from vlkd_bench.accuracydetail import describe_accuracy
    from vlkd_bench.benchrecord import load_bench_records

    (record,) = load_bench_records(path)
    latency = {
        name: replace(
            timing,
            runs=tuple(
                replace(
                    r,
                    p05_ms=r.p05_ms * slower,
                    p50_ms=r.p50_ms * slower,
                    p90_ms=r.p90_ms * slower,
                    p95_ms=r.p95_ms * slower,
                )
                for r in timing.runs
            ),
        )
        for name, timing in record.latency.items()
    }
    accuracy = record.accuracy
    assert accuracy is not None
    rows = [
        replace(row, prediction=(row.label + 1) % 3) if row.domain == lose else row for row in accuracy.rows()
    ]
    accuracy = describe_accuracy(rows, accuracy.classes, dataset=accuracy.dataset, split=accuracy.split)
    out.write_text(json.dumps(replace(record, latency=latency, accuracy=accuracy).to_record().to_json()))
    return out


def right_everywhere(path: Path, out: Path) -> Path:
    """The record as if every answer were right, so that there is something to lose."""
    from dataclasses import replace

    from vlkd_bench.accuracydetail import describe_accuracy
    from vlkd_bench.benchrecord import load_bench_records

    (record,) = load_bench_records(path)
    assert record.accuracy is not None
    rows = [replace(row, prediction=row.label) for row in record.accuracy.rows()]
    accuracy = describe_accuracy(rows, record.accuracy.classes, dataset="x", split="all")
    out.write_text(json.dumps(replace(record, accuracy=accuracy).to_record().to_json()))
    return out


def test_a_record_has_accuracy_by_domain_with_intervals(measured: Path) -> None:
    record: dict[str, Any] = json.loads(measured.read_text())
    accuracy = record["accuracy"]
    assert set(accuracy["domains"]) == {"photo", "sketch"}
    for item in accuracy["domains"].values():
        assert item["n"] == 18 and item["lower"] <= item["accuracy"] <= item["upper"]
    assert "1 image is left out and cannot be decoded: sketch/dog/torn.png." in record["notes"]
    assert accuracy["dataset"].endswith(", 36 images")
    assert accuracy["worst"] == min(item["accuracy"] for item in accuracy["domains"].values())
    assert accuracy["ece_interval"][0] <= accuracy["ece"] <= accuracy["ece_interval"][1]
    assert [item["name"] for item in accuracy["per_class"]] == ["cat", "dog", "fish"]
    wrong = sum(item["n"] - item["correct"] for item in accuracy["per_class"])
    assert sum(pair["count"] for pair in accuracy["confusions"]) == wrong
    for pair in accuracy["confusions"]:
        assert pair["share"] == pair["count"] / 12 and pair["lower"] <= pair["share"] <= pair["upper"]
    assert len(record["cold_start"]["total_ms"]) == len(record["memory"]["peak_resident_bytes"]) == 3
    assert min(record["cold_start"]["total_ms"]) > max(record["cold_start"]["first_call_ms"])
    assert record["memory"]["device_bytes"] is None
    assert record["memory"]["device_reason"] == "the model does not run on a GPU"
    assert record["before"]["load_average"] is not None and record["power"]["reason"] == "not asked for"
    assert str(measured.parent) not in measured.read_text() and "data images" in record["command"].replace(
        "--", ""
    )


def test_people_see_intervals_classes_and_confusions(measured: Path) -> None:
    from vlkd_bench.benchrecord import load_bench_records
    from vlkd_edge.benching import render

    (record,) = load_bench_records(measured)
    assert record.accuracy is not None
    lines = render(record).splitlines()
    stats = record.latency["call"].stats
    at = next(i for i, line in enumerate(lines) if line.startswith("call "))
    assert lines[at].split()[1:3] == [f"{stats.p50_ms:.3f}", "–"]  # 40 calls are too few for a p90
    assert lines[at + 1].split()[-1] == "–".join(f"{end:.3f}" for end in stats.p50_interval_ms)
    worst = min(record.accuracy.per_class, key=lambda item: item.accuracy)
    assert any(line.startswith(f"  class {worst.name}: {100 * worst.accuracy:.1f} %") for line in lines)
    pair = record.accuracy.confusions[0]
    assert any(line.startswith(f"  {pair.label} taken for {pair.prediction}: ") for line in lines)


def test_the_gate_turns_on_a_slowdown_and_on_a_dropped_domain(measured: Path, tmp_path: Path) -> None:
    before = right_everywhere(measured, tmp_path / "before.json")
    cases = {
        "same": (before, 0),
        "slow": (changed(before, tmp_path / "slow.json", slower=20.0), 1),
        "drop": (changed(before, tmp_path / "drop.json", lose="sketch"), 1),
    }
    for name, (path, code) in cases.items():
        files = {form: tmp_path / f"{name}.{form}" for form in ("junit", "html", "markdown")}
        words = [word for form, file in files.items() for word in (f"--{form}", file)]
        done = run("report", path, "--baseline", before, "--fail-on", "regression", "--json", *words)
        answer = json.loads(done.stdout)
        assert done.returncode == code, (name, answer["headline"], done.stderr)
        assert answer["verdict"] == ("regression" if code else "ok")
        suite = ET.parse(files["junit"]).getroot().find("testsuite")
        assert suite is not None and (int(suite.attrib["failures"]) > 0) == bool(code)
        assert ("No regression" in files["html"].read_text().splitlines()[0]) == (not code)
        assert ("No regression" in files["markdown"].read_text().splitlines()[0]) == (not code)
        worse = {metric["name"] for metric in answer["metrics"] if metric["verdict"] == "regression"}
        assert (name == "drop") == ("accuracy sketch" in worse)
        assert (name == "slow") == ("latency call p50" in worse)
    assert run("report", cases["slow"][0], "--baseline", before, "--fail-on", "never").returncode == 0


def test_a_baseline_is_accepted_listed_shown_and_used(measured: Path, tmp_path: Path) -> None:
    folder = tmp_path / "baselines"
    done = run("baseline", "accept", measured, "--reason", "first", "--folder", folder, "--json")
    assert done.returncode == 0, done.stderr
    path = folder / "jetson-orin-nano.json"
    assert json.loads(done.stdout)["file"] == str(path)
    slow = changed(measured, tmp_path / "slow.json", slower=20.0)
    assert run("report", slow, "--baseline", path).returncode == 1
    assert run("baseline", "accept", slow, "--reason", "agreed on", "--folder", folder).returncode == 0
    assert run("report", slow, "--baseline", path).returncode == 0
    listed = json.loads(run("baseline", "list", "--folder", folder, "--json").stdout)
    assert [entry["reason"] for entry in listed] == ["agreed on"]
    shown = run("baseline", "show", "jetson-orin-nano", "--folder", folder).stdout
    assert "reason: first" in shown and "accepted as worse: latency" in shown
    data = json.loads(measured.read_text())
    data["machine"]["cpu_model"] = "another"
    other = tmp_path / "other.json"
    other.write_text(json.dumps(data))
    refused = run("report", other, "--baseline", path, "--json")
    answer = json.loads(refused.stdout)
    assert (refused.returncode, answer["verdict"], answer["metrics"]) == (2, "incomparable", [])
    assert run("report", other, "--baseline", path, "--across", "--fail-on", "never").returncode == 0


def test_two_bundles_take_turns(bundle: Path, small: Any, tmp_path: Path) -> None:
    base = tmp_path / "base.jsonl"
    other = small.pack(tmp_path, bundle / "model.onnx", small.vectors, "float16")
    done = run("bench", bundle, *FAST, "--json", "--against", other, "--against-record", base)
    assert done.returncode == 0, done.stderr
    now, before = json.loads(done.stdout), json.loads(base.read_text())
    assert (now["bundle"]["precision"], before["bundle"]["precision"]) == ("float32", "float16")
    assert now["interleaved_with"] == before["bundle"]["digest"] != now["bundle"]["digest"]
    assert before["interleaved_with"] == now["bundle"]["digest"]
    assert now["when"] == before["when"] and now["latency"] != before["latency"]


def test_one_that_fails_ends_the_turns_of_all(bundle: Path, images: Path, tmp_path: Path) -> None:
    request = {
        "action": "latency",
        "bundle": str(bundle),
        "engine": "auto",
        "threads": 1,
        "image": str(images / "photo/cat/0.png"),
        "samples": 5,
        "max_seconds": 10.0,
    }
    others = children(os.getpid())  # such as torch's, which other tests have started here
    first, last = take_turns([request, request], 10.0)
    assert {len(answer["samples_ns"]["call"]) for answer in (first, last)} == {5}
    with pytest.raises(UnavailableError, match=r"a process of its own, found: .*not here"):
        take_turns([request, {**request, "bundle": str(tmp_path / "not here")}], 10.0)
    assert children(os.getpid()) == others


class Gpu:
    """Stands in for NVML: every process that this one started holds ever more memory."""

    class NVMLError(Exception):
        """What the library raises."""

    def __init__(self, known: bool) -> None:
        self.known, self.looks = known, 0

    def __getattr__(self, name: str) -> Any:
        return {
            "nvmlDeviceGetCount": lambda: 1,
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetComputeRunningProcesses": self.processes,
            "nvmlShutdown": lambda: None,
        }[name]

    def processes(self, _: object) -> list[SimpleNamespace]:
        self.looks += 1
        held = dict.fromkeys(children(os.getpid()), self.looks * 1000) if self.known else {1: 5}
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in held.items()]


@pytest.mark.parametrize("known", [True, False], ids=["known", "in a container"])
def test_peak_device_memory_is_read_while_the_processes_run(bundle: Path, known: bool) -> None:
    gpu = Gpu(known)
    plan = Plan(bundle, samples=10, processes=2, throughput=False, power=False)
    memory = run_bench(plan, on_gpu=True, device_memory=DeviceMemory(gpu)).memory
    assert gpu.looks > 1
    if known:
        assert memory.device_bytes is not None and 0 < memory.device_bytes <= 1000 * gpu.looks
        assert memory.device_reason == ""
    else:
        assert memory.device_bytes is None and "in a container" in memory.device_reason


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(
            ["report", "NOW", "--baseline", "none.json"], "Expected a log of records", id="no baseline"
        ),
        pytest.param(["report", "EMPTY", "--baseline", "NOW"], "at least one whole bench record", id="empty"),
        pytest.param(
            ["report", "NOW", "--baseline", "NOW", "--fail-on", "x"], "--fail-on: expected", id="word"
        ),
        pytest.param(["baseline", "list", "--folder", "nowhere"], "Expected baseline files", id="no folder"),
        pytest.param(["baseline", "accept", "NOW", "--reason", " "], "Expected a reason", id="no reason"),
        pytest.param(
            ["report", "NOW", "--baseline", "NOW", "--aa", "THREADS"],
            "found bundle .* where threads is 2, the baseline's 1",
            id="A/A runs of another setup",
        ),
        pytest.param(
            ["bench", "NOW", "--against-record", "base.jsonl"], "expected --against", id="nothing against"
        ),
    ],
)
def test_mistakes_exit_with_2(measured: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    data = json.loads(measured.read_text())
    data["setup"]["threads"] = 2
    (tmp_path / "threads.json").write_text(json.dumps(data))
    places = {
        "NOW": str(measured),
        "EMPTY": str(tmp_path / "empty.jsonl"),
        "THREADS": str(tmp_path / "threads.json"),
    }
    done = run(*[places.get(word, word) for word in arguments])
    assert done.returncode == 2 and re.search(message, done.stderr) and "Traceback" not in done.stderr


def test_an_empty_domain_is_refused(bundle: Path, images: Path, tmp_path: Path) -> None:
    (tmp_path / "data/empty/cat").mkdir(parents=True)
    done = run("bench", bundle, "--data", tmp_path / "data", *FAST)
    assert done.returncode == 2 and "found none in empty/cat" in done.stderr


def test_an_interrupted_bench_leaves_the_log_as_it_was(bundle: Path, measured: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_bytes(measured.read_bytes())
    words = ["bench", bundle, "--record", log, "--samples", "100000", "--processes", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "vlkd_edge", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
        # A shell that runs the tests in the background makes everything below it ignore interrupts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not children(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    started = children(process.pid)
    assert started, "the measuring process did not start"
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130 and "No record was written" in errors
    assert log.read_bytes() == measured.read_bytes()
    assert not [pid for pid in started if Path(f"/proc/{pid}").exists()]


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
