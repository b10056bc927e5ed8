"""The ``preflight`` verb: a graph or a bundle before TensorRT's real parser and builder."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import tempfile
from pathlib import Path

from rich.console import Console

from vlkd_runtime.errors import DataError, UnavailableError


def preflight(model: Path, timeout_s: float, as_json: bool, console: Console) -> int:
    """Print what TensorRT says; the exit code is 0 for a pass and 1 for everything else.

    Raises:
        UsageError: there is no such file, or the packages to read it are not installed.
    """
    if importlib.util.find_spec("onnx") is None:
        msg = (
            "The preflight reads the graph with onnx, which is not installed: pip install 'vlkd-edge[build]'"
        )
        raise UnavailableError(msg)
    if not model.exists():
        msg = f"Expected an ONNX file or a bundle at {model}, found nothing."
        raise DataError(msg)
    from vlkd_compress.preflight import run_preflight

    if model.suffix == ".onnx":
        result = run_preflight(model, timeout_s=timeout_s)
    else:
        from vlkd_runtime.bundle import Bundle

        with tempfile.TemporaryDirectory() as folder:
            graph = Path(folder) / "model.onnx"
            graph.write_bytes(Bundle.open(model).model)
            result = run_preflight(graph, timeout_s=timeout_s)
    if as_json:
        print(json.dumps(dataclasses.asdict(result)))
    else:
        engine = " ".join(part for part in (result.engine, result.engine_version) if part) or "no engine"
        console.print(f"{result.verdict}: {engine}. {result.reason}", markup=False, soft_wrap=True)
        for finding in result.findings:
            console.print(
                f"  {finding.rule} at {finding.node}: {finding.message}", markup=False, soft_wrap=True
            )
        for error in result.errors:
            console.print(f"  {error}", markup=False, soft_wrap=True)
    return 0 if result.verdict == "pass" else 1
