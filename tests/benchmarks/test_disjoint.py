"""The class-disjoint table: means over classes, gains paired by seed, and what it refuses."""

from __future__ import annotations

import dataclasses
import json

import pytest

from vlkd_bench.disjoint import DisjointCell, DisjointTable, per_class_accuracy
from vlkd_bench.predictions import PredictionRow
from vlkd_runtime.errors import DataError


def rows(domain: str, answers: dict[int, str]) -> list[PredictionRow]:
    """Predictions of each class: a letter an image, + right, - wrong."""
    return [
        PredictionRow(f"{domain}/{label}/{i}", domain, label, label if mark == "+" else label + 1, 0.5, 0.5)
        for label, marks in answers.items()
        for i, mark in enumerate(marks)
    ]


def test_a_large_class_counts_as_any() -> None:
    assert per_class_accuracy(rows("a", {0: "++++++++", 1: "--", 2: "+-"})) == pytest.approx(0.5)
    with pytest.raises(DataError, match="at least one prediction to average"):
        per_class_accuracy([])


def test_a_cell_keeps_held_out_and_source_domains_apart() -> None:
    unseen = [*rows("sketch", {0: "+-", 1: "--"}), *rows("a", {0: "++", 1: "++"}), *rows("b", {0: "--"})]
    seen = [*rows("sketch", {0: "+++-"}), *rows("a", {0: "+-"})]
    cell = DisjointCell.measure(("world", "ours", "sketch", 3), ["cat", "dog"], unseen, seen)
    assert (cell.accuracy, cell.source_accuracy) == pytest.approx((0.25, 0.5))
    assert (cell.seen_accuracy, cell.seen_source_accuracy) == pytest.approx((0.75, 0.5))
    assert cell.harmonic_mean == pytest.approx(1 / ((1 / 0.25 + 1 / 0.75) / 2))
    assert cell.source_harmonic_mean == pytest.approx(1 / ((1 / 0.5 + 1 / 0.5) / 2))
    with pytest.raises(DataError, match="a source domain besides 'sketch'"):
        DisjointCell.measure(("world", "ours", "sketch", 3), ["cat"], rows("sketch", {0: "+"}), seen)


def cell(method: str, seed: int, accuracy: float) -> DisjointCell:
    return DisjointCell("world", method, "sketch", seed, accuracy, 0.5, 0.8, 0.9, 0.6, 0.64, ("cat", "dog"))


def table(*cells: DisjointCell) -> DisjointTable:
    contract = ({"method": "ours", "text": "Looks at everything."},)
    return DisjointTable(
        cells, "the command", "a machine", "a teacher", "a student", {"epochs": 2}, ("A stand-in.",), contract
    )


CELLS = [
    *(cell("teacher", seed, 0.9) for seed in (0, 1)),
    *(cell("ce-only", seed, value) for seed, value in enumerate((0.20, 0.40))),
    *(cell("ours", seed, value) for seed, value in enumerate((0.30, 0.52))),
]


def test_gains_are_paired_by_seed() -> None:
    made = table(*CELLS)
    assert made.gains("ours") == pytest.approx((0.10, 0.12))
    assert made.gains("teacher") is None and made.gains("ce-only") is None
    plain = json.loads(json.dumps(made.as_json()))
    assert plain["rows"][-1] == {
        "dataset": "world",
        "method": "ours",
        "held_out": "sketch",
        "seed": 1,
        "accuracy": 0.52,
        "source_accuracy": 0.5,
        "seen_accuracy": 0.8,
        "seen_source_accuracy": 0.9,
        "harmonic_mean": 0.6,
        "source_harmonic_mean": 0.64,
        "unseen": ["cat", "dog"],
    }
    ours = plain["summary"][-1]
    assert (ours["accuracy"], ours["gain"]) == pytest.approx((0.41, 0.11))
    # Gains of 0.10 and 0.12 have a standard deviation of 0.01414, divided by the root of two.
    assert ours["gain_error"] == pytest.approx(0.01)
    text = made.markdown()
    assert "+11.0 ± 1.0" in text and "A stand-in." in text and "ours: Looks at everything." in text
    assert "seed 1: cat, dog" in text
    assert made.picture().startswith(b"\x89PNG")


def test_without_the_baseline_there_is_no_gain() -> None:
    assert table(CELLS[0], CELLS[4]).gains("ours") is None


@pytest.mark.parametrize(
    "cells",
    [
        pytest.param((), id="none"),
        pytest.param((*CELLS, CELLS[0]), id="twice"),
        pytest.param(CELLS[:-1], id="a seed is missing"),
        pytest.param((*CELLS, dataclasses.replace(CELLS[0], held_out="neon")), id="a domain is missing"),
    ],
)
def test_a_table_with_holes_is_refused(cells: tuple[DisjointCell, ...]) -> None:
    with pytest.raises(DataError, match="one cell for each method, held-out domain and seed"):
        table(*cells)
