"""The native engine on a stood-in driver, its cache, and TensorRT's real builder without a GPU."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlkd_runtime import Classifier
from vlkd_runtime.bundle import write_bundle
from vlkd_runtime.engines import building
from vlkd_runtime.engines import tensorrt as engine_module
from vlkd_runtime.engines.base import EngineOptions, Execution, Prebuilt
from vlkd_runtime.engines.building import engine_identity, get_engine, run_build
from vlkd_runtime.engines.cuda import Cuda, Gpu
from vlkd_runtime.engines.enginecache import Entry, default_cache, prepare_cache
from vlkd_runtime.engines.inspection import read_inspection
from vlkd_runtime.engines.tensorrt import TensorRtEngine
from vlkd_runtime.engines.tensorrt_build import configure, give_timing, is_typed, network_flags
from vlkd_runtime.errors import BundleError, ConfigError, SelfTestError, UnavailableError, UsageError

sys.path.insert(0, str(Path(__file__).parent))
from fakes import FakeDriver, FakeTensorRt

SHAPES = {"image": (1, 8, 8, 3), "embedding": (1, 4), "logits": (1, 3)}


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Stand in for the child process that builds; the list has one entry for each build."""
    plans: list[bytes] = []

    def build(model: bytes, timing: bytes, module: str, options: EngineOptions) -> Any:
        plans.append(b"plan:%d" % len(plans))
        return plans[-1], b"timing" + timing, {"seconds": 1.0, "layers": 9, "timing": "new"}

    monkeypatch.setattr(building, "run_build", build)
    return plans


def open_fake(tiny: Any, options: EngineOptions, driver: FakeDriver | None = None, **change: Any) -> Any:
    driver = driver or FakeDriver()
    trt = FakeTensorRt(driver, lambda image: tiny.reference(image), SHAPES)
    for name, value in change.items():
        setattr(trt, name, value)
    engine = TensorRtEngine(
        "tensorrt", tiny.files["model.onnx"], options, cuda=Cuda(0, library=driver), module=trt
    )
    return engine, driver, trt


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


def test_the_engine_is_cached_under_everything_it_depends_on(tiny: Any, built: Any, tmp_path: Path) -> None:
    options = EngineOptions(cache=prepare_cache(tmp_path / "c"))
    for expected in (1, 1):
        engine, _, _ = open_fake(tiny, options)
        assert len(built) == expected
        engine.close()
    assert engine.built.how == "found in the cache"
    for change, other in (
        ({"__version__": "10.7.0"}, options),
        ({}, dataclasses.replace(options, workspace_bytes=1 << 20)),
        ({}, dataclasses.replace(options, dla_core=0)),
    ):
        before = len(built)
        open_fake(tiny, other, **change)[0].close()
        assert len(built) == before + 1
    keys = [engine.identity[key] for key in ("gpu", "driver", "compute capability", "tensorrt", "model")]
    digest = hashlib.sha256(tiny.files["model.onnx"]).hexdigest()
    assert keys == ["Fake Orin", "12.6", "8.7", "10.3.0", digest]


def replaced_with_its_side_car(place: Path) -> None:
    """What another machine's engine would look like: whole in itself, for another key."""
    (place / "engine.plan").write_bytes(b"plan:evil")
    note = json.loads((place / "engine.plan.json").read_text())
    note["sha256"] = hashlib.sha256(b"plan:evil").hexdigest()
    note["identity"]["gpu"] = "another"
    (place / "engine.plan.json").write_text(json.dumps(note))


def linked(place: Path) -> None:
    (place / "engine.plan").rename(place / "elsewhere")
    (place / "engine.plan").symlink_to(place / "elsewhere")


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        pytest.param(lambda p: (p / "engine.plan").write_bytes(b"plan:evil"), "not the file", id="altered"),
        pytest.param(lambda p: (p / "engine.plan").unlink(), "No such file", id="gone"),
        pytest.param(linked, "engine.plan", id="link"),
        pytest.param(lambda p: (p / "engine.plan.json").unlink(), "No such file", id="no-side-car"),
        pytest.param(lambda p: (p / "engine.plan.json").write_text("{"), "not JSON", id="side-car"),
        pytest.param(lambda p: (p / "engine.plan.json").write_text("{}"), "no note", id="empty-side-car"),
        pytest.param(replaced_with_its_side_car, "another model, machine or version", id="other-key"),
    ],
)
def test_what_is_in_the_cache_is_checked(
    harm: Any, reason: str, tiny: Any, built: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = EngineOptions(cache=prepare_cache(tmp_path / "c"))
    engine, _, _ = open_fake(tiny, options)
    engine.close()
    harm(engine.folder)
    seen: list[bytes] = []
    real = TensorRtEngine._deserialise

    def watched(self: TensorRtEngine, made: Any) -> bool:
        seen.append(made.plan)
        return real(self, made)

    monkeypatch.setattr(TensorRtEngine, "_deserialise", watched)
    again, _, _ = open_fake(tiny, options)
    assert seen == [b"plan:1"]
    assert again.built.how.startswith("built, because ")
    assert reason in again.built.how
    again.close()


def test_an_engine_that_does_not_load_is_built_again_once(tiny: Any, built: Any, tmp_path: Path) -> None:
    options = EngineOptions(cache=prepare_cache(tmp_path / "c"))
    open_fake(tiny, options)[0].close()
    engine, _, _ = open_fake(tiny, options, refused={b"plan:0"})
    assert engine.built.plan == b"plan:1"
    engine.close()
    with pytest.raises(UnavailableError, match=r"does not load the engine it built: .*another version"):
        open_fake(tiny, options, refused={b"plan:1", b"plan:2"})
    assert len(built) == 3


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


def test_the_timing_cache_is_kept_for_other_models(tiny: Any, built: Any, tmp_path: Path) -> None:
    cache = prepare_cache(tmp_path / "c")
    gpu = Gpu("Fake Orin", "8.7", True, True, "12.6")
    for model in (b"first", b"second"):
        identity = engine_identity(model, "tensorrt", "10.3.0", gpu, EngineOptions(cache=cache))
        get_engine(model, identity, EngineOptions(cache=cache), fresh=False)
    shared = {key: value for key, value in identity.items() if key != "model"}
    # The stand-in puts a word in front of what it was given.
    assert Entry.of(cache, shared).read("timing.bin")[0] == b"timingtiming"


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


def layer(kind: str, dtype: str, **more: str) -> dict[str, Any]:
    return {"Name": kind, "LayerType": kind, "Inputs": [{"Format/Datatype": dtype}], **more}


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        pytest.param([], Execution("t", 0, note="the engine keeps the names of its layers only"), id="none"),
        pytest.param(
            ["conv1", "conv2"],
            Execution("t", 2, note="the engine keeps the names of its layers only"),
            id="names",
        ),
        pytest.param(
            [
                layer("CaskConvolution", "Thirty-two wide channel vectorized row major Int8 format"),
                layer("CaskConvolution", "Row major linear FP32"),
                layer("Reformat", "Row major Int8 format"),
                layer("CaskGemmMatrixMultiply", "Int8"),
                layer("CaskConvolution", "UInt8"),
            ],
            Execution("t", 5, 2, 0),
            id="int8",
        ),
        pytest.param(
            [layer("DLA", "Int8"), layer("Reformat", "Int8")],
            Execution(
                "t",
                2,
                None,
                1,
                "1 of its layers are regions compiled whole, and their operators are not listed",
            ),
            id="dla",
        ),
        pytest.param(
            [layer("Myelin", "Int8"), layer("CaskConvolution", "Int8")],
            Execution(
                "t", 2, 1, 0, "1 of its layers are regions compiled whole, and their operators are not listed"
            ),
            id="myelin",
        ),
    ],
)
def test_inspection(layers: list[Any], expected: Execution) -> None:
    assert read_inspection(json.dumps({"Layers": layers}), "t") == expected


@pytest.mark.parametrize("text", ["", "[]", "{", "null"])
def test_an_inspection_that_says_nothing(text: str) -> None:
    assert read_inspection(text, "t").note == "the engine inspector gave nothing that can be read"


class Flags:
    EXPLICIT_BATCH, STRONGLY_TYPED = 0, 3


class OldFlags:
    EXPLICIT_BATCH = 0


class Version:
    def __init__(self, version: str, flags: Any = Flags) -> None:
        self.__version__, self.NetworkDefinitionCreationFlag = version, flags

    class ProfilingVerbosity:
        DETAILED = 2

    class MemoryPoolType:
        WORKSPACE = 0

    class DeviceType:
        DLA = 1

    class BuilderFlag:
        FP16, INT8, GPU_FALLBACK = 0, 1, 2


@pytest.mark.parametrize(
    ("version", "flags", "dla", "typed", "expected"),
    [
        pytest.param("8.5.2", OldFlags, None, True, 1, id="8"),
        pytest.param("10.3.0", Flags, None, True, 8, id="10"),
        pytest.param("10.7.0", Flags, 0, False, 0, id="10-dla"),
        pytest.param("11.4.0.106", Flags, None, True, 8, id="11"),
        pytest.param("11.4.1", Flags, 0, True, 8, id="11-dla"),
        pytest.param("12.0", OldFlags, None, True, 0, id="flag-gone"),
    ],
)
def test_networks_of_each_version(
    version: str, flags: Any, dla: int | None, typed: bool, expected: int
) -> None:
    trt = Version(version, flags)
    assert is_typed(trt, {"dla_core": dla}) is typed
    assert network_flags(trt, typed=typed) == expected


class Config:
    def __init__(self) -> None:
        self.flags: list[int] = []

    def set_flag(self, flag: int) -> None:
        self.flags.append(flag)

    def set_memory_pool_limit(self, pool: int, size: int) -> None:
        self.pool = (pool, size)


@pytest.mark.parametrize(("version", "flags"), [("10.7.0", [2, 0, 1]), ("11.4.1", [2])])
def test_accelerators(version: str, flags: list[int]) -> None:
    builder = type("Builder", (), {"num_DLA_cores": 1})()
    config: Any = Config()
    request = {"dla_core": 0, "workspace_bytes": 99, "weak_types": ["FP16", "INT8"]}
    assert configure(Version(version), builder, config, request) == ""
    assert (config.flags, config.default_device_type, config.DLA_core, config.pool) == (flags, 1, 0, (0, 99))
    problem = configure(Version(version), builder, Config(), {**request, "dla_core": 1})
    assert problem == "expected a deep learning accelerator with number 1, found 1 of them"


def test_a_timing_cache_that_is_refused_starts_anew() -> None:
    class Timed(Config):
        taken: Any = None

        def create_timing_cache(self, data: bytes) -> bytes:
            if data == b"old":
                msg = "of another version"
                raise ValueError(msg)
            return b"cache:" + data

        def set_timing_cache(self, cache: bytes, ignore: bool) -> bool:
            assert ignore is False
            self.taken = cache
            return True

    for data, words, taken in (
        (b"", "new", b"cache:"),
        (b"x", "reused", b"cache:x"),
        (b"old", "refused: of", b"cache:"),
    ):
        config = Timed()
        assert give_timing(config, data).startswith(words)
        assert config.taken == taken
    assert give_timing(Config(), b"x") == "not known to this version"


def test_caches_that_others_can_write_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "c"
    place.mkdir(mode=0o777)
    place.chmod(0o777)
    with pytest.raises(ConfigError, match=r"only its owner can write to, found mode 777 .*chmod go-w"):
        prepare_cache(place)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="cannot make the cache folder"):
        prepare_cache(tmp_path / "file" / "c")
    monkeypatch.setenv("VLKD_CACHE", str(place))
    with pytest.raises(ConfigError, match="chmod"):
        default_cache()
    monkeypatch.delenv("VLKD_CACHE")
    monkeypatch.setenv("CACHE_DIRECTORY", f"{tmp_path / 'service'}:{tmp_path / 'other'}")
    assert default_cache() == tmp_path / "service"
    monkeypatch.delenv("CACHE_DIRECTORY")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert default_cache() is None  # a device without a home works, and keeps nothing


def test_a_child_that_dies_or_hangs_is_told(
    tiny: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    child = tmp_path / "child.py"
    monkeypatch.setattr(building, "_CHILD", child)
    for code, match in (
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ended with signal 11"),
        ("import sys; sys.exit('no such library')", "ended with exit code 1: no such library"),
        ("print('noise')", "ended with exit code 0"),
    ):
        child.write_text(code)
        with pytest.raises(UnavailableError, match=match):
            run_build(b"model", b"", "tensorrt", EngineOptions())
    child.write_text("import time; time.sleep(60)")
    with pytest.raises(UnavailableError, match=r"did not end within 0\.5 s"):
        run_build(b"model", b"", "tensorrt", EngineOptions(), timeout_s=0.5)


@pytest.fixture(scope="module")
def real_tensorrt(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """TensorRT's own module over TensorRT for RTX, as the preflight arranges it."""
    from vlkd_compress.preflight.libraries import arrange, find_libraries

    folder = tmp_path_factory.mktemp("links")
    try:
        arrange(find_libraries(), folder)
    except UnavailableError as error:
        pytest.skip(str(error))
    return {
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, (str(folder), os.environ.get("LD_LIBRARY_PATH"))))
    }


def test_the_real_builder_builds(tiny: Any, real_tensorrt: dict[str, str]) -> None:
    plan, _, answer = run_build(
        tiny.files["model.onnx"],
        b"",
        "tensorrt_bindings",
        EngineOptions(workspace_bytes=64 << 20),
        environment=real_tensorrt,
        timeout_s=300,
    )
    assert len(plan) > 1000
    assert answer["version"].startswith("11.")
    assert answer["layers"] > 5
    assert answer["errors"] == []


def test_the_real_builder_says_what_is_wrong(tiny: Any, real_tensorrt: dict[str, str]) -> None:
    arguments: dict[str, Any] = {"environment": real_tensorrt, "timeout_s": 300}
    with pytest.raises(BundleError, match=r"TensorRT 11\.\d+.*: it builds no engine of the model: .*parse"):
        run_build(b"no model", b"", "tensorrt_bindings", EngineOptions(), **arguments)
    with pytest.raises(BundleError, match="a deep learning accelerator with number 0, found 0 of them"):
        run_build(tiny.files["model.onnx"], b"", "tensorrt_bindings", EngineOptions(dla_core=0), **arguments)
    with pytest.raises(UnavailableError, match="No module named 'tensorrt_gone'"):
        run_build(tiny.files["model.onnx"], b"", "tensorrt_gone", EngineOptions(), **arguments)
