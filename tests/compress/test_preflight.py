from __future__ import annotations

import ctypes
import importlib.util
import platform
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlkd_compress.half import to_float16
from vlkd_compress.preflight import PreflightResult, libraries, run_preflight
from vlkd_compress.preflight.elf import library_returning_true, needed_libraries, soname
from vlkd_compress.preflight.supervise import run_supervised
from vlkd_compress.quantize import quantize_for_tensorrt
from vlkd_runtime.errors import DataError, UnavailableError

linux_x86 = pytest.mark.skipif(
    not sys.platform.startswith("linux") or platform.machine() != "x86_64",
    reason="writes a Linux x86-64 library",
)

SLEEPS = "import time; time.sleep(60)"
SEGFAULTS = "import ctypes; ctypes.string_at(0)"
IS_KILLED = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
RAISES = "raise RuntimeError('no builder today')"
GARBAGE = "print('Loading libraries...')"
A_LIST = "print('[1, 2]')"
SILENT = ""
ANSWERS = "print('{\"a\": 1}')"
HALF_AN_ANSWER = "print('{\"parsed\": true}')"
NO_SIZE = 'print(\'{"parsed": true, "layers": 3, "seconds": 0.1, "engine_bytes": 0, "errors": []}\')'

OUTCOMES = [
    pytest.param(SLEEPS, "timeout", r"it was stopped after 1 s", id="hangs"),
    pytest.param(SEGFAULTS, "crash", r"it was ended by SIGSEGV", id="segmentation fault"),
    pytest.param(IS_KILLED, "crash", r"it was ended by SIGKILL", id="killed"),
    pytest.param(RAISES, "crash", r"it left with status 1; its last words: .*no builder today", id="raises"),
    pytest.param(GARBAGE, "garbage", r"answered b'Loading libraries", id="garbage"),
    pytest.param(A_LIST, "garbage", r"instead of a JSON object", id="a list"),
    pytest.param(SILENT, "garbage", r"answered b''", id="silent"),
    pytest.param(ANSWERS, "answered", r"^$", id="answers"),
]


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "child.py"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize(("text", "outcome", "detail"), OUTCOMES)
def test_whatever_becomes_of_the_child_is_a_value(
    text: str, outcome: str, detail: str, script: Callable[[str], Path]
) -> None:
    # A child that merely starts may take seconds on a busy machine; only the one that hangs is cut short.
    result = run_supervised(script(text), (), {}, 1.0 if text == SLEEPS else 60.0)
    assert result.outcome == outcome
    assert re.search(detail, result.detail.replace("\n", " ")), result.detail
    assert (result.answer == {"a": 1}) == (text == ANSWERS)


@pytest.mark.usefixtures("tensorrt")
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param(SLEEPS, r"gave no answer: it was stopped after 1 s", id="hangs"),
        pytest.param(SEGFAULTS, r"gave no answer: it was ended by SIGSEGV", id="segmentation fault"),
        pytest.param(GARBAGE, r"gave no answer: it left with 0 but answered", id="garbage"),
        pytest.param(HALF_AN_ANSWER, r"gave no answer: its answer misses parts", id="half an answer"),
        pytest.param(NO_SIZE, r"gave no answer: its answer misses parts", id="an empty engine"),
    ],
)
def test_a_child_that_goes_wrong_never_passes(
    text: str, reason: str, script: Callable[[str], Path], float_model: Path
) -> None:
    result = run_preflight(float_model, timeout_s=1.0 if text == SLEEPS else 60.0, child=script(text))
    assert result.verdict == "fail"
    assert re.search(reason, result.reason)
    assert (result.engine_bytes, result.layers, result.errors) == (None, None, ())
    assert result.seconds > 0


def check_passed(result: PreflightResult) -> None:
    assert (result.verdict, result.errors, result.findings) == ("pass", (), ())
    assert result.engine == "TensorRT for RTX"
    assert result.engine_version is not None
    assert result.engine_version.count(".") >= 1
    assert result.engine_bytes is not None
    assert result.engine_bytes > 1000
    assert result.layers is not None
    assert result.layers > 10
    assert "stands in for JetPack's TensorRT" in result.note


@pytest.mark.usefixtures("tensorrt")
def test_float_int8_and_float16_graphs_pass(
    float_model: Path, make_pictures: Callable[..., Any], tmp_path: Path
) -> None:
    int8, half, mixed = (tmp_path / f"{name}.onnx" for name in ("int8", "half", "mixed"))
    quantize_for_tensorrt(float_model, make_pictures(4), int8, method="percentile")
    to_float16(float_model, make_pictures(4), half)
    to_float16(int8, make_pictures(4), mixed)
    for path in (float_model, int8, half, mixed):
        check_passed(run_preflight(path))


@pytest.mark.usefixtures("tensorrt")
def test_nothing_is_left_behind(
    float_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: Callable[[str], Path]
) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    text = "import json, os; print(json.dumps({'path': os.environ['LD_LIBRARY_PATH']}))"
    result = run_preflight(float_model, child=script(text))
    assert result.reason.endswith("it holds ['path']")
    assert list(folder.iterdir()) == []


def test_a_missing_package_is_not_a_pass(float_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = run_preflight(float_model)
    assert result.verdict == "not run"
    assert (result.engine, result.engine_version, result.engine_bytes) == (None, None, None)
    assert result.reason == (
        "The package onnxruntime_ep_nv_tensorrt_rtx is not installed: pip install 'vlkd-edge[build]'"
    )


@pytest.mark.parametrize(
    ("system", "machine"), [("linux", "aarch64"), ("darwin", "arm64"), ("win32", "AMD64")]
)
def test_another_machine_is_not_a_pass(
    system: str, machine: str, float_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libraries.sys, "platform", system)  # type: ignore[attr-defined]
    monkeypatch.setattr(platform, "machine", lambda: machine)
    result = run_preflight(float_model)
    assert result.verdict == "not run"
    assert f"this is {system} on {machine}" in result.reason
    assert "pip install 'vlkd-edge[build]'" in result.reason


def test_rules_are_checked_where_tensorrt_is_missing(
    make_student: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = run_preflight(make_student(tmp_path / "dynamic.onnx", dynamic=True))
    assert (result.verdict, result.engine) == ("fail", None)
    assert {(finding.id, finding.node) for finding in result.findings} == {("VP005", "image")}
    assert re.search("VP005 static-shape at image.*no engine was asked: The package", result.reason)


def test_a_damaged_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location(
        "package", tmp_path / "__init__.py", submodule_search_locations=[str(tmp_path)]
    )
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(UnavailableError, match=r"Expected a file libtensorrt_rtx\.so\.\* in .*found none"):
        libraries.find_libraries()


def test_the_newest_full_version_is_taken(tmp_path: Path) -> None:
    for name in ("libx.so.1", "libx.so", "libx.so.1.9.2", "libx.so.1.10.0"):
        (tmp_path / name).touch()
    assert libraries._newest(tmp_path, "libx.so.*").name == "libx.so.1.10.0"


def test_a_file_that_is_no_model_is_the_callers_mistake(tmp_path: Path) -> None:
    (tmp_path / "junk.onnx").write_text("junk")
    with pytest.raises(DataError, match="Expected an ONNX model"):
        run_preflight(tmp_path / "junk.onnx")


@linux_x86
def test_the_written_library_loads_and_answers(tmp_path: Path) -> None:
    path = tmp_path / "libstub.so"
    path.write_bytes(library_returning_true("libnvinfer_plugin.so.11", "initLibNvInferPlugins"))
    function = ctypes.CDLL(str(path)).initLibNvInferPlugins
    function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_char_p], ctypes.c_bool
    assert function(None, b"") is True
    with pytest.raises(AttributeError, match="undefined symbol: other"):
        _ = ctypes.CDLL(str(path)).other
    assert soname(path) == "libnvinfer_plugin.so.11"
    assert needed_libraries(path) == ()


@linux_x86
def test_needed_libraries_of_a_real_library() -> None:
    core = importlib.util.find_spec("numpy")
    assert core is not None
    assert core.origin is not None
    libraries_found = sorted(Path(core.origin).parent.glob("_core/_multiarray_umath*.so"))
    assert len(libraries_found) == 1
    assert "libc.so.6" in needed_libraries(libraries_found[0])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x7fELF",
        b"MZ" + bytes(100),
        b"\x7fELF\x02\x01\x01" + bytes(200),
        b"\x7fELF\x01\x01\x01" + bytes(200),
    ],
    ids=["empty", "cut off", "another format", "no segments", "32 bit"],
)
def test_files_that_are_no_library_are_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "lib.so"
    path.write_bytes(content)
    with pytest.raises(UnavailableError, match=r"Expected a 64-bit ELF library at .*lib\.so"):
        needed_libraries(path)


@linux_x86
def test_an_unknown_tensorrt_library_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = tmp_path / "libtensorrt_rtx.so.1.0.0"
    stub.write_bytes(library_returning_true("libtensorrt_rtx.so.1", "any"))
    found = libraries.Libraries(stub, stub, stub, "1.0.0")
    monkeypatch.setattr(
        libraries, "needed_libraries", lambda path: ("libnvinfer.so.12", "libnvinfer_lean.so.12")
    )
    with pytest.raises(UnavailableError, match=r"asks for libnvinfer_lean\.so\.12"):
        libraries.arrange(found, tmp_path)
    assert (tmp_path / "libnvinfer.so.12").resolve() == stub.resolve()
