"""Classes that change while a classifier is in use, thresholds, and embeddings."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlkd_runtime import Classifier, ClassVectors
from vlkd_runtime.errors import DataError, UsageError


@pytest.fixture
def classifier(folder: Path) -> Any:
    with Classifier.load(folder, threads=1, cache=None) as loaded:
        yield loaded


def one_class(tiny: Any, name: str = "fox", **change: Any) -> ClassVectors:
    row = np.eye(1, 4, dtype=np.float32)
    made = {"names": (name,), "vectors": row, "prompts": ((f"a {name}",),), "templates": ("a {}",)}
    return dataclasses.replace(tiny.vectors, **{**made, **change})


def by_hand(tiny: Any, image: np.ndarray, vectors: ClassVectors) -> str:
    embedding = tiny.reference(image[None])[0][0]
    cosines = [
        float(sum(a * float(b) for a, b in zip(embedding, row, strict=True))) for row in vectors.vectors
    ]
    return vectors.names[cosines.index(max(cosines))]


def test_add_remove_rename(classifier: Classifier, tiny: Any) -> None:
    engine = classifier._engine
    classifier.add_classes(one_class(tiny))
    assert classifier.names == ("cat", "dog", "houseplant", "fox")
    classifier.rename_classes({"cat": "chat", "dog": "chien"})
    classifier.remove_classes(["houseplant"])
    assert classifier.names == ("chat", "chien", "fox")
    assert classifier._engine is engine
    vectors = classifier.vocabulary.vectors
    assert vectors is not None
    assert vectors.prompts == (("a photo of a cat.",), ("a photo of a dog.",), ("a fox",))
    assert vectors.templates == ("a photo of a {}.", "a {}")
    for image in tiny.golden.images:
        assert classifier.predict(image).label == by_hand(tiny, image, vectors)
    classifier.rename_classes({"chat": "chien", "chien": "chat"})  # at once, so that they swap
    assert classifier.names == ("chien", "chat", "fox")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        pytest.param(lambda c, t: c.add_classes(one_class(t, "cat")), "'cat' repeated", id="twice"),
        pytest.param(
            lambda c, t: c.add_classes(one_class(t, teacher_fingerprint="cd")),
            "embed the names with the same teacher",
            id="teacher",
        ),
        pytest.param(lambda c, t: c.add_classes(one_class(t, logit_scale=5.0)), "logit scale 20", id="scale"),
        pytest.param(
            lambda c, t: c.add_classes(one_class(t, vectors=np.eye(1, 5, dtype=np.float32))),
            "expected 4 columns, found 5",
            id="size",
        ),
        pytest.param(
            lambda c, t: c.add_classes(one_class(t, vectors=t.vectors.vectors[:1])),
            "Expected a vector of its own for each class",
            id="lint",
        ),
        pytest.param(lambda c, t: c.remove_classes(["cow"]), "names that are there, found 'cow'", id="gone"),
        pytest.param(lambda c, t: c.remove_classes(c.names), "at least one name", id="all"),
        pytest.param(lambda c, t: c.rename_classes({"cow": "x"}), "found 'cow'", id="rename-gone"),
        pytest.param(lambda c, t: c.rename_classes({"cat": "dog"}), "'dog' repeated", id="rename-twice"),
        pytest.param(
            lambda c, t: c.set_vocabulary(one_class(t, teacher_fingerprint="cd")),
            "expected ones from",
            id="set",
        ),
    ],
)
def test_what_cannot_be_changes_nothing(change: Any, match: str, classifier: Classifier, tiny: Any) -> None:
    before = classifier.vocabulary
    with pytest.raises(DataError, match=match):
        change(classifier, tiny)
    assert classifier.vocabulary is before


def test_warnings_of_the_check_are_kept(classifier: Classifier, tiny: Any) -> None:
    near = tiny.vectors.vectors[0] + np.float32([0.05, 0, 0, 0])
    near = (near / np.linalg.norm(near)).astype(np.float32)
    classifier.add_classes(one_class(tiny, vectors=near[None]))
    assert [finding.severity for finding in classifier.vocabulary.findings] == ["warning"]
    assert "'fox'" in classifier.vocabulary.findings[0].message


def test_other_threads_see_the_old_or_the_new_classes(classifier: Classifier, tiny: Any) -> None:
    """Two vocabularies of different sizes; an answer that mixed them would name a class of the wrong one."""
    image = tiny.golden.images[0]
    few = one_class(tiny, "only")
    many = tiny.vectors
    allowed = {by_hand(tiny, image, many): 3, "only": 1}
    wrong: list[object] = []
    done = threading.Event()

    def work() -> None:
        while not done.is_set():
            found = classifier.predict(image, top=9)
            if allowed.get(found.label) != len(found.top):
                wrong.append(found)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(300):
        classifier.set_vocabulary(few)
        classifier.set_vocabulary(many)
    done.set()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_changes_from_many_threads_all_count(classifier: Classifier, tiny: Any) -> None:
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(40, 4))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    def work(start: int) -> None:
        for index in range(start, start + 10):
            classifier.add_classes(one_class(tiny, f"c{index}", vectors=rows[index : index + 1]))

    threads = [threading.Thread(target=work, args=(start,)) for start in range(0, 40, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(classifier.names) == {"cat", "dog", "houseplant", *(f"c{index}" for index in range(40))}


def test_one_change_leaves_others_alone(classifier: Classifier, tiny: Any) -> None:
    shared = classifier.with_vocabulary(one_class(tiny))
    shared.rename_classes({"fox": "vixen"})
    assert (shared.names, classifier.names) == (("vixen",), ("cat", "dog", "houseplant"))
    assert shared.selection is classifier.selection


@pytest.mark.parametrize(
    ("options", "known"),
    [
        pytest.param({}, True, id="none"),
        pytest.param({"threshold": 0.0}, True, id="zero"),
        pytest.param({"threshold": 1.0}, False, id="one"),
        pytest.param({"min_similarity": -1.0}, True, id="any-similarity"),
        pytest.param({"min_similarity": 1.0}, False, id="all-similarity"),
        pytest.param({"threshold": 0.0, "min_similarity": 1.0}, False, id="both"),
    ],
)
def test_unknown(options: dict[str, float], known: bool, classifier: Classifier, tiny: Any) -> None:
    plain = classifier.predict(tiny.golden.images[0])
    for found in (
        classifier.predict(tiny.golden.images[0], **options),
        *classifier.predict(tiny.golden.images[:1], **options),
    ):
        assert found.known is known
        assert (found.label, found.index) == ((plain.label, plain.index) if known else ("unknown", -1))
        # What it would have been is still there to read.
        assert (found.top, found.probability, found.similarity) == (
            plain.top,
            plain.probability,
            plain.similarity,
        )


def test_a_threshold_at_the_value_is_reached(classifier: Classifier, tiny: Any) -> None:
    plain = classifier.predict(tiny.golden.images[0])
    assert classifier.predict(tiny.golden.images[0], threshold=plain.probability).known
    above = float(np.nextafter(plain.probability, 2))
    if above <= 1:
        assert not classifier.predict(tiny.golden.images[0], threshold=above).known


@pytest.mark.parametrize(
    "options",
    [
        {"threshold": 1.1},
        {"threshold": -0.1},
        {"threshold": float("nan")},
        {"threshold": "x"},
        {"min_similarity": 2},
    ],
    ids=str,
)
def test_impossible_thresholds(options: dict[str, Any], classifier: Classifier, tiny: Any) -> None:
    with pytest.raises(UsageError, match="expected a number from"):
        classifier.predict(tiny.golden.images[0], **options)


def test_embeddings(classifier: Classifier, tiny: Any) -> None:
    expected = tiny.reference(tiny.golden.images)[0]
    many = classifier.embed(tiny.golden.images)
    assert many == pytest.approx(expected, abs=1e-5)
    one = classifier.embed(tiny.golden.images[2])
    assert one.shape == (4,)
    assert one == pytest.approx(expected[2], abs=1e-5)
    assert classifier.embed([]).shape == (0, 4)
