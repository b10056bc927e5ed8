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
    variant: Annotated[
        str | None,
        typer.Option(help="The only graph of a bundle to check; each that the target runs if absent."),
    ] = None,
    dla: Annotated[
        bool, typer.Option("--dla", help="It is meant for the deep learning accelerator.")
    ] = False,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds the builder may take for a graph.")] = 120.0,
    rules: Annotated[bool, typer.Option("--rules", help="List the rules with reasons and sources.")] = False,
    as_json: Json = False,
) -> None:
    """Hold a graph against a target's rules, then show it to a real parser and builder; no GPU is needed.

    Of a bundle, each variant that the target would run. The exit code is 0 only where all of them pass.
    """
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
        variant=variant,
        accelerator=dla,
        as_json=as_json,
        console=stdout(),
    )
    raise typer.Exit(code)


def guard(
    reference: Annotated[
        Path, typer.Argument(metavar="REFERENCE.jsonl", help="Predictions before compression, JSON lines.")
    ],
    candidate: Annotated[
        Path, typer.Argument(metavar="CANDIDATE.jsonl", help="Predictions after it, on the same images.")
    ],
    budget_worst: Annotated[float, typer.Option(help="Points that any single domain may drop.")] = 1.0,
    budget_mean: Annotated[float, typer.Option(help="Points that the mean over domains may drop.")] = 0.5,
    budget_flips: Annotated[
        float | None, typer.Option(help="Points of images that may get another answer; absent: not judged.")
    ] = None,
    budget_ece: Annotated[
        float | None, typer.Option(help="Points the calibration error may grow; absent: not judged.")
    ] = None,
    budget_rejection: Annotated[
        float | None,
        typer.Option(help="Points of AUROC that rejecting unknowns may drop; absent: not judged."),
    ] = None,
    confidence: Annotated[float, typer.Option(help="One-sided confidence of the verdict.")] = 0.95,
    share: Annotated[
        float, typer.Option(help="Share of the risk to spend, where several verdicts share it.")
    ] = 1.0,
    partial: Annotated[
        bool,
        typer.Option("--partial", help="The candidate answered some of the images, and was stopped early."),
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    png: Annotated[Path | None, typer.Option(help="Draw drops, bounds and budgets to this file.")] = None,
    as_json: Json = False,
) -> None:
    """Judge stored predictions: is every domain's drop within budget, at the stated confidence?

    A line holds image, domain, label and prediction, and perhaps probability, similarity and source (the image that
    a view was made from). The label null marks an image of a class that the model does not know. Exit code 0 is a pass,
    1 a fail or too few images to tell, 2 files that cannot be judged.
    """
    from vlkd_bench.verdict import GuardBudget

    from ..guarding import Request, run

    budget = GuardBudget(
        budget_worst, budget_mean, budget_flips, budget_ece, budget_rejection, confidence, share
    )
    raise typer.Exit(run(Request(reference, candidate, budget, partial, seed, png), as_json, stdout()))
