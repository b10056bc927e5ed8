"""Alignment of a real bundle with the demo's teacher: the numbers, the files, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from vlkd_bench.alignmentreport import AlignmentReport
from vlkd_distill import class_vectors, export, students
from vlkd_distill.data import split_of
from vlkd_distill.specs import StudentSpec
from vlkd_distill.teachers import OpenClipTeacher
from vlkd_edge.aligning import Request, check_same_space, locate, run
from vlkd_runtime import Classifier, PreprocessSpec
from vlkd_runtime.bundle import Bundle, pack, write_bundle
from vlkd_runtime.errors import ConfigError, DataError
from vlkd_runtime.golden import Golden
from vlkd_runtime.manifest import GoldenTolerance, ManifestDraft, ModelSpec
from vlkd_runtime.preprocess import prepare
from vlkd_runtime.vectors import ClassVectors

SPEC = StudentSpec("resnet10t", 32, "none", 0, {"channels": [8, 16, 16, 32], "stem_width": 8})
PREPARED = PreprocessSpec(height=32, width=32)
CLASSES = ("cat", "fish")
PER_CLASS = 25


@pytest.fixture(scope="session")
def teacher() -> OpenClipTeacher:
    return OpenClipTeacher.load("demo")


@pytest.fixture(scope="session")
def vectors(teacher: OpenClipTeacher) -> ClassVectors:
    return class_vectors.compute(teacher, CLASSES, ("a photo of a {}",))


def bundled(root: Path, vectors: ClassVectors, name: str = "tiny") -> Path:
    """An untrained student in the space of some class vectors, packed as a build does it."""
    size = int(vectors.vectors.shape[1])
    network = students.Deployable(students.create(SPEC, size).eval(), students.FusedHead(vectors))
    export.export(network, 32, root / "model.onnx")
    scale = vectors.logit_scale
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    with Classifier.from_model(root / "model.onnx", PREPARED, vectors.names, logit_scale=scale) as classifier:
        outputs = classifier.infer(images)
    draft = ManifestDraft(
        name=name,
        target="jetson-orin-nano",
        model=ModelSpec("float32", "onnx", export.OPSET, (1, 32, 32, 3), (1, size), (1, len(vectors.names))),
        preprocess=PREPARED,
        classes=vectors.names,
        logit_scale=scale,
        golden=GoldenTolerance(0.9999, 0.1),
        provenance={"held out": "sketch"},
        stand_in="An untrained network stands in for a student.",
    )
    files = {
        "model.onnx": root / "model.onnx",
        "class_vectors.safetensors": vectors.to_bytes(),
        "golden.safetensors": Golden(images, outputs.embedding, outputs.logits).to_bytes(),
        "evidence.json": b"{}\n",
    }
    return write_bundle(root / "bundle", draft, files)


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory, vectors: ClassVectors) -> Path:
    """A bundle folder in what looks like a build's output folder; its archive lies beside it."""
    root = tmp_path_factory.mktemp("build")
    folder = bundled(root, vectors)
    pack(folder, root / "tiny.vlkd")
    return folder


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise in two domains and three classes, one of which no bundle here knows."""
    root = tmp_path_factory.mktemp("data") / "noise"
    random = np.random.default_rng(1)
    for domain in ("photo", "sketch"):
        for name in (*CLASSES, "dog"):
            (root / domain / name).mkdir(parents=True)
            for index in range(PER_CLASS):
                pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).resize((40, 40)).save(root / domain / name / f"{index}.png")
    return root


def align(request: Request, folder: Path) -> AlignmentReport:
    folder.mkdir(exist_ok=True)
    with (folder / "console.txt").open("w") as file:
        return run(request, folder / "out", folder / "cache", Console(file=file))


def test_a_bundle_is_measured_against_its_own_teacher(
    tmp_path: Path, student: Path, images: Path, teacher: OpenClipTeacher, vectors: ClassVectors
) -> None:
    found = align(Request(student, str(images)), tmp_path)
    paths = [
        path
        for domain in ("photo", "sketch")
        for name in CLASSES
        for path in sorted((images / domain / name).iterdir())
        if split_of(f"{domain}/{name}/{path.name}") == "test"
    ]
    with Classifier.load(student) as classifier:
        ours = classifier.infer(np.stack([prepare(path, PREPARED) for path in paths])).embedding
        answers = classifier.predict(paths)
    theirs = teacher.embed_images([Image.open(path).convert("RGB") for path in paths])
    cosines = (ours * theirs).sum(axis=1)
    assert found.overall.images == len(paths) < 2 * 2 * PER_CLASS
    assert found.overall.squared_distance == pytest.approx(float((2 - 2 * cosines).mean()), abs=1e-4)
    right = [answer.label == path.parent.name for answer, path in zip(answers, paths, strict=True)]
    assert found.overall.student_accuracy == pytest.approx(sum(right) / len(paths))
    same = np.asarray([answer.index for answer in answers]) == (theirs @ vectors.vectors.T).argmax(axis=1)
    assert found.overall.agreement == pytest.approx(float(same.mean()))

    assert list(found.domains) == ["photo", "sketch"] and found.held_out == ("sketch",)
    assert sum(part.images for part in found.domains.values()) == len(paths)
    assert found.teacher == "demo" and found.images == f"{len(paths)} test images of noise"
    assert found.notes[0].startswith("An untrained network")
    assert len(found.notes) == 2 and "tiny CLIP" in found.notes[1]

    out = tmp_path / "out"
    assert json.loads((out / "align.json").read_text()) == found.as_json()
    assert (out / "align.md").read_text() == found.markdown()
    assert (out / "align.png").read_bytes().startswith(b"\x89PNG")
    assert str(tmp_path) not in (out / "align.json").read_text()
    assert (tmp_path / "cache" / "embeddings").is_dir()


def test_archive_and_output_folder_mean_the_same_bundle(tmp_path: Path, student: Path, images: Path) -> None:
    assert locate(student.parent) == locate(student) == student
    one, other = (
        align(Request(path, str(images), domains=("sketch",), split="all"), tmp_path)
        for path in (student.parent, student.parent / "tiny.vlkd")
    )
    assert one == other
    assert list(one.domains) == ["sketch"] and one.overall.images == 2 * PER_CLASS
    assert "may have been trained on" in one.notes[-1]


def test_the_demo_world_is_rendered_for_the_bundles_classes(tmp_path: Path, student: Path) -> None:
    request = Request(student, domains=("photo", "sketch"), split="all", demo_images=2)
    found = align(request, tmp_path)
    assert found.overall.images == 2 * 2 * 2
    assert found.images.endswith("all images of demo")
    assert any("drawn by a program" in note for note in found.notes)
    assert found.overall.teacher_accuracy > 0.7  # the images reach the teacher with their own labels
    before = [path.stat().st_mtime_ns for path in (tmp_path / "out" / "stages").iterdir()]
    assert align(request, tmp_path) == found
    assert [path.stat().st_mtime_ns for path in (tmp_path / "out" / "stages").iterdir()] == before


def test_another_export_of_the_same_teacher_passes_and_is_named(
    student: Path, teacher: OpenClipTeacher
) -> None:
    bundle = Bundle.open(student)
    assert check_same_space(bundle, teacher)
    other = dataclasses.replace(bundle, vectors=dataclasses.replace(bundle.vectors, teacher_fingerprint="f"))
    assert not check_same_space(other, teacher)


def test_a_teacher_of_another_size_is_refused_before_anything_runs(
    tmp_path: Path, bundle: Path, images: Path
) -> None:
    (tmp_path / "three").mkdir()
    for domain in ("photo",):
        for name in ("cat", "dog", "fish"):
            (tmp_path / "three" / domain / name).parent.mkdir(exist_ok=True)
            (tmp_path / "three" / domain / name).symlink_to(images / domain / name)
    with pytest.raises(DataError, match=r"embeddings of 8 numbers.*found 128 from 'demo'.*'test'.*--teacher"):
        align(Request(bundle, str(tmp_path / "three"), teacher="demo"), tmp_path)
    assert not (tmp_path / "cache" / "embeddings").exists()


@pytest.mark.parametrize("prompts", [True, False], ids=["other prompts", "no prompts"])
def test_another_teacher_of_the_same_size_is_refused(
    student: Path, teacher: OpenClipTeacher, prompts: bool
) -> None:
    bundle = Bundle.open(student)
    texts = (("a photo of a ship",), ("a photo of a fish",)) if prompts else ((), ())
    vectors = dataclasses.replace(bundle.vectors, prompts=texts, teacher_fingerprint="f", teacher="them")
    match = "'demo' puts the prompts of 'cat'" if prompts else "stores no prompts"
    with pytest.raises(DataError, match=match):
        check_same_space(dataclasses.replace(bundle, vectors=vectors), teacher)


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"split": "train"}, ConfigError, "--split: expected one of test, all, found 'train'"),
        ({"teacher": "demoo"}, ConfigError, "The teacher 'demoo' has no known form"),
        ({"images": "/nowhere"}, DataError, "Expected a data folder at /nowhere"),
        ({"domains": ("art",)}, DataError, "Expected the domains art"),
        ({"bundle": Path("/nowhere")}, DataError, "nowhere"),
    ],
    ids=["split", "teacher", "images", "domain", "bundle"],
)
def test_mistakes_are_told_before_any_work(
    tmp_path: Path,
    student: Path,
    images: Path,
    changes: dict[str, object],
    error: type[Exception],
    match: str,
) -> None:
    request = dataclasses.replace(Request(student, str(images)), **changes)  # type: ignore[arg-type]
    with pytest.raises(error, match=match):
        align(request, tmp_path)
    assert not (tmp_path / "out" / "align.json").exists() and not (tmp_path / "cache").exists()


def test_too_few_test_images_are_told_with_the_way_out(tmp_path: Path, student: Path) -> None:
    for name in CLASSES:
        (tmp_path / "few" / "photo" / name).mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(tmp_path / "few" / "photo" / name / "1.png")
    with pytest.raises(DataError, match=r"at least two test images.*photo \(0\).*--split all"):
        align(Request(student, str(tmp_path / "few")), tmp_path)


def test_a_damaged_image_is_left_out_and_named(tmp_path: Path, student: Path, images: Path) -> None:
    shutil.copytree(images, tmp_path / "bad")
    whole = align(Request(student, str(images), split="all"), tmp_path / "whole")
    (tmp_path / "bad" / "photo" / CLASSES[0] / "0.png").write_bytes(b"no picture")
    found = align(Request(student, str(tmp_path / "bad"), split="all"), tmp_path)
    assert found.overall.images == whole.overall.images - 1
    assert found.notes[-1] == f"1 image is left out and cannot be decoded: photo/{CLASSES[0]}/0.png."
    assert "as they cannot be decoded: 1" in (tmp_path / "console.txt").read_text()


def test_many_damaged_images_are_refused_and_nothing_is_written(tmp_path: Path, student: Path) -> None:
    for name in CLASSES:
        (tmp_path / "bad" / "photo" / name).mkdir(parents=True)
        (tmp_path / "bad" / "photo" / name / "1.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"2 of 2 images cannot be decoded(.|\n)*photo/cat/1\.png"):
        align(Request(student, str(tmp_path / "bad"), split="all"), tmp_path)
    assert not (tmp_path / "out" / "align.json").exists()
