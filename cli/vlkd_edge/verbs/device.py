"""Verbs for where a bundle runs: no torch, no build packages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ..options import BundlePath, EngineName, Json, TargetsFile, stderr, stdout


def verify(bundle: BundlePath, engine: EngineName = "auto", as_json: Json = False) -> None:
    """Check every byte of a bundle, then run its golden samples on this machine."""
    from vlkd_runtime.verify import verify as run

    report = run(bundle, engine=engine)
    if as_json:
        checks = [{"name": check.name, "ok": check.ok, "detail": check.detail} for check in report.checks]
        print(json.dumps({"ok": report.ok, "checks": checks}))
    else:
        for check in report.checks:
            mark = "[green]ok[/]  " if check.ok else "[red]FAIL[/]"
            stdout().print(f"{mark} {check.name:<14}", end="")
            stdout().print(check.detail, markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(0 if report.ok else 1)


def predict(
    bundle: BundlePath,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    top: Annotated[int, typer.Option(min=1, help="Classes to list for each image.")] = 3,
    engine: EngineName = "auto",
    as_json: Json = False,
) -> None:
    """Classify images with a bundle."""
    from vlkd_runtime import Classifier
    from vlkd_runtime.errors import ImageError

    answers: list[dict[str, Any]] = []
    with Classifier.load(bundle, engine=engine) as classifier:
        for path in images:
            try:
                answer = classifier.predict(path, top=top)
            except ImageError as error:
                answers.append({"image": str(path), "error": str(error)})
                continue
            answers.append(
                {
                    "image": str(path),
                    "label": answer.label,
                    "probability": answer.probability,
                    "similarity": answer.similarity,
                    "top": [{"label": label, "probability": share} for label, share in answer.top],
                }
            )
        info = classifier.info
    failed = [answer for answer in answers if "error" in answer]
    if as_json:
        print(json.dumps({"predictions": answers, "engine": info.name, "provider": info.provider}))
    else:
        _print_answers(answers)
    raise typer.Exit(2 if failed else 0)


def _print_answers(answers: list[dict[str, Any]]) -> None:
    out, err = stdout(), stderr()
    for answer in answers:
        if "error" in answer:
            err.print(f"error: {answer['error']}", style="red", markup=False, soft_wrap=True)
            continue
        others = ", ".join(f"{entry['label']} {entry['probability']:.1%}" for entry in answer["top"][1:])
        line = f"{answer['image']}: {answer['label']} {answer['probability']:.1%}" + (
            f"  ({others})" if others else ""
        )
        out.print(line, markup=False, highlight=False, soft_wrap=True)


def targets(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Show one target in full.")] = None,
    targets_file: TargetsFile = None,
    as_json: Json = False,
) -> None:
    """List the devices a bundle can be built for."""
    from .. import targets as devices

    own = devices.load(targets_file)
    if name is not None:
        plain = devices.describe(devices.find(name, own))
        if as_json:
            print(json.dumps(plain))
            return
        for key, value in plain.items():
            words = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
            if key != "releases" and words != "":
                stdout().print(f"{key:<20}{words}", markup=False, highlight=False, soft_wrap=True)
        for release in plain["releases"]:
            line = ", ".join(f"{key} {value or 'not stated'}" for key, value in release.items())
            stdout().print(f"{'':<20}{line}", markup=False, highlight=False, soft_wrap=True)
        return
    shown = (*devices.TARGETS, *own)
    if as_json:
        print(json.dumps({"targets": [devices.describe(target) for target in shown]}))
        return
    from rich.table import Table

    table = Table("target", "device", "compute", "JetPack", "TensorRT", "DLA", "memory", box=None)
    for target in shown:
        title = f"alias of {target.alias_of}" if target.alias_of else target.title
        table.add_row(
            target.name,
            title + (" (legacy)" if target.legacy else ""),
            ", ".join(target.compute_capability),
            next(iter(target.jetpack), ""),
            next(iter(target.tensorrt), ""),
            str(target.dla_cores or ""),
            f"{target.memory_gib:g} GiB",
        )
    stdout().print(table)
