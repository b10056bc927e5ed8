"""``bench --on``: what happens in which order, and again when the connection drops."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, TypeVar

from vlkd_bench.benchrecord import BenchRecord
from vlkd_bench.records import Record, record_of
from vlkd_runtime import errors
from vlkd_runtime.bundle import Bundle
from vlkd_runtime.engines.enginecache import default_cache
from vlkd_runtime.errors import ConfigError, DataError, UnavailableError

from ..benching import Request, Show
from ..doctor import INSTALL_BASICS
from . import parcels
from .connection import Connection, DroppedError, Way
from .following import Follower
from .parcels import Parcel

T = TypeVar("T")
# Longer than the agent's ticks by far, and than the load of a busy device delays them.
SILENCE_S = 30.0
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 15.0
# More than what a run writes: records are a few hundred kilobytes.
SPARE_BYTES = 64 << 20
SKEW_S = 300.0


@dataclass(frozen=True, slots=True)
class Remote:
    """How to bench on a device.

    Attributes:
        way: how it is reached.
        data: folder of domains that is on the device already; None where it is copied, or not asked for.
        patience_s: how long to try to reach it again after the connection dropped.
        clean: whether to remove all that is kept there afterwards.
    """

    way: Way
    data: str | None = None
    patience_s: float = 600.0
    clean: bool = False


def bench_on(
    request: Request,
    remote: Remote,
    show: Show,
    say: Callable[[str], None],
    keep: Callable[[Sequence[BenchRecord]], None],
) -> None:
    """Bench on a device and bring the records back; its run is forgotten there once they are kept here.

    Args:
        request: what to measure, with paths of this machine.
        remote: where.
        show: where to show how far it is.
        say: prints a line of what is going on.
        keep: takes the records; called once.

    Raises:
        BundleError: the bundle is damaged.
        ConfigError: the request cannot be meant.
        DataError: images are missing, or what came back is no record.
        UnavailableError: the device cannot be reached or lacks something, the disk is full, or the run died.
    """
    if request.data is not None and remote.data is not None:
        msg = "--data is copied to the device and --remote-data is there already: give one of them."
        raise ConfigError(msg)
    opened = Bundle.open(request.plan.bundle)
    copied = _pack(request, opened)
    with Connection(remote.way) as connection:
        session = Session(connection, remote, show, say)
        look = session.patient(lambda: connection.ask("look"))
        run, ending = "", "forget"
        try:
            _check_python(remote.way, look)
            places = {name: session.copy(parcel) for name, parcel in copied.items()}
            code = copied["code"].digest
            session.check(request, opened, code)
            plain = _plain(request, places, remote.data)
            run = _name(plain, code)
            with _attended(run):
                records = _records(session.run(run, code, plain), remote.way, look, say)
                # Until they are kept here they must stay there: a full disk costs no measurement.
                ending = ""
                keep(records)
                ending = "forget"
        except _LostError:
            ending = ""
            raise
        except KeyboardInterrupt:
            ending = "stop"
            raise
        finally:
            session.end(ending, run)


class _LostError(UnavailableError):
    """The device is out of reach; what has begun there goes on."""


class _AttendedError(_LostError):
    """Another process follows this run."""


class Session:
    """The steps of a bench on a device, each patient with the connection."""

    def __init__(
        self, connection: Connection, remote: Remote, show: Show, say: Callable[[str], None]
    ) -> None:
        self._connection, self._remote, self._show, self._say = connection, remote, show, say

    def patient(self, action: Callable[[], T]) -> T:
        """Do something again and again while the connection drops, until patience ends.

        Raises:
            UnavailableError: The device could not be reached again in time, or not at all at first.
        """
        until, wait = None, FIRST_WAIT_S
        host = self._remote.way.name
        while True:
            began = time.monotonic()
            try:
                return action()
            except DroppedError as error:
                now = time.monotonic()
                # What has worked for a while was a connection: its end is a new one.
                if until is None or now - began > SILENCE_S:
                    until, wait = now + self._remote.patience_s, FIRST_WAIT_S
                    self._say(f"lost the connection to {host} ({error}); trying again")
                if now + wait > until:
                    msg = (
                        f"Expected to reach {host} again within {self._remote.patience_s:.0f} s, found: {error}. A run "
                        "that has begun goes on there; the same command picks it up."
                    )
                    raise _LostError(msg) from error
                time.sleep(wait)
                wait = min(2 * wait, LONGEST_WAIT_S)

    def copy(self, parcel: Parcel) -> str:
        """Bring a parcel to the device, as far as it is not there; return where it lies.

        Raises:
            UnavailableError: The disk is full, or the device is lost.
        """
        host = self._remote.way.name

        def step() -> dict[str, Any]:
            answer = self._connection.ask("missing", parcel.request)
            if not answer["missing"]:
                return answer
            size = parcels.size_of(parcel, set(answer["missing"]))
            if size + SPARE_BYTES > answer["free_bytes"]:
                wanted, free = (size + SPARE_BYTES) / 1e6, answer["free_bytes"] / 1e6
                msg = (
                    f"Expected {wanted:.0f} MB free on {host} for the {parcel.kind}, found {free:.0f}: the disk is "
                    "full; free space there, or remove what earlier benches left with --clean."
                )
                raise UnavailableError(msg)
            with self._show.task(f"copying {parcel.kind}", len(answer["missing"])) as advance:

                def hear(line: Mapping[str, Any]) -> None:
                    if "took" in line:
                        advance(1)

                body = parcel.stream(set(answer["missing"]))
                return self._connection.ask("put", parcel.request, body=body, hear=hear)

        answer = self.patient(step)
        if answer["missing"]:
            count = len(answer["missing"])
            msg = f"Expected all files of the {parcel.kind} on {host}, found {count} missing: try again."
            raise UnavailableError(msg)
        return f"{answer['path']}/{parcel.name}" if parcel.name else answer["path"]

    def check(self, request: Request, opened: Bundle, code: str) -> None:
        """Ask the doctor whether the bundle can run there, and pass on what else it says.

        Raises:
            UnavailableError: No engine, or not the one that was asked for.
        """
        report = self.patient(lambda: self._connection.ask("doctor", {"code": code}))["report"]
        engines, host = report["engines"], self._remote.way.name
        target = report["targets"].get(opened.manifest.target, {"run": {"missing": []}})
        lacks = target["run"]["missing"]
        wanted = request.plan.engine
        if wanted != "auto" and wanted in engines and not engines[wanted]["available"]:
            msg = f"Expected the engine {wanted} on {host}, found {engines[wanted]['reason']}."
            raise UnavailableError(msg)
        if not any(state["available"] for state in engines.values()):
            lines = dict.fromkeys(lack["install"] for lack in lacks if lack["install"])
            hint = f"run there: {' && '.join(lines)}" if lines else engines["ort-cpu"]["reason"]
            msg = f"Expected an inference engine in the Python of {host}, found none; {hint}"
            raise UnavailableError(msg)
        for lack in lacks:
            self._say(f"{host}, {opened.manifest.target}: missing {lack['what']}")

    def run(self, run: str, code: str, plain: Mapping[str, Any]) -> dict[str, Any]:
        """Start a run, or find it going or finished, and follow it to its end.

        Raises:
            UnavailableError: It died, or the device is lost.
        """
        host = self._remote.way.name
        request = {"run": run, "code": code, "bench": plain}
        started = self.patient(lambda: self._connection.ask("start", request))
        if started["state"] != "started":
            began = datetime.fromtimestamp(started["began"]).isoformat(" ", timespec="seconds")
            self._say(f"picking up the run that began on {host} at {began} (its clock)")
        follower = Follower(self._show, self._say, host)
        with contextlib.ExitStack() as stack:
            follower.stack = stack
            last = self.patient(lambda: self._follow(run, follower))
        if last["state"] == "dead":
            words = last["log"].strip().splitlines()
            reason = words[-1] if words else "no last words: killed, out of memory, or the device restarted"
            msg = (
                f"Expected the run on {host} to end with an answer, found: {reason} "
                f"({last['free_bytes'] / 1e6:.0f} MB of disk free)."
            )
            raise UnavailableError(msg)
        if last["state"] == "absent":
            msg = f"Expected the run on {host}, found it removed: somebody cleaned up there. Run it again."
            raise UnavailableError(msg)
        answer: dict[str, Any] = last["answer"]
        if "error" in answer:
            kind = getattr(errors, answer["error"]["kind"], None)
            msg = f"on {host}: {answer['error']['message']}"
            if isinstance(kind, type) and issubclass(kind, errors.VlkdError):
                raise kind(msg)
            raise UnavailableError(msg)
        return answer

    def end(self, ending: str, run: str) -> None:
        """Stop a run or forget it, and remove all that is kept there if asked to; what is out of reach stays.

        Args:
            ending: "stop", "forget", or "" to leave it as it is.
            run: its name; "" where there is none.
        """
        if not ending or not (run or self._remote.clean):
            return
        host = self._remote.way.name
        if ending == "stop" and run:
            self._say(f"stopping the run on {host}")
        try:
            answer = self._connection.ask(ending, {"run": run or "none", "clean": self._remote.clean})
        except (DroppedError, UnavailableError, KeyboardInterrupt) as error:
            self._say(f"could not clean up on {host}: {str(error) or 'interrupted again'}")
            return
        if self._remote.clean and not answer["cleaned"]:
            self._say(f"{host} runs another bench, so what is kept there stays")

    def _follow(self, run: str, follower: Follower) -> dict[str, Any]:
        request = {"run": run, "offset": follower.offset}
        last = self._connection.ask("follow", request, hear=follower.hear, silence_s=SILENCE_S)
        if last.get("state", "going") == "going":
            msg = "the answer broke off"
            raise DroppedError(msg)
        return last


def _pack(request: Request, opened: Bundle) -> dict[str, Parcel]:
    plan = request.plan
    found = {"code": parcels.code(), "bundle": parcels.bundle(plan.bundle)}
    if plan.against is not None:
        Bundle.open(plan.against)
        found["against"] = parcels.bundle(plan.against)
    if plan.image is not None:
        found["image"] = parcels.image(plan.image)
    if request.data is not None:
        found["data"] = parcels.data(request.data, request.domains, opened.manifest.classes)
    return found


def _plain(request: Request, places: Mapping[str, str], remote_data: str | None) -> dict[str, Any]:
    """The request as JSON, with paths of the device."""
    plan = asdict(request.plan) | {name: places.get(name) for name in ("bundle", "against", "image")}
    return {
        "plan": plan,
        "data": places.get("data", remote_data),
        "domains": request.domains,
        "split": request.split,
        "command": request.command,
        "watch": request.watch,
    }


def _name(plain: Mapping[str, Any], code: str) -> str:
    """The run's name: the same request from the same user finds it again, another's does not."""
    parts = {name: value for name, value in plain.items() if name not in ("command", "watch")}
    parts |= {"code": code, "by": [socket.gethostname(), os.getuid()]}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


@contextlib.contextmanager
def _attended(run: str) -> Iterator[None]:
    """Hold a run for this process.

    Raises:
        UnavailableError: Another process here follows it.
    """
    cache = default_cache()
    if cache is None:
        yield
        return
    with (cache / "remote.lock").open("a+") as file:
        try:
            # One byte of one file for each run, so that no file is left for each.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, int(run, 16) >> 2)
        except OSError as error:
            msg = "Expected nobody to follow this very run, found another vlkd-edge bench that does: let it end."
            raise _AttendedError(msg) from error
        yield


def _check_python(way: Way, look: Mapping[str, Any]) -> None:
    if look["missing"]:
        msg = (
            f"Expected numpy and Pillow in the Python of {way.name} ({look['executable']}, {look['python']}), found no "
            f"{' and no '.join(look['missing'])}. Run there: {INSTALL_BASICS}; or name another Python with --python."
        )
        raise UnavailableError(msg)


def _records(
    answer: Mapping[str, Any], way: Way, look: Mapping[str, Any], say: Callable[[str], None]
) -> tuple[BenchRecord, ...]:
    """Read what came back, and mark where it is from.

    Raises:
        DataError: It is no record of this version.
    """
    found = []
    for plain in answer["records"]:
        record = record_of(plain)
        if not isinstance(record, Record):
            msg = f"Expected a bench record from {way.name}, found one that cannot be read: {record}."
            raise DataError(msg)
        how = f"over ssh, Python {look['python']}"
        found.append(
            replace(BenchRecord.from_record(record, f"the answer of {way.name}"), host=way.name, how=how)
        )
    skew = look["clock"] - time.time()
    if abs(skew) > SKEW_S:
        say(f"the clock of {way.name} is off by {skew / 60:+.0f} minutes; the record's time is its own")
    return tuple(found)
