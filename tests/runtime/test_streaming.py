"""Streams: order, bounded memory, back-pressure, errors; and arrays of other libraries."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlkd_runtime import Classifier, ImageError, Prediction, preprocess, running, streaming
from vlkd_runtime.bundle import write_bundle
from vlkd_runtime.engines import EngineOutput
from vlkd_runtime.errors import ConfigError, SelfTestError, UsageError
from vlkd_runtime.preprocess import PreprocessSpec


@pytest.fixture
def three_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (running, streaming):
        monkeypatch.setattr(module, "default_workers", lambda: 3)


@pytest.fixture(params=[pytest.param(1, id="one run at a time"), pytest.param(None, id="runs side by side")])
def classifier(folder: Path, request: Any, three_processors: None) -> Iterator[Classifier]:
    with Classifier.load(folder, threads=request.param, engine="ort-cpu", cache=None) as loaded:
        yield loaded


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("workers", [1, 4])
def test_answers_come_in_order(batch: int, workers: int, make_tiny_batched: Any, tmp_path: Path) -> None:
    tiny = make_tiny_batched(batch)
    rng = np.random.default_rng(5)
    images = rng.integers(0, 256, (37, 8, 8, 3)).astype(np.uint8)
    with Classifier.load(write_bundle(tmp_path / "b", tiny.draft, tiny.files), threads=1) as classifier:
        expected = classifier.predict(images)
        assert list(classifier.stream(iter(images), workers=workers)) == expected
        assert list(classifier.stream([], workers=workers)) == []
        assert [p.label for p in classifier.stream(images, threshold=1.0, top=1)] == ["unknown"] * 37


def test_a_fast_source_is_held_back(classifier: Classifier, tiny: Any) -> None:
    asked = itertools.count()
    taken = 0

    def endless() -> Iterator[np.ndarray]:
        for _ in asked:
            yield tiny.golden.images[0]

    stream = classifier.stream(endless(), ahead=3)
    for _ in range(5):
        next(stream)
        taken += 1
    time.sleep(0.4)  # long enough for the feeder to run away if nothing held it
    # One more may be in the feeder's hand, and one was asked for beyond it.
    assert next(asked) <= taken + 3 + 2
    stream.close()


def test_a_source_may_fill_the_same_buffer_again(classifier: Classifier, tiny: Any) -> None:
    buffer = np.empty_like(tiny.golden.images[0])

    def camera() -> Iterator[np.ndarray]:
        for image in tiny.golden.images:
            np.copyto(buffer, image)
            yield buffer
            buffer.fill(0)

    assert list(classifier.stream(camera())) == classifier.predict(tiny.golden.images)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(8)
    paths = [tmp_path / f"{index}.png" for index in range(40)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (9, 10, 3)).astype(np.uint8)).save(path)
    return paths


@pytest.mark.parametrize("batch", [1, 3])
def test_many_files_are_decoded_ahead_and_no_further(
    batch: int, files: list[Path], make_tiny_batched: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = make_tiny_batched(batch)
    lock, begun, done, threads, furthest, runs = threading.Lock(), 0, 0, set(), 0, 0

    def prepare(source: Path, spec: PreprocessSpec) -> np.ndarray:
        nonlocal begun, furthest
        with lock:
            begun += 1
            furthest = max(furthest, begun - done)
            threads.add(threading.current_thread().name)
        return preprocess.prepare(source, spec)

    with Classifier.load(write_bundle(tmp_path / "b", tiny.draft, tiny.files), threads=1) as classifier:
        expected = [classifier.predict(path) for path in files]
        rows = np.stack([classifier.embed(path) for path in files])
        monkeypatch.setattr(running, "prepare", prepare)
        run = classifier._engine.run

        def slow(images: np.ndarray) -> EngineOutput:
            nonlocal done, runs
            time.sleep(0.002)
            with lock:
                done, runs = done + len(images), runs + 1
            return run(images)

        monkeypatch.setattr(classifier._engine, "run", slow)
        assert classifier.predict(files) == expected
        assert runs == -(-len(files) // batch), "every run but the last is of a whole batch"
        assert np.array_equal(classifier.embed(files), rows)
    assert threads
    assert all(name.startswith("vlkd-decode") for name in threads)
    # What waits, what was taken out of the queue for the run, and one in the feeder's hand.
    assert furthest <= 8 + batch + 1


def test_a_cpu_runs_as_many_images_at_once_as_it_has_processors(
    files: list[Path], folder: Path, three_processors: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Classifier.load(folder, engine="ort-cpu", threads=1, cache=None) as single:
        arrays = [preprocess.prepare(path, single.preprocess) for path in files[:39]]
        expected = [single.predict(image) for image in arrays]
        rows = np.stack([single.embed(image) for image in arrays])
    with Classifier.load(folder, engine="ort-cpu", cache=None) as classifier:
        run, together = classifier._engine.run, threading.Barrier(3)

        def meeting(images: np.ndarray) -> EngineOutput:
            # Broken, and an error here, unless three runs meet each time.
            together.wait(20)
            return run(images)

        monkeypatch.setattr(classifier._engine, "run", meeting)
        for images in (files[:39], arrays, np.stack(arrays)):
            assert classifier.predict(images) == expected
            assert np.array_equal(classifier.embed(images), rows)
            assert list(classifier.stream(iter(images))) == expected


@pytest.mark.parametrize(
    ("batch", "threads", "workers"),
    [
        pytest.param(1, 2, None, id="told the number of threads"),
        pytest.param(1, None, 2, id="told the number of workers"),
        pytest.param(3, None, None, id="a model of several images"),
    ],
)
def test_elsewhere_one_run_follows_the_other(
    batch: int,
    threads: int | None,
    workers: int | None,
    files: list[Path],
    make_tiny_batched: Any,
    three_processors: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tiny = make_tiny_batched(batch)
    place = write_bundle(tmp_path / "b", tiny.draft, tiny.files)
    seen = set()
    with Classifier.load(place, engine="ort-cpu", threads=threads, cache=None) as classifier:
        run = classifier._engine.run

        def watched(images: np.ndarray) -> EngineOutput:
            seen.add(threading.current_thread())
            return run(images)

        monkeypatch.setattr(classifier._engine, "run", watched)
        assert len(list(classifier.stream(files, workers=workers))) == len(files)
        if workers is None:
            classifier.predict(files)
    assert seen == {threading.current_thread()}


def test_an_error_of_the_engine_comes_through_after_the_answers_before_it(
    files: list[Path], classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, refused = classifier.predict(files[:5]), preprocess.prepare(files[5], classifier.preprocess)
    run = classifier._engine.run

    def broken(images: np.ndarray) -> EngineOutput:
        if np.array_equal(images[0], refused):
            msg = "the sixth"
            raise SelfTestError(msg)
        return run(images)

    monkeypatch.setattr(classifier._engine, "run", broken)
    stream = classifier.stream(files)
    assert [next(stream) for _ in range(5)] == expected
    with pytest.raises(SelfTestError, match="the sixth"):
        next(stream)
    with pytest.raises(SelfTestError, match="the sixth"):
        classifier.predict(files)


def test_new_names_hold_for_the_very_next_answer(classifier: Classifier, tiny: Any) -> None:
    stream = classifier.stream(itertools.repeat(tiny.golden.images[0]))
    before = next(stream).label
    time.sleep(0.2)  # long enough for the next images to have been run
    classifier.rename_classes({before: "renamed"})
    assert next(stream).label == "renamed"
    stream.close()


def test_a_damaged_file_among_many(files: list[Path], classifier: Classifier) -> None:
    files[33].write_bytes(b"no image")
    for call in (classifier.predict, classifier.embed):
        with pytest.raises(ImageError, match=r"^image 33 of 40: .*33\.png: no image"):
            call(files)


def test_a_slow_source_does_not_hold_answers_back(classifier: Classifier, tiny: Any) -> None:
    release = threading.Event()

    def source() -> Iterator[np.ndarray]:
        yield tiny.golden.images[0]
        assert release.wait(20)
        yield tiny.golden.images[1]

    stream = classifier.stream(source(), ahead=8)
    assert next(stream) == classifier.predict(tiny.golden.images[0])
    release.set()
    assert next(stream) == classifier.predict(tiny.golden.images[1])
    with pytest.raises(StopIteration):
        next(stream)


def test_unreadable_images(classifier: Classifier, tiny: Any, tmp_path: Path) -> None:
    good = tmp_path / "x.png"
    Image.fromarray(tiny.golden.images[0]).save(good)
    sources = [good, tmp_path / "gone.png", good]
    found = list(classifier.stream(sources, on_error="yield"))
    assert [type(one) for one in found] == [Prediction, ImageError, Prediction]
    assert "gone.png" in str(found[1])
    stream = classifier.stream(sources)
    assert isinstance(next(stream), Prediction)
    with pytest.raises(ImageError, match=r"gone\.png"):
        next(stream)


def test_images_before_an_unreadable_one_are_answered_whatever_the_batch(
    make_tiny_batched: Any, tmp_path: Path
) -> None:
    tiny = make_tiny_batched(3)
    sources = [tiny.golden.images[0], tiny.golden.images[1], tmp_path / "gone.png", tiny.golden.images[2]]
    folder = write_bundle(tmp_path / "b", tiny.draft, tiny.files)
    with Classifier.load(folder, threads=1, cache=None) as classifier:
        stream = classifier.stream(sources)
        assert [type(next(stream)) for _ in range(2)] == [Prediction, Prediction]
        with pytest.raises(ImageError, match=r"gone\.png"):
            next(stream)


def test_an_error_of_the_source_comes_through_after_its_images(classifier: Classifier, tiny: Any) -> None:
    def broken() -> Iterator[np.ndarray]:
        yield tiny.golden.images[0]
        msg = "the cable"
        raise OSError(msg)

    stream = classifier.stream(broken())
    assert isinstance(next(stream), Prediction)
    with pytest.raises(OSError, match="the cable"):
        next(stream)


def test_no_thread_is_left(classifier: Classifier, tiny: Any) -> None:
    def ours() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.startswith("vlkd-")]

    stream = classifier.stream(itertools.repeat(tiny.golden.images[0]))
    next(stream)
    assert ours()
    stream.close()
    end = time.monotonic() + 20
    while ours() and time.monotonic() < end:
        time.sleep(0.02)
    assert ours() == []


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        pytest.param({"ahead": 0}, ConfigError, "ahead: expected an integer from 1", id="ahead"),
        pytest.param({"workers": 1.5}, ConfigError, r"found 1\.5", id="workers"),
        pytest.param(
            {"on_error": "skip"}, ConfigError, "expected 'raise' or 'yield', found 'skip'", id="error"
        ),
        pytest.param({"top": 0}, UsageError, "top: expected", id="top"),
    ],
)
def test_impossible_options(
    options: dict[str, Any], error: type[Exception], match: str, folder: Path
) -> None:
    with Classifier.load(folder, threads=1) as classifier, pytest.raises(error, match=match):
        classifier.stream([], **options)


class Lent:
    """An array of another library, as far as DLPack goes."""

    def __init__(self, array: np.ndarray, device: tuple[int, int] = (1, 0)) -> None:
        self._array, self._device = array, device

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device


def test_arrays_of_other_libraries(classifier: Classifier, tiny: Any) -> None:
    images = tiny.golden.images
    expected = classifier.predict(images)
    assert classifier.predict(Lent(images)) == expected  # type: ignore[call-overload]
    assert classifier.predict(Lent(images[1])) == expected[1]
    assert classifier.predict([Lent(image) for image in images]) == expected
    assert list(classifier.stream(Lent(image) for image in images)) == expected
    larger = np.repeat(np.repeat(images[0], 2, axis=0), 2, axis=1)
    assert classifier.predict(Lent(larger)) == classifier.predict(larger)


@pytest.mark.parametrize(
    ("array", "match"),
    [
        pytest.param(
            Lent(np.zeros((8, 8, 3), np.uint8), (2, 0)),
            "Lent on device type 2: expected an array in the CPU's memory.*tensor.cpu",
            id="gpu",
        ),
        pytest.param(Lent(np.zeros((8, 8, 3))), "array of float64 .*pass uint8", id="float"),
        pytest.param(Lent(np.array(["x"])), "its memory cannot be lent", id="text"),
    ],
)
def test_arrays_that_cannot_be_taken(array: Any, match: str, classifier: Classifier) -> None:
    with pytest.raises(ImageError, match=match):
        classifier.predict(array)
    with pytest.raises(ImageError, match="image 0 of 1"):
        classifier.predict([array])
