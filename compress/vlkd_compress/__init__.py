"""Makes a distilled student small enough for the device, and stops where held-out accuracy would suffer."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .calibration import CalibrationImages as CalibrationImages
    from .calibration import select_calibration as select_calibration
    from .dialect import Finding as Finding
    from .dialect import check_dialect as check_dialect
    from .guard import Candidate as Candidate
    from .guard import Guard as Guard
    from .guard import GuardOutcome as GuardOutcome
    from .guard import Trial as Trial
    from .guard import guard_candidates as guard_candidates
    from .guard import held_out_evaluator as held_out_evaluator
    from .half import to_float16 as to_float16
    from .preflight import run_preflight as run_preflight
    from .quantize import quantize_for_tensorrt as quantize_for_tensorrt

# As `vlkd_runtime.ortimport` does, before any module here imports ONNX Runtime; that one would bring numpy.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_GUARD = ("Candidate", "Guard", "GuardOutcome", "Trial", "guard_candidates", "held_out_evaluator")
_HOMES = {
    **dict.fromkeys(_GUARD, ".guard"),
    **{"CalibrationImages": ".calibration", "select_calibration": ".calibration"},
    **{"Finding": ".dialect", "check_dialect": ".dialect", "quantize_for_tensorrt": ".quantize"},
    **{"to_float16": ".half", "run_preflight": ".preflight"},
}

if not TYPE_CHECKING:  # a type checker must see the names above and no other

    def __getattr__(name: str) -> object:
        # onnx and onnxruntime take half a second to import: that is paid for when a name is first used.
        if name in _HOMES:
            return getattr(import_module(_HOMES[name], __name__), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")  # noqa: EM102


def __dir__() -> list[str]:
    return sorted(_HOMES)
