"""The reports as one HTML file each: no script, no request, readable in light, dark, on a phone and on paper."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

from vlkd_runtime.errors import UnavailableError

from . import wording
from .canvas import can_draw
from .heatmap import colour_range, draw_heatmap
from .plots import draw_plots
from .values import BuildReport

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = "templates"


def render_html(report: BuildReport) -> str:
    """Return a build's page; the same report gives the same bytes.

    Names of classes, domains and files come from strangers' folders: every value is escaped, and only the
    plots, whose text is escaped while they are drawn, enter as markup.
    """
    plots = draw_plots(report) if can_draw() else {}
    if report.classes is not None:
        plots["classes"] = draw_heatmap(report.classes)
    page = environment().get_template("page.html.j2")
    return page.render(
        report=report,
        headline=wording.headline(report),
        facts=wording.facts(report),
        plots=plots,
        image_counts={name: _image_counts(report, name) for name in report.domains},
        held_out_means=[wording.over_domains(report, model) for model in report.accuracy],
        class_range=None if report.classes is None else colour_range(report.classes),
    ).lstrip()


def environment() -> Environment:
    """Return what the pages are rendered with: everything escaped, nothing left undefined.

    Raises:
        UnavailableError: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, FunctionLoader, StrictUndefined
        from markupsafe import Markup
    except ImportError as error:
        msg = "The HTML page needs jinja2, which is not installed: pip install jinja2, or leave the page out."
        raise UnavailableError(msg) from error

    folder = files(__package__).joinpath(TEMPLATES)
    found = Environment(
        autoescape=True,
        loader=FunctionLoader(lambda name: folder.joinpath(name).read_text(encoding="utf-8")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.globals["wording"] = wording
    found.filters.update(
        percent=wording.percent,
        points=wording.points,
        milliseconds=wording.milliseconds,
        between=wording.milliseconds_between,
        seconds=wording.seconds,
        size=wording.size,
        p_value=wording.p_value,
        bundle=wording.bundle,
        plain=wording.plain,
        bound=wording.bound,
        svg=Markup,
    )
    return found


def _image_counts(report: BuildReport, domain: str) -> list[int]:
    """Return the numbers of images the models were measured on; one number if they agree."""
    summaries = [model.summary.domains for model in report.accuracy]
    return sorted({domains[domain].n for domains in summaries if domain in domains})
