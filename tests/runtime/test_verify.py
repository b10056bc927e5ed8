from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from vlkd_runtime.bundle import write_bundle
from vlkd_runtime.errors import ConfigError, DataError
from vlkd_runtime.verify import verify

STEPS = [
    "container",
    "signature",
    "manifest",
    "files",
    "model",
    "class-vectors",
    "golden",
    "evidence",
    "self-test",
]


@pytest.mark.parametrize("kind", ["folder", "archive"])
def test_a_good_bundle(kind: str, folder: Path, archive: Path) -> None:
    report = verify(folder if kind == "folder" else archive, threads=1)
    assert report.ok
    assert [check.name for check in report.checks] == STEPS
    assert all(check.ok for check in report.checks)
    assert report.checks[0].detail.startswith(kind)
    assert "4 samples" in report.checks[-1].detail


def test_without_an_engine_there_is_no_self_test(folder: Path) -> None:
    report = verify(folder, engine="none")
    assert report.ok
    assert [check.name for check in report.checks] == STEPS[:-1]


def edit(name: str, data: bytes) -> Any:
    return lambda folder: (folder / name).write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "failing", "detail"),
    [
        pytest.param(lambda f: (f / "x").touch(), "container", "'x' does not belong", id="extra"),
        pytest.param(edit("manifest.json", b"{}"), "manifest", "format must be", id="manifest"),
        pytest.param(edit("model.onnx", b"x"), "files", "model.onnx in", id="model-replaced"),
    ],
)
def test_a_bad_bundle(harm: Any, failing: str, detail: str, folder: Path) -> None:
    harm(folder)
    report = verify(folder)
    assert not report.ok
    position = STEPS.index(failing)
    assert [check.name for check in report.checks] == STEPS
    assert [check.ok for check in report.checks] == [True] * position + [False] * (len(STEPS) - position)
    assert detail in report.checks[position].detail
    assert all(
        check.detail == f"not checked, because {failing} failed" for check in report.checks[position + 1 :]
    )


def test_an_engine_that_disagrees(tiny: Any, build_model: Any, tmp_path: Path) -> None:
    other = build_model(tiny.weight + 0.5, tiny.vectors.vectors).SerializeToString()
    report = verify(write_bundle(tmp_path / "b", tiny.draft, {**tiny.files, "model.onnx": other}), threads=1)
    assert [check.name for check in report.checks if not check.ok] == ["self-test"]
    assert "golden sample 0" in report.checks[-1].detail


def test_the_callers_mistakes_are_raised(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        verify(tmp_path / "gone.vlkd")
    with pytest.raises(ConfigError, match="found 'tpu'"):
        verify(folder, engine="tpu")


def test_reports_are_values(folder: Path) -> None:
    report = verify(folder, engine="none")
    assert dataclasses.asdict(report)["checks"][0]["name"] == "container"
    assert verify(folder, engine="none") == report
