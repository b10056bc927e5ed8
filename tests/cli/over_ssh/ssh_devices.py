"""A device that is this machine: a program called ssh that runs what it is asked to in a home of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
