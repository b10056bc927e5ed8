"""Puts a build's facts into a report and writes it as terminal table, JSON, Markdown and HTML."""

from __future__ import annotations

import dataclasses
import json
import shlex
import statistics
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from rich.console import Console

from vlkd_bench.accuracy import summarise
from vlkd_bench.latency import LatencyStats
from vlkd_bench.records import append_record, read_records
from vlkd_bench.report import values, wording
from vlkd_bench.report.flips import DomainFlips, find_flips
from vlkd_bench.report.history import Point, build_history
from vlkd_bench.report.similarity import class_similarity
from vlkd_distill.specs import TEACHER
from vlkd_runtime.atomic import write_text

from .config import Config
from .doctor import PROCESSORS
from .facts import Facts, Written
from .ship import Compressed
from .stages import Workspace, versions

KIND = "build"
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

    root = workspace.root
    report = assemble(facts, workspace, bundle, latency)
    history = _remember(report, bundle.digest if bundle else "", root / "history.jsonl")
    report = dataclasses.replace(report, history=history)
    plain = to_json(report) | {
        "archive": str(bundle.archive) if bundle else None,
        "queries": facts.queries.as_json() if facts.queries is not None else None,
    }
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
    shown = compressed.shown
    label = (
        f"this CPU, ONNX Runtime, {config.bench.threads} thread{'s' * (config.bench.threads > 1)}, one prepared "
        f"image a call{_elsewhere(facts)}"
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
        candidates=_candidates(compressed, latency),
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
        floating=_floating(compressed),
        refused=tuple(
            values.RefusedRow(item.name, item.made.rung.steps, item.made.refusal)
            for item in compressed.climb.attempts
            if item.trial is None
        ),
        flips=_flips(facts),
        classes=class_similarity(
            facts.vectors.names, facts.vectors.vectors, facts.accuracy.get("shipped", ())
        ),
    )


def _elsewhere(facts: Facts) -> str:
    """Say that what was measured here is not the target, unless it is a processor of this one's kind."""
    wanted = PROCESSORS.get(facts.target.name, facts.machine.architecture)
    here = facts.target.engine == "onnxruntime-cpu" and wanted == facts.machine.architecture
    return "" if here else f"; not the {facts.target.title}"


def _candidates(compressed: Compressed, latency: LatencyStats | None) -> tuple[values.CandidateRow, ...]:
    """Every judged candidate, with its race against the float graph where there was one."""
    speeds = {item.name: item.made.speed for item in compressed.climb.attempts}
    rows = []
    for trial in compressed.trials:
        speed = speeds.get(trial.candidate.name)
        rows.append(
            values.CandidateRow(
                name=trial.candidate.name,
                steps=trial.candidate.steps,
                verdict=trial.verdict.verdict,
                worst_drop=trial.verdict.worst.drop,
                worst_upper=trial.verdict.worst.upper,
                p50_ms=latency.p50_ms if latency and trial.candidate is compressed.chosen else None,
                size_bytes=trial.candidate.path.stat().st_size,
                call_ms=speed.candidate_ms if speed else None,
                speed=(speed.ratio, speed.ratio_low, speed.ratio_high) if speed else None,
            )
        )
    return tuple(rows)


def _floating(compressed: Compressed) -> values.FloatRow:
    """The float graph: its calls in every candidate's race, by their median."""
    times = [item.made.speed.float_ms for item in compressed.climb.attempts if item.made.speed]
    return values.FloatRow(compressed.float_bytes, statistics.median(times) if times else None)


def _flips(facts: Facts) -> tuple[DomainFlips, ...]:
    """What the shown candidate answers otherwise: on the guard's images, and on test images of the other domains."""
    before = {row.image: row for row in (*facts.accuracy["student"], *facts.reference)}
    after = {row.image: row for row in (*facts.accuracy.get("shipped", ()), *facts.compressed.shown.rows)}
    return find_flips(
        tuple(before.values()),
        tuple(after.values()),
        facts.vectors.names,
        facts.paths,
        first=facts.config.data.held_out,
    )


def _remember(report: values.BuildReport, digest: str, path: Path) -> tuple[Point, ...]:
    """Add this build to the folder's log, unless it is the one before it found done, and return what it holds."""
    shipped = report.model("shipped")
    mean, worst = wording.over_domains(report, shipped) if shipped else (None, None)
    data = {
        "title": report.title,
        "outcome": report.outcome,
        "digest": digest,
        "mean": mean,
        "worst": worst,
        "held_out": list(report.held_out),
        "p50_ms": report.latency[0].stats.p50_ms if report.latency else None,
        "size_bytes": report.size_bytes if report.bundle else None,
        "machine": report.machine.describe(),
        "command": report.command,
    }
    log = read_records(path).records if path.exists() else ()
    known = [record for record in log if (record.kind, record.data.get("title")) == (KIND, report.title)]
    same = ("outcome", "digest", "mean", "p50_ms")
    if not known or any(known[-1].data.get(name) != data[name] for name in same):
        known.append(append_record(path, KIND, data))
    return build_history(known)


def _start(config: Config) -> str:
    if config.student.arch == TEACHER:
        return "a copy of its image encoder"
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
    if facts.queries is not None:
        found["questions to the teacher"] = facts.queries.text
    if bundle is not None:
        found["bundle digest"] = bundle.digest
        sizes = [f"{name} {size / 1e6:.1f} MB" for name, size in bundle.variants.items()]
        left_out = [f"no {item.name} ({item.reason})" for item in facts.further if item.model is None]
        found["variants"] = "; ".join([*sizes, *left_out])
    return found | {name: number for name, number in versions("vlkd-edge", *PACKAGES).items() if number}
