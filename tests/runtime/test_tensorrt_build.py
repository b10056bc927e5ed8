"""What is asked of TensorRT's builder in each version, its child process, and the real builder without a GPU."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from vlkd_runtime.engines import building
from vlkd_runtime.engines.base import EngineOptions
from vlkd_runtime.engines.building import engine_identity, run_build
from vlkd_runtime.engines.cuda import Gpu
from vlkd_runtime.engines.tensorrt_build import configure, give_timing, is_typed, network_flags
from vlkd_runtime.errors import BundleError, UnavailableError


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
        FP16, INT8, GPU_FALLBACK, SPARSE_WEIGHTS = 0, 1, 2, 3


@pytest.mark.parametrize(
    ("version", "flags", "dla", "typed", "expected"),
    [
        pytest.param("8.6.2", OldFlags, None, False, 1, id="8"),
        pytest.param("8.6.2", OldFlags, 0, False, 1, id="8-dla"),
        pytest.param("1.7.1", Flags, None, True, 9, id="rtx"),
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


@pytest.mark.parametrize(("version", "flags"), [("10.7.0", [0, 1, 2]), ("11.4.1", [2])])
def test_accelerators(version: str, flags: list[int]) -> None:
    builder = type("Builder", (), {"num_DLA_cores": 1})()
    config: Any = Config()
    request = {"dla_core": 0, "workspace_bytes": 99, "weak_types": ["FP16", "INT8"]}
    assert configure(Version(version), builder, config, request) == ""
    assert (config.flags, config.default_device_type, config.DLA_core, config.pool) == (flags, 1, 0, (0, 99))
    problem = configure(Version(version), builder, Config(), {**request, "dla_core": 1})
    assert problem == "expected a deep learning accelerator with number 1, found 1 of them"


def test_types_that_no_graph_dictates_are_those_it_holds(tiny: Any) -> None:
    """TensorRT 8 builds what a flag allows, whatever the graph says; 10 is told nothing."""
    request = {"weak_types": ["FP16", "INT8"]}
    for version, flags in (("8.6.2", [0, 1]), ("10.7.0", []), ("1.7.1", [])):
        config: Any = Config()
        assert configure(Version(version), None, config, request) == ""
        assert config.flags == flags
    assert building.weak_types(tiny.files["model.onnx"], EngineOptions()) == []
    assert building.weak_types(tiny.files["model.onnx"], EngineOptions(dla_core=0)) == ["FP16"]
    int8 = onnx.load_model_from_string(tiny.files["model.onnx"])
    int8.graph.initializer.append(numpy_helper.from_array(np.zeros((), np.int8), "zero_point"))
    int8.graph.initializer.append(numpy_helper.from_array(np.zeros((), np.float16), "half"))
    assert building.weak_types(int8.SerializeToString(), EngineOptions()) == ["FP16", "INT8"]
    assert building.weak_types(b"no model", EngineOptions()) == []


@pytest.mark.parametrize("sparse", [False, True])
def test_zeros_are_looked_for_where_there_are_any(sparse: bool) -> None:
    config: Any = Config()
    assert configure(Version("10.7.0"), None, config, {"sparse_weights": sparse}) == ""
    assert config.flags == [3] * sparse
    gpu = Gpu("Fake Orin", "8.7", True, True, "12.6")
    dense, other = (
        engine_identity(b"m", "tensorrt", "10.7.0", gpu, EngineOptions(sparse_weights=value))
        for value in (False, sparse)
    )
    assert (dense != other) == sparse


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
        EngineOptions(workspace_bytes=64 << 20, sparse_weights=True),
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
