"""WebDataset shards through the real verbs: the very table of the folder they were packed from, and a build."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.main

from vlkd_distill import data, demo, webdata
from vlkd_edge.app import app

Bench = Callable[..., tuple[int, dict[str, Any], str]]
CLASSES = ("cat", "fish", "tree")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three styles of three classes as a folder, and beside it as shards of 17 images; two images are cut short."""
    root = tmp_path_factory.mktemp("world")
    for style in ("photo", "cartoon", "sketch"):
        for name in CLASSES:
            (root / "folder" / style / name).mkdir(parents=True)
            for number in range(16):
                picture = demo.render(demo.sample_scene(3, style, name, number), 64)
                picture.save(root / "folder" / style / name / f"{number:02d}.png")
    found = data.scan(root / "folder")
    for bad in (found.of(["photo"], "test")[0], found.of(["cartoon"], "train")[0]):
        bad.path.write_bytes(bad.path.read_bytes()[:-100])
    webdata.write_shards(found.samples, found.classes, root / "shards", 17)
    return root


def test_shards_give_the_table_of_their_folder(world: Path, tmp_path: Path, bench: Bench) -> None:
    words = ("--methods", "vl2v-adip", "--held-out", "sketch")
    code, by_folder, errors = bench("dg", tmp_path / "a", "--dataset", str(world / "folder"), *words)
    assert code == 0, errors
    code, by_shards, errors = bench("dg", tmp_path / "b", "--dataset", f"wds:{world}/shards/*.tar", *words)
    assert code == 0, errors
    assert by_shards["rows"][0]["dataset"] == "shards"
    for one, other in zip(by_folder["rows"], by_shards["rows"], strict=True):
        assert {**one, "dataset": "", "key": ""} == {**other, "dataset": "", "key": ""}
    assert by_shards["contract"] == by_folder["contract"]
    counts = by_shards["contract"][0]["counts"]
    assert (counts["bad"], counts["bad_measured"]) == (2, 1)
    assert by_shards["command"].startswith("vlkd-edge bench dg --dataset 'wds:*.tar'")
    # Train images are in stores at the student's size; no file of theirs was written.
    images = {path.name for path in (tmp_path / "b").rglob("*.png")} - {"table.png"}
    found = data.scan(world / "folder")
    tests = {sample.path.name for sample in found.of(found.domains, "test")}
    assert images == tests


def test_unseen_classes_of_shards_are_those_of_their_folder(
    world: Path, tmp_path: Path, bench: Bench
) -> None:
    words = ("--methods", "ce-only", "--held-out", "sketch", "--unseen", "1")
    code, by_folder, errors = bench("disjoint", tmp_path / "a", "--dataset", str(world / "folder"), *words)
    assert code == 0, errors
    code, by_shards, errors = bench(
        "disjoint", tmp_path / "b", "--dataset", f"wds:{world}/shards/*.tar", *words
    )
    assert code == 0, errors
    for one, other in zip(by_folder["rows"], by_shards["rows"], strict=True):
        assert {**one, "dataset": ""} == {**other, "dataset": ""}


def test_too_few_classes_in_shards_are_refused_before_anything_is_asked(
    world: Path, tmp_path: Path, bench: Bench
) -> None:
    two = data.scan(world / "folder", classes=CLASSES[:2])
    webdata.write_shards(two.samples, two.classes, tmp_path / "two")
    root = f"wds:{tmp_path}/two/*.tar"
    code, answer, _ = bench("disjoint", tmp_path / "out", "--dataset", root, "--held-out", "sketch")
    assert code == 2
    assert f"at least 3 classes in {root}" in answer["error"]["message"]
    assert "found 2 (cat, fish). Add images" in answer["error"]["message"]
    done = {path.name.rpartition("-")[0] for path in (tmp_path / "out" / "stages").iterdir()}
    assert done == {"models", "import", "test-images"}


MADE = ("--set", "synthesis.images_per_class=6", "--set", "synthesis.judge=false")


def test_a_student_of_made_images_stands_beside_one_of_shards(
    world: Path, tmp_path: Path, bench: Bench
) -> None:
    words = ("--methods", "erm,data-free", "--held-out", "sketch", *MADE)
    code, table, errors = bench("dg", tmp_path, "--dataset", f"wds:{world}/shards/*.tar", *words)
    assert code == 0, errors
    assert [row["method"] for row in table["rows"]] == ["teacher", "erm", "data-free"]
    seen = {one["method"]: one for one in table["contract"]}
    assert seen["data-free"]["sources"] == ["synthetic-demo"]
    assert seen["data-free"]["counts"]["train"] == 6 * len(CLASSES)
    train = data.scan(world / "folder").of(["cartoon", "photo"], "train")
    assert seen["erm"]["counts"]["train"] == len(train) - 1  # one is cut short


def test_real_rows_beside_made_ones_are_those_of_the_folder(
    world: Path, tmp_path: Path, bench: Bench
) -> None:
    words = ("--held-out", "sketch", *MADE)
    folder = ("--dataset", str(world / "folder"), "--rows", "real")
    code, by_folder, errors = bench("data-free", tmp_path / "a", *words, *folder)
    assert code == 0, errors
    shards = ("--dataset", f"wds:{world}/shards/*.tar", "--rows", "real,single")
    code, by_shards, errors = bench("data-free", tmp_path / "b", *words, *shards)
    assert code == 0, errors
    assert [row["method"] for row in by_shards["rows"]] == ["teacher", "real", "single"]
    for one, other in zip(by_folder["rows"], by_shards["rows"], strict=False):
        assert {**one, "dataset": ""} == {**other, "dataset": ""}


@pytest.mark.parametrize("verb", ["dg", "disjoint", "data-free"])
def test_help_names_every_form_of_a_data_set(verb: str) -> None:
    command: Any = typer.main.get_command(app)
    options = command.commands["bench"].commands[verb].params
    (told,) = (option.help for option in options if "--dataset" in option.opts)
    assert all(form in told for form in ("<domain>/<class>/<image>", "'wds:<pattern>'", "'demo'"))


@pytest.mark.slow
def test_a_build_from_shards_ships(world: Path, tmp_path: Path) -> None:
    settings = (
        f"data.root=wds:{world}/shards/*.tar",
        "student.arch=resnet10t",
        "student.options={channels=[8, 16, 32, 64], stem_width=8}",
        "student.image_size=32",
        "student.pretrained=none",
        "distill.batch_norm=train",
        "distill.epochs=1",
        "distill.align_epochs=1",
        "compress.calibration_images=32",
        "compress.candidates=fp16",
        "guard.worst_points=100",
        "guard.mean_points=100",
        "bench.samples=50",
    )
    command = [sys.executable, "-m", "vlkd_edge", "build", "--out", str(tmp_path / "out"), "--json"]
    command += [word for value in settings for word in ("--set", value)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["guard"]["domains"]["sketch"]["n"] == 3 * 16
    assert (tmp_path / "out" / "bundle" / "manifest.json").is_file()
    assert answer["accuracy"]["shipped"].keys() == {"cartoon", "photo", "sketch"}


@pytest.mark.parametrize(
    ("root", "extra", "match"),
    [
        ("wds:{world}/nothing-*.tar", (), "Expected shards named <domain>-<number>.tar"),
        ("wds:{world}/shards/*.tar", ("--held-out", "neon"), "'neon', but the domains in"),
    ],
    ids=["no shards", "unknown domain"],
)
def test_mistakes_are_told_before_any_work(
    world: Path, tmp_path: Path, root: str, extra: tuple[str, ...], match: str, bench: Bench
) -> None:
    code, answer, _ = bench("dg", tmp_path, "--dataset", root.format(world=world), *extra)
    assert code == 2 and match in answer["error"]["message"], answer
    assert not (tmp_path / "stages").exists()


@pytest.mark.parametrize("kind", ["shards", "folder"])
def test_a_batch_that_leaves_a_domain_out_is_refused_before_any_work(
    kind: str, world: Path, tmp_path: Path, bench: Bench
) -> None:
    if kind == "folder":
        shutil.copytree(world / "folder", tmp_path / "data")
        shutil.copytree(world / "folder" / "photo", tmp_path / "data" / "neon")
        root = f"{tmp_path}/data"
    else:
        shutil.copytree(world / "shards", tmp_path / "data")
        for path in (world / "shards").glob("photo-*.tar"):
            shutil.copy(path, tmp_path / "data" / path.name.replace("photo", "neon"))
        root = f"wds:{tmp_path}/data/*.tar"
    code, answer, _ = bench(
        "dg", tmp_path, "--dataset", root, "--set", "distill.batch=2", "--held-out", "sketch"
    )
    assert code == 2 and "each of the 3 source domains" in answer["error"]["message"], answer
    assert not (tmp_path / "stages").exists()
