"""Peers in processes of their own take turns: what disturbs the machine falls on all of them alike.

A peer that dies, is late or answers nonsense is out of the race, with the reason; the others go on.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import selectors
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

What = Literal["array", "file"]
Clock = Literal["cpu_ns", "wall_ns"]
KINDS: tuple[What, ...] = ("array", "file")
LOAD_SECONDS, TURN_SECONDS = 900.0, 120.0
LEAST_ROUNDS, RESAMPLES = 5, 2000


class PeerError(Exception):
    """A peer is out of the race; the text says why."""


@dataclass(frozen=True)
class Entrant:
    """A peer before it is started.

    Attributes:
        name: for programs.
        title: for people.
        python: its virtual environment's Python.
        script: what serves it.
        setup: what the script is told.
        path: folders of packages that it may import besides its own; empty for other people's peers.
    """

    name: str
    title: str
    python: str
    script: Path
    setup: Mapping[str, Any]
    path: tuple[str, ...] = ()


class Child:
    """One peer's process.

    Args:
        entrant: who it is.
        load_s: how long it may take to say that it is ready.
    """

    def __init__(self, entrant: Entrant, load_s: float = LOAD_SECONDS) -> None:
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the process)
        self._rest = b""
        environment = {**os.environ, "OMP_NUM_THREADS": str(entrant.setup["threads"])}
        environment["PYTHONPATH"] = os.pathsep.join(entrant.path)
        # Not standard output, where libraries print what they like.
        self._answers, theirs = os.pipe()
        try:
            self._process = subprocess.Popen(
                [entrant.python, str(entrant.script), json.dumps({**entrant.setup, "answers": theirs})],
                stdin=subprocess.PIPE,
                stdout=self._complaints,
                stderr=self._complaints,
                env=environment,
                pass_fds=[theirs],
            )
        except OSError as error:
            os.close(self._answers)
            self._complaints.close()
            msg = f"{entrant.python} cannot be started: {error.strerror}"
            raise PeerError(msg) from error
        finally:
            os.close(theirs)
        try:
            self.hello = self._answer(load_s)
            if not isinstance(self.hello.get("versions"), dict):
                msg = f"answered nonsense: {str(self.hello)[:80]}"
                raise PeerError(msg)
        except BaseException:
            self.close()
            raise

    def ask(self, request: Mapping[str, Any], seconds: float = TURN_SECONDS) -> dict[str, Any]:
        """Send one request and return the answer.

        Raises:
            PeerError: it died, is late, or answered no object.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # its end is told by the answer that does not come
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        return self._answer(seconds)

    def time(self, what: What, first: int, calls: int) -> dict[Clock, float]:
        """Let it time a block of calls; return the medians in nanoseconds.

        Raises:
            PeerError: also if the times cannot be.
        """
        answer = self.ask({"do": "time", "what": what, "first": first, "calls": calls})
        found: dict[Clock, float] = {}
        for clock in ("wall_ns", "cpu_ns"):
            values = answer.get(clock)
            if not isinstance(values, list) or len(values) != calls or not all(map(_is_time, values)):
                msg = f"answered nonsense for {clock} of {calls} calls: {str(values)[:80]}"
                raise PeerError(msg)
            found[clock] = float(np.median(values))  # type: ignore[index]
        if min(found.values()) <= 0:
            msg = "answered that its calls take no time"
            raise PeerError(msg)
        return found

    def classes(self, images: int) -> list[int]:
        """Let it classify every image.

        Raises:
            PeerError: also if the answers are no classes.
        """
        found = self.ask({"do": "answers"}, LOAD_SECONDS).get("classes")
        if (
            not isinstance(found, list)
            or len(found) != images
            or not all(type(item) is int for item in found)
        ):
            msg = f"answered nonsense for the classes of {images} images: {str(found)[:80]}"
            raise PeerError(msg)
        return found

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        os.close(self._answers)
        self._process.kill()
        self._process.wait()
        self._complaints.close()

    def _answer(self, seconds: float) -> dict[str, Any]:
        until = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._answers, selectors.EVENT_READ)
            while b"\n" not in self._rest:
                if not selector.select(max(0.0, until - time.monotonic())):
                    msg = f"gave no answer within {seconds:.0f} s"
                    raise PeerError(msg)
                block = os.read(self._answers, 1 << 16)
                if not block:
                    raise PeerError(self._last_words())
                self._rest += block
        line, _, self._rest = self._rest.partition(b"\n")
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            msg = f"answered nonsense: {line[:80].decode(errors='replace')}"
            raise PeerError(msg)
        return answer

    def _last_words(self) -> str:
        code = self._process.wait()
        self._complaints.seek(0)
        words = self._complaints.read().decode(errors="replace").strip().splitlines()
        return f"died with exit code {code}: {words[-1] if words else 'it said nothing'}"


@dataclass
class Result:
    """What became of one peer.

    Attributes:
        entrant: who it is.
        versions: of its packages.
        load_s: from the start of loading to the first answer, compilation and quantization included.
        note: what a reader should know.
        classes: its answers, image by image.
        rounds: for arrays and files, the block medians of each round.
        failed: why it is out of the race; "" where it is not.
    """

    entrant: Entrant
    versions: Mapping[str, str] = field(default_factory=dict)
    load_s: float = 0.0
    note: str = ""
    classes: Sequence[int] = ()
    rounds: dict[What, list[dict[Clock, float]]] = field(default_factory=dict)
    failed: str = ""


def race(
    entrants: Sequence[Entrant],
    images: int,
    rounds: int,
    calls: int,
    *,
    seed: int = 0,
    say: Callable[[str], None] = lambda _: None,
    load_s: float = LOAD_SECONDS,
) -> list[Result]:
    """Start all peers, let them classify, then time them in turns; the order within a round is drawn anew.

    Args:
        entrants: the peers.
        images: how many images they have.
        rounds: how often each has its turn, for arrays and for files.
        calls: calls in a turn.
        seed: of the orders.
        say: called with what is going on.
        load_s: how long a peer may take to be ready.
    """
    results = [Result(entrant, rounds={what: [] for what in KINDS}) for entrant in entrants]
    children: dict[str, Child] = {}
    order = np.random.default_rng(seed)

    def attempt(action: Callable[..., None], result: Result, *more: Any) -> None:
        if result.failed:
            return
        try:
            action(result, children, *more)
        except PeerError as error:
            result.failed = str(error)
            say(f"{result.entrant.title}: {error}")
            if child := children.pop(result.entrant.name, None):
                child.close()

    try:
        for result in results:
            say(f"loading {result.entrant.title}")
            attempt(_load, result, images, load_s)
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}")
            for what in KINDS:
                for index in order.permutation(len(results)):
                    attempt(_turn, results[index], what, number * calls, calls)
    finally:
        for child in children.values():
            child.close()
    return results


def _load(result: Result, children: dict[str, Child], images: int, load_s: float) -> None:
    child = children[result.entrant.name] = Child(result.entrant, load_s)
    result.versions, result.load_s = child.hello["versions"], float(child.hello["load_s"])
    result.note = str(child.hello.get("note", ""))
    result.classes = child.classes(images)


def _turn(result: Result, children: Mapping[str, Child], what: What, first: int, calls: int) -> None:
    result.rounds[what].append(children[result.entrant.name].time(what, first, calls))


def ratio(
    rounds: Sequence[Mapping[Clock, float]], reference: Sequence[Mapping[Clock, float]], clock: Clock
) -> tuple[float, tuple[float, float]]:
    """The median over rounds of the time in units of the reference's, with a 95 % bootstrap interval over rounds.

    References:
        B. Efron and R. Tibshirani, "An introduction to the bootstrap" (1993), chapter 13 (percentile intervals).
    """
    values = np.array([one[clock] / other[clock] for one, other in zip(rounds, reference, strict=True)])
    draws = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.quantile(np.median(values[draws], axis=1), (0.025, 0.975))
    return float(np.median(values)), (float(low), float(high))


def _is_time(value: object) -> bool:
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and math.isfinite(value)
        and value >= 0
    )
