"""How often the gate cries wolf, and how often it sleeps, on recorded noise.

`recorded/aa-runs-*.json` hold processes that timed the same bundle one after another on a busy machine
(``benchmarks/recordaa.py``). Eight in a row stand for a bench, and two benches that share no process are an A/A pair
measured apart: rows in time keep the machine's drift. How far benches may drift apart was learnt from the first four of
these recordings, the last tells whether it holds on another.

`recorded/aa-turns-*.json` hold processes of which each two took turns (``--in-turn``), as those of ``bench --against``
do. Of sixteen such pairs in a row one process of each is the one bench and one the other. The rules for these were
there before the recordings were.
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
from vlkd_bench.benchrun import PROCESSES, TURNS
from vlkd_bench.predictions import PredictionRow
from vlkd_bench.regression import RegressionReport, assess

FOLDER = Path(__file__).parent / "recorded"
APART, TURNED = sorted(FOLDER.glob("aa-runs-*.json")), sorted(FOLDER.glob("aa-turns-*.json"))
PAIRS = 200
SIZES = {"art": 1500, "cartoon": 1500, "photo": 1500, "sketch": 1500}
Runs = list[dict[str, Any]]


@pytest.fixture(scope="module", params=APART, ids=lambda path: path.stem)
def runs(request: pytest.FixtureRequest) -> Runs:
    """The processes of one recording, in the order they ran."""
    found: Runs = json.loads(request.param.read_text())["runs"]
    return found


@pytest.fixture(scope="module", params=TURNED, ids=lambda path: path.stem)
def turned(request: pytest.FixtureRequest) -> Runs:
    """The processes of one recording, each two that took turns beside each other."""
    found: Runs = json.loads(request.param.read_text())["runs"]
    return found


def bench_of(base: BenchRecord, runs: Runs, slower: float = 1.0) -> BenchRecord:
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


def measured_apart(
    base: BenchRecord, runs: Runs, slower: float = 1.0, pairs: int = PAIRS
) -> list[RegressionReport]:
    """Reports on pairs of benches that share no process; one of the two is slowed down."""
    rng = np.random.default_rng(0)
    starts = len(runs) - PROCESSES + 1
    apart = [(i, j) for i in range(starts) for j in range(starts) if abs(i - j) >= PROCESSES]
    return [
        assess(
            bench_of(base, runs[j : j + PROCESSES], slower),
            bench_of(base, runs[i : i + PROCESSES]),
            seed=number,
        )
        for number, (i, j) in enumerate(apart[k] for k in rng.choice(len(apart), pairs, replace=False))
    ]


def in_turn(base: BenchRecord, runs: Runs, slower: float) -> list[RegressionReport]:
    """Reports on pairs of benches whose processes took turns; one of the two is slowed down."""
    rng, reports = np.random.default_rng(0), []
    base = replace(base, interleaved_with=base.bundle.digest)
    for number in range(PAIRS):
        start = 2 * int(rng.integers(len(runs) // 2 - TURNS + 1))
        sides: tuple[Runs, Runs] = ([], [])
        for k in range(TURNS):
            side = int(rng.integers(2))
            sides[side].append(runs[start + 2 * k])
            sides[1 - side].append(runs[start + 2 * k + 1])
        reports.append(assess(bench_of(base, sides[1], slower), bench_of(base, sides[0]), seed=number))
    return reports


def alarms(reports: list[RegressionReport]) -> float:
    return sum(report.verdict == "regression" for report in reports) / len(reports)


def test_the_recordings_are_large_enough_and_say_how_they_were_made() -> None:
    assert (len(APART), len(TURNED)) == (5, 1)
    for path in APART + TURNED:
        recording = json.loads(path.read_text())
        assert len(recording["runs"]) >= 2 * TURNS + 2 * PROCESSES
        assert all(run["call"][0] >= 25 for run in recording["runs"])
        assert "priority" in recording["where"] and "load" in recording["where"] and recording["selection"]


def test_without_a_change_alarms_are_rare_for_runs_apart(
    record: Callable[..., BenchRecord], runs: Runs
) -> None:
    reports = measured_apart(record(), runs)
    assert alarms(reports) <= 0.05, Counter(m.name for report in reports for m in report.regressions)


def test_without_a_change_alarms_are_rare_for_runs_in_turn(
    record: Callable[..., BenchRecord], turned: Runs
) -> None:
    reports = in_turn(record(), turned, 1.0)
    assert alarms(reports) <= 0.05, Counter(m.name for report in reports for m in report.regressions)


def test_a_slowdown_of_a_tenth_is_caught(record: Callable[..., BenchRecord], turned: Runs) -> None:
    reports = in_turn(record(), turned, 1.1)
    assert alarms(reports) >= 0.90, Counter((m.name, m.verdict) for r in reports for m in r.metrics)


def test_a_sixfold_slowdown_is_caught_on_a_busy_machine_even_apart(
    record: Callable[..., BenchRecord], runs: Runs
) -> None:
    assert alarms(measured_apart(record(), runs, 6.0, PAIRS // 4)) >= 0.90


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
