"""Holds a graph against the rules of a target, without any engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx

from vlkd_runtime.targets import Target

from ..dialect import CHECKS, Finding
from ..graph import Graph, load
from . import accelerator, checks
from .memory import Forecast, forecast
from .rules import BY_NAME, Severity, applicable


@dataclass(frozen=True, slots=True)
class Breach:
    """One rule of the table broken at one place.

    Attributes:
        id: the rule's, as scripts know it.
        rule: the rule's name.
        severity: whether it refuses the graph or only advises.
        node: name of the node or tensor.
        message: what was expected, what was found, what to do.
    """

    id: str
    rule: str
    severity: Severity
    node: str
    message: str


@dataclass(frozen=True, slots=True)
class Ruling:
    """What the rules say of a graph.

    Attributes:
        breaches: in the order of the rules; empty when none is broken.
        forecast: memory on the target; None when a size is not known.
        profile: the batch sizes an engine is to be built for; None for a fixed batch.
    """

    breaches: tuple[Breach, ...]
    forecast: Forecast | None
    profile: checks.Profile | None

    @property
    def refuses(self) -> bool:
        """Whether a breach is more than advice."""
        return any(breach.severity == "refuse" for breach in self.breaches)


def check_rules(model: Path, target: Target, *, accelerator_core: bool = False) -> Ruling:
    """Hold an ONNX file against the rules of a target.

    Args:
        model: the ONNX file.
        target: whose rules.
        accelerator_core: whether the graph is meant for the deep learning accelerator.

    Raises:
        DataError: the file is no valid ONNX model.
    """
    return check_model(load(model), target, accelerator_core=accelerator_core)


def check_model(model: onnx.ModelProto, target: Target, *, accelerator_core: bool = False) -> Ruling:
    """Hold a model whose nodes all have names against the rules of a target."""
    stated = checks.read_profile(model)
    profile = stated if isinstance(stated, checks.Profile) else None
    is_open = checks.open_batch(model)
    # Of an open batch the largest is judged: it is what memory and limits have to hold.
    graph = Graph(checks.with_batch(model, profile.largest if profile else 1) if is_open else model)
    found = forecast(graph, target.engine)
    holding = {rule.name for rule in applicable(target.engine, accelerator=accelerator_core)}
    findings = [*_findings(graph, target, found), *checks.batch_profile(model)]
    if accelerator_core:
        findings += accelerator.check(graph, target, batch_is_open=is_open)
    breaches = [
        Breach(rule.id, rule.name, rule.severity, finding.node, finding.message)
        for finding in findings
        for rule in (BY_NAME[finding.rule],)
        if rule.name in holding
    ]
    return Ruling(tuple(sorted(breaches, key=lambda breach: breach.id)), found, profile if is_open else None)


def _findings(graph: Graph, target: Target, found: Forecast | None) -> Iterator[Finding]:
    yield from checks.opset(graph, target)
    yield from checks.types(graph)
    yield from checks.typed(graph)
    for check in CHECKS:
        yield from check(graph)
    yield from checks.computed_shapes(graph)
    yield from checks.precision(graph, target)
    yield from checks.memory(found, target)
    yield from checks.int8_convolution(graph)
