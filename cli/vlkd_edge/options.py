"""Options that several verbs share, and where they print."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle folder or .vlkd archive.")]
EngineName = Annotated[str, typer.Option(help="Inference engine; 'auto' takes the best one here.")]
TargetsFile = Annotated[
    Path | None, typer.Option(help="TOML file with [targets.NAME] tables of your own; a vlkd.toml will do.")
]


def stderr() -> Console:
    """For progress and errors."""
    return Console(stderr=True, width=None if sys.stderr.isatty() else 110)


def stdout() -> Console:
    """For results that people read."""
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else 110)
