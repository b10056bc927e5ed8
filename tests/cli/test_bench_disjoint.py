"""`vlkd-edge bench disjoint` on a small demo world: rows, files, resume, and what it refuses."""

from __future__ import annotations

import json
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlkd_distill import methods
from vlkd_distill.demo import CLASSES
from vlkd_distill.specs import MethodName, Settings
from vlkd_edge import disjoint
from vlkd_runtime.errors import ConfigError
from vlkd_runtime.vectors import ClassVectors

Bench = Callable[..., tuple[int, dict[str, Any], str]]
VECTORS = ClassVectors(
    ("a", "b", "c"), np.eye(3, 8, dtype=np.float32), ((), (), ()), (), "test", "0" * 64, 10.0
)


def test_unseen_classes_are_predicted_by_their_vectors_alone(tmp_path: Path, bench: Bench) -> None:
    words = ("--held-out", "sketch", "--methods", "ce-only,vlm-ood", "--unseen", "cat,car,fish")
    code, table, errors = bench("disjoint", tmp_path, *words)
    assert code == 0, errors
    assert [(row["method"], row["unseen"]) for row in table["rows"]] == [
        (name, ["car", "cat", "fish"]) for name in ("teacher", "ce-only", "vlm-ood")
    ]
    assert table["rows"][0]["accuracy"] > 0.8  # the teacher knows all classes
    contract = {one["method"]: one for one in table["contract"]}
    assert contract["ce-only"]["teacher_views"] == "none"
    assert contract["vlm-ood"]["teacher_views"] == "clean_cached"
    assert all(one["unseen"] == ["car", "cat", "fish"] for one in contract.values())
    assert "Unseen classes: car, cat, fish. Their images are only measured on." in " ".join(errors.split())
    # The trained images are those of the other 13 classes in the four source styles.
    (trained,) = {one["counts"]["train"] for one in contract.values()}
    (vectors,) = (path for path in tmp_path.glob("stages/vectors-[0-9a-f]*"))
    assert len(ClassVectors.load(vectors / "class_vectors.safetensors").names) == len(CLASSES)
    (pixels,) = tmp_path.glob("stages/pixels-*/pixels.npy")
    header = 128
    assert pixels.stat().st_size == header + trained * 32 * 32 * 3 and trained < 13 * 4 * 20
    assert json.loads((tmp_path / "table.json").read_text()) == table

    stages = {path: path.stat().st_mtime_ns for path in (tmp_path / "stages").iterdir()}
    code, again, _ = bench("disjoint", tmp_path, *words)
    assert code == 0 and again == table
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "stages").iterdir()} == stages


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (("--methods", "erm"), "--methods names 'erm'. Expected some of ce-only"),
        (("--unseen", "dragon"), "found 'dragon'"),
        (("--unseen", "15"), "from 1 to 14 of the 16 classes"),
        (("--unseen", "1.5"), "a share between 0 and 1"),
        (("--unseen", ""), "found ''"),
    ],
    ids=["cannot name unseen", "unknown class", "too many", "share", "none"],
)
def test_mistakes_are_told_before_any_work(
    tmp_path: Path, words: tuple[str, ...], match: str, bench: Bench
) -> None:
    code, answer, _ = bench("disjoint", tmp_path, *words)
    assert code == 2
    assert match in answer["error"]["message"]
    assert not (tmp_path / "stages").exists()


@pytest.mark.parametrize(
    ("unseen", "expected"),
    [("novel", ("c", "d")), ("1", None), ("0.5", None), ("b", ("b",)), ("d, a", ("a", "d"))],
)
def test_ways_to_say_which_classes_are_unseen(unseen: str, expected: tuple[str, ...] | None) -> None:
    parts = disjoint.Parts.of(("a", "b", "c", "d"), unseen, seed=2)
    assert sorted(parts.seen + parts.unseen) == ["a", "b", "c", "d"]
    assert parts.unseen == expected if expected else len(parts.unseen) == (1 if unseen == "1" else 2)


def test_every_method_that_predicts_by_vectors_may_be_measured() -> None:
    for name in typing.get_args(MethodName):
        if name not in methods.METHODS:
            continue
        by_vectors = methods.create(Settings(method=name), VECTORS).predicts_by_vectors
        assert (name in disjoint.KNOWN) == (by_vectors and name != "data-free"), name


def test_a_class_named_like_a_number_is_a_class() -> None:
    assert disjoint.Parts.of(("1", "2", "3"), "3", seed=0).unseen == ("3",)
    with pytest.raises(ConfigError, match="found 3"):
        disjoint.Parts.of(("a", "b", "c"), "3", seed=0)
