"""Loads one ONNX file with ONNX Runtime's CPU provider, in a process of its own, and prints the result as JSON.

Run as a script, never imported by the project, like `engine_child.py`.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def main(path: str) -> dict[str, Any]:
    """Return what ONNX Runtime said about one file."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    errors: list[str] = []
    size: int | None = None
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="vlkd-preflight-") as folder:
        optimised = Path(folder) / "optimised.onnx"
        options.optimized_model_filepath = str(optimised)
        try:
            ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            size = optimised.stat().st_size
        except Exception as error:  # ONNX Runtime raises a dozen types of its own, all plain exceptions
            errors.append(" ".join(str(error).split())[:2000])
    return {
        "parsed": size is not None,
        "layers": 0,
        "engine_bytes": size,
        "peak_bytes": _peak_bytes(),
        "seconds": time.perf_counter() - started,
        "errors": errors,
    }


def _peak_bytes() -> int | None:
    """Read the most memory this process held; getrusage would count the parent's, as it was when it forked."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), None)


if __name__ == "__main__":
    channel = os.dup(1)
    os.dup2(2, 1)
    answer = main(sys.argv[1])
    with os.fdopen(channel, "w", encoding="utf-8") as stream:
        json.dump(answer, stream)
