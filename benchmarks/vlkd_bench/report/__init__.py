"""Build reports for people (terminal, Markdown, HTML) and for programs (JSON), all from one value."""

from .html_page import render_html
from .machine_json import render_json
from .markdown_page import render_markdown
from .terminal import render_terminal
from .values import (
    BuildReport,
    CandidateRow,
    LatencyRow,
    ModelAccuracy,
    PreflightRow,
    StageRow,
)

__all__ = [
    "BuildReport",
    "CandidateRow",
    "LatencyRow",
    "ModelAccuracy",
    "PreflightRow",
    "StageRow",
    "render_html",
    "render_json",
    "render_markdown",
    "render_terminal",
]
