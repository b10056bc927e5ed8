"""The native engine on a stood-in driver: runs, memory, contexts, bundles."""

from __future__ import annotations

import importlib.util
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlkd_runtime import Classifier
from vlkd_runtime.bundle import write_bundle
from vlkd_runtime.engines import tensorrt as engine_module
from vlkd_runtime.engines.base import EngineOptions, Prebuilt
from vlkd_runtime.engines.cuda import Cuda
from vlkd_runtime.engines.enginecache import prepare_cache
from vlkd_runtime.engines.tensorrt import TensorRtEngine
from vlkd_runtime.errors import BundleError, SelfTestError, UnavailableError, UsageError

sys.path.insert(0, str(Path(__file__).parent))
from fakes import SHAPES, FakeDriver, FakeTensorRt, open_fake


@pytest.mark.parametrize("integrated", [False, True], ids=["discrete", "integrated"])
@pytest.mark.parametrize("graph", [False, True], ids=["calls", "graph"])
def test_answers_and_memory(integrated: bool, graph: bool, tiny: Any, built: Any, tmp_path: Path) -> None:
    options = EngineOptions(cache=prepare_cache(tmp_path / "c"), cuda_graph=graph)
    engine, driver, _ = open_fake(tiny, options, FakeDriver(integrated=integrated))
    kept = []
    for _ in range(3):
        for image in tiny.golden.images:
            output = engine.run(image[None])
            kept.append(output)
            embedding, logits = tiny.reference(image[None])
            assert output.embedding == pytest.approx(embedding, abs=1e-6)
            assert output.logits == pytest.approx(logits, abs=1e-4)
    assert not np.array_equal(kept[0].logits, kept[1].logits)  # outputs are the caller's own
    copies = driver.calls.count("cuMemcpyHtoDAsync_v2")
    # A graph is recorded after two plain runs and holds one more copy.
    assert copies == (0 if integrated else 3 if graph else 12)
    assert driver.calls.count("cuGraphLaunch") == (10 if graph else 0)
    assert ("device" in {kind for kind, _ in driver.live}) is not integrated
    assert engine.info.device == "Fake Orin (compute capability 8.7, driver for CUDA 12.6)"
    engine.close()
    engine.close()
    assert driver.live == set()
    assert driver.memory == {}
    with pytest.raises(UsageError, match="the engine was closed"):
        engine.run(tiny.golden.images[:1])


def test_a_graph_that_cannot_be_recorded_is_done_without(tiny: Any, built: Any) -> None:
    driver = FakeDriver()
    driver.errors_in_graph = True
    engine, _, _ = open_fake(tiny, EngineOptions(), driver)
    for _ in range(6):
        assert engine.run(tiny.golden.images[:1]).logits == pytest.approx(tiny.golden.logits[:1], abs=1e-4)
    assert driver.calls.count("cuStreamBeginCapture_v2") == 1
    engine.close()
    assert driver.live == set()


def test_every_thread_has_a_context_of_its_own(tiny: Any, built: Any) -> None:
    """The stand-in asserts that no two runs are in one context; a barrier makes them meet."""
    barrier = threading.Barrier(4)

    def network(image: np.ndarray) -> Any:
        if threading.current_thread().name == "meet":
            barrier.wait(20)
        return tiny.reference(image)

    engine, driver, trt = open_fake(tiny, EngineOptions(cuda_graph=False), network=network)
    wrong: list[int] = []

    def work() -> None:
        for index in range(5):
            found = engine.run(tiny.golden.images[index % 4][None]).logits
            if not np.allclose(found, tiny.golden.logits[index % 4], atol=1e-3):
                wrong.append(index)

    threads = [threading.Thread(target=work, name="meet") for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert trt.contexts == 4
    for _ in range(5):
        engine.run(tiny.golden.images[:1])
    assert trt.contexts == 4
    engine.close()
    assert driver.live == set()


def test_closing_waits_for_runs(tiny: Any, built: Any) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def network(image: np.ndarray) -> Any:
        inside.set()
        assert go_on.wait(20)
        return tiny.reference(image)

    engine, driver, _ = open_fake(tiny, EngineOptions(cuda_graph=False), network=network)
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(engine.run(tiny.golden.images[:1])))
    thread.start()
    assert inside.wait(20)
    engine.close()
    assert ("context", driver.context) in driver.live
    go_on.set()
    thread.join()
    assert found[0].logits == pytest.approx(tiny.golden.logits[:1], abs=1e-4)
    assert driver.live == set()


@pytest.mark.parametrize("failing", ["cuMemHostAlloc", "cuMemAlloc_v2", "cuStreamCreate"])
def test_no_memory(failing: str, tiny: Any, built: Any) -> None:
    driver = FakeDriver(failing=failing)
    engine, _, _ = open_fake(tiny, EngineOptions(), driver)
    with pytest.raises(SelfTestError, match=rf"{failing} failed with error 2 \(out of memory\)"):
        engine.run(tiny.golden.images[:1])
    engine.close()
    assert driver.live == set()


@pytest.mark.parametrize(
    ("driver", "device", "match"),
    [
        pytest.param(FakeDriver(failing="cuInit"), 0, "it does not start", id="init"),
        pytest.param(FakeDriver(devices=0), 0, "expected one of 0 GPUs, found number 0", id="no-gpu"),
        pytest.param(FakeDriver(devices=2), 2, "expected one of 2 GPUs, found number 2", id="third"),
        pytest.param(object(), 0, "expected the call cuInit, found none", id="old"),
    ],
)
def test_drivers_that_do_not_do(driver: Any, device: int, match: str) -> None:
    with pytest.raises(UnavailableError, match=match):
        Cuda(device, library=driver)


BUILT = "built, because there is no cache folder"


@pytest.mark.parametrize(
    ("plan", "version", "taken", "origin"),
    [
        pytest.param(b"plan:ahead", "1.7.1", True, "taken from the bundle", id="same"),
        pytest.param(b"plan:ahead", "1.7.1.4", True, "taken from the bundle", id="another-build"),
        pytest.param(
            b"plan:ahead",
            "1.7.0",
            False,
            f"{BUILT}; the bundle's is for version 1.7.0 and this is 1.7.1.9",
            id="older",
        ),
        pytest.param(
            b"plan:ahead",
            "1.17.1",
            False,
            f"{BUILT}; the bundle's is for version 1.17.1 and this is 1.7.1.9",
            id="newer",
        ),
        pytest.param(
            b"damaged",
            "1.7.1",
            False,
            f"{BUILT}; TensorRT does not load the bundle's: the engine is of another version",
            id="does-not-load",
        ),
    ],
)
def test_engines_of_the_bundle_go_first(
    plan: bytes, version: str, taken: bool, origin: str, tiny: Any, built: Any
) -> None:
    driver = FakeDriver()
    trt = FakeTensorRt(driver, tiny.reference, SHAPES)
    trt.__version__ = "1.7.1.9"
    engine = TensorRtEngine(
        "tensorrt-rtx",
        tiny.files["model.onnx"],
        EngineOptions(),
        prebuilt=Prebuilt(plan, version),
        cuda=Cuda(0, library=driver),
        module=trt,
    )
    assert engine.origin == origin
    assert (engine.built.plan, built) == ((plan, []) if taken else (b"plan:0", [b"plan:0"]))
    engine.close()
    assert driver.live == set()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        pytest.param({"dtypes": {**dict.fromkeys(SHAPES, np.float32)}}, "found .*image float32", id="dtype"),
        pytest.param({"shapes": {**SHAPES, "image": (-1, 8, 8, 3)}}, "fixed shapes", id="dynamic"),
        pytest.param({"shapes": {**SHAPES, "logits": (2, 3)}}, "of one batch", id="batches"),
    ],
)
def test_engines_with_other_tensors(change: dict[str, Any], match: str, tiny: Any, built: Any) -> None:
    driver = FakeDriver()
    with pytest.raises(BundleError, match=match):
        open_fake(tiny, EngineOptions(), driver, **change)
    assert driver.live == set()


def test_a_bundle_on_the_native_engine(
    tiny: Any, built: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the bundle to a prediction: self-test after the build, its result beside the engine, no second one."""
    driver = FakeDriver(integrated=True)
    trt = FakeTensorRt(driver, tiny.reference, SHAPES)
    monkeypatch.setattr("vlkd_runtime.engines.cuda._load", lambda: driver)
    monkeypatch.setattr(engine_module, "_import_tensorrt", lambda name: trt)
    place, cache = write_bundle(tmp_path / "b", tiny.draft, tiny.files), tmp_path / "cache"
    for when in ("now", "before"):
        with Classifier.load(place, cache=cache) as classifier:
            assert classifier.selection is not None
            assert (classifier.info.name, classifier.info.provider) == ("tensorrt", "TensorRT")
            assert classifier.selection.self_test["when"] == when
            assert classifier.predict(tiny.golden.images[0]).index == int(tiny.golden.logits[0].argmax())
            assert classifier.selection.engines[-1].reason == "tensorrt goes before it"
    assert len(built) == 1
    notes = [path.parent for path in cache.rglob("selftest.json")]
    assert len(notes) == 1
    assert (notes[0] / "engine.plan").exists()
    # Another build of the same engine is another engine, and is tested.
    (notes[0] / "engine.plan").write_bytes(b"x")
    with Classifier.load(place, cache=cache) as classifier:
        assert classifier.selection is not None
        assert classifier.selection.self_test["when"] == "now"
    assert driver.live == set()


def test_auto_goes_on_where_the_gpu_answers_wrongly(
    tiny: Any, built: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = FakeDriver()
    trt = FakeTensorRt(driver, lambda image: tiny.reference(255 - image), SHAPES)
    monkeypatch.setattr("vlkd_runtime.engines.cuda._load", lambda: driver)
    monkeypatch.setattr(
        engine_module,
        "_import_tensorrt",
        lambda name: trt if name == "tensorrt" else importlib.import_module("no"),
    )
    monkeypatch.setattr("vlkd_runtime.loading.engines_to_try", lambda name: ("tensorrt", "ort-cpu"))
    place = write_bundle(tmp_path / "b", tiny.draft, tiny.files)
    with Classifier.load(place, cache=None) as classifier:
        assert classifier.selection is not None
        assert classifier.info.name == "ort-cpu"
        assert "engine tensorrt (TensorRT 10.3.0) failed on golden sample 0" in (
            classifier.selection.engines[0].reason
        )
    assert driver.live == set()
