"""The leave-one-domain-out table: its arithmetic, its gaps, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from vlkd_bench.leaveout import Cell, LeaveOutTable, summarise_cells
from vlkd_runtime.errors import DataError


def cells(method: str, by_seed: dict[int, dict[str, float]]) -> list[Cell]:
    return [
        Cell("world", method, name, seed, accuracy, 0.9)
        for seed, domains in by_seed.items()
        for name, accuracy in domains.items()
    ]


TEACHER = cells("teacher", {0: {"art": 0.9, "sketch": 0.8}})
ERM = cells("erm", {0: {"art": 0.6, "sketch": 0.3}, 1: {"art": 0.7, "sketch": 0.4}})
OURS = cells("ours", {0: {"art": 0.7, "sketch": 0.6}, 1: {"art": 0.7, "sketch": 0.7}})


def table(rows: list[Cell]) -> LeaveOutTable:
    return LeaveOutTable(
        tuple(rows), "the command", "a machine", "a teacher", "a student", {"epochs": 2}, ("A stand-in.",)
    )


def test_means_are_over_seeds_then_over_domains() -> None:
    teacher, erm, ours = summarise_cells([*TEACHER, *ERM, *OURS])
    assert erm.domains == pytest.approx({"art": 0.65, "sketch": 0.35})
    assert (erm.mean, erm.worst, erm.worst_domain, erm.seeds) == pytest.approx((0.5, 0.35, "sketch", 2))
    # Seed means are 0.45 and 0.55: their standard deviation is 0.0707, divided by the root of two.
    assert erm.standard_error == pytest.approx(0.05)
    assert teacher.standard_error is None
    assert ours.mean == pytest.approx(0.675)


def test_the_gap_closed_is_measured_between_plain_training_and_teacher() -> None:
    teacher, erm, ours = summarise_cells([*TEACHER, *ERM, *OURS])
    assert ours.gap_closed == pytest.approx((0.675 - 0.5) / (0.85 - 0.5))
    assert teacher.gap_closed is None and erm.gap_closed is None


@pytest.mark.parametrize(
    "rows",
    [[*TEACHER, *OURS], [*ERM, *OURS], [*cells("teacher", {0: {"art": 0.1, "sketch": 0.1}}), *ERM, *OURS]],
    ids=["no erm", "no teacher", "teacher behind erm"],
)
def test_no_gap_is_no_number(rows: list[Cell]) -> None:
    assert all(summary.gap_closed is None for summary in summarise_cells(rows))


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([], "at least one cell"),
        (ERM[:-1], "'erm'.*no cell for sketch, seed 1"),
        ([*ERM, ERM[0]], "'erm'.*there twice"),
        ([*ERM, *OURS[:1]], "'ours'.*no cell for sketch, seed 0"),
    ],
    ids=["none", "a hole", "twice", "another method's domain"],
)
def test_a_table_with_holes_is_refused(rows: list[Cell], match: str) -> None:
    with pytest.raises(DataError, match=match):
        summarise_cells(rows)


def test_json_has_the_rows_that_scripts_read() -> None:
    plain = json.loads(json.dumps(table([*TEACHER, *ERM]).as_json()))
    assert {"command", "machine", "teacher", "student", "rows"} <= set(plain)
    assert plain["rows"][0] == {
        "dataset": "world",
        "method": "teacher",
        "held_out": "art",
        "seed": 0,
        "accuracy": 0.9,
        "source_accuracy": 0.9,
        "key": "",
    }
    assert [summary["method"] for summary in plain["summary"]] == ["teacher", "erm"]


def test_markdown_shows_every_method_and_the_best_student_in_bold() -> None:
    text = table([*TEACHER, *ERM, *OURS]).markdown()
    assert "> A stand-in." in text
    assert "| teacher |  | 90.0 | 80.0 | 85.0 | 80.0 (sketch) |  |" in text
    assert "| erm | 2 | 65.0 | 35.0 | 50.0 ± 5.0 | 35.0 (sketch) |  |" in text
    assert "| ours | 2 | **70.0** | **65.0** | **67.5** ± 2.5 | **65.0** (sketch) | 50 % |" in text


def test_the_picture_is_a_png() -> None:
    assert table([*TEACHER, *ERM]).picture().startswith(b"\x89PNG\r\n")


def test_a_table_grows_by_the_cells_of_another_run(tmp_path: Path) -> None:
    first = table([*TEACHER, *ERM])
    more = dataclasses.replace(
        table([*OURS, *cells("erm", {1: {"art": 0.71, "sketch": 0.41}})]),
        command="another command",
        contract=({"method": "ours", "held_out": ["art"], "text": "Ours."},),
    )
    path = tmp_path / "table.json"
    path.write_text(json.dumps(first.as_json()))
    grown = LeaveOutTable.read(path).with_more(more)
    assert [(c.method, c.seed, c.held_out, c.accuracy) for c in grown.cells if c.method == "erm"] == [
        ("erm", 0, "art", 0.6),
        ("erm", 0, "sketch", 0.3),
        ("erm", 1, "art", 0.71),
        ("erm", 1, "sketch", 0.41),
    ]
    assert list(dict.fromkeys(cell.method for cell in grown.cells)) == ["teacher", "erm", "ours"]
    assert "    the command\n    another command\n" in grown.markdown()
    asked = {"text": "3 asked in this run", "asked": 3}
    counted = grown.with_more(dataclasses.replace(more, queries=asked))
    path.write_text(json.dumps(counted.as_json()))
    assert LeaveOutTable.read(path).queries == asked and grown.queries is None
    assert counted.markdown().endswith("\n\nQuestions to the teacher: 3 asked in this run.\n")
    assert "Questions" not in grown.markdown()
    assert grown.markdown().count("Machine: a machine.") == 1
    assert grown.with_more(more) == grown


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"settings": {"epochs": 3}}, "same settings, found epochs 2 and 3"),
        ({"teacher": "another"}, "same teacher, found 'a teacher' and 'another'"),
    ],
    ids=["settings", "teacher"],
)
def test_cells_made_otherwise_do_not_belong_in_one_table(change: dict[str, Any], match: str) -> None:
    with pytest.raises(DataError, match=match):
        table(TEACHER).with_more(dataclasses.replace(table(ERM), **change))


@pytest.mark.parametrize(
    "text", ["", "{}", '{"rows": [{}]}', "[1]"], ids=["empty", "no rows", "no cell", "list"]
)
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "table.json").write_text(text)
    with pytest.raises(DataError, match=r"Expected a leave-one-domain-out table at .*table\.json"):
        LeaveOutTable.read(tmp_path / "table.json")


def test_notes_stand_below_the_table_until_others_take_their_place(tmp_path: Path) -> None:
    first = dataclasses.replace(table([*TEACHER, *ERM]), notes=("Tried in vain.",))
    (tmp_path / "table.json").write_text(json.dumps(first.as_json()))
    read = LeaveOutTable.read(tmp_path / "table.json")
    assert read.with_more(table(OURS)).notes == ("Tried in vain.",)
    more = read.with_more(dataclasses.replace(table(OURS), notes=("One.", "Two.")))
    named = dataclasses.replace(table(ERM), command="another command", notes=("Of no cell.",))
    assert read.with_more(named).command == "the command"
    assert "\n## Notes\n\nOne.\n\nTwo.\n\n## How" in more.markdown()
