"""Runs a script in a child process and turns whatever becomes of it into a value.

A time-out, a native crash, a kill by the system and an answer that is no JSON are ordinary outcomes here.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

LAST_WORDS = 600


@dataclass(frozen=True, slots=True)
class Supervised:
    """What became of a child process.

    Attributes:
        outcome: ``answered`` when it printed a JSON object and left with 0.
        answer: that object, empty otherwise.
        detail: what happened, in one sentence, with the end of what it wrote to standard error.
        seconds: how long it ran.
    """

    outcome: Literal["answered", "timeout", "crash", "garbage"]
    answer: Mapping[str, Any]
    detail: str
    seconds: float


def run_supervised(
    script: Path, arguments: tuple[str, ...], environment: Mapping[str, str], timeout_s: float
) -> Supervised:
    """Run ``script`` with this Python and wait for its JSON object on standard output.

    Args:
        script: a Python file.
        arguments: its arguments.
        environment: variables that are added to this process's own.
        timeout_s: after this long the child and what it started are killed.
    """
    started = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, str(script), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
        start_new_session=True,
    )
    try:
        output, errors = child.communicate(timeout=timeout_s)
    except BaseException as error:
        _kill(child)
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        detail = f"it was stopped after {timeout_s:g} s"
        return Supervised("timeout", {}, detail, time.perf_counter() - started)
    seconds = time.perf_counter() - started
    words = errors.decode("utf-8", errors="replace").strip()[-LAST_WORDS:]
    if child.returncode != 0:
        return Supervised("crash", {}, _ending(child.returncode, words), seconds)
    try:
        answer = json.loads(output)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        detail = f"it left with 0 but answered {output[:80]!r} instead of a JSON object"
        return Supervised("garbage", {}, detail, seconds)
    return Supervised("answered", answer, "", seconds)


def _ending(code: int, words: str) -> str:
    tail = f"; its last words: {words}" if words else ""
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"it was ended by {signal.Signals(-code).name}{tail}"
    return f"it left with status {code}{tail}"


def _kill(child: subprocess.Popen[bytes]) -> None:
    """Kill the child's whole session, then collect it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.communicate()
