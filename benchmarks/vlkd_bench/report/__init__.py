"""Reports of builds and of regressions, for people and for programs, each from one value."""

from .html_page import render_html
from .junit import render_junit
from .machine_json import render_json
from .markdown_page import render_markdown
from .regression_page import render_regression_html
from .regression_text import render_regression_lines, render_regression_markdown
from .terminal import render_terminal
from .values import (
    BuildReport,
    CandidateRow,
    FloatRow,
    LatencyRow,
    ModelAccuracy,
    PreflightRow,
    RefusedRow,
    StageRow,
)

__all__ = [
    "BuildReport",
    "CandidateRow",
    "FloatRow",
    "LatencyRow",
    "ModelAccuracy",
    "PreflightRow",
    "RefusedRow",
    "StageRow",
    "render_html",
    "render_json",
    "render_junit",
    "render_markdown",
    "render_regression_html",
    "render_regression_lines",
    "render_regression_markdown",
    "render_terminal",
]
