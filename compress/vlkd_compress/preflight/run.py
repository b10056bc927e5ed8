"""Asks TensorRT's real parser and builder about a graph, at the desk, without a GPU.

TensorRT for RTX stands in for the TensorRT that JetPack brings: the parser is of the same family, while the
engine it builds is thrown away and the real one is built on the device. Its version is not the device's, so
the rules of `vlkd_compress.dialect` are part of the verdict.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vlkd_runtime.errors import UnavailableError

from ..dialect import Finding, check_dialect
from .libraries import arrange, find_libraries
from .supervise import Supervised, run_supervised

ENGINE = "TensorRT for RTX"
STANDS_IN = (
    "TensorRT for RTX stands in for JetPack's TensorRT at the desk: the parser is of the same family, the "
    "engine is built again on the device"
)
CHILD = Path(__file__).with_name("engine_child.py")


@dataclass(frozen=True, slots=True)
class PreflightResult:
    """What the desk can know about a graph before it meets the device.

    Attributes:
        verdict: ``pass`` only when parser, builder and rules all accepted the graph.
        engine: what was asked, None when nothing was.
        engine_version: its version.
        reason: one sentence that explains the verdict.
        errors: messages of parser and builder, node name first.
        engine_bytes: size of the engine that was built and thrown away.
        layers: number of layers the parser made.
        seconds: how long parser and builder took; of the child's whole life when it did not answer.
        findings: rules of TensorRT's dialect that the graph breaks.
        answered: whether TensorRT said anything; False when it is not installed, crashed or ran out of time.
        note: what this result stands for.
    """

    verdict: Literal["pass", "fail", "not run"]
    engine: str | None
    engine_version: str | None
    reason: str
    errors: tuple[str, ...]
    engine_bytes: int | None
    layers: int | None
    seconds: float
    findings: tuple[Finding, ...]
    answered: bool
    note: str = STANDS_IN


def run_preflight(model: Path, *, timeout_s: float = 120.0, child: Path = CHILD) -> PreflightResult:
    """Parse and build a graph with TensorRT for RTX in a child process, and check it against the rules.

    Args:
        model: the ONNX file.
        timeout_s: after this long the child is killed and the verdict is ``fail``.
        child: the script that talks to TensorRT.

    Raises:
        DataError: the file is no valid ONNX model.
    """
    findings = check_dialect(model)
    try:
        libraries = find_libraries()
        with tempfile.TemporaryDirectory(prefix="vlkd-preflight-") as folder:
            arrange(libraries, Path(folder))
            path = os.pathsep.join(filter(None, (folder, os.environ.get("LD_LIBRARY_PATH"))))
            supervised = run_supervised(child, (str(model.resolve()),), {"LD_LIBRARY_PATH": path}, timeout_s)
    except UnavailableError as error:
        return PreflightResult(
            verdict="not run",
            engine=None,
            engine_version=None,
            reason=str(error),
            errors=(),
            engine_bytes=None,
            layers=None,
            seconds=0.0,
            findings=findings,
            answered=False,
        )
    return _judge(supervised, libraries.version, findings)


def _judge(supervised: Supervised, version: str, findings: tuple[Finding, ...]) -> PreflightResult:
    answer = supervised.answer
    valid = supervised.outcome == "answered" and _is_whole(answer)
    errors = tuple(answer["errors"]) if valid else ()
    size = answer["engine_bytes"] if valid else None
    if not valid:
        what = supervised.detail or f"its answer misses parts, it holds {sorted(answer)}"
        reason = f"{ENGINE} {version} gave no answer: {what}"
    elif not answer["parsed"]:
        reason = f"{ENGINE} {version} refuses the graph: {_first(errors)}"
    elif size is None:
        reason = f"{ENGINE} {version} parsed the graph but built no engine: {_first(errors)}"
    elif findings:
        first = findings[0]
        reason = (
            f"{ENGINE} {version} built an engine, but the graph breaks rules of the dialect ({len(findings)} "
        )
        reason += f"findings), first {first.rule} at {first.node}: {first.message}"
    else:
        reason = f"{ENGINE} {version} parsed the graph and built an engine"
    return PreflightResult(
        verdict="pass" if valid and size is not None and not findings else "fail",
        engine=ENGINE,
        engine_version=version,
        reason=reason,
        errors=errors,
        engine_bytes=size,
        layers=answer["layers"] if valid else None,
        seconds=float(answer["seconds"]) if valid else supervised.seconds,
        findings=findings,
        answered=valid,
    )


def _is_whole(answer: Mapping[str, Any]) -> bool:
    """Tell whether the child's answer has each part in its type."""
    size, errors = answer.get("engine_bytes", ""), answer.get("errors")
    return (
        isinstance(answer.get("parsed"), bool)
        and isinstance(answer.get("layers"), int)
        and isinstance(answer.get("seconds"), (int, float))
        and (size is None or (isinstance(size, int) and size > 0))
        and isinstance(errors, list)
        and all(isinstance(error, str) for error in errors)
    )


def _first(errors: tuple[str, ...]) -> str:
    return errors[0] if errors else "it gave no reason"
