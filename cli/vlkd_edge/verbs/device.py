"""Verbs for where a bundle runs: no torch, no build packages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ..options import (
    BundlePath,
    EngineName,
    Json,
    PublicKeys,
    RequireSignature,
    TargetsFile,
    VariantName,
    stderr,
    stdout,
)


def verify(
    bundle: BundlePath,
    engine: EngineName = "auto",
    public_key: PublicKeys = None,
    require_signature: RequireSignature = False,
    as_json: Json = False,
) -> None:
    """Check every byte of a bundle, then run its golden samples on this machine."""
    from vlkd_runtime.verify import verify as run

    report = run(bundle, engine=engine, public_keys=_keys(public_key, require_signature))
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
    threshold: Annotated[
        float | None, typer.Option(help="Least probability of a known class; below it: unknown.")
    ] = None,
    min_similarity: Annotated[
        float | None, typer.Option(help="Least cosine of a known class; below it: unknown.")
    ] = None,
    engine: EngineName = "auto",
    variant: VariantName = None,
    public_key: PublicKeys = None,
    require_signature: RequireSignature = False,
    as_json: Json = False,
) -> None:
    """Classify images with a bundle."""
    import dataclasses

    from vlkd_runtime import Classifier
    from vlkd_runtime.errors import ImageError

    answers: list[dict[str, Any]] = []
    keys = _keys(public_key, require_signature)
    with Classifier.load(bundle, engine=engine, variant=variant, public_keys=keys) as classifier:
        for path in images:
            try:
                answer = classifier.predict(path, top=top, threshold=threshold, min_similarity=min_similarity)
            except ImageError as error:
                answers.append({"image": str(path), "error": str(error)})
                continue
            answers.append(
                {
                    "image": str(path),
                    "label": answer.label,
                    "known": answer.known,
                    "probability": answer.probability,
                    "similarity": answer.similarity,
                    "top": [{"label": label, "probability": share} for label, share in answer.top],
                }
            )
        info, selection = classifier.info, classifier.selection
    failed = [answer for answer in answers if "error" in answer]
    if as_json:
        chosen = None if selection is None else dataclasses.asdict(selection)
        found = {
            "predictions": answers,
            "engine": info.name,
            "provider": info.provider,
            "device": info.device,
        }
        print(json.dumps({**found, "variant": (chosen or {}).get("variant"), "selection": chosen}))
    else:
        _print_answers(answers)
    raise typer.Exit(2 if failed else 0)


def _print_answers(answers: list[dict[str, Any]]) -> None:
    out, err = stdout(), stderr()
    for answer in answers:
        if "error" in answer:
            err.print(f"error: {answer['error']}", style="red", markup=False, soft_wrap=True)
            continue
        # What is not known is still likest to something.
        rest = answer["top"][1:] if answer["known"] else answer["top"]
        others = ", ".join(f"{entry['label']} {entry['probability']:.1%}" for entry in rest)
        line = f"{answer['image']}: {answer['label']} {answer['probability']:.1%}" + (
            f"  ({others})" if others else ""
        )
        out.print(line, markup=False, highlight=False, soft_wrap=True)


def keygen(
    private_key: Annotated[
        Path, typer.Argument(metavar="NAME.key", help="Where the private key goes; keep it off devices.")
    ],
    public_key: Annotated[
        Path | None, typer.Option(help="Where the public key goes; NAME.pub if absent.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a pair of Ed25519 keys to sign bundles with."""
    from vlkd_runtime.signing import write_keys

    public = public_key or private_key.with_suffix(".pub")
    write_keys(private_key, public)
    if as_json:
        print(json.dumps({"private_key": str(private_key), "public_key": str(public)}))
    else:
        stdout().print(
            f"{private_key}: sign with this, and keep it secret\n{public}: give this to devices",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


def sign(
    bundle: BundlePath,
    key: Annotated[Path, typer.Option(help="Private key in PEM, as keygen writes it.")],
    as_json: Json = False,
) -> None:
    """Sign a bundle, so that a device with the public key knows where it is from."""
    from vlkd_runtime.bundle import Bundle, sign_bundle

    path = sign_bundle(bundle, key)
    digest = Bundle.open(path).manifest.digest
    if as_json:
        print(json.dumps({"bundle": str(path), "digest": digest}))
    else:
        stdout().print(f"{path}: signed, digest {digest}", markup=False, highlight=False, soft_wrap=True)


def _keys(keys: list[Path] | None, required: bool) -> tuple[Path, ...]:
    if required and not keys:
        from vlkd_runtime.errors import ConfigError

        msg = "--require-signature: expected --public-key with the key of the bundle's maker, found none; give it"
        raise ConfigError(msg)
    return tuple(keys or ())


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
            release["linux"] = ", ".join(linux for linux, _ in release["linux"])
            line = "; ".join(f"{key} {value or 'not stated'}" for key, value in release.items())
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
    stdout().print(
        "precisions, dialect, student, rails and notes of one: vlkd-edge targets NAME", highlight=False
    )


def doctor(
    target: Annotated[
        str | None,
        typer.Option(help="Look at one target; the exit code is 1 if it can be neither built for nor run."),
    ] = None,
    targets_file: TargetsFile = None,
    as_json: Json = False,
) -> None:
    """Tell what this machine has, what each target lacks here, and the line that installs it."""
    from .. import doctor as diagnosing
    from .. import probing
    from .. import targets as devices

    own = devices.load(targets_file)
    shown = (devices.find(target, own),) if target is not None else (*devices.TARGETS, *own)
    found = diagnosing.report(
        shown, probing.read_python(), probing.read_system(), as_json=as_json, console=stdout()
    )
    lost = target is not None and all(item.build and item.run for item in found.values())
    raise typer.Exit(1 if lost else 0)
