from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlkd_runtime.errors import DataError
from vlkd_runtime.tensorfile import read_tensors, write_tensors
from vlkd_runtime.vectors import ClassVectors

GOOD: dict[str, Any] = {
    "names": ("cat", "Füchse", "a b"),
    "vectors": np.eye(3, 5, dtype=np.float32),
    "prompts": (("a cat",), ("a", "b"), ()),
    "templates": ("a {}",),
    "teacher": "t",
    "teacher_fingerprint": "f",
    "logit_scale": 100.00000762939453,
}


def test_round_trip(tmp_path: Path) -> None:
    vectors = ClassVectors(**GOOD)
    vectors.save(tmp_path / "v.safetensors")
    loaded = ClassVectors.load(tmp_path / "v.safetensors")
    for field in dataclasses.fields(ClassVectors):
        if field.name == "vectors":
            assert np.array_equal(loaded.vectors, GOOD["vectors"])
        else:
            assert getattr(loaded, field.name) == GOOD[field.name]
    assert loaded.to_bytes() == vectors.to_bytes() == (tmp_path / "v.safetensors").read_bytes()


def test_the_callers_array_stays_his() -> None:
    mine = np.eye(3, 5, dtype=np.float32)
    vectors = ClassVectors(**{**GOOD, "vectors": mine})
    mine[:] = 0
    assert vectors.vectors[0, 0] == 1
    with pytest.raises(ValueError, match="read-only"):
        vectors.vectors[0, 0] = 2


def with_row(row: list[float]) -> np.ndarray:
    vectors = np.eye(3, 5, dtype=np.float32)
    vectors[1] = row
    return vectors


@pytest.mark.parametrize(
    ("change", "match"),
    [
        pytest.param({"names": ("a", "b")}, "3 rows and 2 names", id="too-few-names"),
        pytest.param({"names": ()}, "at least one name", id="no-names"),
        pytest.param({"names": ("a", "b", "a")}, "'a' repeated", id="duplicate"),
        pytest.param({"names": ("a", "", "c")}, "name 1 must be", id="empty-name"),
        pytest.param({"names": ("a", " b", "c")}, "without blanks around", id="padded-name"),
        pytest.param({"names": ("a", "b\x1b[2J", "c")}, "printable", id="terminal-escape"),
        pytest.param({"vectors": np.eye(3, 5)}, "found float64", id="float64"),
        pytest.param({"vectors": np.ones(5, np.float32)}, r"\(C, D\)", id="rank-1"),
        pytest.param({"vectors": np.zeros((3, 0), np.float32)}, r"\(3, 0\)", id="no-columns"),
        pytest.param(
            {"vectors": with_row([2, 0, 0, 0, 0])}, r"length 2 in row 1 \('Füchse'\)", id="not-unit"
        ),
        pytest.param({"vectors": with_row([0] * 5)}, "length 0 in row 1", id="zero-row"),
        pytest.param({"vectors": with_row([np.nan, 0, 0, 0, 0])}, "length nan in row 1", id="nan"),
        # One that warns when it is widened.
        pytest.param(
            {"vectors": with_row(np.array([0x7F800001, 0, 0, 0, 0], np.uint32).view(np.float32))},
            "length nan in row 1",
            id="signalling-nan",
        ),
        pytest.param({"vectors": with_row([np.inf, 0, 0, 0, 0])}, "length inf in row 1", id="inf"),
        pytest.param({"prompts": ((), ())}, "2 for 3 classes", id="prompts"),
        pytest.param({"logit_scale": 0.0}, "above 0, found 0", id="scale-zero"),
        pytest.param({"logit_scale": float("nan")}, "above 0, found nan", id="scale-nan"),
        pytest.param({"teacher": " "}, "must not be empty", id="teacher"),
        pytest.param({"teacher_fingerprint": ""}, "must not be empty", id="fingerprint"),
    ],
)
def test_impossible_vectors(change: dict[str, Any], match: str) -> None:
    with pytest.raises(DataError, match=match):
        ClassVectors(**{**GOOD, **change})


@pytest.mark.parametrize(
    ("change", "match"),
    [
        pytest.param({"format": "vlkd-class-vectors/2"}, "found 'vlkd-class-vectors/2'", id="version"),
        pytest.param({"format": None}, "found 'no format'", id="other-file"),
        pytest.param({"prompts": None}, "'prompts'", id="missing"),
        pytest.param({"extra": "1"}, "'extra'", id="unknown"),
        pytest.param({"names": "{"}, "not JSON", id="names-broken"),
        pytest.param({"names": '{"a": 1}'}, "lists of text", id="names-object"),
        pytest.param({"names": '["a", 2, "c"]'}, "lists of text", id="names-number"),
        pytest.param({"prompts": '"abc"'}, "list of lists", id="prompts-text"),
        pytest.param({"logit_scale": "a lot"}, "could not convert", id="scale-text"),
        pytest.param({"logit_scale": "inf"}, "found inf", id="scale-inf"),
    ],
)
def test_broken_files(change: dict[str, str | None], match: str) -> None:
    tensors, metadata = read_tensors(ClassVectors(**GOOD).to_bytes(), where="x")
    metadata = {key: value for key, value in {**metadata, **change}.items() if value is not None}
    with pytest.raises(DataError, match=match) as caught:
        ClassVectors.from_bytes(write_tensors(tensors, metadata), where="the/file")
    assert str(caught.value).startswith("the/file")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"v\.safetensors: cannot read the class vectors: No such file"):
        ClassVectors.load(tmp_path / "v.safetensors")
