"""What one bench of one bundle on one device found: the value that a line of kind "bench" holds.

Three times are kept apart and never mixed: the engine alone, a call on a prepared image, and a call on a file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vlkd_runtime.errors import DataError

from .accuracydetail import AccuracyRecord
from .devicestate import DeviceState, changes
from .jsonvalues import decode, encode
from .latency import LatencyStats
from .machine import Machine
from .records import SCHEMA, Record, read_records, record_of

KIND = "bench"
TimingKind = Literal["engine", "call", "end_to_end"]
TIMED: Mapping[TimingKind, str] = {
    "engine": "the engine on one prepared image: input in, embedding and logits out, copies included",
    "call": "predict() on one prepared image: engine, probabilities and their order; no decoding",
    "end_to_end": "predict() on an image file: reading, decoding, resizing and the call",
}


@dataclass(frozen=True, slots=True)
class BundleFacts:
    """Which bundle was measured: its name and digest, target, size, and what stands in for the real thing."""

    name: str
    digest: str
    target: str
    precision: str
    size_bytes: int
    stand_in: str | None


@dataclass(frozen=True, slots=True)
class Setup:
    """How it was run; two runs of different setups are not compared.

    Attributes:
        engine: Name of the engine.
        provider: What executes the graph.
        version: Version of the engine's package.
        threads: Threads the engine was given.
        batch: Images per run of the engine, fixed by the model.
    """

    engine: str
    provider: str
    version: str
    threads: int
    batch: int

    def describe(self) -> str:
        """Return one line for people."""
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        return f"{self.engine} {self.version} ({self.provider}), {threads}, batch {self.batch}"


@dataclass(frozen=True, slots=True)
class ProcessRun:
    """One process of its own; the differences between processes are the A/A noise.

    Attributes:
        n: Timed calls.
        p05_ms: 5th percentile: what the call takes when nothing disturbs it.
        p50_ms: Median.
        p90_ms: 90th percentile.
        p95_ms: 95th percentile.
        interrupted: Calls during which the system gave the processor to something else; None where it does
            not tell.
    """

    n: int
    p05_ms: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    interrupted: int | None


@dataclass(frozen=True, slots=True)
class Timing:
    """One of the three times.

    Attributes:
        what: What was timed.
        stats: Percentiles of all calls of all processes.
        runs: Percentiles of each process, in order.
    """

    what: str
    stats: LatencyStats
    runs: tuple[ProcessRun, ...]

    @property
    def interrupted(self) -> float | None:
        """Share of calls that were interrupted, in [0, 1]; None where the system does not tell."""
        counts = [run.interrupted for run in self.runs]
        known = [count for count in counts if count is not None]
        return sum(known) / sum(run.n for run in self.runs) if len(known) == len(counts) else None


@dataclass(frozen=True, slots=True)
class ColdStart:
    """A fresh process up to its first prediction, once per process, in milliseconds.

    Attributes:
        total_ms: From starting Python to the first answer.
        load_ms: Of these: opening and checking the bundle, loading the engine, the self-test.
        first_call_ms: Of these: the first prediction.
    """

    total_ms: tuple[float, ...]
    load_ms: tuple[float, ...]
    first_call_ms: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ThroughputRow:
    """Images per second when `images` are handed over per call and the engine has `threads` threads."""

    images: int
    threads: int
    images_per_s: float
    calls: int


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Memory of a process that only runs the bundle.

    Attributes:
        peak_resident_bytes: Highest resident memory of each process.
        available_before_bytes: Main memory that was free for use before; None where the system does not tell.
        available_least_bytes: The least that was free for use during the runs.
        device_bytes: The most memory that one of the processes held on GPUs of their own, read ten times a second;
            None where there is none, or it does not tell.
        device_reason: Why there is no number; "" where there is one.
    """

    peak_resident_bytes: tuple[int, ...]
    available_before_bytes: int | None
    available_least_bytes: int | None
    device_bytes: int | None
    device_reason: str = ""


@dataclass(frozen=True, slots=True)
class PowerUse:
    """Power and energy under steady load, or why there is no number.

    Attributes:
        sensor: What was read, or "" where there is no sensor.
        covers: What the watts are the power of.
        reason: Why there is no number; "" where there is one.
        idle_w: Mean power just before the load.
        load_w: Mean power under load.
        rails_w: Mean power of each rail under load.
        seconds: Length of the load.
        samples: Readings during the load.
        images: Images classified during the load.
        joule_per_image: Energy under load per image, idle included.
        net_joule_per_image: The same less what idling would have used.
    """

    sensor: str
    covers: str
    reason: str
    idle_w: float | None = None
    load_w: float | None = None
    rails_w: Mapping[str, float] | None = None
    seconds: float | None = None
    samples: int | None = None
    images: int | None = None
    joule_per_image: float | None = None
    net_joule_per_image: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchRecord:
    """One measured run of one bundle.

    Attributes:
        when: Time, ISO 8601 in UTC.
        bundle: What was measured.
        setup: How it was run.
        machine: On what.
        before: State of the device before the first run.
        after: State after the last.
        latency: "engine", "call" and "end_to_end".
        cold_start: Fresh process to first prediction.
        throughput: Images per second by batch and by threads; empty where it was not asked for.
        memory: Memory in use.
        power: Power and energy.
        accuracy: Accuracy by domain; None where no images were given.
        notes: What to know before believing the numbers.
        command: The command that measures again, without paths.
        interleaved_with: Digest of the bundle whose processes took turns with this one's, or "".
        host: The device as it was reached from another machine, without the user; "" where the bench ran at hand.
        how: In what way, or "".
    """

    when: str
    bundle: BundleFacts
    setup: Setup
    machine: Machine
    before: DeviceState
    after: DeviceState
    latency: Mapping[str, Timing]
    cold_start: ColdStart
    throughput: tuple[ThroughputRow, ...]
    memory: MemoryUse
    power: PowerUse
    accuracy: AccuracyRecord | None
    notes: tuple[str, ...]
    command: str
    interleaved_with: str = ""
    host: str = ""
    how: str = ""

    @property
    def fingerprint(self) -> str:
        """The machine and how it was set, as 16 hex digits: equal where latencies may be compared."""
        machine = self.machine
        parts = {
            "cpu": machine.cpu_model,
            "cores": machine.usable_cores,
            "isa": list(machine.isa),
            "memory_gib": round(machine.memory_bytes / 2**30),
            "architecture": machine.architecture,
            "board": machine.board,
            "gpu": machine.gpu,
            "jetpack": machine.jetpack,
            "tensorrt": machine.tensorrt,
            "power_mode": self.before.power_mode,
            "governor": self.before.governor,
            "cpu_max_mhz": self.before.cpu_max_mhz,
            "gpu_max_mhz": self.before.gpu_max_mhz,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def disturbances(self) -> tuple[str, ...]:
        """What happened to the device during the run that makes it unfit as a baseline."""
        return changes(self.before, self.after)

    def to_record(self) -> Record:
        """Return the line of the log, with what programs read most at the top."""
        plain = encode(self)
        when = plain.pop("when")
        call = self.latency["call"].stats
        plain["latency_ms"] = {"p50": call.p50_ms, "p90": call.p90_ms, "p95": call.p95_ms, "p99": call.p99_ms}
        plain["fingerprint"] = self.fingerprint
        return Record(KIND, when, plain)

    @classmethod
    def from_record(cls, record: Record, where: str = "record") -> BenchRecord:
        """Take back what `to_record` gave.

        Raises:
            DataError: It is of another kind, or a field is missing or of another type.
        """
        if record.kind != KIND:
            msg = f"Expected a record of kind {KIND!r} in {where}, found {record.kind!r}: give it what bench wrote."
            raise DataError(msg)
        found = decode(cls, {**record.data, "when": record.when}, where)
        missing = [name for name in TIMED if name not in found.latency]
        if missing or any(not timing.runs for timing in found.latency.values()):
            msg = f"Expected {', '.join(TIMED)} with their runs among the latency of {where}: measure again."
            raise DataError(msg)
        if problem := _impossible(found):
            msg = f"Expected what a bench can measure in {where}, found {problem}: measure again."
            raise DataError(msg)
        return found


def _impossible(record: BenchRecord) -> str:
    """Say what no bench could have found, or nothing: a damaged record may still be of the right form."""
    for name, timing in record.latency.items():
        stats = timing.stats
        times = [stats.min_ms, stats.p50_ms, stats.max_ms]
        times += [value for run in timing.runs for value in (run.p05_ms, run.p50_ms, run.p90_ms, run.p95_ms)]
        if min(times) <= 0 or any(run.n <= 0 for run in timing.runs):
            return f"times or calls of {name} that are not above zero"
        if len(stats.quantiles_ms) < 2:
            return f"fewer than two quantiles of {name}"
    processes = {
        "cold starts": record.cold_start.total_ms,
        "peaks of memory": record.memory.peak_resident_bytes,
    }
    for what, values in processes.items():
        if not values or min(values) <= 0:
            return f"no {what}, or some that are not above zero"
    accuracy = record.accuracy
    if accuracy is not None:
        shares = [accuracy.mean, accuracy.ece, *(item.accuracy for item in accuracy.domains.values())]
        if not accuracy.domains:
            return "an accuracy without domains"
        if not all(0 <= share <= 1 for share in shares):
            return "shares outside 0 and 1 among the accuracies"
    return ""


def load_bench_records(path: Path) -> tuple[BenchRecord, ...]:
    """Read every bench of a file: a log of records, or what ``vlkd-edge bench --json`` printed.

    A damaged last line is passed over; anything else that cannot be read is refused.

    Raises:
        DataError: There is no such file, it holds no bench, or a record in it is damaged.
    """
    try:
        whole: Any = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        whole = None
    if isinstance(whole, dict):
        single = record_of(whole)
        if not isinstance(single, Record):
            msg = f"Expected a record of schema {SCHEMA} in {path}: {single}. Measure again with 'vlkd-edge bench'."
            raise DataError(msg)
        return (BenchRecord.from_record(single, str(path)),)
    log = read_records(path)
    found = tuple(
        BenchRecord.from_record(record, f"{path}, record {number}")
        for number, record in enumerate(log.records, start=1)
        if record.kind == KIND
    )
    if not found:
        damage = f" ({log.damaged[-1].reason})" if log.damaged else ""
        msg = (
            f"Expected at least one whole bench record in {path}, found none{damage}: run 'vlkd-edge bench BUNDLE "
            "--record FILE', or keep what 'vlkd-edge bench BUNDLE --json' prints."
        )
        raise DataError(msg)
    return found
