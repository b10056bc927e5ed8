"""Captions: what a file may say, the loss beside a second way to compute it, and vlm-ood with them."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vlkd_bench.samples import Sample
from vlkd_distill import losses, methods, stages
from vlkd_distill.captions import embed_captions, read_captions
from vlkd_distill.specs import Settings
from vlkd_runtime.errors import ConfigError, DataError
from vlkd_runtime.vectors import ClassVectors

SAMPLES = tuple(Sample(Path("none"), f"photo/cat/{k}.png", "photo", 0) for k in range(8))
LINES = [{"image": sample.image, "caption": f"a cat, number {k}"} for k, sample in enumerate(SAMPLES)]


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    else:
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, ["image", "caption"])
            writer.writeheader()
            writer.writerows(lines)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_captions_come_in_the_order_of_the_images(tmp_path: Path, suffix: str) -> None:
    odd = {"image": "sketch/dog/x.png", "caption": 'a dog,\n"sitting"'}  # of an image that nobody asks for
    path = write(tmp_path / f"captions{suffix}", [odd, *reversed(LINES), LINES[3]])
    assert read_captions(path, SAMPLES[5:2:-1]) == tuple(f"a cat, number {k}" for k in (5, 4, 3))
    dog = Sample(Path("none"), "sketch/dog/x.png", "sketch", 1)
    assert read_captions(path, [dog]) == ('a dog,\n"sitting"',)


def test_a_caption_may_hold_what_ends_a_line_elsewhere(tmp_path: Path) -> None:
    lines = [{"image": sample.image, "caption": "a cat\u2028on two lines"} for sample in SAMPLES]
    path = tmp_path / "captions.jsonl"
    path.write_text("\r\n".join(json.dumps(line, ensure_ascii=False) for line in lines), newline="")
    assert set(read_captions(path, SAMPLES)) == {"a cat\u2028on two lines"}


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("c.txt", "", ConfigError, "ends in .jsonl or .csv"),
        ("c.jsonl", '{"image": "a"', ConfigError, "line 1: .*write one JSON object a line"),
        ("c.jsonl", "[1]", ConfigError, "line 1: expected an object with image and caption, found list"),
        ("c.jsonl", '{"image": "a", "caption": " "}', ConfigError, "line 1: expected the texts image and caption"),
        ("c.jsonl", '{"image": "a", "caption": 3}', ConfigError, "found 'a' and 3"),
        (
            "c.jsonl",
            '{"image": "a", "caption": "x"}\n{"image": "a", "caption": "y"}',
            ConfigError,
            "line 2: found a second caption of a",
        ),
        ("c.csv", "file,text\n", ConfigError, "expected the columns image and caption, found file, text"),
        ("c.csv", "image,caption\na\n", ConfigError, "line 2: expected the texts"),
        (
            "c.csv",
            "image,caption\nphoto/cat/7.png,x\n",
            DataError,
            r"no caption for 7 of 8 train images: photo/cat/0\.png, .* and 2 more\. It has 1 captions",
        ),
    ],
    ids=["suffix", "json", "list", "empty", "number", "two", "columns", "short row", "missing"],
)  # fmt: skip
def test_a_file_that_cannot_be_used(
    tmp_path: Path, name: str, content: str, error: type[Exception], message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(error, match=message):
        read_captions(tmp_path / name, SAMPLES)


class Teller:
    """Embeds a text by its length; counts what it is asked."""

    name, fingerprint, dim, logit_scale, asked = "teller", "0", 3, 1.0, 0

    def embed_texts(self, texts: Any) -> np.ndarray:
        self.asked += len(texts)
        rows = np.array([[len(text), 1, "bad" in text and np.nan] for text in texts], np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_captions_are_embedded_once_into_a_file(tmp_path: Path) -> None:
    teller: Any = Teller()
    texts = [f"{'x' * k}" for k in range(1, 601)]
    rows = embed_captions(teller, texts, tmp_path / "rows.npy")
    assert isinstance(rows, np.memmap) and teller.asked == 600
    np.testing.assert_allclose(rows[299], np.array([300, 1, 0]) / math.hypot(300, 1), atol=1e-6)
    with pytest.raises(DataError, match="not finite for 1 of 2 captions: 'bad'"):
        embed_captions(teller, ["good", "bad"], tmp_path / "bad.npy")


def by_hand(student: np.ndarray, captions: np.ndarray, labels: list[int], tau: float) -> float:
    total = 0.0
    for i, image in enumerate(student):
        cosines = {
            j: float(image @ text / np.linalg.norm(image) / np.linalg.norm(text)) / tau
            for j, text in enumerate(captions)
            if j == i or labels[j] != labels[i]
        }
        total += math.log(sum(math.exp(value) for value in cosines.values())) - cosines[i]
    return total / len(student)


@pytest.mark.parametrize("tau", [1.0, 0.07], ids=["the code's", "tau"])
@pytest.mark.parametrize(
    "labels", [[0, 1, 2, 3], [0, 1, 0, 1], [2, 2, 2, 2]], ids=["all", "pairs", "one class"]
)
def test_an_image_is_to_find_its_own_caption(labels: list[int], tau: float) -> None:
    rng = np.random.default_rng(1)
    student, captions = 3 * rng.normal(size=(4, 6)), 0.5 * rng.normal(size=(4, 6))
    own = torch.tensor(student, dtype=torch.float32, requires_grad=True)
    said = torch.tensor(captions, dtype=torch.float32, requires_grad=True)
    loss = losses.caption_contrast(own, said, torch.tensor(labels), tau)
    assert loss.item() == pytest.approx(by_hand(student, captions, labels, tau), abs=1e-5)
    loss.backward()
    assert said.grad is None and own.grad is not None and torch.isfinite(own.grad).all()


def test_vlm_ood_adds_the_captions_by_their_weight() -> None:
    vectors = ClassVectors(
        ("a", "b", "c"), np.eye(3, 6, dtype=np.float32), ((), (), ()), (), "test", "0" * 64, 10.0
    )
    outputs, image, captions = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 0])
    plain, with_captions = (
        methods.create(Settings(method="vlm-ood", caption_weight=weight), vectors) for weight in (0.0, 0.3)
    )
    found = with_captions.loss(outputs, stages.Batch(labels, image, captions)).item()
    extra = by_hand(outputs.numpy(), captions.numpy(), labels.tolist(), 0.07)
    without = plain.loss(outputs, stages.Batch(labels, image)).item()
    assert found == pytest.approx(without + 0.3 * extra, rel=1e-5)


def test_an_option_that_is_off_changes_no_stored_settings() -> None:
    assert "caption_weight" not in Settings().as_json() and "caption_weight" not in Settings("vlm-ood").used()
    on = Settings("vlm-ood", caption_weight=0.5)
    assert on.as_json()["caption_weight"] == on.used()["caption_weight"] == 0.5
    assert "caption_weight" not in Settings("kd", caption_weight=0.5).used()
