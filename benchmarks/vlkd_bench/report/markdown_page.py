"""The report for a pull request or a tree of results."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..verdict import GuardVerdict
from . import wording
from .values import BuildReport


def render_markdown(report: BuildReport) -> str:
    """Return the report as GitHub-flavoured Markdown."""
    parts = [
        f"# {markdown_text(report.title)}",
        f"**{report.outcome.upper()}.** {markdown_text(wording.headline(report))}.",
    ]
    if report.guard is not None:
        parts.append(markdown_text(report.guard.reason))
    preflight = report.preflight
    detail = f": {markdown_text(preflight.detail)}" if preflight.detail else ""
    parts.append(f"Preflight: **{preflight.verdict}** ({markdown_text(preflight.engine)}){detail}")
    parts += [f"> Stand-in: {markdown_text(sentence)}" for sentence in report.stand_ins]
    build = f"{report.method}, {report.teacher} → {report.student}, on {report.dataset}, for {report.target}"
    parts.append(f"Built by {markdown_text(build)}.")
    if report.accuracy:
        parts += ["## Accuracy", *_accuracy(report)]
    if report.guard is not None:
        parts += ["## Guard", *_guard(report.guard)]
    if report.candidates or report.refused:
        parts += ["## Candidates", *_candidates(report)]
    if report.flips:
        parts += ["## Answers that compression changed", _flips(report), _terms(wording.FLIP_TERMS)]
    if report.latency:
        parts += ["## Latency", *_latency(report)]
    if report.stages:
        rows = [(s.name, wording.seconds(s.seconds), "cached" if s.cached else "") for s in report.stages]
        parts += ["## Stages", markdown_table(("stage", "time", ""), rows)]
    if report.contract:
        parts += [
            "## What every stage saw",
            "\n".join(f"- {markdown_text(line)}" for line in report.contract),
        ]
    where = [
        ("bundle", wording.bundle(report)),
        ("machine", report.machine.describe()),
        *report.provenance.items(),
    ]
    parts += [
        "## Where it comes from",
        "\n".join(f"- {markdown_text(key)}: {markdown_text(value)}" for key, value in where),
    ]
    parts.append(f"Again with:\n\n{_fence(report.command)}")
    return "\n\n".join(parts) + "\n"


def _accuracy(report: BuildReport) -> list[str]:
    rows: list[list[str]] = []
    for domain in report.domains:
        row = [f"{domain} (held out)" if domain in report.held_out else domain]
        for model in report.accuracy:
            value = model.summary.domains.get(domain)
            interval = "" if value is None else f" ({100 * value.lower:.1f} to {100 * value.upper:.1f})"
            row.append(wording.DASH if value is None else wording.percent(value.accuracy) + interval)
        rows.append(row)
    scope = ", held out" if report.held_out else ""
    for index, name in enumerate(("mean", "worst")):
        values = [wording.percent(wording.over_domains(report, model)[index]) for model in report.accuracy]
        rows.append([name + scope, *values])
    rows.append(["ECE", *[f"{model.summary.ece:.3f}" for model in report.accuracy]])
    measured = "; ".join(
        f"{wording.ROLES[model.key]}: {model.name}, measured on {model.measured_on}"
        for model in report.accuracy
    )
    return [
        markdown_table(["domain", *[wording.ROLES[model.key] for model in report.accuracy]], rows),
        markdown_text(f"{measured}."),
        _terms(wording.ACCURACY_TERMS),
    ]


def _guard(guard: GuardVerdict) -> list[str]:
    rows: list[list[str]] = []
    for row in guard.criteria:
        item = guard.domains.get(row.label) if len(rows) < len(guard.domains) else None
        bounds = [wording.points(value) for value in (row.bound.drop, row.bound.lower, row.bound.upper)]
        budget = wording.DASH if row.budget is None else wording.points(row.budget)
        counts = ["", "", "", ""]
        if item is not None:
            counts = [*map(str, (item.lost, item.won, item.flips)), wording.p_value(item.p_value)]
        rows.append([row.label, str(row.images), *bounds, budget, *counts])
    heads = ("domain", "images", "drop", "lower bound", "upper bound", "budget", "lost", "won", "flips", "p")
    summary = (
        f"Budget {wording.budget(guard)} points at {100 * guard.budget.confidence:g} % confidence; bootstrap seed "
        f"{guard.seed}."
    )
    return [markdown_table(heads, rows), summary, _terms(wording.GUARD_TERMS)]


def _candidates(report: BuildReport) -> list[str]:
    rows = [
        (
            row.name,
            ", ".join(row.steps),
            row.verdict,
            wording.points(row.worst_drop),
            wording.points(row.worst_upper),
            wording.milliseconds(row.call_ms),
            wording.DASH if row.speed is None else "{:.2f} ({:.2f} to {:.2f})".format(*row.speed),
            wording.size(row.size_bytes),
        )
        for row in report.candidates
    ]
    heads = ("candidate", "steps", "verdict", "worst drop", "upper bound", "time", "speed", "size")
    refused = [
        f"- {markdown_text(f'{row.name} was refused before the guard saw it: {row.reason}')}"
        for row in report.refused
    ]
    table = [markdown_table(heads, rows)] if rows else []
    return [*table, *(["\n".join(refused)] if refused else []), _terms(wording.CANDIDATE_TERMS)]


def _flips(report: BuildReport) -> str:
    rows = [
        (group.domain, *map(str, (group.images, group.lost, group.won, group.other)))
        for group in report.flips
    ]
    return markdown_table(("domain", "images", "lost", "won", "other"), rows)


def _latency(report: BuildReport) -> list[str]:
    rows = []
    for row in report.latency:
        stats = row.stats
        percentiles = (
            (stats.p50_ms, stats.p50_interval_ms),
            (stats.p90_ms, stats.p90_interval_ms),
            (stats.p95_ms, stats.p95_interval_ms),
            (stats.p99_ms, stats.p99_interval_ms),
        )
        cells = [
            wording.milliseconds(value) + (f" ({wording.milliseconds_between(around)})" if around else "")
            for value, around in percentiles
        ]
        slowest = wording.milliseconds(stats.max_ms)
        rows.append([row.name, row.label, *cells, slowest, wording.percent(stats.cov), str(stats.n)])
    notes = [
        f"- {markdown_text(f'{row.name}: {note}')}" for row in report.latency for note in row.stats.notes
    ]
    heads = ("model", "where", "p50", "p90", "p95", "p99", "max", "spread", "calls")
    return [
        markdown_table(heads, rows),
        *(["\n".join(notes)] if notes else []),
        _terms(wording.LATENCY_TERMS),
    ]


def _terms(terms: dict[str, str]) -> str:
    return "\n".join(f"- *{name}*: {meaning}" for name, meaning in terms.items())


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; the first column is left-aligned, the others right."""
    lines = [
        heads,
        [":---", *["---:"] * (len(heads) - 1)],
        *[[markdown_text(cell) for cell in row] for row in rows],
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def markdown_text(value: str) -> str:
    """Return foreign text as text: no Markdown, no HTML, no line breaks."""
    return re.sub(r"([\\`*_{}\[\]<>#|~$&@])", r"\\\1", " ".join(wording.plain(value).split()))


def _fence(command: str) -> str:
    """Return the command as a code block that its own backticks cannot end."""
    longest = max((len(run) for run in re.findall(r"`+", command)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{command}\n{fence}"
