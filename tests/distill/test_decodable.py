"""Images that cannot be decoded: every kind is found and named, and more than one in a hundred is too many."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlkd_bench.samples import Sample
from vlkd_distill.decodable import find_bad, refuse_too_many
from vlkd_runtime.errors import DataError
from vlkd_runtime.preprocess import PreprocessSpec

SPEC = PreprocessSpec(16, 16, jpeg_scale=2)


def written(path: Path, cut: int | None = None) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[:cut])


def test_every_kind_of_bad_image_is_named_and_no_other(tmp_path: Path) -> None:
    names = ("good.png", "cut.png", "good.jpg", "cut.jpg", "empty.png", "text.png", "gone.png", "thin.png")
    samples = [Sample(tmp_path / name, f"d/c/{name}", "d", 0) for name in names]
    for name in ("good.png", "good.jpg"):
        written(tmp_path / name)
    written(tmp_path / "cut.png", -2000)
    written(tmp_path / "cut.jpg", -2000)
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("no picture")
    thin = PreprocessSpec(4096, 4096, resize="crop")
    Image.new("L", (20000, 2)).save(tmp_path / "thin.png")
    done: list[int] = []
    found = dict(find_bad(samples, SPEC, done.append))
    assert list(found) == [f"d/c/{name}" for name in names if "good" not in name and name != "thin.png"]
    assert all(found[sample.image].count(str(sample.path)) for sample in samples if sample.image in found)
    assert sum(done) == len(samples)
    ((image, problem),) = find_bad(samples[-1:], thin)
    assert image == "d/c/thin.png" and f"{tmp_path}/thin.png: " in problem and "too long and thin" in problem
    assert find_bad([], SPEC) == []


@pytest.mark.parametrize(
    ("bad", "count", "refused"),
    [(0, 0, False), (1, 1, False), (1, 300, False), (2, 199, True), (2, 200, False), (3, 299, True)],
)
def test_one_in_a_hundred_is_left_out_and_more_are_refused(bad: int, count: int, refused: bool) -> None:
    listed = [(f"d/c/{number}", f"{number}: cut") for number in range(bad)]
    if not refused:
        refuse_too_many(listed, count, "pictures")
        return
    with pytest.raises(
        DataError, match=rf"{bad} of {count} pictures cannot be decoded; at most 1%(.|\n)*0: cut"
    ):
        refuse_too_many(listed, count, "pictures")
