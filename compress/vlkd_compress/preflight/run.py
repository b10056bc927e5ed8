"""Asks a target's rules and a real parser and builder about a graph, at the desk, without a GPU.

TensorRT for RTX stands in for the TensorRT that JetPack brings: the parser is of the same family, while the
engine it builds is thrown away and the real one is built on the device. Its version is not the device's, so
the rules are part of the verdict. For desktop-rtx it is the target's own engine, and may be kept.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from vlkd_runtime.errors import UnavailableError
from vlkd_runtime.targets import TARGETS, EngineKind, Target

from .judge import Breach, Ruling, check_rules
from .libraries import arrange, find_libraries
from .memory import Forecast
from .rules import BY_NAME
from .supervise import Supervised, run_supervised

ENGINES: dict[EngineKind, str] = {
    "tensorrt": "TensorRT for RTX",
    "tensorrt-rtx": "TensorRT for RTX",
    "onnxruntime-cpu": "ONNX Runtime",
}
NOTES: dict[EngineKind, str] = {
    "tensorrt": (
        "TensorRT for RTX stands in for JetPack's TensorRT at the desk: the parser is of the same family, the "
        "engine is built again on the device"
    ),
    "tensorrt-rtx": "TensorRT for RTX is the target's own engine; a just-in-time step on its GPU finishes it",
    "onnxruntime-cpu": "ONNX Runtime is the target's own engine; the version there may be another",
}
DEFAULT = next(target for target in TARGETS if target.name == "jetson-orin-nano")
CHILD = Path(__file__).with_name("engine_child.py")
ORT_CHILD = Path(__file__).with_name("ort_child.py")


@dataclass(frozen=True, slots=True)
class PreflightResult:
    """What the desk can know about a graph before it meets the device.

    Attributes:
        verdict: ``pass`` only when parser, builder and rules all accepted the graph; ``not run`` when the rules
            did and no engine could be asked.
        engine: what was asked, None when nothing was.
        engine_version: its version.
        reason: one sentence that explains the verdict.
        errors: messages of parser and builder, node name first.
        engine_bytes: size of the engine that was built.
        layers: number of layers the parser made.
        seconds: how long parser and builder took; of the child's whole life when it did not answer.
        peak_bytes: the most memory that parser and builder held here.
        findings: rules of the target that the graph breaks.
        forecast: memory that building and running it takes on the target; None when a size is not known.
        target: whose rules.
        answered: whether the engine said anything; False when it is not installed, crashed or ran out of time.
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
    peak_bytes: int | None
    findings: tuple[Breach, ...]
    forecast: Forecast | None
    target: str
    answered: bool
    note: str

    def to_json(self) -> dict[str, Any]:
        """Give what scripts rely on: ``verdict``, ``rules``, ``engine``, ``memory_bytes`` and what explains them."""
        named = {"name": self.engine, "version": self.engine_version} if self.engine else None
        memory = asdict(self.forecast) | {"total": self.forecast.total} if self.forecast else None
        rules = [
            {
                "id": item.id,
                "name": item.rule,
                "severity": item.severity,
                "node": item.node,
                "message": item.message,
                "reason": BY_NAME[item.rule].reason,
                "source": BY_NAME[item.rule].source,
            }
            for item in self.findings
        ]
        return {
            "verdict": self.verdict,
            "target": self.target,
            "reason": self.reason,
            "rules": rules,
            "engine": named,
            "errors": list(self.errors),
            "engine_bytes": self.engine_bytes,
            "layers": self.layers,
            "seconds": self.seconds,
            "memory_bytes": self.forecast.total if self.forecast else None,
            "memory": memory,
            "builder_peak_bytes": self.peak_bytes,
            "note": self.note,
        }


def run_preflight(
    model: Path,
    target: Target = DEFAULT,
    *,
    accelerator_core: bool = False,
    keep_engine: Path | None = None,
    timeout_s: float = 120.0,
    child: Path | None = None,
) -> PreflightResult:
    """Check a graph against a target's rules, then parse and build it with a real engine in a child process.

    Args:
        model: the ONNX file.
        target: the device it is for.
        accelerator_core: whether it is meant for the deep learning accelerator.
        keep_engine: where to write the engine of TensorRT for RTX; thrown away when None.
        timeout_s: after this long the child is killed and the verdict is ``fail``.
        child: the script that talks to the engine, when not the usual one.

    Raises:
        DataError: the file is no valid ONNX model.
    """
    ruling = check_rules(model, target, accelerator_core=accelerator_core)
    try:
        if target.engine == "onnxruntime-cpu":
            found = _installed("onnxruntime")
            supervised = run_supervised(child or ORT_CHILD, (str(model.resolve()),), {}, timeout_s)
        else:
            libraries = find_libraries()
            found = libraries.version
            profile = ruling.profile.text() if ruling.profile else ""
            arguments = (str(model.resolve()), profile, str(keep_engine.resolve()) if keep_engine else "")
            with tempfile.TemporaryDirectory(prefix="vlkd-preflight-") as folder:
                arrange(libraries, Path(folder))
                path = os.pathsep.join(filter(None, (folder, os.environ.get("LD_LIBRARY_PATH"))))
                supervised = run_supervised(child or CHILD, arguments, {"LD_LIBRARY_PATH": path}, timeout_s)
    except UnavailableError as error:
        return _not_run(str(error), ruling, target)
    return _judge(supervised, found, ruling, target)


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError as error:
        msg = f"The package {package} is not installed: pip install 'vlkd-edge[ort]'"
        raise UnavailableError(msg) from error


def _not_run(why: str, ruling: Ruling, target: Target) -> PreflightResult:
    return PreflightResult(
        verdict="fail" if ruling.refuses else "not run",
        engine=None,
        engine_version=None,
        reason=f"{_broken(ruling)}; no engine was asked: {why}" if ruling.refuses else why,
        errors=(),
        engine_bytes=None,
        layers=None,
        seconds=0.0,
        peak_bytes=None,
        findings=ruling.breaches,
        forecast=ruling.forecast,
        target=target.name,
        answered=False,
        note=NOTES[target.engine],
    )


def _judge(supervised: Supervised, found: str, ruling: Ruling, target: Target) -> PreflightResult:
    answer, engine = supervised.answer, f"{ENGINES[target.engine]} {found}"
    valid = supervised.outcome == "answered" and _is_whole(answer)
    errors = tuple(answer["errors"]) if valid else ()
    size = answer["engine_bytes"] if valid else None
    if not valid:
        what = supervised.detail or f"its answer misses parts, it holds {sorted(answer)}"
        reason = f"{engine} gave no answer: {what}"
    elif not answer["parsed"]:
        reason = f"{engine} refuses the graph: {_first(errors)}"
    elif size is None:
        reason = f"{engine} parsed the graph but built no engine: {_first(errors)}"
    elif ruling.refuses:
        reason = f"{engine} built an engine, but {_broken(ruling)}"
    else:
        reason = f"{engine} parsed the graph and built an engine"
    return PreflightResult(
        verdict="pass" if valid and size is not None and not ruling.refuses else "fail",
        engine=ENGINES[target.engine],
        engine_version=found,
        reason=reason,
        errors=errors,
        engine_bytes=size,
        layers=answer["layers"] if valid else None,
        seconds=float(answer["seconds"]) if valid else supervised.seconds,
        peak_bytes=answer.get("peak_bytes") if valid else None,
        findings=ruling.breaches,
        forecast=ruling.forecast,
        target=target.name,
        answered=valid,
        note=NOTES[target.engine],
    )


def _broken(ruling: Ruling) -> str:
    refusing = [breach for breach in ruling.breaches if breach.severity == "refuse"]
    first = refusing[0]
    count = f"{len(refusing)} breach{'es' * (len(refusing) > 1)}"
    where = f"first {first.id} {first.rule} at {first.node}: {first.message}"
    return f"the graph breaks rules of the target ({count}), {where}"


def _is_whole(answer: Mapping[str, Any]) -> bool:
    """Tell whether the child's answer has each part in its type."""
    size, errors = answer.get("engine_bytes", ""), answer.get("errors")
    return (
        isinstance(answer.get("parsed"), bool)
        and isinstance(answer.get("layers"), int)
        and isinstance(answer.get("seconds"), (int, float))
        and (size is None or (isinstance(size, int) and size > 0))
        and isinstance(answer.get("peak_bytes"), (int, type(None)))
        and isinstance(errors, list)
        and all(isinstance(error, str) for error in errors)
    )


def _first(errors: tuple[str, ...]) -> str:
    return errors[0] if errors else "it gave no reason"
