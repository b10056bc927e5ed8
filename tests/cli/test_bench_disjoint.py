"""`vlkd-edge bench disjoint` on a small demo world: rows, files, resume, and what it refuses."""

from __future__ import annotations

import json
import statistics
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from vlkd_distill import class_vectors, methods, prompt_learning
from vlkd_distill.data import scan
from vlkd_distill.demo import CLASSES
from vlkd_distill.prompting import PromptedTeacher
from vlkd_distill.specs import MethodName, Settings
from vlkd_distill.teachers import OpenClipTeacher
from vlkd_edge import disjoint
from vlkd_runtime.errors import ConfigError
from vlkd_runtime.preprocess import PreprocessSpec, prepare
from vlkd_runtime.vectors import ClassVectors

Bench = Callable[..., tuple[int, dict[str, Any], str]]
VECTORS = ClassVectors(
    ("a", "b", "c"), np.eye(3, 8, dtype=np.float32), ((), (), ()), (), "test", "0" * 64, 10.0
)


def test_unseen_classes_are_predicted_by_their_vectors_alone(tmp_path: Path, bench: Bench) -> None:
    words = ("--held-out", "sketch", "--methods", "ce-only,vlm-ood", "--unseen", "cat,car,fish")
    code, table, errors = bench("disjoint", tmp_path, *words, drawn=True)
    assert code == 0, errors
    assert [(row["method"], row["unseen"]) for row in table["rows"]] == [
        (name, ["car", "cat", "fish"]) for name in ("teacher", "ce-only", "vlm-ood")
    ]
    assert table["rows"][0]["accuracy"] > 0.8  # the teacher knows all classes
    contract = {one["method"]: one for one in table["contract"]}
    assert contract["ce-only"]["teacher_views"] == "none"
    assert contract["vlm-ood"]["teacher_views"] == "clean_cached"
    assert all(one["unseen"] == ["car", "cat", "fish"] for one in contract.values())
    assert "Unseen classes: car, cat, fish. Their images are only measured on." in " ".join(errors.split())
    # The trained images are those of the other 13 classes in the four source styles.
    (trained,) = {one["counts"]["train"] for one in contract.values()}
    (vectors,) = (path for path in tmp_path.glob("stages/vectors-[0-9a-f]*"))
    assert len(ClassVectors.load(vectors / "class_vectors.safetensors").names) == len(CLASSES)
    (pixels,) = tmp_path.glob("stages/pixels-*/pixels.npy")
    header = 128
    assert pixels.stat().st_size == header + trained * 32 * 32 * 3 and trained < 13 * 4 * 20
    assert json.loads((tmp_path / "table.json").read_text()) == table

    stages = {path: path.stat().st_mtime_ns for path in (tmp_path / "stages").iterdir()}
    code, again, _ = bench("disjoint", tmp_path, *words, "--note", "One seed.")
    assert again.pop("notes") == ["One seed."] and table.pop("notes") == []
    assert "## Notes\n\nOne seed.\n\n## Who saw what" in (tmp_path / "table.md").read_text()
    assert code == 0 and again == table
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "stages").iterdir()} == stages


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (("--methods", "erm"), "--methods names 'erm'. Expected some of ce-only"),
        (("--unseen", "dragon"), "found 'dragon'"),
        (("--unseen", "15"), "from 1 to 14 of the 16 classes"),
        (("--unseen", "1.5"), "a share between 0 and 1"),
        (("--unseen", ""), "found ''"),
    ],
    ids=["cannot name unseen", "unknown class", "too many", "share", "none"],
)
def test_mistakes_are_told_before_any_work(
    tmp_path: Path, words: tuple[str, ...], match: str, bench: Bench
) -> None:
    code, answer, _ = bench("disjoint", tmp_path, *words)
    assert code == 2
    assert match in answer["error"]["message"]
    assert not (tmp_path / "stages").exists()


@pytest.mark.parametrize(
    ("unseen", "expected"),
    [("novel", ("c", "d")), ("1", None), ("0.5", None), ("b", ("b",)), ("d, a", ("a", "d"))],
)
def test_ways_to_say_which_classes_are_unseen(unseen: str, expected: tuple[str, ...] | None) -> None:
    parts = disjoint.Parts.of(("a", "b", "c", "d"), unseen, seed=2)
    assert sorted(parts.seen + parts.unseen) == ["a", "b", "c", "d"]
    assert parts.unseen == expected if expected else len(parts.unseen) == (1 if unseen == "1" else 2)


def test_every_method_that_predicts_by_vectors_may_be_measured() -> None:
    for name in typing.get_args(MethodName):
        if name not in methods.METHODS:
            continue
        by_vectors = methods.create(Settings(method=name), VECTORS).predicts_by_vectors
        assert (name in disjoint.KNOWN) == (by_vectors and name != "data-free"), name


def test_a_class_named_like_a_number_is_a_class() -> None:
    assert disjoint.Parts.of(("1", "2", "3"), "3", seed=0).unseen == ("3",)
    with pytest.raises(ConfigError, match="found 3"):
        disjoint.Parts.of(("a", "b", "c"), "3", seed=0)


def test_promptkd_goes_from_base_to_novel_classes(
    tmp_path: Path, edge: Bench, write_data: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("bird", "car", "cat", "fish", "tree")
    found = scan(write_data(classes=names, per_class=12))
    taught: list[tuple[tuple[str, ...], set[int]]] = []
    real = prompt_learning.learn_prompts

    def spy(teacher: Any, pixels: Any, labels: Any, seen: Any, *words: Any) -> Any:
        taught.append((tuple(seen), set(labels.tolist())))
        return real(teacher, pixels, labels, seen, *words)

    monkeypatch.setattr(prompt_learning, "learn_prompts", spy)
    words = ("--held-out", "sketch", "--unseen", "novel", "--methods", "promptkd,promptkd-seen")
    settings = ("prompts.epochs=1", "prompts.shots=4", "distill.epochs=2")
    code, table = edge("bench", "disjoint", *words, settings=settings)
    assert code == 0, table
    assert taught == [(names[:3], {0, 1, 2})]  # on base classes alone, and once for both rows
    contract = {one["method"]: one for one in table["contract"]}
    train = found.of(["photo"], "train")
    assert contract["promptkd"]["counts"]["train"] == len(train) and not contract["promptkd"]["unseen"]
    assert "Transductive: unlabelled train images of the unseen classes" in contract["promptkd"]["text"]
    assert contract["promptkd-seen"]["counts"]["train"] == sum(sample.label < 3 for sample in train)
    assert (
        "Inductive" in contract["promptkd-seen"]["text"]
        and "4 labelled images of each of the 3 seen classes alone" in contract["promptkd-seen"]["text"]
    )

    # The same numbers by hand: each image alone, each class's prompt alone, each half of the classes alone.
    stages = tmp_path / "out" / "stages"
    (prompts,) = stages.glob("prompts-*[0-9a-f]/prompts.safetensors")
    teacher = PromptedTeacher.load(prompts, OpenClipTeacher.load("demo"))
    vectors = [class_vectors.compute(teacher, [name], ("{}",)).vectors[0] for name in names]
    (evaluated, _) = stages.glob("evaluate-promptkd-[0-9a-f]*")
    model = json.loads((evaluated / "stage.json").read_text())["inputs"]["model"]
    session = onnxruntime.InferenceSession(stages / f"export-promptkd-{model}" / "model.onnx")
    spec, right = PreprocessSpec(32, 32, resize="squash"), dict.fromkeys(range(5), 0.0)
    tests = found.of(["sketch"], "test")
    for sample in tests:
        image = prepare(sample.path, spec)[None]
        (embedding,) = session.run(["embedding"], {session.get_inputs()[0].name: image})
        half = range(3) if sample.label < 3 else range(3, 5)
        cosines = {label: float(embedding[0] @ vectors[label]) for label in half}
        shown = sum(other.label == sample.label for other in tests)
        right[sample.label] += (max(cosines, key=cosines.__getitem__) == sample.label) / shown
    base, novel = sum(right[k] for k in range(3)) / 3, (right[3] + right[4]) / 2
    row = next(row for row in table["rows"] if row["method"] == "promptkd")
    assert row["seen_accuracy"] == pytest.approx(base) and row["accuracy"] == pytest.approx(novel)
    assert row["harmonic_mean"] == pytest.approx(statistics.harmonic_mean([base, novel]))
    assert row["unseen"] == list(names[3:])
