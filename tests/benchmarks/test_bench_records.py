"""Bench records come back as they went, and damaged ones are refused by what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from vlkd_bench.benchrecord import BenchRecord, load_bench_records
from vlkd_bench.records import append
from vlkd_runtime.errors import DataError

Make = Callable[..., BenchRecord]
Calls = Callable[..., list[list[float]]]
Rows = Callable[..., tuple]


def test_records_come_back_as_they_went(record: Make, rows: Rows, tmp_path: Path) -> None:
    base = record(rows=rows({"sketch": 50}, {"sketch": [3]}))
    append(tmp_path / "log.jsonl", base.to_record())
    (back,) = load_bench_records(tmp_path / "log.jsonl")
    assert back == base and back.fingerprint == base.fingerprint
    assert back.accuracy is not None and len(back.accuracy.rows()) == 50
    (tmp_path / "one.json").write_text(json.dumps(base.to_record().to_json(), indent=2))
    assert load_bench_records(tmp_path / "one.json") == (base,)


def test_an_interrupted_write_leaves_the_record_before(record: Make, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    append(path, record().to_record())
    append(path, record(digest="b" * 64).to_record())
    path.write_bytes(path.read_bytes()[:-100])
    (back,) = load_bench_records(path)
    assert back.bundle.digest == "a" * 64


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        pytest.param(lambda d: d.update(schema=1), "schema 2", id="schema"),
        pytest.param(lambda d: d.update(kind="build"), "kind 'bench'", id="kind"),
        pytest.param(lambda d: d.pop("latency"), "Expected the fields when, bundle", id="field"),
        pytest.param(lambda d: d["latency"].pop("call"), "among the latency", id="timing"),
        pytest.param(
            lambda d: d["latency"]["call"]["stats"].update(p50_ms="x"),
            "a finite number at .*latency.call.stats.p50_ms, found 'x'",
            id="type",
        ),
        pytest.param(lambda d: d["machine"].update(isa="avx2"), "a list at .*machine.isa", id="list"),
        pytest.param(lambda d: d.update(setup=3), "an object at|an object", id="object"),
        pytest.param(
            lambda d: d["latency"]["call"]["runs"][0].update(p50_ms=-1.0),
            "times or calls of call",
            id="negative",
        ),
        pytest.param(
            lambda d: d["latency"]["engine"]["stats"].update(quantiles_ms=[]),
            "quantiles of engine",
            id="no quantiles",
        ),
        pytest.param(lambda d: d["cold_start"].update(total_ms=[]), "no cold starts", id="no cold start"),
        pytest.param(
            lambda d: d["memory"].update(peak_resident_bytes=[0]), "no peaks of memory", id="no memory"
        ),
        pytest.param(lambda d: d["accuracy"].update(domains={}), "without domains", id="no domains"),
        pytest.param(lambda d: d["accuracy"].update(mean=1.5), "outside 0 and 1", id="share"),
    ],
)
def test_damaged_records_are_refused_by_what_is_wrong(
    record: Make, rows: Rows, tmp_path: Path, spoil: Callable[[dict], object], message: str
) -> None:
    data = json.loads(json.dumps(record(rows=rows({"sketch": 20})).to_record().to_json()))
    spoil(data)
    (tmp_path / "one.json").write_text(json.dumps(data))
    with pytest.raises(DataError, match=message):
        load_bench_records(tmp_path / "one.json")
