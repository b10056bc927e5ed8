"""Stages of a build: each a folder keyed by the hash of its inputs, renamed when whole, redone when damaged.

A killed stage leaves a ``.part`` folder that its next run goes on from; nothing half-written ever looks whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vlkd_runtime.atomic import write_text
from vlkd_runtime.errors import UsageError

_DONE = "stage.json"
_HASHED_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class StageResult:
    """A finished stage.

    Attributes:
        name: of the stage.
        key: hash of everything its outputs depend on.
        folder: where its outputs lie.
        seconds: how long the work took when it was done; the sum over interruptions.
        cached: whether it was found done.
    """

    name: str
    key: str
    folder: Path
    seconds: float
    cached: bool


@dataclass(slots=True)
class Workspace:
    """The folder a build works in.

    Attributes:
        root: the output folder.
        cache: where the teacher's embeddings are kept; may be shared between builds.
        tell: called with a line for people when a stage is finished.
        results: finished stages, in order.
    """

    root: Path
    cache: Path
    tell: Callable[[str], None] = lambda _: None
    results: list[StageResult] = field(default_factory=list)

    def stage(self, name: str, inputs: Mapping[str, Any], work: Callable[[Path], None]) -> StageResult:
        """Do a stage, unless it is done already.

        Args:
            name: of the stage.
            inputs: everything the outputs depend on, as JSON values.
            work: fills the folder it is given; it may find there what an interrupted run left.
        """
        key, final = self.place(name, inputs)
        seconds = _whole(final)
        if seconds is not None:
            result = StageResult(name, key, final, seconds, cached=True)
        else:
            shutil.rmtree(final, ignore_errors=True)
            result = StageResult(name, key, final, self._run(name, inputs, final, work), cached=False)
        self.results.append(result)
        self.tell(f"{name}: " + ("found done" if result.cached else f"done in {result.seconds:.1f} s"))
        return result

    def place(self, name: str, inputs: Mapping[str, Any]) -> tuple[str, Path]:
        """Key of a stage and the folder it has, or will have."""
        text = json.dumps({"stage": name, "inputs": inputs}, sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        return key, self.root / "stages" / f"{name}-{key}"

    @staticmethod
    def _run(name: str, inputs: Mapping[str, Any], final: Path, work: Callable[[Path], None]) -> float:
        # Not with_suffix: a name may hold a point, behind which its key is.
        part = final.with_name(f"{final.name}.part")
        part.mkdir(parents=True, exist_ok=True)
        for left in part.glob(".*.tmp"):  # of a write that was killed
            left.unlink()
        clock = part / "seconds.json"
        earlier = 0.0
        with contextlib.suppress(OSError, ValueError):
            earlier = float(json.loads(clock.read_text()))
        start = time.monotonic()
        try:
            work(part)
        finally:
            seconds = earlier + time.monotonic() - start
            with contextlib.suppress(OSError):
                write_text(clock, json.dumps(seconds))
        clock.unlink(missing_ok=True)
        record = {"stage": name, "inputs": inputs, "seconds": round(seconds, 3), "files": _states(part)}
        write_text(part / _DONE, json.dumps(record, indent=1))
        part.rename(final)
        return seconds


def versions(*packages: str) -> dict[str, str]:
    """Installed versions, as inputs of stages whose outputs they decide; empty for what is not installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = ""
    return found


def _whole(folder: Path) -> float | None:
    """How long a finished stage took; None if it is not finished or a file of it is not as it was left."""
    try:
        record = json.loads((folder / _DONE).read_text())
        if record["files"] != _states(folder):
            return None
        return float(record["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _states(folder: Path) -> dict[str, list[Any]]:
    """Size of every file of a stage, and the hash of those that lie at its top and are not huge."""
    states: dict[str, list[Any]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != _DONE:
            size = path.stat().st_size
            small = path.parent == folder and size <= _HASHED_BYTES
            digest = hashlib.sha256(path.read_bytes()).hexdigest() if small else None
            states[str(path.relative_to(folder))] = [size, digest]
    return states


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """Hold an output folder for one build at a time.

    Raises:
        UsageError: another build holds it, or it cannot be written.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        handle = os.open(root / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        msg = f"Expected a folder that can be written at {root}: {error.strerror}. Choose another with --out."
        raise UsageError(msg) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        msg = f"Another build is running in {root}. Wait for it, or choose another folder with --out."
        raise UsageError(msg) from None
    try:
        yield
    finally:
        os.close(handle)
