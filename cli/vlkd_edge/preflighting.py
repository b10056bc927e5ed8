"""The ``preflight`` verb: a graph or a bundle before a target's rules and a real parser and builder."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console

from vlkd_runtime.errors import DataError, UnavailableError
from vlkd_runtime.targets import Target

MIB = 1 << 20


def preflight(
    model: Path,
    find: Callable[[str], Target],
    name: str | None,
    timeout_s: float,
    *,
    accelerator: bool,
    as_json: bool,
    console: Console,
) -> int:
    """Print what rules and engine say; the exit code is 0 for a pass and 1 for everything else.

    Args:
        model: an ONNX file or a bundle.
        find: gives the target of a name.
        name: the target's; the bundle's own, or "jetson" for a file, when None.
        timeout_s: how long the builder may take.
        accelerator: whether the graph is meant for the deep learning accelerator.
        as_json: print one JSON object.
        console: for people.

    Raises:
        UsageError: there is no such file, or the packages to read it are not installed.
    """
    if importlib.util.find_spec("onnx") is None:
        msg = (
            "The preflight reads the graph with onnx, which is not installed: pip install 'vlkd-edge[build]'"
        )
        raise UnavailableError(msg)
    from vlkd_compress.preflight import run_preflight

    with _graph(model) as (path, made_for):
        target = find(name or made_for)
        result = run_preflight(path, target, accelerator_core=accelerator, timeout_s=timeout_s)
    if as_json:
        print(json.dumps(result.to_json()))
        return 0 if result.verdict == "pass" else 1
    lines = [f"{result.verdict} for {result.target}: {result.reason}"]
    for finding in result.findings:
        advice = "" if finding.severity == "refuse" else " (advice)"
        lines.append(f"  {finding.id} {finding.rule}{advice} at {finding.node}: {finding.message}")
    lines += [f"  {error}" for error in result.errors]
    if result.forecast is not None:
        parts = result.forecast
        lines.append(
            f"memory on the target: {parts.total / MIB:.0f} of {target.budget_bytes / MIB:.0f} MiB (weights "
            f"{parts.weights / MIB:.1f}, activations {parts.activations / MIB:.1f} at {parts.peak_node}, builder "
            f"{parts.builder / MIB:.0f})"
        )
    for line in (*lines, f"{result.note}."):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return 0 if result.verdict == "pass" else 1


def print_rules(as_json: bool, console: Console) -> None:
    """Print the table of rules."""
    import dataclasses

    from vlkd_compress.preflight import RULES

    if as_json:
        plain = [dataclasses.asdict(rule) | {"engines": sorted(rule.engines)} for rule in RULES]
        print(json.dumps({"rules": plain}))
        return
    for rule in RULES:
        marks = [
            word
            for word, holds in (("advice", rule.severity == "advise"), ("--dla", rule.accelerator))
            if holds
        ]
        suffix = f" ({', '.join(marks)})" if marks else ""
        console.print(
            f"{rule.id} {rule.name}{suffix}: {rule.asks}.", markup=False, highlight=False, soft_wrap=True
        )
        console.print(f"      {rule.reason} [{rule.source}]", markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def _graph(model: Path) -> Iterator[tuple[Path, str]]:
    """Give the graph as a file for as long as it is needed, and the name of the target it was made for."""
    if not model.exists():
        msg = f"Expected an ONNX file or a bundle at {model}, found nothing."
        raise DataError(msg)
    if model.suffix == ".onnx":
        yield model, "jetson"
        return
    from vlkd_runtime.bundle import Bundle

    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "model.onnx"
        bundle = Bundle.open(model)
        graph.write_bytes(bundle.model)
        yield graph, bundle.manifest.target
