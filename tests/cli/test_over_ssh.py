"""``bench --on`` against a device that is this machine: a program called ssh on PATH, and where there is one, sshd."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from tinymodel import NAMES, tiny_bundle
from vlkd_bench.benchrecord import load_bench_records
from vlkd_bench.benchrun import Plan
from vlkd_edge.benching import Request, bench
from vlkd_edge.over_ssh import agent, parcels, session
from vlkd_edge.over_ssh.connection import BOOT, Connection, Way
from vlkd_edge.over_ssh.runner import request_of
from vlkd_edge.progress import Live
from vlkd_runtime.errors import ConfigError, UnavailableError

FAST = ("--samples", "10", "--processes", "1", "--no-throughput", "--no-power")
# In place of our packages: a run that begins at once, ends when the file "gate" is there, and has a record ready.
STUB = """
import json, pathlib, sys, time
if sys.argv[1] == "--doctor":
    engine = {{"available": {engine!r}, "reason": "no onnxruntime: pip install it"}}
    print(json.dumps({{"engines": {{"ort-cpu": engine}}, "targets": {{}}}}))
    sys.exit()
folder = pathlib.Path(sys.argv[1])
(folder / "progress.jsonl").write_text(json.dumps({{"task": "timing", "total": None}}) + "\\n")
while not pathlib.Path({gate!r}).exists():
    time.sleep(0.02)
(folder / "answer.tmp").write_bytes(pathlib.Path({answer!r}).read_bytes())
(folder / "answer.tmp").rename(folder / "answer.json")
"""
MAIN = """
import sys
from pathlib import Path
from vlkd_edge.__main__ import main
if sys.argv[1]:
    from vlkd_edge.over_ssh import parcels
    files = [(path.relative_to(sys.argv[1]).as_posix(), path) for path in Path(sys.argv[1]).rglob("*.py")]
    parcels.code = lambda: parcels.pack("code", "", files)
del sys.argv[1]
main()
"""
# Runs what it is asked to in a home of its own. While the file "drop" is there, a line of progress ends the connection.
FAKE = """#!{python}
import os, pathlib, signal, subprocess, sys
here, words = pathlib.Path({here!r}), sys.argv[1:]
if "-O" in words:
    sys.exit(0)
with (here / "calls").open("a") as calls:
    calls.write(" ".join(words[words.index("--") + 1:][:1]) + "\\n")
environment = dict(os.environ, HOME=str(here / "home"))
for name in ("PYTHONPATH", "VLKD_CACHE", "XDG_CACHE_HOME"):
    environment.pop(name, None)
command = " ".join(words[words.index("--") + 2:])
print("Welcome. This login script prints.", flush=True)
process = subprocess.Popen(["sh", "-c", command], cwd=here / "home", env=environment, stdout=subprocess.PIPE)
for line in process.stdout:
    if b'"progress"' in line and (here / "drop").exists():
        (here / "drop").unlink()
        process.kill()
        print("Connection to device closed by remote host.", file=sys.stderr)
        sys.exit(255)
    sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()
sys.exit(process.wait())
"""


@dataclass
class Device:
    """Where the other side lies, and how to call it."""

    home: Path
    host: str
    options: tuple[str, ...]
    path: str
    stub: Path

    def drop(self) -> None:
        """Let the connection break at the next word of progress."""
        (self.home.parent / "drop").touch()

    def open_gate(self) -> None:
        """Let stubs end."""
        (self.stub / "gate").touch()

    def pretend(self, answer: dict[str, Any], *, engine: bool = True) -> None:
        """Put a stub in place of our packages, with what it answers."""
        (self.stub / "answer.json").write_text(json.dumps(answer))
        for name in ("vlkd_edge/__init__.py", "vlkd_edge/over_ssh/__init__.py"):
            executable(self.stub / "code" / name, "")
        gate, path = str(self.stub / "gate"), str(self.stub / "answer.json")
        runner = STUB.format(gate=gate, answer=path, engine=engine)
        executable(self.stub / "code/vlkd_edge/over_ssh/runner.py", runner)

    @property
    def kept(self) -> Path:
        return self.home / ".cache/vlkd-edge/remote"

    @property
    def runs(self) -> list[Path]:
        return sorted((self.kept / "runs").glob("*"))

    def words(self, *words: str | Path) -> list[str]:
        on = ("--on", self.host, "--python", sys.executable, *self.options)
        code = self.stub / "code" if self.stub.exists() else ""
        return [sys.executable, "-c", MAIN, *map(str, (code, "bench", *on, *words))]

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "PATH": f"{self.path}{os.pathsep}{os.environ['PATH']}"}

    def bench(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.words(*words), capture_output=True, text=True, timeout=300, env=self.environment, check=False
        )

    def begin(self, *words: str | Path) -> subprocess.Popen[str]:
        """Start a bench and wait until it runs on the device."""
        process = subprocess.Popen(
            self.words(*words),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
            # A shell that runs the tests in the background makes everything below it ignore interrupts.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        wait_for(lambda: any(path.stat().st_size for path in self.kept.glob("runs/*/progress.jsonl")))
        return process


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def fake(tmp_path: Path) -> Device:
    """A program called ssh that runs commands in a home of its own."""
    (tmp_path / "home").mkdir()
    executable(tmp_path / "bin/ssh", FAKE.format(python=sys.executable, here=str(tmp_path)))
    return Device(tmp_path / "home", "me@device", (), str(tmp_path / "bin"), tmp_path / "stub")


@pytest.fixture
def device(fake: Device, answer: dict[str, Any]) -> Device:
    """The same with stubs that end at once."""
    fake.stub.mkdir()
    fake.pretend(answer)
    fake.open_gate()
    return fake


@pytest.fixture(scope="session")
def answer(odd: Path) -> dict[str, Any]:
    """What a run leaves, measured once for all stubs."""
    plan = Plan(odd, samples=10, processes=1, throughput=False, power=False)
    found, _ = bench(Request(plan), Live(Console(stderr=True)))
    return {"records": [found.to_record().to_json()]}


@pytest.fixture(scope="session")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose name means something to shells."""
    return tiny_bundle(tmp_path_factory.mktemp("odd") / 'it\'s a "bundle"; $(touch x) `y` & 100%')


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rng = tmp_path_factory.mktemp("data") / "my 'images'", np.random.default_rng(0)
    for domain in ("photo", "sketch", "not asked for"):
        for name in NAMES:
            (root / domain / name).mkdir(parents=True)
            for i in range(2):
                pixels = rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / domain / name / f"a {i}.png")
    return root


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


def complaint(text: str, code: int) -> str:
    return f"#!/bin/sh\ncat > /dev/null\necho {text!r} >&2\nexit {code}\n"


@pytest.mark.parametrize(
    ("script", "message"),
    [
        pytest.param(
            complaint("ssh: Could not resolve hostname device: Name or service not known", 255),
            "no host of that name",
            id="host",
        ),
        pytest.param(complaint("me@device: Permission denied (publickey).", 255), "ssh-copy-id me@device", id="key"),
        pytest.param(complaint("Host key verification failed.", 255), "log in once by hand", id="host key"),
        pytest.param(
            complaint("ssh: connect to host device port 22: Connection refused", 255), "Port=N", id="refused"
        ),
        pytest.param(complaint("Connection timed out", 255), "is the device on", id="timeout"),
        pytest.param(complaint("kex_exchange_identification", 255), "Try 'ssh me@device' by hand", id="other"),
        pytest.param(complaint("sh: 1: python3: not found", 127), "name a Python with --python", id="no Python"),
        pytest.param(complaint("vlkd-edge: old 3.8", 1), "Python 3.10 or later on device, found 3.8", id="old"),
        pytest.param(complaint("Segmentation fault", 1), "Is it a Python", id="no answer"),
    ],
)  # fmt: skip
def test_what_keeps_from_beginning_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str
) -> None:
    executable(tmp_path / "ssh", script)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with Connection(Way("me@device")) as connection, pytest.raises(UnavailableError, match=message):
        connection.ask("look")


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        pytest.param(
            {"missing": ["a.py"], "path": "/x", "free_bytes": 1_000_000},
            "Expected 67 MB free on device for the code, found 1: the disk is full",
            id="before",
        ),
        pytest.param(
            {"error": {"kind": "full", "text": "/x/a.py: No space left on device"}},
            "No space left on device; the disk is full: free space there",
            id="while",
        ),
        pytest.param(
            {"error": {"kind": "CacheError", "text": "/x: expected a folder"}}, "set VLKD_CACHE there", id="cache"
        ),
    ],
)  # fmt: skip
def test_a_full_disk_there_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reply: dict[str, Any], message: str
) -> None:
    (tmp_path / "reply").write_text(agent.MARK + json.dumps(reply) + "\n")
    executable(tmp_path / "ssh", f"#!/bin/sh\ncat > /dev/null\ncat '{tmp_path}/reply'\n")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "a.py").write_text("")
    remote, show = session.Remote(Way("device")), Live(Console(stderr=True))
    with Connection(remote.way) as connection, pytest.raises(UnavailableError, match=message):
        session.Session(connection, remote, show, print).copy(
            parcels.pack("code", "", [("a.py", tmp_path / "a.py")])
        )


def test_without_ssh_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnavailableError, match="apt install openssh-client"), Connection(Way("device")):
        pass


@pytest.mark.parametrize("host", ["-oProxyCommand=touch x", "", "a b", "a\nb"])
def test_hosts_that_ssh_could_take_for_options_are_refused(host: str) -> None:
    with pytest.raises(ConfigError, match="expected user@host"):
        Way(host)


def test_options_are_names_with_values() -> None:
    with pytest.raises(ConfigError, match="Port=2222"):
        Way("device", options=("-p 2222",))


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


# The agent by itself, as ssh runs it.


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


# The same over a real sshd on loopback.


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Device]:
    """This machine under a port, a key and a cache of its own."""
    program = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if program is None or shutil.which("ssh") is None or shutil.which("ssh-keygen") is None:
        pytest.skip("no sshd, ssh or ssh-keygen here: apt install openssh-server openssh-client")
    separation = Path("/run/sshd")
    made = os.geteuid() == 0 and not separation.exists()
    if made:
        separation.mkdir(mode=0o755)
    for name in ("host_key", "key", "stranger"):
        keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)]
        subprocess.run(keygen, check=True, capture_output=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (tmp_path / "authorized").write_text((tmp_path / "key.pub").read_text())
    (tmp_path / "known").write_text(f"[127.0.0.1]:{port} {(tmp_path / 'host_key.pub').read_text()}")
    (tmp_path / "home/.cache/vlkd-edge").mkdir(parents=True, mode=0o700)
    settings = {
        "Port": port, "ListenAddress": "127.0.0.1", "HostKey": tmp_path / "host_key", "PidFile": "none",
        "AuthorizedKeysFile": tmp_path / "authorized", "StrictModes": "no", "UsePAM": "no",
        "PasswordAuthentication": "no", "KbdInteractiveAuthentication": "no", "PermitRootLogin": "yes",
        "SetEnv": f"VLKD_CACHE={tmp_path / 'home/.cache/vlkd-edge'}",
    }  # fmt: skip
    (tmp_path / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    with (tmp_path / "sshd.log").open("wb") as log:
        server = subprocess.Popen([program, "-D", "-e", "-f", str(tmp_path / "sshd_config")], stderr=log)
    options = (f"Port={port}", f"IdentityFile={tmp_path / 'key'}", "IdentitiesOnly=yes",
               f"UserKnownHostsFile={tmp_path / 'known'}", "StrictHostKeyChecking=yes")  # fmt: skip
    words = tuple(word for option in options for word in ("--ssh-option", option))
    user = pwd.getpwuid(os.geteuid()).pw_name

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_for(lambda: listens() or server.poll() is not None, 30)
        assert server.poll() is None, (tmp_path / "sshd.log").read_text()
        (tmp_path / "server.pid").write_text(str(server.pid))
        yield Device(tmp_path / "home", f"{user}@127.0.0.1", words, str(tmp_path / "bin"), tmp_path / "stub")
    finally:
        server.terminate()
        server.wait(30)
        if made:
            separation.rmdir()


def test_over_sshd_a_connection_killed_mid_run_is_picked_up(
    sshd: Device, answer: dict[str, Any], odd: Path, tmp_path: Path
) -> None:
    sshd.stub.mkdir()
    sshd.pretend(answer)
    process = sshd.begin(odd, *FAST, "--record", tmp_path / "log.jsonl")
    server = (tmp_path / "server.pid").read_text()
    for child in Path(f"/proc/{server}/task/{server}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)
    sshd.open_gate()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0 and "lost the connection to 127.0.0.1" in errors, errors
    assert load_bench_records(tmp_path / "log.jsonl")[0].host == "127.0.0.1"
    assert sshd.runs == []


@pytest.mark.parametrize(
    ("file", "instead", "message"),
    [
        pytest.param("key", "stranger", "ssh-copy-id", id="key"),
        pytest.param("known", "unknown", "log in once by hand", id="host key"),
    ],
)
def test_over_sshd_what_ssh_refuses_is_said(
    sshd: Device,
    tmp_path: Path,
    file: str,
    instead: str,
    message: str,
) -> None:
    options = sshd.options[1::2]
    changed = tuple(option.replace(f"{tmp_path}/{file}", f"{tmp_path}/{instead}") for option in options)
    way = Way(sshd.host, options=changed)
    with Connection(way) as connection, pytest.raises(UnavailableError, match=message):
        connection.ask("look")
