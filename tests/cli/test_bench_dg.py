"""`vlkd-edge bench dg` on a small demo world: rows, files, resume, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Bench = Callable[..., tuple[int, dict[str, Any], str]]


def test_a_table_of_every_method_is_measured_once(tmp_path: Path, bench: Bench) -> None:
    words = ("--held-out", "sketch", "--methods", "erm,kd,vl2v-adip,vlm-ood")
    code, table, errors = bench("dg", tmp_path, *words, drawn=True)
    assert code == 0, errors
    assert [(row["method"], row["held_out"], row["seed"]) for row in table["rows"]] == [
        (name, "sketch", 0) for name in ("teacher", "erm", "kd", "vl2v-adip", "vlm-ood")
    ]
    assert all(0 <= row[key] <= 1 for row in table["rows"] for key in ("accuracy", "source_accuracy"))
    assert table["rows"][0]["accuracy"] > 0.8
    assert len(table["stand_ins"]) == 2
    assert json.loads((tmp_path / "table.json").read_text()) == table
    seen = {one["method"]: one for one in table["contract"]}
    assert seen.keys() == {"erm", "kd", "vl2v-adip", "vlm-ood"}
    assert seen["erm"]["teacher_views"] == "none" and seen["kd"]["teacher_views"] == "clean_cached"
    assert seen["kd"]["held_out"] == ["sketch"] and "sketch" not in seen["kd"]["sources"]
    assert "Held out: sketch. Training, calibration and selection never open" in " ".join(errors.split())
    assert "drawn by a program" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")

    stages = {path: path.stat().st_mtime_ns for path in (tmp_path / "stages").iterdir()}
    code, again, _ = bench("dg", tmp_path, *words)
    assert code == 0 and again == table
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "stages").iterdir()} == stages


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (("--methods", "erm,kdd"), "names 'kdd'. Expected some of erm, kd, "),
        (("--methods", "erm,erm"), "--methods: expected different names"),
        (("--seeds", "0,one"), "--seeds: expected whole numbers"),
        (("--seeds", ""), "--seeds: expected different names"),
        (("--held-out", "skech"), "Did you mean 'sketch'?"),
        (("--held-out", "sketch", "--set", "distill.batch=3"), "each of the 4 source domains"),
    ],
    ids=["unknown method", "method twice", "seed", "no seed", "unknown domain", "batch"],
)
def test_mistakes_are_told_before_any_work(
    tmp_path: Path, words: tuple[str, ...], match: str, bench: Bench
) -> None:
    code, answer, _ = bench("dg", tmp_path, *words)
    assert code == 2
    assert match in answer["error"]["message"]
    assert not (tmp_path / "stages").exists()


def test_a_folder_with_one_domain_only_is_refused(tmp_path: Path, bench: Bench) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "data" / "photo" / name).mkdir(parents=True)
        (tmp_path / "data" / "photo" / name / "1.png").write_bytes(b"")
    code, answer, _ = bench("dg", tmp_path / "out", "--dataset", str(tmp_path / "data"))
    assert code == 2
    assert "leave at least one to train on" in answer["error"]["message"]


def test_a_table_grows_without_running_a_cell_again(tmp_path: Path, bench: Bench) -> None:
    words = ("--held-out", "sketch", "--add-to", str(tmp_path / "results.json"))
    code, first, errors = bench("dg", tmp_path / "one", *words, "--methods", "erm", drawn=True)
    assert code == 0, errors
    methods = ("--methods", "erm,promptkd,vl2v-sd,vlkd")
    code, grown, errors = bench("dg", tmp_path / "two", *words, *methods, drawn=True)
    assert code == 0, errors
    assert [row["method"] for row in grown["rows"]] == ["teacher", "erm", "promptkd", "vl2v-sd", "vlkd"]
    assert grown["rows"][:2] == first["rows"]
    (prompted,) = (one for one in grown["contract"] if one["method"] == "promptkd")
    assert prompted["labels"] and "learned from 2 labelled images of each class." in prompted["text"]
    assert not list((tmp_path / "two" / "stages").glob("erm-*"))
    assert json.loads((tmp_path / "results.json").read_text()) == grown
    other = ("--methods", "vlkd", "--set", "distill.distance_weight=0.5")
    code, changed, errors = bench("dg", tmp_path / "two", *words, *other)
    assert code == 0, errors
    assert changed["settings"]["distance_weight"] == 0.5
    assert changed["rows"][:4] == grown["rows"][:4]
    assert changed["rows"][4]["key"] != grown["rows"][4]["key"]
    code, answer, _ = bench("dg", tmp_path / "three", *words, "--methods", "erm", "--set", "distill.lr=0.5")
    assert code == 2 and "same settings, found lr" in answer["error"]["message"]
    assert not (tmp_path / "three" / "stages").exists()


def test_every_method_starts_as_the_teacher_where_that_is_asked_for(tmp_path: Path, bench: Bench) -> None:
    words = ("--held-out", "sketch", "--methods", "erm", "--set", "student.arch=teacher")
    code, table, errors = bench("dg", tmp_path, *words)
    assert code == 0, errors
    assert table["student"].startswith("the teacher's image encoder at ")
    assert "starts as a copy of the teacher's image encoder" in " ".join(errors.split())
    assert [one["copied"] for one in table["contract"]] == [True]


def test_a_few_images_a_class_are_learned_from_and_all_are_measured_on(tmp_path: Path, bench: Bench) -> None:
    words = ("--held-out", "sketch", "--methods", "erm", "--set", "data.shots=2")
    code, table, errors = bench("dg", tmp_path, *words)
    assert code == 0, errors
    (contract,) = table["contract"]
    classes = 16
    assert contract["counts"]["train"] == 2 * classes * len(contract["sources"])
    assert contract["counts"]["test"] > contract["counts"]["train"] / 2


def test_vlkd_sees_its_images_redrawn_as_texts_say(
    tmp_path: Path, edge: Callable[..., tuple[int, dict[str, Any]]], write_data: Callable[..., Path]
) -> None:
    write_data()
    inversion = [f"synthesis.inversion.{name}" for name in ("size=16", "steps=2", "views=1")]
    settings = ('distill.styles=["grey"]', "synthesis.synthesiser=inversion", *inversion)
    words = ("bench", "dg", "--held-out", "sketch", "--methods", "vlkd")
    keys = set()
    for out, more in (("drawn", ()), ("named", ('distill.prompted_styles=["a toy {}"]',))):
        code, table = edge(*words, out=out, settings=(*settings, *more))
        assert code == 0, table
        keys.add(table["rows"][-1]["key"])
        (stage,) = (tmp_path / out / "stages").glob("styles-*")
        views = np.load(stage / "pixels.npy", mmap_mode="r", allow_pickle=False)
        assert len(views) == 1 + len(more)
    assert len(keys) == 2
    assert "redraws these images as texts say: a toy {}" in table["contract"][0]["text"]
    assert len(np.unique(views[1].reshape(len(views[1]), -1), axis=0)) > len(views[1]) // 2
