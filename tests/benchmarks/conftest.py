"""Bench records made of given numbers, for tests of what is done with records."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from vlkd_bench.accuracydetail import describe_accuracy
from vlkd_bench.benchrecord import (
    TIMED,
    BenchRecord,
    BundleFacts,
    ColdStart,
    MemoryUse,
    PowerUse,
    Setup,
    Timing,
)
from vlkd_bench.benchrun import process_run
from vlkd_bench.devicestate import DeviceState
from vlkd_bench.latency import summarise_latency
from vlkd_bench.machine import Machine
from vlkd_bench.predictions import PredictionRow

CLASSES = ("cat", "dog", "fish")
STATE = DeviceState("25W", "schedutil", (1500.0,), 1728.0, 1020.0, 1020.0, None, {"cpu": 50.0}, {}, 0.5)
MACHINE = Machine(
    "A CPU", 6, 6, ("asimd",), 8 * 2**30, "Linux 5", "aarch64", "3.10.12", 0.5, "A Jetson", "", "Ampere"
)
MakeRecord = Callable[..., BenchRecord]


def make_rows(
    domains: Mapping[str, int], wrong: Mapping[str, Sequence[int]] | None = None
) -> tuple[PredictionRow, ...]:
    """Predictions of so many images a domain, all right but those numbered in `wrong`."""
    rows = []
    for domain, n in domains.items():
        missed = set((wrong or {}).get(domain, ()))
        for i in range(n):
            label = i % 3
            prediction = (label + 1) % 3 if i in missed else label
            name = f"{domain}/{CLASSES[label]}/{i}.png"
            rows.append(PredictionRow(name, domain, label, prediction, 0.9, 0.3))
    return tuple(rows)


def make_record(
    call_ms: Sequence[Sequence[float]] | None = None,
    rows: Sequence[PredictionRow] | None = None,
    *,
    cold_ms: Sequence[float] = (400.0,) * 8,
    digest: str = "a" * 64,
    interrupted: int | None = 0,
    **changed: object,
) -> BenchRecord:
    """A record whose processes took so long for a call; engine and file are 0.9 and 1.5 times that."""
    calls = call_ms if call_ms is not None else steady(2.0)
    factors = {"engine": 0.9, "call": 1.0, "end_to_end": 1.5}
    timings = {}
    for name, factor in factors.items():
        runs = [[round(value * factor * 1e6) for value in run] for run in calls]
        timings[name] = Timing(
            TIMED[name],  # type: ignore[index]
            summarise_latency([value for run in runs for value in run]),
            tuple(process_run(run, interrupted) for run in runs),
        )
    accuracy = None if rows is None else describe_accuracy(rows, CLASSES, dataset="drawn", split="all")
    record = BenchRecord(
        when="2024-05-06T07:00:00+00:00",
        bundle=BundleFacts("tiny", digest, "jetson-orin-nano", "int8", 5_000_000, None),
        setup=Setup("ort-cpu", "CPUExecutionProvider", "1.20", 1, 1),
        machine=MACHINE,
        before=STATE,
        after=STATE,
        latency=timings,
        cold_start=ColdStart(tuple(cold_ms), tuple(cold_ms), tuple(cold_ms)),
        throughput=(),
        memory=MemoryUse((90_000_000,) * len(calls), None, None, None),
        power=PowerUse("", "", "no power sensor: a test"),
        accuracy=accuracy,
        notes=(),
        command="vlkd-edge bench bundle",
    )
    return replace(record, **changed)  # type: ignore[arg-type]


def steady(ms: float, spread: float = 0.01, seed: int = 0, processes: int = 8) -> list[list[float]]:
    """Processes whose calls differ by a little, and whose levels differ by `spread`."""
    rng = np.random.default_rng(seed)
    levels = ms * np.exp(spread * rng.standard_normal(processes))
    return [list(level * np.exp(0.02 * rng.standard_normal(125))) for level in levels]


@pytest.fixture
def record() -> MakeRecord:
    return make_record


@pytest.fixture
def rows() -> Callable[..., tuple[PredictionRow, ...]]:
    return make_rows


@pytest.fixture
def calls() -> Callable[..., list[list[float]]]:
    return steady
