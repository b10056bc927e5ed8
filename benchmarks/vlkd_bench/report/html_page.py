"""The report as one HTML file: no script, no request, readable in light, dark, on a phone and on paper."""

from __future__ import annotations

from importlib.resources import files

from . import wording
from .plots import draw_plots
from .values import BuildReport

TEMPLATE = "page.html.j2"


def render_html(report: BuildReport) -> str:
    """Return the page; the same report gives the same bytes.

    Names of classes, domains and files come from strangers' folders: every value is escaped, and only the
    plots, whose text is escaped while they are drawn, enter as markup.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        percent=wording.percent,
        points=wording.points,
        milliseconds=wording.milliseconds,
        seconds=wording.seconds,
        size=wording.size,
        p_value=wording.p_value,
        bundle=wording.bundle,
        plain=wording.plain,
    )
    source = files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(source).render(
        report=report,
        headline=wording.headline(report),
        facts=wording.facts(report),
        plots=draw_plots(report),
        svg=Markup,
        wording=wording,
        image_counts={name: _image_counts(report, name) for name in report.domains},
        held_out_means=[wording.over_domains(report, model) for model in report.accuracy],
    )


def _image_counts(report: BuildReport, domain: str) -> list[int]:
    """Return the numbers of images the models were measured on; one number if they agree."""
    summaries = [model.summary.domains for model in report.accuracy]
    return sorted({domains[domain].n for domains in summaries if domain in domains})
