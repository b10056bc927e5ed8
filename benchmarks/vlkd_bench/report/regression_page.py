"""A regression report as one HTML file: no script, no request; the verdict is its first line."""

from __future__ import annotations

from importlib.resources import files

from ..regression import RegressionReport
from . import regression_text, wording

TEMPLATE = "regression.html.j2"


def render_regression_html(report: RegressionReport) -> str:
    """Return the page; every value is escaped, since names come from strangers' folders."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(plain=wording.plain)
    source = files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(source).render(
        report=report,
        title=regression_text.TITLES[report.verdict],
        heads=regression_text.HEADS,
        rows=[(metric.verdict, regression_text.cells(metric)) for metric in report.metrics],
        terms=regression_text.REGRESSION_TERMS,
        provenance=regression_text.provenance(report),
    )
