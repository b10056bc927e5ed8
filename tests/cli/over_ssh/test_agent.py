"""The agent and the runner by themselves, as ssh runs them."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from vlkd_bench.benchrun import Plan
from vlkd_edge.over_ssh import agent, parcels
from vlkd_edge.over_ssh.connection import BOOT

sys.path.insert(0, str(Path(__file__).parent))
from ssh_devices import wait_for


def ask(cache: Path, action: str, body: bytes = b"", **request: Any) -> dict[str, Any]:
    program = Path(agent.__file__).read_bytes()
    head = json.dumps({"action": action, **request}).encode() + b"\n"
    done = subprocess.run(
        [sys.executable, "-c", BOOT],
        input=f"{len(program)}\n".encode() + program + head + body,
        capture_output=True,
        env={**os.environ, "VLKD_CACHE": str(cache)},
        check=False,
    )
    lines = [line for line in done.stdout.decode().splitlines() if line.startswith(agent.MARK)]
    return json.loads(lines[-1][len(agent.MARK) :]) if lines else {"died": done.stderr.decode()}


def tar(**files: bytes) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as stream:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            stream.addfile(entry, io.BytesIO(content))
    return data.getvalue()


def parcel(**files: bytes) -> dict[str, Any]:
    listed = [[name, len(content), hashlib.sha256(content).hexdigest()] for name, content in files.items()]
    return {"kind": "bundle", "digest": "d" * 64, "files": listed}


def test_a_cut_stream_goes_on_where_it_was(tmp_path: Path) -> None:
    files = {"a": b"1" * 5000, "b": b"2" * 5000}
    assert ask(tmp_path, "missing", **parcel(**files))["missing"] == ["a", "b"]
    stream = tar(**files)
    cut = ask(tmp_path, "put", stream[:9000], **parcel(**files))
    assert cut == {"took": "a"}
    assert ask(tmp_path, "missing", **parcel(**files))["missing"] == ["b"]
    whole = ask(tmp_path, "put", tar(b=files["b"]), **parcel(**files))
    assert whole["missing"] == [] and Path(whole["path"], "b").read_bytes() == files["b"]
    assert [path.name for path in Path(whole["path"]).parent.iterdir()] == ["d" * 64]


@pytest.mark.parametrize(
    ("request_", "body", "message"),
    [
        pytest.param({"kind": "..", "digest": "x", "files": []}, b"", "below the folder", id="kind"),
        pytest.param(parcel(**{"../x": b"1"}), b"", "below the folder", id="above"),
        pytest.param(parcel(**{"/x": b"1"}), b"", "below the folder", id="absolute"),
        pytest.param(parcel(a=b"1"), tar(a=b"2"), "changed while it was copied", id="content"),
        pytest.param(parcel(a=b"1"), tar(a=b"22"), "expected a file of the parcel, found 'a'", id="size"),
        pytest.param(parcel(a=b"1"), tar(b=b"1"), "expected a file of the parcel, found 'b'", id="stranger"),
    ],
)
def test_the_agent_takes_what_was_announced_and_no_more(
    tmp_path: Path, request_: dict[str, Any], body: bytes, message: str
) -> None:
    answer = ask(tmp_path, "put" if body else "missing", body, **request_)
    assert message in answer["error"]["text"]
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_cache_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "remote").mkdir()
    (tmp_path / "remote").chmod(0o777)
    assert ask(tmp_path, "look")["error"]["kind"] == "CacheError"


def test_old_runs_that_nobody_came_for_are_forgotten(tmp_path: Path) -> None:
    for name, age in (("old", 2 * agent.FORGET_SECONDS), ("young", 60.0)):
        (tmp_path / "remote/runs" / name).mkdir(parents=True)
        os.utime(tmp_path / "remote/runs" / name, (time.time() - age,) * 2)
    (tmp_path / "remote").chmod(0o700)
    ask(tmp_path, "look")
    assert [run.name for run in (tmp_path / "remote/runs").iterdir()] == ["young"]
    assert ask(tmp_path, "follow", run="young", offset=0)["state"] == "dead"
    assert ask(tmp_path, "follow", run="none", offset=0)["state"] == "absent"


def test_the_code_needs_no_more_than_numpy_pillow_and_an_engine(tmp_path: Path, odd: Path) -> None:
    for file in parcels.code().files:
        (tmp_path / file.name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file.path, tmp_path / file.name)
    script = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('typer', 'rich', 'click', 'torch', 'onnx', 'matplotlib', 'jinja2')))\n"
        "from vlkd_edge.over_ssh import runner\n"
        f"assert runner.__file__.startswith({str(tmp_path)!r})\n"
        "from vlkd_edge import benching\n"
        "sys.argv = ['runner', '--doctor']\n"
        "runner.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["engines"]["ort-cpu"]["available"]
    assert sum(file.size for file in parcels.code().files) < 2 << 20


def test_two_runs_on_a_device_wait_for_each_other(tmp_path: Path) -> None:
    run = tmp_path / "runs/one"
    run.mkdir(parents=True)
    plain = {"plan": asdict(Plan(tmp_path / "none")), "data": None, "domains": [], "split": "all", "command": "",
             "watch": False}  # fmt: skip
    plain["plan"]["bundle"] = str(tmp_path / "none")
    (run / "request.json").write_text(json.dumps(plain))
    with (tmp_path / "turn").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        process = subprocess.Popen([sys.executable, "-m", "vlkd_edge.over_ssh.runner", str(run)])
        wait_for(lambda: (run / "progress.jsonl").exists() and (run / "progress.jsonl").stat().st_size > 0)
        assert "another bench is running there" in (run / "progress.jsonl").read_text()
        assert process.poll() is None and not (run / "answer.json").exists()
    assert process.wait(120) == 0
    answer = json.loads((run / "answer.json").read_text())
    assert answer["error"]["kind"] == "DataError" and str(tmp_path / "none") in answer["error"]["message"]
