"""A regression report as one HTML file: no script, no request; the verdict is its first line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..accuracy import DomainAccuracy
from ..regression import RegressionReport
from . import regression_text
from .canvas import Plot, can_draw
from .flips import DomainFlips
from .history import Point
from .html_page import environment
from .plots import Series, draw_accuracy, draw_history, draw_latency
from .wording import Fact

TEMPLATE = "regression.html.j2"
DomainPair = tuple[DomainAccuracy | None, DomainAccuracy | None]


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
    timings = []
    if report.metrics:
        timings = [
            (name, when, record.latency[name].stats)
            for name in now.latency
            for when, record in (("baseline", baseline), ("now", now))
        ]
    plots = _plots(report, domains, history) if can_draw() else {}
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
        plots=plots,
        provenance=regression_text.provenance(report),
    ).lstrip()


def _plots(
    report: RegressionReport, domains: Mapping[str, DomainPair], history: Sequence[Point]
) -> dict[str, Plot]:
    """Return the plots that there is data for, by name."""
    plots = draw_history(history)
    if report.metrics:
        pairs = (("shipped", report.now), ("teacher", report.baseline))
        plots["latency"] = draw_latency([(key, record.latency["call"].stats) for key, record in pairs])
    if domains:
        before = {name: pair[0] for name, pair in domains.items() if pair[0] is not None}
        after = {name: pair[1] for name, pair in domains.items() if pair[1] is not None}
        series = [Series("teacher", before), Series("shipped", after)]
        plots["accuracy"] = draw_accuracy(series, tuple(domains), ())
    return plots


def _domains(report: RegressionReport) -> dict[str, DomainPair]:
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
