"""Verbs that say yes or no before anything ships."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..options import Json, TargetsFile, stdout


def preflight(
    model: Annotated[
        Path | None, typer.Argument(metavar="MODEL", help="ONNX file, bundle folder or .vlkd archive.")
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Device; see 'vlkd-edge targets'. A bundle's own, or jetson.")
    ] = None,
    targets_file: TargetsFile = None,
    dla: Annotated[
        bool, typer.Option("--dla", help="It is meant for the deep learning accelerator.")
    ] = False,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds the builder may take.")] = 120.0,
    rules: Annotated[bool, typer.Option("--rules", help="List the rules with reasons and sources.")] = False,
    as_json: Json = False,
) -> None:
    """Hold a graph against a target's rules, then show it to a real parser and builder; no GPU is needed."""
    from .. import preflighting, targets

    if rules:
        preflighting.print_rules(as_json, stdout())
        return
    if model is None:
        msg = "expected MODEL, an ONNX file or a bundle"
        raise typer.BadParameter(msg)
    own = targets.load(targets_file)
    code = preflighting.preflight(
        model,
        lambda name: targets.find(name, own),
        target,
        timeout,
        accelerator=dla,
        as_json=as_json,
        console=stdout(),
    )
    raise typer.Exit(code)
