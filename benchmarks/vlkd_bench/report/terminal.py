"""The report on a terminal: verdict first, then what it rests on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..verdict import GuardVerdict
from . import wording
from .values import BuildReport

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

_STYLE = {
    "pass": "green",
    "fail": "red",
    "inconclusive": "yellow",
    "not judged": "yellow",
    "not run": "yellow",
}
_SIGN = {"pass": "✓", "fail": "✗", "inconclusive": "?", "not judged": "?", "not run": "–"}


def render_terminal(report: BuildReport) -> RenderableType:
    """Return the report as a rich renderable, for ``Console().print``."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [_banner(report)]
    if report.accuracy:
        parts.append(_accuracy(report))
    if report.guard is not None:
        parts.append(_guard(report.guard))
    if len(report.candidates) > 1:
        parts.append(_candidates(report))
    if report.latency:
        parts.append(_latency(report))
    if report.stages:
        parts.append(_stages(report))
    places = Text(f"Bundle  {wording.plain(wording.bundle(report))}")
    if report.report:
        places.append(f"\nReport  {wording.plain(report.report)}")
    parts.append(places)
    # Blank lines between the parts; Group alone sets them flush.
    spaced: list[RenderableType] = []
    for part in parts:
        spaced += [part, ""]
    return Group(*spaced[:-1])


def _banner(report: BuildReport) -> RenderableType:
    from rich.panel import Panel
    from rich.text import Text

    style = _STYLE[report.outcome]
    text = Text()
    text.append(f"{_SIGN[report.outcome]} {report.outcome.upper()}  ", style=f"bold {style}")
    text.append(wording.plain(wording.headline(report)), style="bold")
    if report.guard is not None:
        text.append("\n" + wording.plain(report.guard.reason))
    verdict = report.preflight.verdict
    text.append("\nPreflight ")
    text.append(f"{_SIGN[verdict]} {verdict}", style=f"bold {_STYLE[verdict]}")
    text.append(f" ({wording.plain(report.preflight.engine)})")
    if report.preflight.detail:
        text.append(f": {wording.plain(report.preflight.detail)}", style="dim")
    for sentence in report.stand_ins:
        text.append(f"\nStand-in: {wording.plain(sentence)}", style="italic yellow")
    subtitle = Text(wording.plain(f"{report.method} · {report.teacher} → {report.student} · {report.target}"))
    return Panel(
        text, title=Text(wording.plain(report.title)), subtitle=subtitle, border_style=style, padding=(0, 1)
    )


def _table(title: str, caption: str, first: str, *columns: str) -> Table:
    """Return an empty table: first column text, the others numbers."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(title, style="bold"),
        caption=Text(caption, style="dim"),
        box=SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
        pad_edge=False,
    )
    table.add_column(first, overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", overflow="fold")
    return table


def _accuracy(report: BuildReport) -> Table:
    from rich.text import Text

    columns = [wording.ROLES[model.key] for model in report.accuracy]
    table = _table(
        "Accuracy by domain",
        "top-1 with Wilson's 95 % interval; held-out domains: seen by the guard, never by training",
        "domain",
        *columns,
    )
    for domain in report.domains:
        held_out = domain in report.held_out
        name = wording.plain(domain)
        cells = [Text(f"{name} (held out)" if held_out else name, style="bold" if held_out else "")]
        for model in report.accuracy:
            value = model.summary.domains.get(domain)
            cells.append(
                Text(wording.DASH)
                if value is None
                else Text.assemble(
                    (wording.percent(value.accuracy), "bold" if held_out else ""),
                    (f" {100 * value.lower:.0f}{wording.DASH}{100 * value.upper:.0f}", "dim"),
                )
            )
        table.add_row(*cells)
    table.add_section()
    for index, name in enumerate(("mean", "worst")):
        values = [wording.percent(wording.over_domains(report, model)[index]) for model in report.accuracy]
        table.add_row(f"{name}, held out" if report.held_out else name, *values)
    table.add_row("calibration error", *[f"{model.summary.ece:.3f}" for model in report.accuracy])
    return table


def render_guard(guard: GuardVerdict) -> RenderableType:
    """Return a verdict by itself as a rich renderable: the answer first, then what it rests on."""
    from rich.console import Group
    from rich.text import Text

    style = _STYLE[guard.verdict]
    answer = Text(f"{_SIGN[guard.verdict]} {guard.verdict.upper()}  ", style=f"bold {style}")
    answer.append(wording.plain(guard.reason), style="not bold default")
    return Group(answer, "", _guard(guard))


def _guard(guard: GuardVerdict) -> Table:
    from rich.text import Text

    heads = ("images", "drop", "lower", "upper", "budget", "lost", "won", "p")
    table = _table(
        "Guard: what compression cost, in points",
        f"one-sided bounds at {100 * guard.comparison.upper_confidence:.4g} % confidence (upper) and "
        f"{100 * guard.comparison.lower_confidence:.4g} % (lower); without a budget a row is shown, not judged",
        "virtual domain" if guard.comparison.virtual else "domain",
        *heads,
    )
    for row in guard.criteria:
        if row.label == "flips" and len(table.rows):
            table.add_section()
        bound, item = row.bound, guard.domains.get(row.label)
        within = "" if row.budget is None else "bold yellow" if row.over("upper") else "bold green"
        table.add_row(
            Text(wording.plain(row.label)),
            str(row.images),
            wording.points(bound.drop),
            wording.points(bound.lower),
            Text(wording.points(bound.upper), style=within),
            wording.DASH if row.budget is None else wording.points(row.budget),
            *(
                ("", "", "")
                if item is None
                else (str(item.lost), str(item.won), wording.p_value(item.p_value))
            ),
        )
    return table


def _candidates(report: BuildReport) -> Table:
    from rich.text import Text

    table = _table(
        "Candidates", "in the order judged", "candidate", "verdict", "worst drop", "upper", "p50", "size"
    )
    for row in report.candidates:
        verdict = Text(f"{_SIGN[row.verdict]} {row.verdict}", style=_STYLE[row.verdict])
        drops = wording.points(row.worst_drop), wording.points(row.worst_upper)
        table.add_row(
            Text(wording.plain(row.name)),
            verdict,
            *drops,
            wording.milliseconds(row.p50_ms),
            wording.size(row.size_bytes),
        )
    return table


def _latency(report: BuildReport) -> Table:
    from rich.text import Text

    notes = [f"{row.name}: {note}" for row in report.latency for note in row.stats.notes]
    labels = dict.fromkeys(row.label for row in report.latency)
    caption = "\n".join(wording.plain(line) for line in [*labels, *notes])
    table = _table(
        "Latency of one image", caption, "model", "p50", "p90", "p95", "p99", "max", "calls", "steady"
    )
    for row in report.latency:
        stats = row.stats
        values = (stats.p50_ms, stats.p90_ms, stats.p95_ms, stats.p99_ms, stats.max_ms)
        steady = Text("no", style="yellow") if stats.unsteady else Text("yes", style="green")
        table.add_row(
            Text(wording.plain(row.name)), *[wording.milliseconds(v) for v in values], str(stats.n), steady
        )
    return table


def _stages(report: BuildReport) -> Table:
    from rich.text import Text

    total = sum(stage.seconds for stage in report.stages)
    table = _table("Stages", f"{wording.seconds(total)} in all", "stage", "time", "")
    for stage in report.stages:
        table.add_row(
            Text(wording.plain(stage.name)), wording.seconds(stage.seconds), "cached" if stage.cached else ""
        )
    return table
