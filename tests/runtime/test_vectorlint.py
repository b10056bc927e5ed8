"""Every check on class vectors finds what it is for, in sound vectors, loose rows and broken files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlkd_runtime.errors import DataError
from vlkd_runtime.tensorfile import read_tensors, write_tensors
from vlkd_runtime.vectorlint import Rows, cosines, lint, lint_file
from vlkd_runtime.vectors import ClassVectors

NAMES = ("cat", "dog", "fish")
EYE = np.eye(3, 5, dtype=np.float32)


def vectors(**change: Any) -> ClassVectors:
    made: dict[str, Any] = {
        "names": NAMES,
        "vectors": EYE,
        "prompts": tuple((f"a {name}",) for name in NAMES),
        "templates": ("a {}",),
        "teacher": "t",
        "teacher_fingerprint": "f",
        "logit_scale": 100.0,
    }
    return ClassVectors(**(made | change))


def with_row(row: int, values: list[float]) -> np.ndarray:
    changed = EYE.copy()
    changed[row] = values
    return changed


def tilted(cosine: float) -> np.ndarray:
    """Rows 0 and 2 at this cosine."""
    return with_row(2, [cosine, 0, math.sqrt(1 - cosine * cosine), 0, 0])


def test_sound_vectors_have_no_findings() -> None:
    assert lint(vectors(), NAMES, 5) == ()


@pytest.mark.parametrize(
    ("rows", "options", "severity", "check", "match"),
    [
        pytest.param({"vectors": with_row(1, [math.nan] * 5)}, {}, "error", "finite", "for 'dog'.", id="nan"),
        pytest.param({"vectors": with_row(1, [math.inf] * 5)}, {}, "error", "finite", "for 'dog'.", id="inf"),
        pytest.param(
            {"vectors": with_row(0, [2, 0, 0, 0, 0])}, {}, "error", "norm", "2 for 'cat'", id="long"
        ),
        pytest.param({"vectors": with_row(0, [0] * 5)}, {}, "error", "norm", "0 for 'cat'", id="zero row"),
        pytest.param({"vectors": EYE.astype(np.float16)}, {}, "error", "shape", "float16 (3, 5)", id="half"),
        pytest.param({"vectors": EYE[0]}, {}, "error", "shape", "float32 (5,)", id="rank 1"),
        pytest.param({"vectors": EYE[:, :0]}, {}, "error", "shape", "(3, 0)", id="no columns"),
        pytest.param({"vectors": EYE[:2]}, {}, "error", "shape", "2 rows and 3 names", id="too few rows"),
        pytest.param(
            {}, {"expected_dim": 512}, "error", "dimension", "of 512 values, found 5", id="dimension"
        ),
        pytest.param(
            {"names": ("a", " b", "")}, {}, "error", "names", "' b' (class 1), '' (class 2)", id="blank"
        ),
        pytest.param({"names": ("a", "b", "a")}, {}, "error", "names", "found 'a' repeated", id="repeated"),
        pytest.param(
            {"vectors": tilted(0.99)}, {}, "warning", "near", "'cat' and 'fish' (0.9900)", id="near"
        ),
        pytest.param(
            {"vectors": tilted(0.6)}, {"near": 0.5}, "warning", "near", "(0.6000)", id="nearer asked"
        ),
        pytest.param(
            {"vectors": tilted(1.0)}, {}, "error", "near", "same one for 'cat' and 'fish'", id="same"
        ),
        pytest.param(
            {"prompts": (("a", "b", "a"), (), ())},
            {},
            "warning",
            "prompts",
            "no prompt of a class twice, found 'a' of 'cat'.",
            id="twice",
        ),
        pytest.param(
            {"prompts": (("x",), (), ("x",))},
            {},
            "warning",
            "prompts",
            "'x' of 'cat' and 'fish'",
            id="shared",
        ),
        pytest.param(
            {"prompts": ((), ("w " * 60,), ())}, {}, "warning", "prompts", "of 'dog'", id="long prompt"
        ),
    ],
)
def test_each_check_finds_its_own(
    rows: dict[str, Any], options: dict[str, Any], severity: str, check: str, match: str
) -> None:
    found = lint(Rows(**({"names": NAMES, "vectors": EYE} | rows)), **options)
    assert [(finding.severity, finding.check) for finding in found] == [(severity, check)]
    assert match in found[0].message and found[0].advice


@pytest.mark.parametrize(
    ("expected", "match"),
    [
        pytest.param(("cat", "fish", "dog"), "Class 1: expected 'fish', found 'dog' (names in", id="swapped"),
        pytest.param(
            ("cat", "dog"), "Class 2: expected nothing, found 'fish' (not expected 'fish')", id="extra"
        ),
        pytest.param((*NAMES, "owl"), "Class 3: expected 'owl', found nothing (missing 'owl')", id="missing"),
        pytest.param(
            ("ant", "cat", "dog"),
            "Class 0: expected 'ant', found 'cat' (missing 'ant'; not expected 'fish')",
            id="moved by one",
        ),
    ],
)
def test_order(expected: tuple[str, ...], match: str) -> None:
    (found,) = lint(vectors(), expected)
    assert (found.severity, found.check) == ("error", "order") and match in found.message


def test_errors_come_first_and_long_lists_are_cut() -> None:
    rows = np.ones((20, 4), np.float32) / 2
    rows[0] *= 3
    names = tuple(f"c{index}" for index in range(20))
    found = lint(Rows(names, rows, (("x", "x"),)))
    assert [finding.severity for finding in found] == ["error", "error", "warning"]
    assert "184 more" in found[1].message


def test_cosines_against_loops() -> None:
    rows = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32) * 5
    rows[2] = 0
    table = cosines(rows)
    for i in range(4):
        for j in range(4):
            if 2 in (i, j):
                assert math.isnan(table[i, j])
                continue
            dot = sum(float(a) * float(b) for a, b in zip(rows[i], rows[j], strict=True))
            lengths = [math.sqrt(sum(float(a) ** 2 for a in rows[k])) for k in (i, j)]
            assert table[i, j] == pytest.approx(dot / lengths[0] / lengths[1], abs=1e-9)


def rewritten(tensor: np.ndarray = EYE, **change: str | None) -> bytes:
    _, metadata = read_tensors(vectors().to_bytes(), where="x")
    kept = {key: value for key, value in (metadata | change).items() if value is not None}
    return write_tensors({"class_vectors": tensor}, kept)


@pytest.mark.parametrize(
    ("data", "checks", "match"),
    [
        pytest.param(vectors().to_bytes(), [], "", id="sound"),
        pytest.param(vectors(vectors=tilted(0.99)).to_bytes(), ["near"], "0.9900", id="weak"),
        pytest.param(rewritten(EYE * 2), ["norm"], "2 for 'cat', 2 for 'dog', 2 for 'fish'", id="not unit"),
        pytest.param(
            rewritten(with_row(0, [math.nan] * 5) * np.float32(3)),
            ["finite", "norm"],
            "for 'cat'",
            id="two things",
        ),
        pytest.param(rewritten(EYE.astype(np.float64)), ["shape"], "float64 (3, 5)", id="float64"),
        pytest.param(rewritten(names='["a","a"," b"]'), ["names", "names"], "' b' (class 2)", id="names"),
        pytest.param(rewritten(teacher=None), ["file"], "'teacher'", id="no teacher"),
        pytest.param(rewritten(format="other/1"), ["file"], "found 'other/1'", id="other format"),
        pytest.param(rewritten(names="{"), ["file"], "not JSON", id="names broken"),
        pytest.param(rewritten(prompts="{"), ["file"], "not JSON", id="prompts broken"),
        pytest.param(rewritten(logit_scale="nan"), ["file"], "logit_scale above 0, found nan", id="scale"),
        pytest.param(write_tensors({"x": EYE}, {}), ["file"], "found 'no format'", id="another tensor file"),
        pytest.param(b"hello, this is text", ["file"], "not a whole safetensors file", id="no tensor file"),
    ],
)
def test_files(tmp_path: Path, data: bytes, checks: list[str], match: str) -> None:
    path = tmp_path / "v.safetensors"
    path.write_bytes(data)
    rows, found = lint_file(path)
    assert [finding.check for finding in found] == checks
    assert match in "".join(finding.message for finding in found[:1])
    strict = True
    try:
        ClassVectors.load(path)
    except DataError:
        strict = False
    assert isinstance(rows, ClassVectors) is strict
    assert strict or any(finding.severity == "error" for finding in found)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read the class vectors: No such file"):
        lint_file(tmp_path / "v.safetensors")
