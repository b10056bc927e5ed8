"""Puts a build's facts into a report and writes it as terminal table, JSON, Markdown and HTML."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from rich.console import Console

from vlkd_bench.accuracy import summarise
from vlkd_bench.latency import LatencyStats
from vlkd_bench.report import values
from vlkd_runtime.atomic import write_text

from .config import Config
from .facts import Facts, Written
from .stages import Workspace, versions

PACKAGES = ("torch", "timm", "open_clip_torch", "onnx", "onnxruntime", "numpy", "pillow")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a build ends with.

    Attributes:
        exit_code: 0 done, 1 the guard or the preflight said no.
        json_text: the machine's copy of the report.
    """

    exit_code: int
    json_text: str


def finish(
    facts: Facts, workspace: Workspace, bundle: Written | None, latency: LatencyStats | None, console: Console
) -> Outcome:
    """Write the report files and show the report; the exit code is the report's word."""
    from vlkd_bench.report import render_html, render_markdown, render_terminal
    from vlkd_bench.report.machine_json import to_json

    report = assemble(facts, workspace, bundle, latency)
    root = workspace.root
    plain = to_json(report) | {"archive": str(bundle.archive) if bundle else None}
    write_text(root / "report.json", json.dumps(plain, indent=2, allow_nan=False) + "\n")
    write_text(root / "report.md", render_markdown(report))
    write_text(root / "report.html", render_html(report))
    console.print(render_terminal(report))
    return Outcome(0 if report.outcome == "pass" and bundle else 1, json.dumps(plain))


def assemble(
    facts: Facts, workspace: Workspace, bundle: Written | None, latency: LatencyStats | None
) -> values.BuildReport:
    """The report's values."""
    config, compressed = facts.config, facts.compressed
    rows = [
        values.CandidateRow(
            name=trial.candidate.name,
            steps=trial.candidate.steps,
            verdict=trial.verdict.verdict,
            worst_drop=trial.verdict.worst.drop,
            worst_upper=trial.verdict.worst.upper,
            p50_ms=latency.p50_ms if latency and trial.candidate is compressed.chosen else None,
            size_bytes=trial.candidate.path.stat().st_size,
        )
        for trial in compressed.trials
    ]
    shown = compressed.shown
    label = (
        f"this CPU, ONNX Runtime, {config.bench.threads} thread{'s' * (config.bench.threads > 1)}, one prepared "
        f"image a call; not the {facts.target.title}"
    )
    return values.BuildReport(
        title=f"{config.name} for {facts.target.title}",
        target=f"{config.target} ({facts.target.title})"
        if config.target != facts.target.name
        else config.target,
        dataset=f"demo world, {len(facts.dataset.samples)} scenes"
        if config.data.root == "demo"
        else f"{config.data.name}, {len(facts.dataset.samples)} images",
        teacher=config.teacher.model.removeprefix("local-dir:").rstrip("/").rsplit("/", 1)[-1],
        student=f"{config.student.arch} at {config.student.image_size} px ({_start(config)})",
        method=config.distill.method,
        held_out=config.data.held_out,
        stand_ins=facts.stand_ins,
        accuracy=_accuracy(facts, shown.candidate.name if bundle else ""),
        guard=shown.verdict,
        budget=compressed.budget,
        candidates=tuple(rows),
        preflight=_preflight(facts.preflight),
        latency=(values.LatencyRow("shipped", latency, label),) if latency else (),
        machine=facts.machine,
        stages=tuple(values.StageRow(s.name, round(s.seconds, 2), s.cached) for s in workspace.results),
        size_bytes=bundle.size_bytes if bundle else 0,
        bundle=str(bundle.folder) if bundle else "",
        report=str(workspace.root / "report.html"),
        contract=facts.contract,
        provenance=_provenance(facts, bundle),
        command=shlex.join(["vlkd-edge", *sys.argv[1:]]),
    )


def _start(config: Config) -> str:
    start = {"none": "random start", "hub": "pretrained, from the hub", "package": "ImageNet start"}
    return start[config.student.pretrained]


def _accuracy(facts: Facts, shipped: str) -> tuple[values.ModelAccuracy, ...]:
    config = facts.config
    described = {
        "teacher": ("teacher, zero-shot", "torch"),
        "erm": ("plain training (ERM)", "float ONNX through vlkd_runtime"),
        "student": (f"student, {config.distill.method}", "float ONNX through vlkd_runtime"),
        "shipped": (f"shipped, {shipped}", "the bundle through vlkd_runtime"),
    }
    return tuple(
        values.ModelAccuracy(cast(values.ModelKey, key), *described[key], summarise(rows))
        for key, rows in facts.accuracy.items()
    )


def _preflight(result: Mapping[str, Any] | None) -> values.PreflightRow:
    if result is None:
        return values.PreflightRow(
            "not run", "", "No candidate passed the guard, so there was nothing to check."
        )
    engine = " ".join(part for part in (result["engine"], result["engine_version"]) if part)
    return values.PreflightRow(result["verdict"], engine, result["reason"])


def _provenance(facts: Facts, bundle: Written | None) -> dict[str, str]:
    config = facts.config
    found = {
        "teacher fingerprint": facts.vectors.teacher_fingerprint[:16],
        "templates": "; ".join(facts.vectors.templates),
        "seed": str(config.distill.seed),
        "epochs": str(config.distill.epochs),
        "settings": json.dumps(dataclasses.asdict(config.distill), sort_keys=True),
    }
    if bundle is not None:
        found["bundle digest"] = bundle.digest
    return found | {name: number for name, number in versions("vlkd-edge", *PACKAGES).items() if number}
