"""What ssh runs on the device: one request a process, the standard library only, Python 3.10 or later.

The program comes over standard input, after it one line of JSON with the request, after that the request's bytes.
Answers are lines that begin with `MARK`; whatever a login script prints besides is passed over. What it keeps lies in a
private folder and goes by the content's hash::

    CACHE/remote/code/HASH/       this project's packages
    CACHE/remote/bundle/HASH/     one bundle; "data" and "image" likewise
    CACHE/remote/runs/ID/         one run: request.json, progress.jsonl, log.txt, then answer.json
    CACHE/remote/engines/         what the runtime keeps: built engines, results of self-tests
    CACHE/remote/turn             locked by the run whose turn it is
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import time
from pathlib import Path, PurePosixPath
from typing import IO, Any

MARK = "vlkd-edge:"
RUNNER = "vlkd_edge.over_ssh.runner"
BASICS = ("numpy", "PIL")
TICK_S = 1.0
# Seldom enough not to be seen in what is measured beside it: a look costs a few system calls.
POLL_S = 0.25
STOP_SECONDS = 15.0
FORGET_SECONDS = 86400.0
LOG_TAIL = 2000
CHUNK = 1 << 20


class RefusedError(Exception):
    """A request that cannot be met."""


class CacheError(RefusedError):
    """The folder to keep things in is not safe."""


def say(**answer: Any) -> None:
    """Print one line of the answer."""
    print(MARK + json.dumps(answer), flush=True)


def place() -> Path:
    """Return the folder that everything is kept in, which nobody else may write to."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get("VLKD_CACHE") or Path(home) / "vlkd-edge") / "remote"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        msg = f"{folder}: expected a folder that only its owner can write to"
        raise CacheError(msg)
    return folder


def safe(name: str) -> PurePosixPath:
    """Return a name that stays below the folder it is put in."""
    path = PurePosixPath(name)
    if path.is_absolute() or not path.parts or ".." in path.parts or "\0" in name:
        msg = f"expected a path below the folder, found {name!r}"
        raise RefusedError(msg)
    return path


# What the device is.


def look(_request: dict[str, Any]) -> None:
    """Say what a run needs to know of the device before anything is copied."""
    folder = place()
    for run in (folder / "runs").glob("*"):
        # Nobody came for it; the connection's other side is told of younger ones.
        if state_of(run) != "going" and time.time() - run.stat().st_mtime > FORGET_SECONDS:
            shutil.rmtree(run, ignore_errors=True)
    missing = [name for name in BASICS if not present(name)]
    say(
        python=platform.python_version(),
        executable=sys.executable,
        machine=platform.machine(),
        missing=missing,
        free_bytes=shutil.disk_usage(folder).free,
        clock=time.time(),
    )


def present(module: str) -> bool:
    """Tell whether a module could be imported; a broken installation counts as none."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def doctor(request: dict[str, Any]) -> None:
    """Run the project's own doctor, from the parcel that was copied."""
    done = subprocess.run(
        [sys.executable, "-m", RUNNER, "--doctor"],
        capture_output=True,
        text=True,
        cwd=place(),
        env=surroundings(request["code"]),
        stdin=subprocess.DEVNULL,
        timeout=120,
    )
    if done.returncode != 0:
        msg = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise RefusedError(msg)
    say(report=json.loads(done.stdout.strip().splitlines()[-1]))


def surroundings(code: str) -> dict[str, str]:
    """Return the environment in which the copied packages come before all others and keep nothing elsewhere."""
    folder = str(place() / "code" / safe(code).name)
    path = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "VLKD_CACHE": str(place() / "engines")}


# Parcels.


def missing(request: dict[str, Any]) -> None:
    """Say which files of a parcel are not here yet."""
    final, partial = shelves(request)
    if final.is_dir():
        say(missing=[], path=str(final))
        return
    wanted = {name: (partial / safe(name), size) for name, size, _ in request["files"]}
    absent = [
        name for name, (path, size) in wanted.items() if not path.is_file() or path.stat().st_size != size
    ]
    if not absent:
        settle(partial, final)
    say(missing=absent, path=str(final), free_bytes=shutil.disk_usage(place()).free)


def put(request: dict[str, Any]) -> None:
    """Take a tar stream of a parcel's files; each is kept once it is whole, so that a cut stream goes on later."""
    _, partial = shelves(request)
    wanted = {name: (size, digest) for name, size, digest in request["files"]}
    with tarfile.open(fileobj=sys.stdin.buffer, mode="r|*") as stream:
        for member in stream:
            size, digest = wanted.get(member.name, (None, None))
            source = stream.extractfile(member) if member.isreg() else None
            if source is None or size is None or member.size != size:
                msg = f"expected a file of the parcel, found {member.name!r}"
                raise RefusedError(msg)
            take(source, partial / safe(member.name), digest)
            say(took=member.name)
    missing(request)


def take(source: IO[bytes], path: Path, digest: str) -> None:
    """Write one file; it gets its name once its content is what was promised."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.tmp")
    found = hashlib.sha256()
    try:
        with temporary.open("wb") as file:
            while block := source.read(CHUNK):
                found.update(block)
                file.write(block)
        if found.hexdigest() != digest:
            msg = f"{path.name} changed while it was copied"
            raise RefusedError(msg)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def shelves(request: dict[str, Any]) -> tuple[Path, Path]:
    """Return where a parcel lies when it is whole, and until then."""
    kind, digest = safe(request["kind"]).name, safe(request["digest"]).name
    folder = place() / kind
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder / digest, folder / f".{digest}.partial"


def settle(partial: Path, final: Path) -> None:
    """Give a whole parcel its name; another connection may have done so a moment ago."""
    try:
        partial.rename(final)
    except OSError:
        if not final.is_dir():
            raise
        shutil.rmtree(partial, ignore_errors=True)


# Runs.


def start(request: dict[str, Any]) -> None:
    """Start a run that outlives this connection, unless it is there already."""
    run = place() / "runs" / safe(request["run"]).name
    found = state_of(run)
    if found in ("going", "finished"):
        say(state=found, began=(run / "request.json").stat().st_mtime)
        return
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(mode=0o700, parents=True)
    (run / "request.json").write_text(json.dumps(request["bench"]))
    (run / "progress.jsonl").touch()
    # The lock belongs to the open file, which only the runner keeps: it is free once the runner is gone, however it
    # went, and after a restart of the device.
    with (run / "alive").open("w") as alive, (run / "log.txt").open("wb") as log:
        fcntl.flock(alive, fcntl.LOCK_EX)
        process = subprocess.Popen(
            [sys.executable, "-m", RUNNER, str(run)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=run,
            env=surroundings(request["code"]),
            start_new_session=True,
            pass_fds=[alive.fileno()],
        )
        (run / "pid").write_text(str(process.pid))
    say(state="started")


def state_of(run: Path) -> str:
    """Return "absent", "going", "finished" or "dead"."""
    if not run.is_dir():
        return "absent"
    if (run / "answer.json").exists():
        return "finished"
    try:
        with (run / "alive").open() as alive:
            fcntl.flock(alive, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return "going"
    except OSError:
        return "dead"
    # It may have ended between the two looks.
    return "finished" if (run / "answer.json").exists() else "dead"


def follow(request: dict[str, Any]) -> None:
    """Hand on what a run says, from an offset, until it is over; a tick a second shows that the line is alive."""
    run, offset = place() / "runs" / safe(request["run"]).name, request["offset"]
    told = 0.0
    while True:
        state = state_of(run)
        if state == "absent":
            say(state=state)
            return
        for line in said(run, offset):
            offset += len(line)
            say(progress=json.loads(line), offset=offset)
            told = time.monotonic()
        if state == "finished":
            say(state=state, answer=json.loads((run / "answer.json").read_text()))
            return
        if state == "dead":
            log = content(run / "log.txt")[-LOG_TAIL:].decode(errors="replace")
            say(state=state, log=log, free_bytes=shutil.disk_usage(run).free)
            return
        if time.monotonic() - told >= TICK_S:
            say(state=state)
            told = time.monotonic()
        time.sleep(POLL_S)


def said(run: Path, offset: int) -> list[bytes]:
    """Return the whole lines of progress from an offset on."""
    lines = content(run / "progress.jsonl", offset).splitlines(keepends=True)
    return [line for line in lines if line.endswith(b"\n")]


def content(path: Path, offset: int = 0) -> bytes:
    """Return what a file holds from an offset on; a run that was cut off while it began lacks some files."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read()
    except FileNotFoundError:
        return b""


def stop(request: dict[str, Any]) -> None:
    """End a run that is going and forget it."""
    run = place() / "runs" / safe(request["run"]).name
    for word, seconds in ((signal.SIGINT, STOP_SECONDS), (signal.SIGKILL, STOP_SECONDS)):
        until = time.monotonic() + seconds
        # The lock says that the process is still the one that was started here, so its number is its own.
        if state_of(run) == "going":
            with contextlib.suppress(OSError, ValueError):
                os.killpg(int((run / "pid").read_text()), word)
        while state_of(run) == "going" and time.monotonic() < until:
            time.sleep(POLL_S)
    forget(request)


def forget(request: dict[str, Any]) -> None:
    """Remove a run's folder, and the parcels as well if asked to and nobody else uses them."""
    folder = place()
    shutil.rmtree(folder / "runs" / safe(request["run"]).name, ignore_errors=True)
    others = [run for run in (folder / "runs").glob("*") if state_of(run) == "going"]
    if request["clean"] and not others:
        shutil.rmtree(folder, ignore_errors=True)
    say(state="forgotten", cleaned=bool(request["clean"] and not others))


def main() -> None:
    """Answer the one request."""
    actions = {f.__name__: f for f in (look, doctor, missing, put, start, follow, stop, forget)}
    request = json.loads(sys.stdin.buffer.readline())
    try:
        actions[request["action"]](request)
    except RefusedError as error:
        say(error={"kind": type(error).__name__, "text": str(error)})
    except OSError as error:
        kind = "full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "system"
        say(error={"kind": kind, "text": f"{error.filename or 'the device'}: {error.strerror}"})


if __name__ == "__main__":
    main()
