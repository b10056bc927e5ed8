from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import vlkd_bench

FACE = [
    "AccuracySummary",
    "DomainAccuracy",
    "GuardBudget",
    "GuardVerdict",
    "LatencyStats",
    "Machine",
    "PairedComparison",
    "PredictionRow",
    "Sample",
    "append_record",
    "compare",
    "evaluate",
    "judge",
    "measure",
    "read_machine",
    "read_predictions",
    "read_records",
    "summarise",
    "write_predictions",
]


def test_the_face_is_this_list() -> None:
    assert vlkd_bench.__all__ == FACE
    assert all(hasattr(vlkd_bench, name) for name in FACE)


def test_importing_needs_numpy_alone() -> None:
    """The heavy packages are forbidden, then everything is imported, the report's values included."""
    program = (
        "import sys\n"
        "heavy = ('torch', 'matplotlib', 'jinja2', 'rich', 'onnxruntime', 'onnx')\n"
        "sys.modules.update(dict.fromkeys(heavy))\n"
        "import vlkd_bench, vlkd_bench.report\n"
    )
    folders = [str(Path(vlkd_bench.__file__).parents[1]), *sys.path]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {folders!r}\n{program}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
