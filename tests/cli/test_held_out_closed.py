"""What is held out stays closed until it is measured: who opens it in a run, and what if somebody else does."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from vlkd_distill import closing, webdata
from vlkd_distill.data import scan
from vlkd_distill.specs import Settings
from vlkd_edge import configfile, disjoint, facts, learn, sharded
from vlkd_edge.config import Config, DataConfig
from vlkd_edge.progress import Live
from vlkd_edge.stages import Workspace

Edge = Callable[..., tuple[int, dict[str, Any]]]
WriteData = Callable[..., Path]

MEASURING = {"ship.answer", "learn.teacher_predictions", "climbing.answer", "ship.measure_shipped"}
# Answers are asked for, and the report shows a few of the pictures whose answers compression changed.
DECODING = "decodable.problem_of"
LOOKING = {"predictions.evaluate", "embeddings.embed", "flips.thumbnail", DECODING}
HASHING = "data.content_key"
CALIBRATION_CHECK = "calibration.refuse_held_out"


class Openers(list[Any]):
    """In place of a list of paths: for each file that is opened, the functions that were running."""

    def append(self, path: Any) -> None:
        frame, names = sys._getframe(1), set()
        while frame is not None:
            names.add(f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}")
            frame = frame.f_back  # type: ignore[assignment]
        super().append((path, names))


def watched(root: Path) -> closing.OpenedFiles:
    watch = closing.watch_files([root / "sketch"])
    watch.paths = Openers()
    return watch


@pytest.mark.parametrize(
    ("words", "settings", "opened_by"),
    [
        pytest.param(
            ("bench", "dg", "--held-out", "sketch", "--methods", "erm,vl2v-adip"),
            ("distill.weights=source-best", "distill.kept_back=0.2", "distill.judgements=3"),
            {"ship.answer", "learn.work"},
            id="bench dg with selection",
        ),
        pytest.param(
            ("build", "--target", "jetson"),
            (
                'data.held_out=["sketch"]', "compress.calibration_images=32", "compress.candidates=int8-minmax",
                "guard.worst_points=100", "guard.mean_points=100", "bench.samples=10",
            ),
            {"ship.answer", "learn.work", "climbing.work"},
            id="build with calibration",
        ),
    ],
)  # fmt: skip
def test_only_evaluation_opens_held_out_images(
    edge: Edge, write_data: WriteData, words: tuple[str, ...], settings: tuple[str, ...], opened_by: set[str]
) -> None:
    root = write_data()
    with watched(root) as watch:
        code, answer = edge(*words, settings=settings)
    assert code == 0, answer
    if words[0] == "bench":
        train = len(scan(root).of(["photo"], "train"))
        for told in answer["contract"]:
            assert told["rule"] == "source-best" and told["counts"]["selection"] == round(0.2 * train)
            assert told["counts"]["train"] + told["counts"]["selection"] == train
    found: list[set[str]] = [names for _, names in watch.paths]  # type: ignore[misc]
    evaluations = [names for names in found if HASHING not in names and CALIBRATION_CHECK not in names]
    assert len(evaluations) >= len(list((root / "sketch").rglob("*.png"))) // 5 * 2  # teacher and students
    assert all(names & LOOKING for names in evaluations), found
    assert set().union(*(names & opened_by for names in evaluations)) == opened_by
    # Whether they can be decoded is looked at once, before anything is learned or measured.
    decoding = [DECODING in names for names in evaluations]
    assert decoding == sorted(decoding, reverse=True)
    wanted = (root / "sketch").rglob("*.png") if words[0] == "build" else scan(root).of(["sketch"], "test")
    assert sum(decoding) == len(list(wanted))
    learning = {
        "training.train",
        "training._source_loss",
        "pixels.decode",
        "teach.work",
        "trainingdata.work",
        "calibration.load",
    }
    assert not any(names & learning for names in found)


def smuggle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put one held-out image among those that are learned from."""
    split = facts.Images.split.__func__  # type: ignore[attr-defined]

    def leaky(cls: type[facts.Images], dataset: Any, held_out: Any, made: Any = None) -> facts.Images:
        parts: facts.Images = split(cls, dataset, held_out, made)
        return dataclasses.replace(parts, train=(*parts.train, parts.guarded[0]))

    monkeypatch.setattr(facts.Images, "split", classmethod(leaky))


def pack(root: Path) -> str:
    """The images of a folder as shards beside it."""
    found = scan(root)
    webdata.write_shards(found.samples, found.classes, root.parent / "shards")
    return f"wds:{root.parent}/shards/*.tar"


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "shards"])
@pytest.mark.parametrize(
    ("words", "settings"),
    [
        pytest.param(("bench", "dg", "--held-out", "sketch", "--methods", "erm"), (), id="dg"),
        pytest.param(("build",), ('data.held_out=["sketch"]',), id="build"),
        pytest.param(
            ("bench", "disjoint", "--held-out", "sketch", "--methods", "ce-only", "--unseen", "fish"),
            (),
            id="disjoint",
        ),
    ],
)
def test_a_leak_ends_the_run_before_anything_is_learned(
    tmp_path: Path,
    edge: Edge,
    write_data: WriteData,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    settings: tuple[str, ...],
    packed: bool,
) -> None:
    root = write_data(classes=("cat", "dog", "fish"))
    smuggle(monkeypatch)
    code, answer = edge(*words, settings=settings, root=pack(root) if packed else "")
    assert code == 2 and "the data contract is broken" in answer["error"]["message"], answer
    place = root.parent / "shards" / "sketch-000000.tar" if packed else root / "sketch"
    assert str(place) in answer["error"]["message"]
    assert not list((tmp_path / "out" / "stages").glob("erm-*[0-9a-f]"))


def test_unseen_classes_are_closed_in_every_domain(tmp_path: Path, write_data: WriteData) -> None:
    root = write_data(classes=("cat", "dog", "fish"))
    config = Config(data=DataConfig(root=str(root), held_out=("sketch",)), distill=Settings(method="vlm-ood"))
    dataset = learn.scan(config)
    parts = disjoint.Parts.of(dataset.classes, "fish", 0)
    with facts.closed(config, dataset, parts.unseen):
        (root / "photo" / "cat" / "0.png").read_bytes()
    with (
        pytest.raises(closing.DataError, match=r"photo/fish/0\.png being opened"),
        facts.closed(config, dataset, parts.unseen),
    ):
        (root / "photo" / "fish" / "0.png").read_bytes()


@pytest.mark.parametrize("leak", ["sketch/cat", "photo/fish"], ids=["held out", "unseen"])
def test_rows_and_files_of_shards_are_closed(tmp_path: Path, write_data: WriteData, leak: str) -> None:
    root = pack(write_data(classes=("cat", "dog", "fish")))
    settings = (f"data.root={root}", 'data.held_out=["sketch"]', "student.image_size=32")
    config = configfile.load(None, (), settings)
    learning = learn.Learning(
        config, Workspace(tmp_path / "out", tmp_path / "cache"), Live(Console(quiet=True))
    )
    dataset = learn.dataset(learning)
    train = [sample for sample in dataset.of(dataset.domains, "train") if sample.image.startswith(leak)]
    free = [sample for sample in dataset.of(["photo"], "train") if "fish" not in sample.image]
    some = (*free, train[-1])
    sharded.pixels(learning, some)
    (imported,) = (tmp_path / "out" / "stages").glob("import-*")
    (written,) = sharded.files(learning, train[-1:])
    with facts.closed(config, dataset, ("fish",)):
        sharded.pixels(learning, free)
        assert len(list(sharded.contents(config, free))) == len(free)
    for read in (
        lambda: sharded.pixels(learning, some),  # found done, and refused all the same
        lambda: webdata.take_rows(webdata.open_import(imported), some, tmp_path),
        lambda: sharded.files(learning, train),
        lambda: list(sharded.contents(config, train[-1:])),
    ):
        with (
            pytest.raises(closing.DataError, match="the data contract is broken"),
            facts.closed(config, dataset, ("fish",)),
        ):
            read()
    if leak == "sketch/cat":
        with (
            pytest.raises(closing.DataError, match="the data contract is broken"),
            facts.closed(config, dataset),
        ):
            written.path.read_bytes()
