"""Verbs that say yes or no before anything ships."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..options import Json, stdout


def preflight(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="ONNX file, bundle folder or .vlkd archive.")
    ],
    timeout: Annotated[float, typer.Option(min=1, help="Seconds the builder may take.")] = 120.0,
    as_json: Json = False,
) -> None:
    """Show a graph to TensorRT's real parser and builder; no GPU is needed."""
    from ..preflighting import preflight as run

    code = run(model, timeout, as_json, stdout())
    raise typer.Exit(code)
