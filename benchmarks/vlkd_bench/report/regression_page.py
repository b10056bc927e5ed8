"""A regression report as one HTML file: no script, no request; the verdict is its first line."""

from __future__ import annotations

from collections.abc import Sequence

from ..accuracy import DomainAccuracy
from ..regression import RegressionReport
from . import regression_text
from .canvas import Plot
from .flips import DomainFlips
from .history import Point
from .html_page import environment
from .plots import Series, draw_accuracy, draw_history, draw_latency
from .wording import Fact

TEMPLATE = "regression.html.j2"


def render_regression_html(
    report: RegressionReport, *, flips: Sequence[DomainFlips] = (), history: Sequence[Point] = ()
) -> str:
    """Return the page; every value is escaped, since names come from strangers' folders.

    Args:
        report: The verdict and what it rests on.
        flips: Images that are answered otherwise than in the baseline.
        history: Accepted and other runs up to this one, oldest first.
    """
    now, baseline = report.now, report.baseline
    domains = _domains(report)
    plots: dict[str, Plot] = {}
    timings = []
    if report.metrics:
        pairs = [("shipped", now.latency["call"].stats), ("teacher", baseline.latency["call"].stats)]
        plots["latency"] = draw_latency(pairs)
        timings = [
            (name, when, record.latency[name].stats)
            for name in now.latency
            for when, record in (("baseline", baseline), ("now", now))
        ]
    if domains:
        series = [
            Series(key, {name: pair[i] for name, pair in domains.items() if pair[i]})  # type: ignore[misc]
            for i, key in enumerate(("teacher", "shipped"))
        ]
        plots["accuracy"] = draw_accuracy(series, tuple(domains), ())
    claim, _, detail = report.headline.partition("; ")
    page = environment().get_template(TEMPLATE)
    return page.render(
        report=report,
        claim=_sentence(claim),
        detail=_sentence(detail),
        title=regression_text.TITLES[report.verdict],
        stand_ins=tuple(dict.fromkeys(r.bundle.stand_in for r in (now, baseline) if r.bundle.stand_in)),
        facts=_facts(report),
        names=("metric", "baseline", "now", "change", "interval", "verdict"),
        rows=[(metric, regression_text.cells(metric)) for metric in report.metrics],
        definitions=regression_text.REGRESSION_TERMS,
        domains=domains,
        flips=flips,
        timings=timings,
        points=history,
        plots=plots | draw_history(history),
        provenance=regression_text.provenance(report),
    ).lstrip()


def _domains(report: RegressionReport) -> dict[str, tuple[DomainAccuracy | None, DomainAccuracy | None]]:
    """Return the accuracy of each domain before and now, where both runs have accuracies and are compared."""
    first, last = report.baseline.accuracy, report.now.accuracy
    if first is None or last is None or not report.metrics:
        return {}
    names = sorted({*first.domains, *last.domains})
    return {name: (first.domains.get(name), last.domains.get(name)) for name in names}


def _facts(report: RegressionReport) -> tuple[Fact, ...]:
    """Return the numbers to read first: the worst domain, the mean, the call, the cold start, the memory."""
    wanted = {
        "accuracy mean": "Mean accuracy",
        "latency call p50": "Call, median",
        "cold start": "Cold start",
        "peak memory": "Peak memory",
    }
    worst = next((m for m in report.metrics if m.name.startswith("accuracy ") and m.name not in wanted), None)
    facts = []
    for metric in report.metrics:
        title = wanted.get(metric.name, metric.name.capitalize() if metric is worst else "")
        if title:
            before = regression_text.value(metric, metric.baseline)
            note = f"baseline {before}; {metric.verdict}"
            facts.append(Fact(title, regression_text.value(metric, metric.now), note))
    return tuple(facts)


def _sentence(text: str) -> str:
    """Return a clause as the beginning of a sentence."""
    return text[:1].upper() + text[1:]
