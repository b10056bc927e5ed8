"""How often the gate cries wolf, and how often it sleeps, on recorded noise.

`recorded/aa-runs.json` holds processes that timed the same bundle one after another on a busy machine. Eight in a
row stand for a bench, and two benches that share no process are an A/A pair measured apart: rows in time keep the
machine's drift. Of sixteen in a row, one of each two is the one bench and one the other: a pair that took turns.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlkd_bench.benchrecord import BenchRecord, ProcessRun
from vlkd_bench.predictions import PredictionRow
from vlkd_bench.regression import RegressionReport, assess

RECORDED = json.loads((Path(__file__).parent / "recorded/aa-runs.json").read_text())
PROCESSES, PAIRS = 8, 200
SIZES = {"art": 1500, "cartoon": 1500, "photo": 1500, "sketch": 1500}


def bench_of(base: BenchRecord, runs: list[dict[str, Any]], slower: float = 1.0) -> BenchRecord:
    """A record of these processes, every duration scaled."""
    latency = {}
    for name, timing in base.latency.items():
        found = []
        for run in runs:
            n, p05, p50, p90, p95, interrupted = run[name]
            found.append(ProcessRun(n, *(slower * value for value in (p05, p50, p90, p95)), interrupted))
        latency[name] = replace(timing, runs=tuple(found))
    cold = tuple(run["cold_ms"] for run in runs)
    memory = replace(base.memory, peak_resident_bytes=tuple(run["peak_bytes"] for run in runs))
    return replace(base, latency=latency, cold_start=replace(base.cold_start, total_ms=cold), memory=memory)


def measured_apart(base: BenchRecord) -> list[RegressionReport]:
    """Reports on pairs of benches that share no process."""
    runs, rng = RECORDED["runs"], np.random.default_rng(0)
    starts = len(runs) - PROCESSES + 1
    apart = [(i, j) for i in range(starts) for j in range(starts) if abs(i - j) >= PROCESSES]
    return [
        assess(bench_of(base, runs[j : j + PROCESSES]), bench_of(base, runs[i : i + PROCESSES]), seed=number)
        for number, (i, j) in enumerate(apart[k] for k in rng.choice(len(apart), PAIRS, replace=False))
    ]


def in_turn(base: BenchRecord, slower: float) -> list[RegressionReport]:
    """Reports on pairs of benches whose processes took turns; one of the two is slowed down."""
    runs, rng, reports = RECORDED["runs"], np.random.default_rng(0), []
    base = replace(base, interleaved_with=base.bundle.digest)
    for number in range(PAIRS):
        start = int(rng.integers(len(runs) - 2 * PROCESSES + 1))
        sides: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
        for k in range(PROCESSES):
            side = int(rng.integers(2))
            sides[side].append(runs[start + 2 * k])
            sides[1 - side].append(runs[start + 2 * k + 1])
        reports.append(assess(bench_of(base, sides[1], slower), bench_of(base, sides[0]), seed=number))
    return reports


def alarms(reports: list[RegressionReport]) -> float:
    return sum(report.verdict == "regression" for report in reports) / len(reports)


def test_the_recording_is_large_enough() -> None:
    assert len(RECORDED["runs"]) >= 5 * PROCESSES
    assert all(run["call"][0] >= 25 for run in RECORDED["runs"])


def test_without_a_change_alarms_are_rare_for_runs_apart(record: Callable[..., BenchRecord]) -> None:
    reports = measured_apart(record())
    assert alarms(reports) <= 0.05, Counter(m.name for report in reports for m in report.regressions)


def test_without_a_change_alarms_are_rare_for_runs_in_turn(record: Callable[..., BenchRecord]) -> None:
    reports = in_turn(record(), 1.0)
    assert alarms(reports) <= 0.05, Counter(m.name for report in reports for m in report.regressions)


def test_a_slowdown_of_a_tenth_is_caught(record: Callable[..., BenchRecord]) -> None:
    reports = in_turn(record(), 1.1)
    assert alarms(reports) >= 0.90, Counter((m.name, m.verdict) for r in reports for m in r.metrics)


def flipped(
    rows: tuple[PredictionRow, ...], rng: np.random.Generator, points: dict[str, float]
) -> tuple[PredictionRow, ...]:
    """Answers of a model that is as good but for `points`: one image in a hundred is lost and another won."""
    out = []
    for row in rows:
        lost = 0.01 / 0.9 + points.get(row.domain, 0.0) / 100 / 0.9
        if row.correct and rng.random() < lost:
            row = replace(row, prediction=(row.label + 1) % 3)
        elif not row.correct and rng.random() < 0.1:
            row = replace(row, prediction=row.label)
        out.append(row)
    return tuple(out)


@pytest.mark.parametrize(
    ("points", "least", "most"),
    [pytest.param({}, 0.0, 0.05, id="no change"), pytest.param({"sketch": 2.0}, 0.90, 1.0, id="2 points")],
)
def test_accuracy_alarms(
    record: Callable[..., BenchRecord],
    rows: Callable[..., tuple[PredictionRow, ...]],
    monkeypatch: pytest.MonkeyPatch,
    points: dict[str, float],
    least: float,
    most: float,
) -> None:
    from vlkd_bench import accuracydetail

    # The calibration error's interval is of no interest here and takes most of the time.
    monkeypatch.setattr(accuracydetail, "DRAWS", 2)
    rng = np.random.default_rng(1)
    wrong = {name: range(0, n, 10) for name, n in SIZES.items()}  # 90 % are right
    reference = rows(SIZES, wrong)
    before = record(rows=reference)
    reports = [
        assess(record(rows=flipped(reference, rng, points)), before, seed=number)
        for number in range(PAIRS // 2)
    ]
    assert least <= alarms(reports) <= most
    if points:
        assert all(report.metrics[0].name == "accuracy sketch" for report in reports if report.regressions)
