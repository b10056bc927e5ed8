"""The embedding cache, class vectors, templates, pixel store and zero-shot predictions, with a teacher that counts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlkd_bench.samples import Sample
from vlkd_distill import class_vectors, embeddings, pixels, zero_shot
from vlkd_distill.teacher_names import check_name
from vlkd_distill.templates import TEMPLATES, resolve_templates
from vlkd_runtime.errors import ConfigError, DataError
from vlkd_runtime.preprocess import PreprocessSpec, prepare


class CountingTeacher:
    """Embeds an image by its mean colour and a text by its hash; counts what it is asked."""

    name = "counting"
    dim = 4
    logit_scale = 5.0

    def __init__(self, fingerprint: str = "f" * 64, broken: bool = False) -> None:
        self.fingerprint = fingerprint
        self.broken = broken
        self.asked = 0

    def embed_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        self.asked += len(images)
        rows = np.array([[*np.asarray(image).mean(axis=(0, 1)), 50.0] for image in images], np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        if self.broken:
            rows[0, 0] = np.nan
        return rows

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        rows = np.array([list(hashlib.sha256(t.encode()).digest()[:4]) for t in texts], np.float32) + 1.0
        normed: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return normed


@pytest.fixture
def samples(tmp_path: Path) -> tuple[Sample, ...]:
    made = []
    for index in range(300):
        path = tmp_path / "images" / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        colour = (index % 256, (index * 7) % 256, 30)
        Image.new("RGB", (6, 4), colour).save(path)
        made.append(Sample(path, f"d/c/{index}.png", "d", index % 2))
    return tuple(made)


def test_the_teacher_is_never_asked_twice(samples: tuple[Sample, ...], tmp_path: Path) -> None:
    teacher, cache = CountingTeacher(), tmp_path / "cache"
    seen: list[int] = []
    first = embeddings.embed(teacher, samples, cache, seen.append)
    again = embeddings.embed(teacher, samples, cache)
    assert teacher.asked == 300 and sum(seen) == 300
    assert np.array_equal(first, again) and first.shape == (300, 4)
    direct = CountingTeacher().embed_images([Image.open(sample.path) for sample in samples])
    assert np.allclose(first, direct)


def test_a_changed_image_or_teacher_is_asked_anew_and_nothing_else(
    samples: tuple[Sample, ...], tmp_path: Path
) -> None:
    teacher, cache = CountingTeacher(), tmp_path / "cache"
    embeddings.embed(teacher, samples, cache)
    Image.new("RGB", (6, 4), (255, 0, 255)).save(samples[0].path)
    embeddings.embed(teacher, samples, cache)
    assert teacher.asked == 300 + 256  # the one shard that holds the changed image
    for shard in (tmp_path / "cache").iterdir():
        shard.write_bytes(shard.read_bytes()[:-1])
    embeddings.embed(teacher, samples, cache)
    assert teacher.asked == 300 + 256 + 300  # damaged shards are asked for again
    other = CountingTeacher("0" * 64)
    embeddings.embed(other, samples, cache)
    assert other.asked == 300


def test_an_embedding_that_is_not_finite_is_refused_and_not_stored(
    samples: tuple[Sample, ...], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"not finite for 8 of 256 images: .*0.png, .*128.png and 3 more"):
        embeddings.embed(CountingTeacher(broken=True), samples, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_class_vectors_are_normalise_mean_normalise() -> None:
    teacher, templates = CountingTeacher(), ("a photo of a {}", "a sketch of a {}", "{}")
    stored = class_vectors.compute(teacher, ["sea_horse", "dog"], templates)
    for row, name in zip(stored.vectors, ["sea horse", "dog"], strict=True):
        total = np.zeros(4)
        for template in templates:
            total += teacher.embed_texts([template.format(name)])[0]
        assert np.allclose(row, total / np.sqrt((total**2).sum()), atol=1e-6)
    assert stored.names == ("sea_horse", "dog") and stored.prompts[0][0] == "a photo of a sea horse"
    assert stored.logit_scale == 5.0 and stored.teacher_fingerprint == "f" * 64


@pytest.mark.parametrize(
    ("named", "message"),
    [
        pytest.param("photos", "Unknown template set 'photos'", id="unknown set"),
        pytest.param([], "found an empty list", id="empty"),
        pytest.param(["a photo"], r"one \{\} for the class name", id="no place for the name"),
        pytest.param(["{} and {}"], r"one \{\} for the class name", id="two places"),
    ],
)
def test_impossible_templates(named: str | list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_templates(named)


def test_built_in_templates_resolve() -> None:
    assert len(TEMPLATES) >= 2
    assert all(resolve_templates(name) == TEMPLATES[name] for name in TEMPLATES)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param("bert", "has no known form", id="form"),
        pytest.param("local-dir:/nowhere", "found nothing", id="no folder"),
    ],
)
def test_teacher_names(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_name(name)
    check_name("demo")
    check_name("ViT-B-16:laion2b_s34b_b88k")


def test_zero_shot_predictions_by_hand(samples: tuple[Sample, ...]) -> None:
    stored = class_vectors.compute(CountingTeacher(), ["cat", "dog"], ["{}"])
    rows = CountingTeacher().embed_images([Image.open(sample.path) for sample in samples[:5]])
    for row, sample, embedding in zip(
        zero_shot.predict(rows, stored, samples[:5]), samples, rows, strict=False
    ):
        cosines = [float(embedding @ vector) for vector in stored.vectors]
        shares = np.exp(5.0 * np.array(cosines)) / np.exp(5.0 * np.array(cosines)).sum()
        assert row.prediction == int(np.argmax(cosines)) and row.label == sample.label
        assert row.probability == pytest.approx(shares.max(), abs=1e-6)
        assert row.similarity == pytest.approx(max(cosines), abs=1e-6)


def test_pixel_store_holds_what_the_device_would_see(samples: tuple[Sample, ...], tmp_path: Path) -> None:
    spec = PreprocessSpec(height=16, width=16)
    (tmp_path / "store").mkdir()
    store = pixels.build(tmp_path / "store", samples[:20], spec, lambda _: None)
    assert store.pixels.shape == (20, 16, 16, 3) and store.labels.tolist() == [0, 1] * 10
    assert np.array_equal(store.pixels[7], prepare(samples[7].path, spec))


def test_a_few_bad_images_are_named_and_many_are_refused(samples: tuple[Sample, ...], tmp_path: Path) -> None:
    spec = PreprocessSpec(height=16, width=16)
    samples[3].path.write_bytes(b"not an image")
    (tmp_path / "store").mkdir()
    store = pixels.build(tmp_path / "store", samples, spec, lambda _: None)
    assert [image for image, _ in store.bad] == ["d/c/3.png"] and len(store.samples) == len(
        store.pixels
    ) == 299
    assert pixels.PixelStore.open(tmp_path / "store", samples).samples == store.samples
    for sample in samples[10:20]:
        sample.path.write_bytes(b"")
    (tmp_path / "again").mkdir()
    with pytest.raises(DataError, match="11 of 300 training images cannot be decoded"):
        pixels.build(tmp_path / "again", samples, spec, lambda _: None)
