"""Makes a distilled student small enough for the device, and stops where held-out accuracy would suffer."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .calibration import CalibrationImages as CalibrationImages
    from .calibration import select_calibration as select_calibration
    from .dialect import Finding as Finding
    from .dialect import check_dialect as check_dialect
    from .guard import Candidate as Candidate
    from .guard import GuardOutcome as GuardOutcome
    from .guard import Trial as Trial
    from .guard import guard_candidates as guard_candidates
    from .guard import held_out_evaluator as held_out_evaluator
    from .half import to_float16 as to_float16
    from .preflight import run_preflight as run_preflight
    from .quantize import quantize_for_tensorrt as quantize_for_tensorrt

_HOMES = {
    **dict.fromkeys(("CalibrationImages", "select_calibration"), ".calibration"),
    **dict.fromkeys(("Finding", "check_dialect"), ".dialect"),
    **dict.fromkeys(("Candidate", "GuardOutcome", "Trial"), ".guard"),
    **dict.fromkeys(("guard_candidates", "held_out_evaluator"), ".guard"),
    **{"to_float16": ".half", "run_preflight": ".preflight", "quantize_for_tensorrt": ".quantize"},
}


def __getattr__(name: str) -> object:
    # onnx and onnxruntime take half a second to import: that is paid for when a name is first used.
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
