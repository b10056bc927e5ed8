"""Runs a bundle in processes of its own and puts together what they say: latency, cold start, memory, power."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vlkd_runtime.bundle import Bundle

from .benchrecord import (
    TIMED,
    ColdStart,
    MemoryUse,
    PowerUse,
    ProcessRun,
    ThroughputRow,
    Timing,
)
from .latency import percentile, summarise_latency
from .observing import Glimpse, Observer
from .powermeter import Load, measure_power
from .processes import start, take_turns
from .sensors import NoSensor, find_sensor
from .sensors.devicememory import DeviceMemory, find_device_memory
from .software import read
from .watch import Watch

BATCHES = (1, 4, 16)
# Processes of a bench by itself, and of each side where two bundles take turns: on recorded runs of a machine at a load
# of four tasks a core it takes that many to tell a slowdown of a tenth in nine cases of ten.
PROCESSES, TURNS = 8, 16
THROUGHPUT_SECONDS = 0.4
LOAD_SECONDS = 10.0
# Run-to-run differences above this are said: they, and not the spread within a run, limit what can be compared.
UNSTEADY_RUNS = 0.025
# A share of interrupted calls above this is said.
BUSY = 0.05


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure.

    Attributes:
        bundle: The bundle's folder or archive.
        engine: Engine's name, or "auto".
        threads: Threads of the engine.
        samples: Timed calls of each kind, over all processes.
        processes: Processes they are divided among.
        max_seconds: Time for all of them together.
        image: Image file for the end-to-end time; the first golden image, as PNG, if None.
        throughput: Whether to measure throughput.
        power: Whether to measure power, where there is a sensor.
        against: Another bundle whose processes take turns with this one's, a few calls at a time, so that what the
            machine does in the meantime falls on both alike.
    """

    bundle: Path
    engine: str = "auto"
    threads: int = 1
    samples: int = 1000
    processes: int = PROCESSES
    max_seconds: float = 120.0
    image: Path | None = None
    throughput: bool = True
    power: bool = True
    against: Path | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """What the processes found; `against` is what those of the other bundle found."""

    latency: Mapping[str, Timing]
    cold_start: ColdStart
    throughput: tuple[ThroughputRow, ...]
    memory: MemoryUse
    power: PowerUse
    notes: tuple[str, ...]
    against: Measured | None = None


def run(
    plan: Plan,
    *,
    on_gpu: bool,
    root: Path = Path("/"),
    progress: Callable[[str], None] = lambda _: None,
    watch: Callable[[Glimpse], None] | None = None,
    device_memory: DeviceMemory | NoSensor | None = None,
) -> Measured:
    """Measure a bundle.

    Args:
        plan: What to measure.
        on_gpu: Whether the engine runs on a GPU, which decides what power sensor fits.
        root: Where /proc and /sys are found; another folder in tests.
        progress: Called with a few words before each process.
        watch: Called twice a second, in a thread, with how the bench and the device are doing.
        device_memory: What reads a GPU's memory; whatever this machine has if None.

    Raises:
        UnavailableError: A process failed or did not end.
    """
    if watch is None:
        return _run(plan, on_gpu, root, progress, None, device_memory)
    with tempfile.TemporaryDirectory() as folder:
        ring = Path(folder) / "ring"
        with Observer(watch, ring, find_sensor(root, on_gpu=on_gpu), root) as observer:

            def tell(note: str) -> None:
                observer.phase = note
                progress(note)

            measured = _run(plan, on_gpu, root, tell, ring, device_memory)
            share = observer.share_of_core
    note = f"watched while it ran, which took {100 * share:.1f} % of one core, outside the timed calls"
    other = measured.against and replace(measured.against, notes=(*measured.against.notes, note))
    return replace(measured, notes=(*measured.notes, note), against=other)


def _run(
    plan: Plan,
    on_gpu: bool,
    root: Path,
    progress: Callable[[str], None],
    ring: Path | None,
    device_memory: DeviceMemory | NoSensor | None,
) -> Measured:
    with _image(plan) as image:
        base = {
            "bundle": str(plan.bundle),
            "engine": plan.engine,
            "threads": plan.threads,
            "image": str(image),
        }
        samples = -(-plan.samples // plan.processes)
        limit = plan.max_seconds / plan.processes
        request = {**base, "action": "latency", "samples": samples, "max_seconds": limit}
        request |= {} if ring is None else {"ring": str(ring)}
        available = _available_bytes(root)
        answers: list[dict[str, Any]] = []
        others: list[dict[str, Any]] = []
        device = find_device_memory(root, on_gpu=on_gpu) if device_memory is None else device_memory
        closing = contextlib.nullcontext() if isinstance(device, NoSensor) else contextlib.closing(device)
        with closing, Watch(lambda: _available_bytes(root)) as watch:
            for number in range(1, plan.processes + 1):
                progress(f"process {number} of {plan.processes}")
                if plan.against is None:
                    answers.append(start(request, limit, device))
                    continue
                # Which of the two starts first changes with each pair, so that no order favours either.
                sides = [(request, answers)]
                other = {name: value for name, value in request.items() if name != "ring"}
                sides.insert(number % 2, ({**other, "bundle": str(plan.against)}, others))
                found = take_turns([asked for asked, _ in sides], limit, device)
                for (_, given), answer in zip(sides, found, strict=True):
                    given.append(answer)
        power = PowerUse("", "", "not asked for")
        if plan.power:
            progress("power")
            load = {**base, "action": "load", "seconds": LOAD_SECONDS}
            power = measure_power(find_sensor(root, on_gpu=on_gpu), lambda: _load(load))
        memory = available, min(watch.values, default=None)
        partner = _measured(others, plan, memory, PowerUse("", "", "not asked for"), ()) if others else None
        rows = _throughput(base, plan, progress) if plan.throughput else ()
        return replace(_measured(answers, plan, memory, power, rows), against=partner)


def _measured(
    answers: Sequence[Mapping[str, Any]],
    plan: Plan,
    memory: tuple[int | None, int | None],
    power: PowerUse,
    rows: tuple[ThroughputRow, ...],
) -> Measured:
    """Put together what the processes of one bundle said."""
    latency: dict[str, Timing] = {name: _timing(name, answers, plan) for name in TIMED}
    device = [answer["device_bytes"] for answer in answers if answer["device_bytes"] is not None]
    return Measured(
        latency=latency,
        cold_start=ColdStart(
            total_ms=tuple(answer["total_ms"] for answer in answers),
            load_ms=tuple(answer["load_ms"] for answer in answers),
            first_call_ms=tuple(answer["first_call_ms"] for answer in answers),
        ),
        throughput=rows,
        memory=MemoryUse(
            peak_resident_bytes=tuple(answer["peak_resident_bytes"] for answer in answers),
            available_before_bytes=memory[0],
            available_least_bytes=memory[1],
            device_bytes=max(device, default=None),
            device_reason="" if device else answers[0]["device_reason"],
        ),
        power=power,
        notes=_notes(latency),
    )


@contextlib.contextmanager
def _image(plan: Plan) -> Iterator[Path]:
    """Give the image file to time: the one asked for, or the first golden image."""
    if plan.image is not None:
        yield plan.image
        return
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "golden.png"
        Image.fromarray(Bundle.open(plan.bundle).golden.images[0]).save(path)
        yield path


def _timing(name: str, answers: Sequence[Mapping[str, Any]], plan: Plan) -> Timing:
    """Put the processes' durations together; percentiles are of all calls, in the order measured."""
    everything = [value for answer in answers for value in answer["samples_ns"][name]]
    truncated = any(answer["truncated"] for answer in answers)
    return Timing(
        what=TIMED[name],  # type: ignore[index]
        stats=summarise_latency(
            everything,
            warmup_calls=sum(answer["warmup_calls"] for answer in answers),
            settled=all(answer["settled"] for answer in answers),
            wanted=(plan.samples, 0.0) if truncated else None,
        ),
        runs=tuple(process_run(answer["samples_ns"][name], _interrupted(answer, name)) for answer in answers),
    )


def process_run(samples_ns: Sequence[int], interrupted: int | None = None) -> ProcessRun:
    """Return the percentiles of one process."""
    ordered = np.sort(np.asarray(samples_ns, dtype=np.float64)) / 1e6
    p05, p50, p90, p95 = (percentile(ordered, share) for share in (0.05, 0.5, 0.9, 0.95))
    return ProcessRun(len(ordered), p05, p50, p90, p95, interrupted)


def _interrupted(answer: Mapping[str, Any], name: str) -> int | None:
    counts = answer["interrupted"]
    return None if counts is None else int(counts[name])


def _notes(latency: Mapping[str, Timing]) -> tuple[str, ...]:
    notes = []
    for name, timing in latency.items():
        title = name.replace("_", " ")
        medians = np.array([run.p50_ms for run in timing.runs])
        if len(medians) > 1:
            spread = float(medians.std(ddof=1) / medians.mean())
            if spread > UNSTEADY_RUNS:
                notes.append(
                    f"{title}: the medians of {len(medians)} processes differ by {100 * spread:.1f} % of their mean "
                    f"(steady is below {100 * UNSTEADY_RUNS:.1f} %); changes smaller than that cannot be seen"
                )
        if timing.interrupted is not None and timing.interrupted > BUSY:
            notes.append(
                f"{title}: {100 * timing.interrupted:.0f} % of the calls were interrupted by other processes; the "
                "machine was busy, and percentiles above the 5th say more about it than about the bundle"
            )
    return tuple(notes)


def _load(request: Mapping[str, Any]) -> Load:
    answer = start(request, request["seconds"])
    return Load(answer["start_s"], answer["end_s"], answer["images"])


def _throughput(
    base: Mapping[str, Any], plan: Plan, progress: Callable[[str], None]
) -> tuple[ThroughputRow, ...]:
    """Measure batches with the plan's threads, and single images with other numbers of threads."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    doubled = [2**power for power in range(usable.bit_length()) if 2**power <= usable]
    rows = []
    for threads in sorted({*doubled, usable, plan.threads}):
        progress(f"throughput, {threads} thread{'s' * (threads > 1)}")
        batches = list(BATCHES) if threads == plan.threads else [1]
        request = {**base, "threads": threads, "action": "throughput", "batches": batches}
        answer = start({**request, "seconds": THROUGHPUT_SECONDS}, 60.0)
        rows += [
            ThroughputRow(row["images"], threads, row["images_per_s"], row["calls"]) for row in answer["rows"]
        ]
    return tuple(rows)


def _available_bytes(root: Path) -> int | None:
    """Return the main memory that is free for use, or None where the system does not tell."""
    for line in read(root / "proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable" and value.split()[:1] and value.split()[0].isdigit():
            return int(value.split()[0]) * 1024
    return None
