"""Images without labels beside the train images: promptkd's student learns from them, and nothing else is moved."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlkd_distill.data import NO_LABEL, scan
from vlkd_runtime.tensorfile import read_tensors

Edge = Callable[..., tuple[int, dict[str, Any]]]
COUNT = 12
FROZEN = ("distill.batch_norm=frozen", "prompts.epochs=1", "prompts.shots=4")
DG = ("bench", "dg", "--held-out", "sketch", "--methods", "erm,promptkd")


@pytest.fixture
def extra(tmp_path: Path) -> Path:
    """Bright noise in folders of no meaning, and a file that is no image."""
    folder = tmp_path / "extra"
    (folder / "deep").mkdir(parents=True)
    for index in range(COUNT):
        pixels = np.random.default_rng(index + 77).integers(128, 256, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / ("deep" if index % 2 else ".") / f"{index}.png")
    (folder / "torn.png").write_bytes(b"no image")
    return folder


def test_promptkd_learns_from_images_that_nobody_has_labelled(
    tmp_path: Path, edge: Edge, write_data: Callable[..., Path], extra: Path, labels_shown: set[int]
) -> None:
    found = scan(write_data())
    train = len(found.of(["photo"], "train"))
    code, plain = edge(*DG, out="plain", settings=FROZEN)
    assert code == 0, plain
    code, more = edge(*DG, out="more", settings=(*FROZEN, f"data.unlabelled={extra}"))
    assert code == 0, more
    assert labels_shown == {NO_LABEL}
    erm, promptkd = more["contract"]
    assert (erm["counts"]["train"], erm["counts"]["bad"]) == (train, 0) and erm["sources"] == ["photo"]
    assert (promptkd["counts"]["train"], promptkd["counts"]["bad"]) == (train + COUNT, 1)
    assert promptkd["sources"] == ["photo", "unlabelled"]
    assert f"{COUNT} images of the student's are from 'extra', which has no labels." in promptkd["text"]
    assert "unlabelled" not in plain["contract"][1]["text"].replace("unlabelled images", "")

    def of(table: dict[str, Any], method: str) -> dict[str, Any]:
        return next(row for row in table["rows"] if row["method"] == method)

    assert of(more, "erm") == of(plain, "erm")
    assert of(more, "promptkd")["key"] != of(plain, "promptkd")["key"]
    prompts = [next(tmp_path.glob(f"{out}/stages/prompts-*")) for out in ("plain", "more")]
    assert prompts[0].name == prompts[1].name  # labels alone teach them
    students = [
        next(tmp_path.glob(f"{out}/stages/promptkd-*/student.safetensors")) for out in ("plain", "more")
    ]
    one, two = (read_tensors(path.read_bytes(), where=path.name)[0] for path in students)
    assert float(np.abs(two["head.first.weight"] - one["head.first.weight"]).max()) > 1e-5


def test_a_build_learns_from_them_and_calibrates_with_labelled_ones_alone(
    tmp_path: Path, edge: Edge, write_data: Callable[..., Path], extra: Path
) -> None:
    found = scan(write_data())
    train = len(found.of(["photo"], "train"))
    settings = (
        *FROZEN, "distill.method=promptkd", f"data.unlabelled={extra}", 'data.held_out=["sketch"]',
        "compress.calibration_images=300", "compress.candidates=int8-minmax", "guard.worst_points=100",
        "guard.mean_points=100", "bench.samples=10",
    )  # fmt: skip
    code, answer = edge("build", "--target", "jetson", settings=settings)
    assert code == 0, answer
    told = " ".join(answer["contract"])
    assert (
        f"Training: {train + COUNT} images, domains photo, unlabelled; labels used for the prompts alone"
        in told
    )
    assert f"Calibration: {train} images" in told and "1 more cannot be decoded" in told


@pytest.mark.parametrize(
    ("words", "settings", "message"),
    [
        ((*DG[:-1], "erm,kd"), (), "data.unlabelled is read by promptkd, found erm, kd"),
        (
            DG,
            ("data.unlabelled=/nowhere",),
            "images without labels at /nowhere (data.unlabelled), found none",
        ),
        (
            ("bench", "disjoint", "--unseen", "cow", "--held-out", "sketch"),
            (),
            "images without labels may show any",
        ),
    ],
    ids=["nobody reads it", "missing", "unseen classes"],
)
def test_folders_that_cannot_be_meant(
    edge: Edge,
    write_data: Callable[..., Path],
    extra: Path,
    words: tuple[str, ...],
    settings: tuple[str, ...],
    message: str,
) -> None:
    write_data(classes=("cat", "cow", "dog"))
    code, answer = edge(*words, settings=(*FROZEN, f"data.unlabelled={extra}", *settings))
    assert code == 2 and message in answer["error"]["message"]


def test_labelled_images_alone_choose_the_weights(
    edge: Edge, write_data: Callable[..., Path], extra: Path
) -> None:
    train = len(scan(write_data()).of(["photo"], "train"))
    settings = (*FROZEN, f"data.unlabelled={extra}", "distill.weights=source-best", "distill.kept_back=0.2")
    code, table = edge(*DG[:-1], "promptkd", settings=settings)
    assert code == 0, table
    (told,) = table["contract"]
    assert told["counts"]["selection"] > 0
    assert told["counts"]["train"] + told["counts"]["selection"] == train + COUNT
    assert told["counts"]["selection"] <= 0.25 * train


@pytest.mark.parametrize("split", ["test", "train"])
def test_a_measured_image_is_no_unlabelled_one(
    tmp_path: Path, edge: Edge, write_data: Callable[..., Path], extra: Path, split: Any
) -> None:
    found = scan(write_data())
    domain = "photo" if split == "test" else "sketch"  # a test image of a source, or any held-out one
    leaked = found.of([domain], split)[0]
    shutil.copy(leaked.path, extra / "by-another-name.png")
    code, answer = edge(*DG, settings=(*FROZEN, f"data.unlabelled={extra}"))
    message = answer["error"]["message"]
    assert code == 2 and "by-another-name.png with the same content as " + leaked.image in message
    assert not list(tmp_path.glob("out/stages/promptkd*"))
