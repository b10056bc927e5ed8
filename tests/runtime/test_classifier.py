from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from vlkd_runtime import Bundle, Classifier, ClassVectors, Prediction, PreprocessSpec
from vlkd_runtime.bundle import write_bundle
from vlkd_runtime.engines import EngineInfo, EngineOutput
from vlkd_runtime.errors import BundleError, DataError, ImageError, SelfTestError, UsageError


@pytest.fixture(scope="module")
def classifier(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    path = write_bundle(tmp_path_factory.mktemp("bundle") / "tiny", tiny.draft, tiny.files)
    return Classifier.load(path, threads=1)


def expected(tiny: Any, image: np.ndarray) -> tuple[int, list[float], float]:
    """Softmax by hand over the second computation's logits."""
    logits = tiny.reference(image[None])[1][0].tolist()
    total = math.fsum(math.exp(logit) for logit in logits)
    return logits.index(max(logits)), [math.exp(logit) / total for logit in logits], max(logits) / 20


def test_a_view_of_an_array_is_as_good_as_a_copy_and_stays_as_it_was(
    classifier: Classifier, tiny: Any
) -> None:
    for image in tiny.golden.images:
        mirrored, reversed_channels = image[:, ::-1], image[..., ::-1]
        for view in (image, mirrored, reversed_channels, np.asfortranarray(image)):
            before = view.copy()
            assert classifier.predict(view) == classifier.predict([before])[0]
            assert np.array_equal(view, before)


@pytest.mark.parametrize("crop_fraction", [1.0, 0.5])
def test_one_image_is_prepared_alike_however_it_comes(
    crop_fraction: float, tiny: Any, tmp_path: Path
) -> None:
    """An array of the network's size is the network's input only where nothing is cropped."""
    spec = PreprocessSpec(8, 8, "crop", crop_fraction)
    place = write_bundle(tmp_path / "b", dataclasses.replace(tiny.draft, preprocess=spec), tiny.files)
    array = np.random.default_rng(3).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    image = Image.fromarray(array)
    image.save(tmp_path / "a.png")
    with Classifier.load(place, threads=1) as classifier:
        one = classifier.predict(array)
        for many in ([array], [array, array], array[None], [image], [tmp_path / "a.png"]):
            assert classifier.predict(many)[0] == one
        assert next(iter(classifier.stream([array]))) == one
        assert classifier.predict(tmp_path / "a.png") == one
        assert np.array_equal(classifier.embed(array), classifier.embed([image])[0])


@pytest.mark.parametrize("kind", ["folder", "archive", "open"])
def test_load_and_predict(kind: str, folder: Path, archive: Path, tiny: Any) -> None:
    source = {"folder": folder, "archive": str(archive), "open": Bundle.open(folder)}[kind]
    with Classifier.load(source, threads=1) as classifier:
        assert classifier.names == tiny.draft.classes
        assert classifier.manifest == Bundle.open(folder).manifest
        assert classifier.info.threads == 1
        for image in tiny.golden.images:
            index, probabilities, similarity = expected(tiny, image)
            prediction = classifier.predict(image)
            assert prediction.index == index
            assert prediction.label == tiny.draft.classes[index]
            assert prediction.probability == pytest.approx(probabilities[index], abs=1e-5)
            assert prediction.similarity == pytest.approx(similarity, abs=1e-5)
            ranked = sorted(range(3), key=lambda i: -probabilities[i])
            assert [name for name, _ in prediction.top] == [tiny.draft.classes[i] for i in ranked]
            assert [p for _, p in prediction.top] == pytest.approx(
                [probabilities[i] for i in ranked], abs=1e-5
            )
            assert math.fsum(p for _, p in prediction.top) == pytest.approx(1, abs=1e-12)
    with pytest.raises(UsageError, match="closed"):
        classifier.predict(tiny.golden.images[0])


def test_one_and_many(classifier: Classifier, tiny: Any, tmp_path: Path) -> None:
    images = tiny.golden.images
    path = tmp_path / "x.png"
    Image.fromarray(images[1]).save(path)
    single = [classifier.predict(image) for image in images]
    assert all(isinstance(prediction, Prediction) for prediction in single)
    assert classifier.predict(images) == single
    assert classifier.predict(list(images)) == single
    assert classifier.predict(tuple(images)) == single
    assert classifier.predict([images[0], path, Image.fromarray(images[2]), str(path)]) == [
        single[0],
        single[1],
        single[2],
        single[1],
    ]
    assert classifier.predict(path) == classifier.predict(str(path)) == single[1]
    assert classifier.predict([]) == []
    assert classifier.predict(images[:0]) == []
    assert classifier.predict([images[0]]) == [single[0]]


@pytest.mark.parametrize(("top", "count"), [(1, 1), (2, 2), (3, 3), (5, 3), (1000, 3)])
def test_top(top: int, count: int, classifier: Classifier, tiny: Any) -> None:
    assert len(classifier.predict(tiny.golden.images[0], top=top).top) == count


@pytest.mark.parametrize("batch", [1, 3])
def test_infer(batch: int, make_tiny_batched: Callable[[int], Any], tmp_path: Path) -> None:
    tiny = make_tiny_batched(batch)
    with Classifier.load(write_bundle(tmp_path / "b", tiny.draft, tiny.files), threads=1) as classifier:
        output = classifier.infer(tiny.golden.images)
        assert output.logits == pytest.approx(tiny.golden.logits, abs=1e-4)
        assert output.embedding == pytest.approx(tiny.golden.embedding, abs=1e-5)
        assert [p.index for p in classifier.predict(list(tiny.golden.images))] == [
            int(row.argmax()) for row in tiny.golden.logits
        ]


@pytest.mark.parametrize(
    ("images", "match"),
    [
        pytest.param(np.zeros((0, 8, 8, 3), np.uint8), r"found uint8 \(0, 8, 8, 3\)", id="none"),
        pytest.param(np.zeros((8, 8, 3), np.uint8), r"found uint8 \(8, 8, 3\)", id="rank"),
        pytest.param(np.zeros((1, 9, 8, 3), np.uint8), r"expected uint8 \(N, 8, 8, 3\)", id="size"),
        pytest.param(np.zeros((1, 8, 8, 3), np.float32), "found float32", id="dtype"),
    ],
)
def test_impossible_batches(images: np.ndarray, match: str, classifier: Classifier) -> None:
    with pytest.raises(UsageError, match=match):
        classifier.infer(images)


GOOD = np.zeros((8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("images", "top", "error", "match"),
    [
        pytest.param(
            "gone.jpg", 5, ImageError, r"^gone\.jpg: cannot read the image: No such file", id="missing"
        ),
        pytest.param(
            [GOOD, "gone.jpg"],
            5,
            ImageError,
            r"^image 1 of 2: gone\.jpg: .*No such file",
            id="missing-in-list",
        ),
        pytest.param([GOOD, None], 5, ImageError, "^image 1 of 2: .*found NoneType", id="none-in-list"),
        pytest.param(
            [GOOD, GOOD / 255], 5, ImageError, "^image 1 of 2: array of float64 .*pass uint8", id="float"
        ),
        pytest.param(
            np.zeros((2, 8, 8, 3)), 5, ImageError, "^image 0 of 2: array of float64", id="float-batch"
        ),
        pytest.param([[GOOD]], 5, ImageError, "^image 0 of 1: .*found list", id="list-in-list"),
        pytest.param(None, 5, ImageError, "list, tuple or 4-D array of images, found NoneType", id="none"),
        pytest.param((x for x in [GOOD]), 5, ImageError, "found generator", id="generator"),
        pytest.param(b"\xff\xd8", 5, ImageError, "found bytes", id="bytes"),
        pytest.param(np.zeros((1, 1, 8, 8, 3), np.uint8), 5, ImageError, r"expected \(H, W\)", id="rank-5"),
        pytest.param(GOOD, 0, UsageError, "top: expected an integer of at least 1, found 0", id="top-zero"),
        pytest.param(GOOD, 2.0, UsageError, r"found 2\.0", id="top-float"),
    ],
)
def test_impossible_images(
    images: Any, top: Any, error: type[Exception], match: str, classifier: Classifier
) -> None:
    with pytest.raises(error, match=match):
        classifier.predict(images, top=top)


class Fixed:
    """An engine that always answers the same logits."""

    def __init__(self, logits: list[float]) -> None:
        self.info = EngineInfo("fixed", "None", "0", None)
        self._logits = np.array([logits], np.float32)

    def run(self, images: np.ndarray) -> EngineOutput:
        return EngineOutput(np.ones((1, 1), np.float32), self._logits)

    def close(self) -> None:
        """Nothing to close."""


def fixed(logits: list[float], names: tuple[str, ...] = ("a", "b", "c")) -> Classifier:
    return Classifier(Fixed(logits), PreprocessSpec(8, 8), names, logit_scale=100)


@pytest.mark.parametrize(
    ("logits", "index", "probability"),
    [
        pytest.param([1e4, -1e4, 0], 0, 1.0, id="huge"),
        pytest.param([-1e30, -1e30, -2e30], 0, 0.5, id="hugely-negative"),
        pytest.param([3, 3, 3], 0, 1 / 3, id="ties-go-to-the-first"),
        pytest.param([0, 100, 0], 1, 1 / (1 + 2 * math.exp(-100)), id="certain"),
    ],
)
def test_softmax_is_stable(logits: list[float], index: int, probability: float) -> None:
    prediction = fixed(logits).predict(GOOD)
    assert prediction.index == index
    assert prediction.probability == pytest.approx(probability, rel=1e-15)
    assert prediction.similarity == pytest.approx(logits[index] / 100)


def test_similarity_of_unlikely_images_is_the_largest_logit() -> None:
    prediction = fixed([-30, -10, -20]).predict(GOOD)
    assert (prediction.label, prediction.similarity) == ("b", pytest.approx(-0.1))


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        pytest.param(
            lambda: fixed([1, math.nan, 0]).predict(GOOD),
            SelfTestError,
            r"engine fixed \(None 0\): expected finite logits",
            id="nan",
        ),
        pytest.param(lambda: fixed([1, math.inf, 0]).predict(GOOD), SelfTestError, "finite", id="inf"),
        pytest.param(
            lambda: fixed([1, 2]).predict(GOOD),
            UsageError,
            "one logit for each of 3 classes, found 2",
            id="names",
        ),
        pytest.param(lambda: fixed([1], ("a", "a")), DataError, "'a' repeated", id="names-twice"),
        pytest.param(
            lambda: Classifier(Fixed([1]), PreprocessSpec(8, 8), ["a"], logit_scale=0),
            DataError,
            "above 0",
            id="scale",
        ),
    ],
)
def test_what_an_engine_must_not_do(make: Callable[[], object], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        make()


def test_a_model_without_a_bundle(tiny: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(tiny.files["model.onnx"])
    with Classifier.from_model(
        path, PreprocessSpec(8, 8), tiny.draft.classes, logit_scale=20, threads=1
    ) as classifier:
        assert classifier.manifest is None
        assert classifier.infer(tiny.golden.images).logits == pytest.approx(tiny.golden.logits, abs=1e-4)
        with pytest.raises(DataError, match="expected a classifier loaded from a bundle"):
            classifier.with_vocabulary(tiny.vectors)


def test_a_damaged_bundle_is_not_loaded(folder: Path) -> None:
    (folder / "evidence.json").write_text("{}")
    with pytest.raises(BundleError, match=r"evidence\.json"):
        Classifier.load(folder)


def test_the_self_test_runs_at_loading(tiny: Any, build_model: Any, tmp_path: Path) -> None:
    """The model here has other weights than the golden samples come from; all hashes fit."""
    other = build_model(tiny.weight + 0.5, tiny.vectors.vectors).SerializeToString()
    path = write_bundle(tmp_path / "b", tiny.draft, {**tiny.files, "model.onnx": other})
    with pytest.raises(SelfTestError, match=r"self-test of engine ort-cpu .*golden sample 0"):
        Classifier.load(path, threads=1)
    Classifier.load(path, threads=1, self_test="never").close()


def test_the_engine_gets_the_verified_bytes(folder: Path, tiny: Any) -> None:
    bundle = Bundle.open(folder)
    for path in folder.iterdir():
        path.write_bytes(b"changed after the check")
    with Classifier.load(bundle, threads=1) as classifier:
        assert classifier.infer(tiny.golden.images).logits == pytest.approx(tiny.golden.logits, abs=1e-4)


def test_many_threads(classifier: Classifier, tiny: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(tiny.golden.images[0]).save(path)
    right = classifier.predict(path)
    results: list[Prediction] = []

    def work() -> None:
        results.extend(classifier.predict(path) for _ in range(25))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [right] * 100


def other_classes(tiny: Any, **change: Any) -> ClassVectors:
    vectors = np.concatenate([tiny.vectors.vectors[::-1], np.eye(1, 4, dtype=np.float32)])
    made = {"names": ("z", "y", "x", "new"), "vectors": vectors, "prompts": ((),) * 4, "logit_scale": 50.0}
    return dataclasses.replace(tiny.vectors, **{**made, **change})


def test_other_classes_need_no_other_model(classifier: Classifier, tiny: Any) -> None:
    vectors = other_classes(tiny)
    changed = classifier.with_vocabulary(vectors)
    again = changed.with_vocabulary(tiny.vectors)
    for image in tiny.golden.images:
        embedding = tiny.reference(image[None])[0][0]
        cosines = [float(embedding @ row) for row in vectors.vectors.astype(np.float64)]
        prediction = changed.predict(image)
        assert prediction.label == vectors.names[int(np.argmax(cosines))]
        assert prediction.similarity == pytest.approx(max(cosines), abs=1e-5)
        assert again.predict(image).label == classifier.predict(image).label


@pytest.mark.parametrize(
    ("change", "match"),
    [
        pytest.param(
            {"teacher_fingerprint": "cd"},
            r"expected ones from tiny-teacher \(abab.*found .*\(cd\)",
            id="teacher",
        ),
        pytest.param({"vectors": np.eye(4, 6, dtype=np.float32)}, "expected 4 columns, found 6", id="size"),
    ],
)
def test_classes_of_another_space(
    change: dict[str, Any], match: str, classifier: Classifier, tiny: Any
) -> None:
    with pytest.raises(DataError, match=match):
        classifier.with_vocabulary(other_classes(tiny, **change))


def test_the_graph_of_the_fixture_is_as_exported_ones_are(tiny: Any) -> None:
    model = onnx.load_from_string(tiny.files["model.onnx"])
    assert [node.op_type for node in model.graph.node][:2] == ["Cast", "Transpose"]
    assert model.opset_import[0].version == 20
