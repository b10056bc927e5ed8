"""Baselines keep what was accepted, when and why, and refuse what cannot be one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from vlkd_bench.baselines import accept, find_baseline, read_baselines
from vlkd_bench.benchrecord import BenchRecord
from vlkd_bench.records import append, append_record
from vlkd_runtime.errors import DataError

Make = Callable[..., BenchRecord]
Calls = Callable[..., list[list[float]]]
Rows = Callable[..., tuple]


def test_baselines_keep_history_reasons_and_what_was_accepted(
    record: Make, calls: Calls, rows: Rows, tmp_path: Path
) -> None:
    path = tmp_path / "jetson-orin-nano.json"
    images = rows({"sketch": 400})
    first = record(calls(2.0, seed=1), images)
    accept(path, first, "first")
    slower = record(calls(2.4, seed=2), images, digest="b" * 64)
    entry = accept(path, slower, "a larger student, agreed on")
    assert "latency call p50" in {metric.name for metric in entry.regressions}
    other = replace(first, machine=replace(first.machine, cpu_model="B"))
    accept(path, other, "a second board")
    known = read_baselines(path)
    assert [item.reason for item in known.entries] == [
        "first",
        "a larger student, agreed on",
        "a second board",
    ]
    assert known.entries[1].regressions == entry.regressions
    current = known.current(first)
    assert current is not None and current.record == slower
    old = known.entries[0].record.accuracy
    assert old is not None and old.predictions is None and old.mean == 1.0
    found, more = find_baseline(path, first)
    assert found == slower and more == ()
    assert find_baseline(path, other)[0] == other
    assert len(path.read_text().splitlines()) == 5  # a head, a line an entry, an end


@pytest.mark.parametrize(
    ("change", "reason", "message"),
    [
        pytest.param({}, "  ", "a reason", id="no reason"),
        pytest.param(
            {"after": {"power_mode": "15W"}}, "x", "power mode changed from 25W to 15W", id="disturbed"
        ),
        pytest.param({"bundle": {"target": "jetson-agx-thor"}}, "x", "each target has a file", id="target"),
    ],
)
def test_what_cannot_be_a_baseline(
    record: Make, tmp_path: Path, change: dict[str, dict[str, object]], reason: str, message: str
) -> None:
    path = tmp_path / "base.json"
    accept(path, record(), "first")
    before = path.read_bytes()
    base = record()
    wrong = replace(base, **{name: replace(getattr(base, name), **new) for name, new in change.items()})
    with pytest.raises(DataError, match=message):
        accept(path, wrong, reason)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("{", "Expected a baseline file", id="cut"),
        pytest.param("[]", "of format", id="a list"),
        pytest.param('{"format": "vlkd-baselines", "schema": 9}', "schema 1 in .*, found 9", id="schema"),
        pytest.param(
            '{"format": "vlkd-baselines", "schema": 1, "target": "t"}', "a list 'entries'", id="no list"
        ),
        pytest.param(
            '{"format": "vlkd-baselines", "schema": 1, "target": "t", "entries": [{"record": {"schema": 1}}]}',
            "entry 1: expected schema 2, found 1",
            id="record of another schema",
        ),
    ],
)
def test_damaged_baselines_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "base.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_baselines(path)


def test_a_log_as_baseline_gives_its_last_run_and_the_others_as_noise(record: Make, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    for run in (record(digest="b" * 64), record(), record()):
        append(path, run.to_record())
    append_record(path, "build", {})
    found, more = find_baseline(path, record())
    assert found.bundle.digest == "a" * 64 and len(more) == 1
