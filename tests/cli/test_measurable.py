"""What is measured on and cannot be decoded: left out and named before any training, or refused where it is much."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlkd_bench.samples import Sample
from vlkd_distill import decodable
from vlkd_distill.data import scan

from .conftest import TINY, Invoke

WriteData = Callable[..., Path]
DG = ("bench", "dg", "--held-out", "sketch", "--methods", "erm")
BUILD = ("build", "--target", "jetson")
BUILD_SETTINGS = (
    'data.held_out=["sketch"]', "compress.calibration_images=32", "compress.candidates=int8-minmax",
    "guard.worst_points=100", "guard.mean_points=100", "bench.samples=10",
)  # fmt: skip
Run = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def run(tmp_path: Path, invoke: Invoke) -> Run:
    """Runs a verb on ``tmp_path/data`` with a tiny student: exit code, the printed object, what was said."""

    def words(verb: tuple[str, ...], *settings: str) -> tuple[int, dict[str, Any], str]:
        chosen = (*TINY, *settings, f"data.root={tmp_path / 'data'}")
        asked = [word for value in chosen for word in ("--set", value)]
        code, answer, said = invoke(*verb, "--json", "--out", tmp_path / "out", *asked)
        return code, answer, " ".join(said.split())

    return words


def cut(sample: Sample) -> Sample:
    sample.path.write_bytes(sample.path.read_bytes()[:-200])
    return sample


def trained(out: Path) -> list[str]:
    return [path.name for path in out.glob("stages/*") if path.name.startswith(("erm", "vl2v", "pixels"))]


def test_a_bad_test_image_is_left_out_of_a_table(
    tmp_path: Path, run: Run, write_data: WriteData, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = scan(write_data())
    train, tests = found.of(["photo"], "train"), found.of(found.domains, "test")
    bad = cut(found.of(["sketch"], "test")[0])
    cut(train[0])
    code, table, said = run(DG)
    assert code == 0, table
    (told,) = table["contract"]
    counts = told["counts"]
    assert (counts["bad"], counts["bad_measured"], counts["test"]) == (2, 1, len(tests) - 1)
    assert counts["train"] == len(train) - 1
    assert "as they cannot be decoded: 1" in said and str(bad.path) in said.replace(" ", "")
    assert "1 more images to measure on or to judge by cannot be decoded and are left out" in said
    for path in (tmp_path / "out/stages").glob("*/predictions.jsonl"):
        text = path.read_text()
        assert bad.image not in text and len(text.splitlines()) == len(tests) - 1

    def never(*_: Any) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(decodable, "find_bad", never)
    code, again, said = run(DG)
    assert code == 0 and again == table and "as they cannot be decoded: 1" in said


@pytest.mark.parametrize("verb", ["bench dg", "build", "an unknown one"])
def test_too_many_are_refused_before_anything_is_trained(
    tmp_path: Path, run: Run, write_data: WriteData, verb: str
) -> None:
    found = scan(write_data())
    parts = {
        "bench dg": found.of(found.domains, "test"),
        "build": found.of(["sketch"], "train"),
        "an unknown one": found.of(["photo"], "test"),
    }
    bad = [cut(sample) for sample in parts[verb][:2]]
    settings: tuple[str, ...] = () if verb == "bench dg" else BUILD_SETTINGS
    if verb == "an unknown one":  # one of each is too many together
        bad[1].path.rename(tmp_path / "strange.png")
        (tmp_path / "unknown").mkdir()
        (tmp_path / "strange.png").rename(tmp_path / "unknown" / "strange.png")
        settings = (*settings, f"data.unknown={tmp_path / 'unknown'}")
    code, answer, _ = run(DG if verb == "bench dg" else BUILD, *settings)
    message = answer["error"]["message"]
    assert (
        code == 2 and "2 of " in message and "images to measure on cannot be decoded; at most 1%" in message
    )
    assert str(bad[0].path) in message and trained(tmp_path / "out") == []


def test_a_domain_without_a_test_image_that_can_be_decoded(
    tmp_path: Path, run: Run, write_data: WriteData
) -> None:
    found = scan(write_data())
    first, *others = found.of(["sketch"], "test")
    for sample in others:
        sample.path.unlink()
    cut(first)
    code, answer, _ = run(DG)
    message = answer["error"]["message"]
    assert code == 2 and "test images of sketch, found none that can be decoded" in message, answer
    assert str(first.path) in message and trained(tmp_path / "out") == []


def test_a_bad_held_out_image_does_not_end_a_build(tmp_path: Path, run: Run, write_data: WriteData) -> None:
    found = scan(write_data())
    bad = cut(found.of(["sketch"], "train")[0])
    code, answer, said = run(BUILD, *BUILD_SETTINGS)
    assert code == 0, answer
    guarded = len(found.of(["sketch"])) - 1
    assert answer["guard"]["images"] == guarded
    assert f"candidates on all {guarded} images of the held-out domains" in " ".join(answer["contract"])
    assert "1 more images to measure on or to judge by cannot be decoded" in " ".join(answer["contract"])
    assert str(bad.path) in said.replace(" ", "")
