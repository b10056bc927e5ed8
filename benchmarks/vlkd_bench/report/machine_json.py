"""The report for programs: the keys other tools rely on, and the rest beside them."""

from __future__ import annotations

import json
from dataclasses import asdict

from ..verdict import GuardVerdict
from .values import BuildReport

SCHEMA = 1


def render_json(report: BuildReport) -> str:
    """Return the report as a JSON document.

    ``bundle``, ``report``, ``stages``, ``accuracy``, ``guard``, ``preflight``, ``latency_ms`` and
    ``size_bytes`` are a contract; keys may be added but not changed without raising ``schema``. Accuracies
    are shares in [0, 1], drops are points.
    """
    return json.dumps(to_json(report), indent=2, allow_nan=False) + "\n"


def to_json(report: BuildReport) -> dict[str, object]:
    """Return what `render_json` writes, as JSON values."""
    accuracy: dict[str, object] = {
        model.key: {name: value.accuracy for name, value in model.summary.domains.items()}
        for model in report.accuracy
    }
    accuracy["held_out"] = list(report.held_out)
    shipped = report.latency[0].stats if report.latency else None
    return {
        "schema": SCHEMA,
        "title": report.title,
        "outcome": report.outcome,
        "bundle": report.bundle,
        "report": report.report,
        "size_bytes": report.size_bytes,
        "stages": [asdict(stage) for stage in report.stages],
        "accuracy": accuracy,
        "intervals": {
            model.key: {name: asdict(value) for name, value in model.summary.domains.items()}
            for model in report.accuracy
        },
        "models": {
            model.key: {
                "name": model.name,
                "measured_on": model.measured_on,
                "mean": model.summary.mean,
                "worst": model.summary.worst,
                "worst_domain": model.summary.worst_domain,
                "ece": model.summary.ece,
            }
            for model in report.accuracy
        },
        "guard": {"verdict": "not run", "domains": {}} if report.guard is None else guard_json(report.guard),
        "budget": asdict(report.budget),
        "candidates": [asdict(row) for row in report.candidates],
        "refused": [asdict(row) for row in report.refused],
        "floating": None if report.floating is None else asdict(report.floating),
        "flips": {
            group.domain: {"images": group.images, "lost": group.lost, "won": group.won, "other": group.other}
            for group in report.flips
        },
        "preflight": asdict(report.preflight),
        "latency_ms": {
            "p50": shipped.p50_ms if shipped else None,
            "p99": shipped.p99_ms if shipped else None,
        },
        "latency": [{"name": row.name, "label": row.label, **row.stats.to_json()} for row in report.latency],
        "machine": report.machine.to_json(),
        "target": report.target,
        "dataset": report.dataset,
        "teacher": report.teacher,
        "student": report.student,
        "method": report.method,
        "stand_ins": list(report.stand_ins),
        "contract": list(report.contract),
        "provenance": dict(report.provenance),
        "command": report.command,
    }


def guard_json(verdict: GuardVerdict) -> dict[str, object]:
    """Return a verdict as JSON values; drops and bounds are points."""
    found = verdict.comparison
    return {
        "verdict": verdict.verdict,
        "reason": verdict.reason,
        "domains": {name: asdict(value) for name, value in verdict.domains.items()},
        "virtual": found.virtual,
        "mean": asdict(verdict.mean),
        "worst": asdict(verdict.worst),
        "worst_domain": verdict.worst_domain,
        "flip_rate": verdict.flip_rate,
        "flips": asdict(found.flips),
        "ece_change": None if found.ece is None else verdict.ece_change,
        "ece": None if found.ece is None else asdict(found.ece),
        "rejection": None if found.rejection is None else asdict(found.rejection),
        "images": found.images,
        "unknowns": found.unknowns,
        "images_needed": verdict.images_needed,
        "criteria": [
            {"name": item.label, "budget": item.budget, "images": item.images, **asdict(item.bound)}
            for item in verdict.criteria
        ],
        "confidence": {"upper": found.upper_confidence, "lower": found.lower_confidence},
        "seed": verdict.seed,
        "budget": asdict(verdict.budget),
    }
