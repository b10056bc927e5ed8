"""Class vectors with attributes against loops, stored prompts that give them again, and attribute files."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlkd_distill.class_vectors import check_attributes, compute, embed_prompts, read_attributes
from vlkd_distill.demo import ATTRIBUTES, CLASSES
from vlkd_runtime.errors import ConfigError, DataError
from vlkd_runtime.vectors import ClassVectors

NAMES = ("cat", "sea_horse")
SEEN = {"cat": ["whiskers", "four legs"], "sea_horse": ["a curled tail"]}


class HashTeacher:
    """Embeds a text by its hash and remembers how many it was given at once."""

    name, fingerprint, dim, logit_scale = "hash", "a" * 64, 6, 20.0

    def __init__(self, broken: bool = False) -> None:
        self.broken = broken
        self.batches: list[int] = []

    def embed_images(self, images: Sequence[Any]) -> np.ndarray:
        raise NotImplementedError

    def embed_views(self, views: Any) -> Any:
        raise NotImplementedError

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        self.batches.append(len(texts))
        rows = np.array([[*hashlib.sha256(text.encode()).digest()[:6]] for text in texts], np.float32) - 100
        rows[0, 0] = np.nan if self.broken else rows[0, 0]
        normed: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return normed


def by_loops(texts: Sequence[str]) -> list[float]:
    total = [0.0] * 6
    for text in texts:
        for place, value in enumerate(HashTeacher().embed_texts([text])[0]):
            total[place] += float(value) / len(texts)
    length = math.sqrt(sum(value * value for value in total))
    return [value / length for value in total]


def test_attributes_are_averaged_over_every_template_and_attribute() -> None:
    made = compute(HashTeacher(), NAMES, ("a {}", "one {}"), SEEN)
    cat = ["a cat with whiskers", "a cat with four legs", "one cat with whiskers", "one cat with four legs"]
    horse = ["a sea horse with a curled tail", "one sea horse with a curled tail"]
    assert sorted(made.prompts[0]) == sorted(cat) and sorted(made.prompts[1]) == sorted(horse)
    assert np.allclose(made.vectors, [by_loops(cat), by_loops(horse)], atol=1e-6)
    assert not np.allclose(made.vectors, compute(HashTeacher(), NAMES, ("a {}", "one {}")).vectors, atol=0.01)


def test_stored_prompts_give_the_stored_vectors_again(tmp_path: Path) -> None:
    compute(HashTeacher(), NAMES, ("a {}", "one {}"), SEEN).save(tmp_path / "v.safetensors")
    stored = ClassVectors.load(tmp_path / "v.safetensors")
    assert np.array_equal(embed_prompts(HashTeacher(), stored.prompts), stored.vectors)
    assert (stored.teacher, stored.teacher_fingerprint, stored.logit_scale) == ("hash", "a" * 64, 20.0)
    assert stored.templates == ("a {}", "one {}")


def test_many_prompts_come_in_portions() -> None:
    teacher, templates = HashTeacher(), [f"{index} {{}}" for index in range(600)]
    made = compute(teacher, ["cat"], templates)
    assert sum(teacher.batches) == 600 and max(teacher.batches) <= 256
    assert np.allclose(made.vectors[0], by_loops([f"{index} cat" for index in range(600)]), atol=1e-5)


def test_a_teacher_that_answers_nan_is_refused() -> None:
    with pytest.raises(DataError, match="length nan in row 0"):
        compute(HashTeacher(broken=True), ["cat"], ["a {}"])


TOML = '# what one sees\ncat = ["whiskers", "four legs"]\nsea_horse = "a curled tail"\n'


@pytest.mark.parametrize(
    ("name", "text"),
    [
        pytest.param("a.toml", TOML, id="toml"),
        pytest.param("a.json", json.dumps(SEEN), id="json"),
    ],
)
def test_attribute_files(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    found = read_attributes(tmp_path / name, NAMES)
    assert found == {"cat": ("whiskers", "four legs"), "sea_horse": ("a curled tail",)}
    assert list(read_attributes(tmp_path / name, NAMES[::-1])) == ["sea_horse", "cat"]


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        pytest.param("a.yaml", "", "ends in .toml or .json", id="suffix"),
        pytest.param("a.toml", "cat = [", "not TOML", id="broken toml"),
        pytest.param("a.json", '{"cat": ["a"], "cat": ["b"]}', "'cat' is there twice", id="key twice"),
        pytest.param("a.json", "[1]", "an object from class names", id="no object"),
        pytest.param("a.toml", "cat = 3", "list of texts for the class 'cat', found '3'", id="number"),
        pytest.param("a.toml", 'cat = ["a", 3]', "list of texts for the class 'cat'", id="number in a list"),
        pytest.param(
            "a.toml", TOML + 'cats = ["x"]', r"'cats' is no class. Did you mean 'cat'\?", id="unknown"
        ),
        pytest.param("a.toml", 'cat = ["a"]', "found none for 'sea_horse'", id="missing"),
    ],
)
def test_impossible_attribute_files(tmp_path: Path, name: str, text: str, match: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=match) as caught:
        read_attributes(tmp_path / name, NAMES)
    assert str(caught.value).startswith(str(tmp_path / name))


def test_a_missing_attribute_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a\.toml: cannot read the attributes: No such file"):
        read_attributes(tmp_path / "a.toml", NAMES)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        pytest.param(
            {"sea horse": ["x"]}, r"'sea horse' is no class. Did you mean 'sea_horse'\?", id="blank"
        ),
        pytest.param(
            {"zebra": ["x"]}, r"'zebra' is no class. The classes are 'cat', 'sea_horse'\.", id="far off"
        ),
        pytest.param({"cat": []}, "found none for 'cat'", id="none"),
        pytest.param(
            {"cat": ["a", " "]}, "Attribute 1 of 'cat' must be printable text, found ''", id="empty"
        ),
        pytest.param({"cat": ["a\x1b[2J"]}, "Attribute 0 of 'cat' must be printable", id="escape"),
        pytest.param({"cat": ["a", "a "]}, "'cat' has the attribute 'a' twice", id="twice"),
    ],
)
def test_impossible_attributes(change: dict[str, list[str]], match: str) -> None:
    teacher = HashTeacher()
    with pytest.raises(ConfigError, match=match):
        compute(teacher, NAMES, ["a {}"], SEEN | change)
    assert not teacher.batches


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        check_attributes({"cta": ["x"], "cat": [""]}, NAMES)
    assert len(str(caught.value).splitlines()) == 4


def test_the_demo_describes_each_of_its_classes() -> None:
    assert list(check_attributes(ATTRIBUTES, CLASSES)) == list(CLASSES)
