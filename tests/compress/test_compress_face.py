from __future__ import annotations

import subprocess
import sys

import pytest

import vlkd_compress

NAMES = [
    "CalibrationImages",
    "Candidate",
    "Finding",
    "Guard",
    "GuardOutcome",
    "Trial",
    "check_dialect",
    "guard_candidates",
    "held_out_evaluator",
    "quantize_for_tensorrt",
    "run_preflight",
    "select_calibration",
    "to_float16",
]


def test_the_face_has_these_names_and_no_other() -> None:
    assert dir(vlkd_compress) == NAMES
    assert [getattr(vlkd_compress, name).__name__ for name in NAMES] == NAMES
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        _ = vlkd_compress.quantise  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        pytest.param("import vlkd_compress", ["onnx", "onnxruntime", "numpy"], id="the face is light"),
        pytest.param(
            "from vlkd_compress import *; import vlkd_compress as v; [getattr(v, n) for n in dir(v)]",
            ["torch"],
            id="no torch",
        ),
    ],
)
def test_imports_stay_light(code: str, absent: list[str]) -> None:
    check = f"{code}; import sys; print(sorted(set({absent!r}) & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
