"""The bench on the device, in a process that outlives the connection; needs numpy, Pillow and an engine.

``python -m vlkd_edge.over_ssh.runner FOLDER`` reads request.json there, writes progress.jsonl as it goes and
answer.json at its end. With ``--doctor`` it prints what the doctor says instead.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

TURN_POLL_S = 0.5


class Told:
    """Progress as lines of a file that the agent hands on."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()

    def tell(self, **what: Any) -> None:
        """Add a line; a full disk must not end a bench before its answer cannot be written either."""
        with self._lock, contextlib.suppress(OSError), self._path.open("a") as file:
            file.write(json.dumps(what) + "\n")

    @contextlib.contextmanager
    def task(self, title: str, total: int | None) -> Iterator[Callable[..., None]]:
        """Tell of one piece of work; at most ten lines a second."""
        self.tell(task=title, total=total)
        kept, last = 0, float("-inf")

        def advance(count: int = 1, note: str = "") -> None:
            nonlocal kept, last
            kept += count
            if note or time.monotonic() - last > 0.1:
                self.tell(advance=kept, note=note)
                kept, last = 0, time.monotonic()

        yield advance

    def glimpse(self, glimpse: Any) -> None:
        """Tell of one look at the bench."""
        from vlkd_bench.jsonvalues import encode

        self.tell(glimpse=encode(glimpse))


def main() -> None:
    """Run the bench of a folder, or the doctor."""
    if sys.argv[1] == "--doctor":
        print(json.dumps(_doctor()))
        return
    # A shell that started something in the background may have made everything below it ignore interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    folder = Path(sys.argv[1])
    try:
        answer = _answer(folder, Told(folder / "progress.jsonl"))
    except KeyboardInterrupt:
        sys.exit(130)
    from vlkd_runtime.atomic import write_text

    write_text(folder / "answer.json", json.dumps(answer, allow_nan=False))


def _answer(folder: Path, told: Told) -> dict[str, Any]:
    """Wait for this run's turn, measure, and return the records or the error."""
    from vlkd_runtime.errors import VlkdError

    from ..benching import bench

    request = request_of(json.loads((folder / "request.json").read_text()))
    # Two benches at a time would measure each other.
    with (folder.parent.parent / "turn").open("w") as turn:
        waited = False
        while not _locked(turn.fileno()):
            if not waited:
                told.tell(waiting="another bench is running there")
                waited = True
            time.sleep(TURN_POLL_S)
        try:
            found = bench(request, told)
        except VlkdError as error:
            return {"error": {"kind": type(error).__name__, "message": str(error)}}
        except OSError as error:
            return {"error": {"kind": "OSError", "message": f"{error.filename or ''}: {error.strerror}"}}
    return {"records": [record.to_record().to_json() for record in found if record is not None]}


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def request_of(plain: Mapping[str, Any]) -> Any:
    """Make the bench's request from the JSON that the session wrote."""
    from vlkd_bench.benchrun import Plan

    from ..benching import Request

    plan, places = dict(plain["plan"]), ("bundle", "against", "image")
    plan |= {name: None if plan[name] is None else Path(plan[name]) for name in places}
    return Request(
        plan=Plan(**plan),
        # A path that was typed for the device: relative to the home there, as ssh would take it.
        data=None if plain["data"] is None else Path.home() / Path(plain["data"]).expanduser(),
        domains=tuple(plain["domains"]),
        split=plain["split"],
        command=plain["command"],
        watch=plain["watch"],
    )


def _doctor() -> dict[str, Any]:
    from vlkd_runtime.targets import TARGETS

    from .. import doctor, probing

    return doctor.examine(TARGETS, probing.read_python(), probing.read_system())


if __name__ == "__main__":
    main()
