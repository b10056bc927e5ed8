"""The data-free table: findings out of the numbers, and the same numbers in JSON and text."""

from __future__ import annotations

import json

import pytest

from vlkd_bench.datafree import DataFreeTable, MadeImages
from vlkd_bench.leaveout import Cell
from vlkd_runtime.errors import DataError

MEANING = {
    "teacher": "asked",
    "real": "real images",
    "single": "s",
    "mix": "m",
    "random": "r",
    "contrastive": "c",
}


def table(accuracies: dict[str, tuple[float, ...]], **more: object) -> DataFreeTable:
    cells = tuple(
        Cell("demo", name, "sketch", seed, value, value + 0.05)
        for name, values in accuracies.items()
        for seed, value in enumerate(values)
    )
    made = tuple(
        None if cell.method == "teacher" else MadeImages(1000) if cell.method == "real"
        else MadeImages(900 + cell.seed * 10, 0.8 + cell.seed * 0.1, 0.4, 5.0)
        for cell in cells
    )  # fmt: skip
    values = {
        "cells": cells, "made": made, "meaning": MEANING, "command": "vlkd-edge bench data-free", "machine": "here",
        "teacher": "demo", "student": "tiny", "settings": {"epochs": 2}, "stand_ins": ("It stands in.",),
        "notes": ("Why not.",),
    }  # fmt: skip
    return DataFreeTable(**(values | more))


FULL = {
    "teacher": (0.97,),
    "real": (0.70, 0.60),
    "single": (0.30, 0.36),
    "mix": (0.50, 0.52),
    "random": (0.55, 0.45),
    "contrastive": (0.60, 0.56),
}


def test_findings_come_from_the_means_over_seeds() -> None:
    reached, order = table(FULL).findings()
    assert (
        "Contrastive-Prompt has 89.2 % of the accuracy" in reached and "so reaches the aim of 85 %" in reached
    )
    assert "found single 33.0, mix 51.0, random 50.0, contrastive 58.0: the order holds." in order
    missed = table(FULL | {"contrastive": (0.50, 0.51)}).findings()
    assert "has 77.7 %" in missed[0] and "misses the aim" in missed[0]
    assert missed[1].endswith("the order does not hold.")
    assert table({"teacher": (0.9,), "single": (0.5,)}).findings() == ()
    assert table(FULL | {"single": (0.6, 0.6)}).findings()[1].endswith("does not hold.")


def test_json_holds_a_row_for_each_cell_with_its_images() -> None:
    plain = json.loads(json.dumps(table(FULL).as_json()))
    assert len(plain["rows"]) == 11
    assert plain["rows"][0] == {
        "dataset": "demo", "method": "teacher", "held_out": "sketch", "seed": 0, "accuracy": 0.97,
        "source_accuracy": pytest.approx(1.02), "key": "",
    }  # fmt: skip
    assert {"images": 910, "accepted": pytest.approx(0.9), "distance": 0.4, "vendi": 5.0}.items() <= (
        plain["rows"][-1].items()
    )
    assert plain["share_of_real"]["single"] == pytest.approx(0.33 / 0.65)
    assert plain["findings"] == list(table(FULL).findings()) and plain["notes"] == ["Why not."]


def test_text_tells_every_row_and_what_it_stands_for() -> None:
    text = table(FULL).markdown()
    assert "| teacher |  | 97.0 | 102.0 | 149 % |  |  |  |  |" in text
    assert "| real | 2 | 65.0 ± 5.0 | 70.0 | 100 % | 1000 |  |  |  |" in text
    assert "| single | 2 | 33.0 ± 3.0 | 38.0 | 51 % | 905 | 85 % | 0.400 | 5.00 |" in text
    assert "> It stands in." in text and "- Why not." in text and "- `mix`: m" in text
    assert "    vlkd-edge bench data-free\n" in text and "epochs 2." in text
    assert table(FULL).picture().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "more", [{"made": ()}, {"meaning": {"teacher": "asked"}}], ids=["no images", "no meaning"]
)
def test_a_row_without_images_or_meaning_is_refused(more: dict[str, object]) -> None:
    with pytest.raises(DataError, match="Expected the images of each of 11 rows and a meaning for each name"):
        table(FULL, **more)
