"""The data contract says what a method sees, and the guard catches every way of seeing more."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from vlkd_bench.samples import Sample
from vlkd_distill import closing, datacontract, pixels
from vlkd_distill.datacontract import Counts, DataContract
from vlkd_distill.specs import Rule
from vlkd_runtime.errors import ConfigError, DataError
from vlkd_runtime.preprocess import PreprocessSpec, decode

COUNTS = Counts(train=80, selection=0, calibration=16, test=20)


@pytest.mark.parametrize(
    ("method", "labels", "source", "unlabelled", "teacher", "texts", "white_box"),
    [
        pytest.param("erm", 1, 1, 0, 0, 0, 0, id="erm"),
        pytest.param("kd", 1, 1, 0, 1, 1, 0, id="kd"),
        pytest.param("vl2v-adip", 1, 1, 0, 1, 1, 0, id="vl2v-adip"),
        pytest.param("vl2v-sd", 1, 1, 0, 1, 1, 1, id="vl2v-sd"),
        pytest.param("promptkd", 1, 1, 1, 1, 1, 1, id="promptkd"),
        pytest.param("vlm-ood", 1, 1, 0, 1, 1, 0, id="vlm-ood"),
        pytest.param("data-free", 0, 0, 0, 1, 1, 0, id="data-free"),
        pytest.param("vlkd", 1, 1, 0, 1, 1, 0, id="vlkd"),
    ],
)
def test_needs(
    method: str, labels: int, source: int, unlabelled: int, teacher: int, texts: int, white_box: int
) -> None:
    needs = datacontract.describe(method)
    assert (needs.labels, needs.source_images, needs.unlabelled_images) == (labels, source, unlabelled)
    assert (needs.teacher_images, needs.class_texts, needs.white_box) == (teacher, texts, white_box)
    contract = DataContract.of(method, ["photo"], ["sketch"], "same_aug", COUNTS)
    assert (contract.labels, contract.unlabelled) == (labels, unlabelled)
    assert (contract.teacher_views == "none") == (not teacher)
    text = "\n".join(contract.banner())
    assert needs.text in text and "Held out: sketch." in text and "16 images" in text
    assert ("labels used" in text) == bool(labels) and "the last one" in text and "left out" not in text


@pytest.mark.parametrize("rule", get_args(Rule))
def test_the_banner_says_which_weights_a_training_ends_with(rule: Rule) -> None:
    made = DataContract.of("erm", ["a"], ["b"], "none", COUNTS, rule=rule)
    lines = [line for line in made.banner() if line.startswith("Checkpoint chosen by no image: ")]
    words = {
        "last": "last one",
        "mean": "second half",
        "source-best": "least",
        "swad": "SWAD",
    }
    assert len(lines) == 1 and words[rule] in lines[0]
    assert ("rule" in made.as_json()) == (rule != "last")


def test_every_method_has_a_row_above() -> None:
    rows = test_needs.pytestmark[0].args[1]  # type: ignore[attr-defined]
    assert {row.id for row in rows} == set(datacontract.NEEDS)


def test_banner_counts_selection_and_bad_images() -> None:
    counts = Counts(train=80, selection=12, calibration=0, test=0, bad=3)
    made = DataContract.of("kd", ["a", "b"], ["c"], "clean_cached", counts, rule="source-best")
    text = "\n".join(made.banner())
    assert "chosen by 12 images of the same domains, kept back: the one with the least loss" in text
    assert made.as_json()["rule"] == "source-best"
    assert "3 more cannot be decoded" in text and "domains a, b" in text
    assert "bad_measured" not in made.as_json()["counts"]


def test_banner_says_where_bad_images_are_missing() -> None:
    counts = Counts(train=80, selection=0, calibration=0, test=20, bad=5, bad_measured=2)
    made = DataContract.of("kd", ["a"], ["c"], "clean_cached", counts)
    training, *_, accuracies = (line for line in made.banner() if "left out" in line)
    assert training.endswith("not used. 3 more cannot be decoded and are left out.")
    assert accuracies.startswith("Accuracies: 20 test images")
    assert accuracies.endswith(
        " 2 more images to measure on or to judge by cannot be decoded and are left out."
    )
    assert (made.as_json()["counts"]["bad"], made.as_json()["counts"]["bad_measured"]) == (5, 2)


def test_banner_names_the_guard_and_unseen_classes_where_there_are_any() -> None:
    plain = DataContract.of("vlm-ood", ["a"], ["c"], "clean_cached", COUNTS)
    counts = Counts(train=80, selection=0, calibration=0, test=20, guarded=400)
    text = "\n".join(DataContract.of("vlm-ood", ["a"], ["c"], "none", counts, ["cat", "dog"]).banner())
    assert "all 400 images of the held-out" in text and "Unseen classes: cat, dog." in text
    assert "Calibration:" not in text and "no image is embedded" in text
    bare = "\n".join(plain.banner())
    assert "guard" not in bare and "Unseen" not in bare and "Calibration: 16 images" in bare
    assert plain.as_json()["counts"]["train"] == 80 and plain.as_json()["text"] in bare


def test_promptkd_says_whose_labels_it_reads() -> None:
    sentence = "The prompts are learned from 16 labelled images of each class."
    made = DataContract.of("promptkd", ["a"], ["b"], "clean_cached", COUNTS, prompts=sentence)
    text = "\n".join(made.banner())
    assert sentence in made.text and "labels used for the prompts alone, unlabelled images used" in text
    assert "novel" not in text and "which needs its weights" in text
    assert made.as_json()["labels"] is True and made.as_json()["prompts"] == sentence
    assert "prompts" not in DataContract.of("kd", ["a"], ["b"], "none", COUNTS).as_json()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        pytest.param(lambda: datacontract.describe("vl2v"), "Expected one of .*found 'vl2v'", id="unknown"),
        pytest.param(
            lambda: DataContract.of("kd", ["a"], ["a"], "same_aug", COUNTS),
            "both source and held out",
            id="both",
        ),
        pytest.param(
            lambda: DataContract.of("kd", ["a"], ["b"], "same_aug", Counts(1, -1, 0, 0)),
            "counts -1",
            id="count",
        ),
        pytest.param(
            lambda: DataContract.of("kd", ["a"], ["b"], "same_aug", Counts(1, 0, 0, 0, 1, 0, 2)),
            "2 of 1 bad images",
            id="bad",
        ),
        pytest.param(
            lambda: DataContract("data-free", (), ("b",), True, False, "same_aug", COUNTS),
            "labels are used, expected not used",
            id="labels",
        ),
        pytest.param(
            lambda: DataContract("erm", ("a",), ("b",), True, True, "none", COUNTS),
            "unlabelled images are used",
            id="unlabelled",
        ),
        pytest.param(
            lambda: DataContract("erm", ("a",), ("b",), True, False, "same_aug", COUNTS),
            "views are 'same_aug', expected none",
            id="views",
        ),
    ],
)
def test_impossible_contracts(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()


@pytest.fixture
def held_out(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "data" / "sketch"
    folder.mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "0.png")
    np.save(folder / "rows.npy", np.zeros(4))
    (tmp_path / "data" / "sketchy").mkdir()
    (tmp_path / "data" / "sketchy" / "0.txt").write_text("free")
    (tmp_path / "link").symlink_to(folder)
    yield tmp_path


def descriptor(path: Path) -> None:
    os.close(os.open(path, os.O_RDONLY))


OPENERS: dict[str, Callable[[Path], object]] = {
    "open": lambda root: (root / "data/sketch/0.png").open("rb").close(),
    "text": lambda root: Path(os.path.relpath(root / "data/sketch/0.png")).read_bytes(),
    "bytes": lambda root: open(os.fsencode(root / "data/sketch/0.png"), "rb").close(),  # noqa: PTH123
    "os.open": lambda root: descriptor(root / "data/sketch/0.png"),
    "dots": lambda root: (root / "data/sketchy/../sketch/0.png").read_bytes(),
    "link": lambda root: (root / "link/0.png").read_bytes(),
    "pillow": lambda root: Image.open(root / "data/sketch/0.png").close(),
    "memmap": lambda root: np.load(root / "data/sketch/rows.npy", mmap_mode="r"),
    "writing": lambda root: (root / "data/sketch/new.txt").write_text("x"),
}


@pytest.mark.parametrize("how", OPENERS)
@pytest.mark.parametrize("what", ["folder", "through-a-link"])
def test_forbidden_files_cannot_be_opened(held_out: Path, how: str, what: str) -> None:
    forbidden = held_out / ("data/sketch" if what == "folder" else "link")
    with (
        pytest.raises(DataError, match=r"sketch/.*the data contract is broken"),
        closing.forbid([forbidden]),
    ):
        OPENERS[how](held_out)
    OPENERS[how](held_out)  # and it can be again


def test_another_folder_with_a_like_name_is_free(held_out: Path) -> None:
    with closing.forbid([held_out / "data/sketch", held_out / "data/sketch/0.png"]) as watch:
        assert (held_out / "data/sketchy/0.txt").read_text() == "free"
        (held_out / "data/sketchy/new.txt").write_text("x")
    assert watch.paths == []


def test_a_single_file_is_forbidden_alone(held_out: Path) -> None:
    with closing.forbid([held_out / "data/sketch/0.png"]):
        np.load(held_out / "data/sketch/rows.npy")
    with pytest.raises(DataError, match=r"0\.png"), closing.forbid([held_out / "data/sketch/0.png"]):
        (held_out / "data/sketch/0.png").read_bytes()


def test_worker_threads_are_watched(held_out: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()  # the thread is older than the guard
        with pytest.raises(DataError), closing.forbid([held_out / "data/sketch"]):
            pool.submit(OPENERS["open"], held_out).result()


def test_an_error_taken_for_a_damaged_image_still_comes_out(held_out: Path) -> None:
    # The decoder turns any error into "damaged image", and a pixel store forgives a bad image.
    path = held_out / "data/sketch/0.png"
    sample = Sample(path, "sketch/a/0.png", "sketch", 0)
    (held_out / "store").mkdir()
    with pytest.raises(DataError, match="the data contract is broken"), closing.forbid([path]):
        store = pixels.build(held_out / "store", [sample], PreprocessSpec(4, 4), lambda _: None)
        assert [image for image, _ in store.bad] == ["sketch/a/0.png"]


@pytest.mark.parametrize(
    ("closed", "refused"),
    [("sketch", True), ("sketch/a", True), ("sketch/b", False), ("photo", False), ("photo/a", False)],
)
def test_images_in_one_file_are_closed_by_their_ids(closed: str, refused: bool) -> None:
    claims = Sample(Path("all-0.tar/0.png"), "sketch/a/0.png", "photo", 7)
    message = r"found sketch/a/0\.png \(all-0\.tar/0\.png\) being opened: the data contract is broken"
    expected = pytest.raises(DataError, match=message) if refused else contextlib.nullcontext()
    with expected, closing.forbid([], [closed]):
        closing.announce([claims])
    closing.announce([claims])  # and it can be again
    again = pytest.raises(DataError, match="the data contract") if refused else contextlib.nullcontext()
    with again, closing.forbid([], [closed]), contextlib.suppress(DataError):
        closing.announce([claims])


def test_guards_nest_and_end(held_out: Path) -> None:
    data = held_out / "data"
    with closing.watch_files([data]) as outer, closing.forbid([data / "sketchy"]) as inner:
        decode(data / "sketch/0.png")
    (data / "sketchy/0.txt").read_text()
    assert outer.paths == [(data / "sketch/0.png").resolve()] and inner.paths == []


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        pytest.param([], "found none", id="none"),
        pytest.param(["nowhere"], "nowhere, which does not", id="missing"),
    ],
)
def test_a_guard_over_nothing_is_refused(tmp_path: Path, paths: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message), closing.forbid([tmp_path / path for path in paths]):
        pass


def test_what_is_forbidden_now_can_be_told_to_another_process(held_out: Path) -> None:
    assert closing.forbidden() == ()
    with closing.forbid([held_out / "link"]), closing.watch_files([held_out / "data/sketchy"]):
        assert closing.forbidden() == ((held_out / "data/sketch").resolve(),)
    assert closing.forbidden() == ()


def test_a_student_that_starts_as_the_teacher_says_so_whatever_the_method() -> None:
    found = {
        method: DataContract.of(method, ["a"], ["c"], "clean_cached", COUNTS, copied=True)
        for method in ("erm", "vl2v-sd")
    }
    assert found["erm"].text.endswith(
        "never asks a teacher. The student starts as a copy of the teacher's image encoder."
    )
    assert found["vl2v-sd"].text.count("starts as a copy") == 1
    assert found["erm"].as_json()["copied"] is True
    assert "copied" not in DataContract.of("erm", ["a"], ["c"], "clean_cached", COUNTS).as_json()


def test_what_images_are_redrawn_as_is_told() -> None:
    usual = DataContract.of("vlkd", ("a",), ("b",), "same_aug", COUNTS)
    named = DataContract.of("vlkd", ("a",), ("b",), "same_aug", COUNTS, redrawn=["a toy {}", "a clay {}"])
    assert (
        named.text
        == f"{usual.text} A synthesiser redraws these images as texts say: a toy {{}}; a clay {{}}."
    )
    assert "redrawn" not in usual.as_json() and named.as_json()["redrawn"] == ("a toy {}", "a clay {}")


def test_what_the_second_stage_starts_from_is_told() -> None:
    counts = Counts(90, 10, 0, 50, 0)
    usual = DataContract.of("vl2v-adip", ("a",), ("b",), "clean_cached", counts)
    chosen = DataContract.of("vl2v-adip", ("a",), ("b",), "clean_cached", counts, aligned="source-best")
    line = "The first stage's: the one with the least loss on them."
    assert line not in " ".join(usual.banner()) and line in " ".join(chosen.banner())
    assert "aligned" not in usual.as_json() and chosen.as_json()["aligned"] == "source-best"
