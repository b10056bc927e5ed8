"""Starts the processes that time a bundle, one by itself or several that take turns, and ends them whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, Any

import vlkd_runtime
from vlkd_runtime.errors import UnavailableError

from .probe import PROGRAM, TURN
from .sensors import NoSensor
from .sensors.devicememory import UNSEEN, DeviceMemory
from .watch import Watch

GRACE_SECONDS = 120.0
# Rounds of one turn: some milliseconds, which most of what disturbs a machine outlasts.
TURN_ROUNDS = 2
NOT_ASKED = NoSensor(("not asked for",))


def start(
    request: Mapping[str, Any],
    seconds: float,
    device: DeviceMemory | NoSensor = NOT_ASKED,
) -> dict[str, Any]:
    """Run one process and return its answer; it is ended if this process is interrupted.

    Args:
        request: What to do.
        seconds: How long it may measure.
        device: What reads the GPU memory that it holds meanwhile.

    Raises:
        UnavailableError: It failed, or did not end within `seconds` and some grace.
    """
    with contextlib.closing(_Process(request, seconds, device)) as process:
        process.wait()
        return process.answer()


def take_turns(
    requests: Sequence[Mapping[str, Any]], seconds: float, device: DeviceMemory | NoSensor = NOT_ASKED
) -> list[dict[str, Any]]:
    """Run processes that time a few rounds each in turn, the last of one turn first in the next; return their answers.

    One starts when the one before has warmed up, so that none disturbs another's cold start.

    Args:
        requests: What to do, "latency" each.
        seconds: How long each may measure.
        device: What reads the GPU memory that they hold meanwhile.

    Raises:
        UnavailableError: One failed, or let the others wait longer than `seconds` and some grace.
    """
    with contextlib.ExitStack() as stack:
        processes, waiting = [], []
        for request in requests:
            process = _Process({**request, "turn_rounds": TURN_ROUNDS}, seconds, device)
            processes.append(stack.enter_context(contextlib.closing(process)))
            if process.wait():
                waiting.append(process)
        while waiting:
            waiting = [process for process in waiting if process.go()][::-1]
        return [process.answer() for process in processes]


class _Process:
    """A measuring process, from its start to its answer."""

    def __init__(self, request: Mapping[str, Any], seconds: float, device: DeviceMemory | NoSensor) -> None:
        folders = [str(Path(package).parents[1]) for package in (vlkd_runtime.__file__, __file__)]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([*folders, os.environ.get("PYTHONPATH", "")]),
        }
        self._seconds, self._device = seconds, device
        self._process: subprocess.Popen[str] | None = None
        self._held: Watch[int] | None = None
        self._thread: threading.Thread | None = None
        self._last = ""
        self._lines: SimpleQueue[str | None] = SimpleQueue()
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  (closed by close)
        self._began = time.monotonic()
        try:
            with _interrupts_held_back():
                self._process = subprocess.Popen(
                    [sys.executable, "-c", PROGRAM, json.dumps(request)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self._errors,
                    text=True,
                    env=environment,
                )
            number = self._process.pid
            self._thread = threading.Thread(target=self._follow, args=(self._process.stdout,), daemon=True)
            self._thread.start()
            if isinstance(device, DeviceMemory):
                self._held = Watch(lambda: device.of(number)).__enter__()
        except BaseException:
            self.close()
            raise

    def _follow(self, lines: IO[str]) -> None:
        with lines:
            for line in lines:
                self._lines.put(line.strip())
        self._lines.put(None)

    def wait(self) -> bool:
        """Wait until it is another's turn, or it has ended; return whether it goes on."""
        limit = time.monotonic() + self._seconds + GRACE_SECONDS
        try:
            while (line := self._lines.get(timeout=max(0.0, limit - time.monotonic()))) is not None:
                if line == TURN:
                    return True
                self._last = line or self._last
        except Empty as error:
            msg = (
                f"Expected a process that measures for {self._seconds:.0f} s to end, found it running "
                f"{GRACE_SECONDS:.0f} s longer: the bundle takes too long to load or to run here. Measure fewer "
                "samples."
            )
            raise UnavailableError(msg) from error
        return False

    def go(self) -> bool:
        """Let it go on until it is another's turn, or it has ended; return whether it goes on then."""
        assert self._process is not None and self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it failed; its answer says why
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        return self.wait()

    def answer(self) -> dict[str, Any]:
        """Return what it answered at its end."""
        assert self._process is not None
        if self._process.wait(GRACE_SECONDS) != 0 or not self._last:
            self._errors.seek(0)
            last = self._errors.read().strip().splitlines()[-1:] or [f"exit code {self._process.returncode}"]
            msg = (
                f"Expected the bundle to run in a process of its own, found: {last[0]}. Check it with "
                "'vlkd-edge verify'."
            )
            raise UnavailableError(msg)
        answer: dict[str, Any] = json.loads(self._last)
        # Both clocks are the system's monotonic one, so that the interpreter's own start counts as well.
        answer["total_ms"] = 1e3 * (answer["answered_s"] - self._began)
        answer["device_bytes"] = max(self._held.values, default=None) if self._held else None
        device = self._device
        answer["device_reason"] = "; ".join(device.reasons) if isinstance(device, NoSensor) else UNSEEN
        return answer

    def close(self) -> None:
        """End it, if it has not ended, and let go of it."""
        if self._held is not None:
            self._held.__exit__()
        process = self._process
        if process is not None:
            if process.poll() is None:
                process.kill()
            process.wait()
            with contextlib.suppress(BrokenPipeError):
                if process.stdin is not None:
                    process.stdin.close()
            if self._thread is not None:
                self._thread.join()
            elif process.stdout is not None:
                process.stdout.close()
        self._errors.close()


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Hold an interrupt back until the process that is being started is known, or nobody could end it."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield  # interrupts go elsewhere, or nowhere
        return
    held: list[object] = []
    before = signal.signal(signal.SIGINT, lambda *_: held.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if held:
            raise KeyboardInterrupt
