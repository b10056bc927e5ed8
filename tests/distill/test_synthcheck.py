"""What the teacher says of synthetic images, against slower computations."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlkd_bench.samples import Sample
from vlkd_distill import class_vectors, demo, synthcheck
from vlkd_distill.demo.scene import sample_scene
from vlkd_distill.synthcheck import (
    ConsistencyJudge,
    check,
    class_probabilities,
    pairwise_distance,
    vendi_score,
)
from vlkd_distill.teachers import OpenClipTeacher
from vlkd_runtime.errors import ConfigError, DataError
from vlkd_runtime.vectors import ClassVectors

CLASSES = ("car", "cat", "tree")


@pytest.fixture(scope="module")
def teacher() -> OpenClipTeacher:
    return OpenClipTeacher.load("demo")


@pytest.fixture(scope="module")
def vectors(teacher: OpenClipTeacher) -> ClassVectors:
    return class_vectors.compute(teacher, CLASSES, ("a photo of a {}",))


def pictures(name: str, count: int, style: str = "photo") -> list[Image.Image]:
    return [demo.render(sample_scene(1, style, name, index), 64) for index in range(count)]


def unit_rows(count: int, size: int) -> np.ndarray:
    rows = np.random.default_rng(count).standard_normal((count, size))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_distance_is_the_mean_over_pairs() -> None:
    rows = unit_rows(9, 5)
    each = [1 - float(a @ b) for a, b in itertools.combinations(rows.astype(float), 2)]
    assert pairwise_distance(rows) == pytest.approx(sum(each) / len(each), abs=1e-6)
    assert pairwise_distance(rows[:1]) == 0.0 == pairwise_distance(rows[:0])
    assert pairwise_distance(np.repeat(rows[:1], 4, axis=0)) == pytest.approx(0.0, abs=1e-6)


def test_vendi_counts_different_images() -> None:
    rows = unit_rows(7, 12)
    kernel = rows.astype(float) @ rows.astype(float).T / 7
    entropy = -sum(value * math.log(value) for value in np.linalg.eigvalsh(kernel) if value > 1e-12)
    assert vendi_score(rows) == pytest.approx(math.exp(entropy), rel=1e-5)
    assert vendi_score(np.eye(6, 8, dtype=np.float32)) == pytest.approx(6.0)
    assert vendi_score(np.repeat(rows[:1], 5, axis=0)) == pytest.approx(1.0, rel=1e-5)
    assert vendi_score(np.repeat(np.eye(2, 8, dtype=np.float32), 3, axis=0)) == pytest.approx(2.0)
    assert vendi_score(rows[:0]) == 0.0


def test_probabilities_are_a_softmax_of_scaled_cosines(vectors: ClassVectors) -> None:
    rows = unit_rows(4, vectors.vectors.shape[1])
    found = class_probabilities(rows, vectors)
    for row, shares in zip(rows, found, strict=True):
        weights = [math.exp(vectors.logit_scale * float(row @ v)) for v in vectors.vectors]
        assert shares == pytest.approx([weight / sum(weights) for weight in weights], rel=1e-4)


def test_a_judge_accepts_what_the_teacher_takes_for_the_class(
    teacher: OpenClipTeacher, vectors: ClassVectors
) -> None:
    judge = ConsistencyJudge(teacher, vectors)
    images = [*pictures("car", 3), *pictures("tree", 3)]
    assert judge(images, ["car"] * 3 + ["tree"] * 3) == [True] * 6
    assert judge(images, ["cat"] * 6) == [False] * 6
    assert judge([], []) == []
    shares = class_probabilities(synthcheck.embed_all(teacher, images[:3]), vectors)[:, 0]
    strict = ConsistencyJudge(teacher, vectors, least=float(np.sort(shares)[1]))
    assert strict(images[:3], ["car"] * 3) == [bool(share >= strict.least) for share in shares]
    assert sum(strict(images[:3], ["car"] * 3)) == 2
    assert strict.fingerprint != judge.fingerprint == ConsistencyJudge(teacher, vectors).fingerprint
    with pytest.raises(ConfigError, match="Expected a class of car, cat, tree, found 'dog'"):
        judge(images[:1], ["dog"])


def written(folder: Path, images: dict[str, list[Image.Image]], domain: str = "made") -> list[Sample]:
    samples = []
    for name, own in images.items():
        (folder / domain / name).mkdir(parents=True)
        for number, image in enumerate(own):
            path = folder / domain / name / f"{number}.png"
            image.save(path)
            samples.append(Sample(path, f"{domain}/{name}/{number}.png", domain, CLASSES.index(name)))
    return samples


def test_a_report_tells_wrong_and_repeated_images(
    tmp_path: Path, teacher: OpenClipTeacher, vectors: ClassVectors
) -> None:
    images = {"car": pictures("car", 4), "cat": pictures("tree", 3), "tree": pictures("tree", 1) * 5}
    samples = written(tmp_path, images)
    report = check(teacher, vectors, samples, regenerated=5, dropped=3)
    assert [(row.class_name, row.images) for row in report.classes] == [("car", 4), ("cat", 3), ("tree", 5)]
    assert [row.consistency for row in report.classes] == [1.0, 0.0, 1.0]
    assert report.consistency == pytest.approx(9 / 12)
    assert report.images == 12 and report.accepted == pytest.approx(12 / 20)
    car, _, tree = report.classes
    rows = teacher.embed_images(images["car"])
    assert car.distance == pytest.approx(pairwise_distance(rows), abs=1e-5)
    assert tree.distance == pytest.approx(0, abs=1e-5) and tree.vendi == pytest.approx(1, abs=1e-4)
    assert report.vendi == pytest.approx(sum(row.vendi for row in report.classes) / 3)
    plain = json.loads(json.dumps(report.as_json()))
    assert plain["consistency"] == report.consistency and plain["classes"][1]["class_name"] == "cat"
    lines = report.markdown().splitlines()
    assert (
        "| cat | 3 | 0.0% |" in report.markdown()
        and lines[-2].startswith("| **all** | 12 | 75.0% |") is False
    )
    assert "5 drawn again, 3 dropped; 60.0% of all drawn were kept." in lines


@pytest.mark.parametrize("domains", [(), ("a", "b")], ids=["none", "two"])
def test_a_report_is_of_one_domain(
    tmp_path: Path, domains: tuple[str, ...], teacher: OpenClipTeacher, vectors: ClassVectors
) -> None:
    samples = [s for name in domains for s in written(tmp_path, {"car": pictures("car", 1)}, name)]
    with pytest.raises(DataError, match=f"Expected images of one synthetic domain, found {len(domains)}"):
        check(teacher, vectors, samples)


def test_a_contact_sheet_shows_each_image_in_its_place() -> None:
    colours = {"first": [(250, 0, 0), (0, 250, 0)], "second": [(0, 0, 250)]}
    rows = {name: [Image.new("RGB", (10, 10), c) for c in own] for name, own in colours.items()}
    sheet = synthcheck.contact_sheet(rows, cell=20)
    assert sheet.size == (96 + 2 * 24 + 4, 2 * 24 + 4)
    assert sheet.getpixel((96 + 10, 4 + 10)) == (250, 0, 0)
    assert sheet.getpixel((96 + 34, 4 + 10)) == (0, 250, 0)
    assert sheet.getpixel((96 + 10, 28 + 10)) == (0, 0, 250)
    assert sheet.getpixel((96 + 34, 28 + 10)) == (250, 250, 250)
    with pytest.raises(ConfigError, match="Expected images for a contact sheet, found none"):
        synthcheck.contact_sheet({"first": []})
