"""The ``preflight`` verb: a graph, or a bundle's graphs, before a target's rules and a real parser and builder."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from vlkd_runtime.errors import ConfigError, DataError, UnavailableError
from vlkd_runtime.manifest import Variant
from vlkd_runtime.targets import EngineKind, Target
from vlkd_runtime.variants import rank_variants

if TYPE_CHECKING:
    from vlkd_compress.preflight import PreflightResult

MIB = 1 << 20
# As which of the runtime's engines a target's kind of engine takes variants.
TAKES_AS: dict[EngineKind, str] = {
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt-rtx",
    "onnxruntime-cpu": "ort-cpu",
}
# Best first.
VERDICTS = ("pass", "not run", "fail")


@dataclass(frozen=True, slots=True)
class Graphs:
    """What there is to check.

    Attributes:
        made_for: name of the target it was made for.
        variants: the bundle's graphs, the first one first; None for a file.
        data: the bytes of each variant's graph, by file name.
    """

    made_for: str
    variants: tuple[Variant, ...] | None
    data: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Choice:
    """Which of a bundle's variants a target would run.

    Attributes:
        checked: those to show to its engine, best first.
        left_out: name of each other one, and why it is not looked at.
        problem: why the target would run none of them; they are looked at all the same, to name the nodes.
    """

    checked: tuple[Variant, ...]
    left_out: tuple[tuple[str, str], ...] = ()
    problem: str = ""


def preflight(
    model: Path,
    find: Callable[[str], Target],
    name: str | None,
    timeout_s: float,
    *,
    variant: str | None,
    accelerator: bool,
    as_json: bool,
    console: Console,
) -> int:
    """Print what rules and engine say; the exit code is 0 where every graph passes and 1 for everything else.

    Args:
        model: an ONNX file or a bundle.
        find: gives the target of a name.
        name: the target's; the bundle's own, or "jetson" for a file, when None.
        timeout_s: how long the builder may take for a graph.
        variant: the only one of a bundle's graphs to check; every one that the target's engine takes when None.
        accelerator: whether the graph is meant for the deep learning accelerator.
        as_json: print one JSON object.
        console: for people.

    Raises:
        UsageError: there is no such file or variant, or the packages to read it are not installed.
    """
    if importlib.util.find_spec("onnx") is None:
        msg = (
            "The preflight reads the graph with onnx, which is not installed: pip install 'vlkd-edge[build]'"
        )
        raise UnavailableError(msg)
    from vlkd_compress.preflight import run_preflight

    graphs = _read(model, variant)
    target = find(name or graphs.made_for)
    choice = choose(graphs.variants or (), target, variant)
    results: dict[str | None, PreflightResult] = {}
    for item, path in _files(model, graphs, choice):
        result = run_preflight(path, target, accelerator_core=accelerator, timeout_s=timeout_s)
        if choice.problem:
            result = dataclasses.replace(result, verdict="fail", reason=choice.problem)
        results[item] = result
    if as_json:
        print(json.dumps(as_plain(results, choice)))
    else:
        for line in _lines(results, choice, target):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    return 0 if all(result.verdict == "pass" for result in results.values()) else 1


def choose(variants: Sequence[Variant], target: Target, wanted: str | None = None) -> Choice:
    """Give the variants that a target's engine takes, as the device ranks them.

    Args:
        variants: all of the bundle's.
        target: the device.
        wanted: the name of the only one to look at.

    Raises:
        ConfigError: the bundle has no variant of that name.
    """
    if not variants:
        return Choice(())
    try:
        ranked = rank_variants(variants, TAKES_AS[target.engine], wanted)
    except UnavailableError as error:
        return Choice(tuple(item for item in variants if wanted in (None, item.name)), problem=str(error))
    taken = tuple(suited.variant for suited in ranked)
    why = "another one was asked for" if wanted else f"the engine of {target.name} does not take its kind"
    return Choice(taken, tuple((item.name, why) for item in variants if item not in taken))


def as_plain(results: Mapping[str | None, PreflightResult], choice: Choice) -> dict[str, Any]:
    """Give the whole answer as JSON values.

    The graph with the worst verdict, the first of several, gives the object its fields; ``rules`` are those of all
    graphs, each with its ``variant``, and the memory is that of the graph that needs most.
    """
    each = {name: result.to_json() for name, result in results.items()}
    worst = _worst(results)
    largest = max(each.values(), key=lambda plain: plain["memory_bytes"] or 0)
    return {
        **each[worst],
        "rules": [{**rule, "variant": name} for name, plain in each.items() for rule in plain["rules"]],
        "memory_bytes": largest["memory_bytes"],
        "memory": largest["memory"],
        "variant": worst,
        "variants": [{"variant": name, **plain} for name, plain in each.items()],
        "left_out": [{"variant": name, "reason": reason} for name, reason in choice.left_out],
    }


def _worst(results: Mapping[str | None, PreflightResult]) -> str | None:
    return max(results, key=lambda name: VERDICTS.index(results[name].verdict))


def _lines(results: Mapping[str | None, PreflightResult], choice: Choice, target: Target) -> Iterator[str]:
    """Say it to people: what holds for all, then graph by graph."""
    worst = _worst(results)
    shown = results[worst]
    of = f"{worst}: " if worst is not None else ""
    yield f"{shown.verdict} for {shown.target}: {of}{shown.reason}"
    for name, result in results.items():
        if name is not None:
            yield f"{name}: {result.verdict}" + ("" if name == worst else f", {result.reason}")
        yield from _details(result, target)
    for name, reason in choice.left_out:
        yield f"{name}: left out, {reason}"
    yield f"{shown.note}."


def _details(result: PreflightResult, target: Target) -> Iterator[str]:
    for finding in result.findings:
        advice = "" if finding.severity == "refuse" else " (advice)"
        yield f"  {finding.id} {finding.rule}{advice} at {finding.node}: {finding.message}"
    for error in result.errors:
        yield f"  {error}"
    if result.forecast is not None:
        parts = result.forecast
        yield (
            f"  memory on the target: {parts.total / MIB:.0f} of {target.budget_bytes / MIB:.0f} MiB (weights "
            f"{parts.weights / MIB:.1f}, activations {parts.activations / MIB:.1f} at {parts.peak_node}, builder "
            f"{parts.builder / MIB:.0f})"
        )


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


def _read(model: Path, variant: str | None) -> Graphs:
    """Open what was named, and check it whole where it is a bundle."""
    if not model.exists():
        msg = f"Expected an ONNX file or a bundle at {model}, found nothing."
        raise DataError(msg)
    if model.suffix != ".onnx":
        from vlkd_runtime.bundle import Bundle

        bundle = Bundle.open(model)
        return Graphs(bundle.manifest.target, bundle.manifest.variants, bundle.files)
    if variant is not None:
        msg = f"variant: expected none for the ONNX file {model}, found {variant!r}; bundles have variants"
        raise ConfigError(msg)
    return Graphs("jetson", None, {})


def _files(model: Path, graphs: Graphs, choice: Choice) -> Iterator[tuple[str | None, Path]]:
    """Give each graph as a file, for as long as it is needed, and the name of its variant."""
    if graphs.variants is None:
        yield None, model
        return
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "model.onnx"
        for variant in choice.checked:
            graph.write_bytes(graphs.data[variant.file])
            yield variant.name, graph
