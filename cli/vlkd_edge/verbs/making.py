"""Verbs that make something at the desk: bundles, class vectors and synthetic images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ..options import (
    CacheFolder,
    ClassesOf,
    ClassNames,
    ConfigFile,
    Json,
    NamesFrom,
    OutFolder,
    SettingsWords,
    TeacherFolder,
    Variables,
    answer,
    interruptible,
    stderr,
    stdout,
    trains,
)


@trains
def build(
    target: Annotated[str | None, typer.Option(help="Device; see 'vlkd-edge targets'.")] = None,
    config: ConfigFile = None,
    out: OutFolder = Path("vlkd-out"),
    cache: CacheFolder = None,
    var: Variables = None,
    setting: SettingsWords = None,
    as_json: Json = False,
) -> None:
    """Distill, compress under the guard, check against TensorRT, bundle, measure and report.

    With no configuration it builds the embedded demo: drawn scenes and a tiny stand-in teacher.
    """
    from .. import configfile
    from ..build import build as run

    settings = list(setting or [])
    if target is not None:
        settings.append(f'target="{target}"')
    with interruptible():
        own_data = any(setting.startswith("data.root=") for setting in settings)
        recipe = config or (None if own_data else configfile.DEMO)
        loaded = configfile.load(recipe, var or [], settings)
        outcome = run(loaded, out, cache or out / "cache", stderr())
    if as_json:
        print(outcome.json_text)
    raise typer.Exit(outcome.exit_code)


def vectors(
    names: ClassNames = None,
    names_from: NamesFrom = None,
    dataset: ClassesOf = None,
    teacher: Annotated[
        str,
        typer.Option(
            help="'demo'; of open_clip '<architecture>:<pretrained tag>' or 'local-dir:<folder>'; of transformers "
            "'hf:<model id>' or 'hf-dir:<folder>'; or 'onnx-pair:<folder>', 'store:<file or folder>', "
            "'call:<module>:<attribute>'."
        ),
    ] = "demo",
    templates: Annotated[
        str, typer.Option(help="Built-in template set, or a .txt or .toml file of templates.")
    ] = "photo",
    attributes: Annotated[
        str | None, typer.Option(help="TOML or JSON file: class name to what one sees of it; or 'demo'.")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Where the vectors go; a heat map .png lies beside them.")
    ] = Path("class_vectors.safetensors"),
    lint: Annotated[
        Path | None,
        typer.Option(
            help="Look over this file or bundle folder instead; given names are the order to expect."
        ),
    ] = None,
    dim: Annotated[int | None, typer.Option(min=1, help="Embedding size to expect.")] = None,
    near: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Cosine from which two classes count as too alike.")
    ] = 0.98,
    cache: TeacherFolder = None,
    as_json: Json = False,
) -> None:
    """Embed class names once, look the vectors over, and show which classes lie close together."""
    from ..vectoring import Request, run

    def load(name: str) -> Any:
        from vlkd_distill import teacher_loading

        return teacher_loading.load(name, cache or out.parent / "cache")

    request = Request(names, names_from, dataset, teacher, templates, attributes, out, lint, dim, near)
    raise typer.Exit(run(request, as_json, stdout(), load))


def synth(
    names: ClassNames = None,
    names_from: NamesFrom = None,
    dataset: ClassesOf = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="vlkd.toml with a 'synthesis' section; the demo's if absent."),
    ] = None,
    out: OutFolder = Path("vlkd-out/synth"),
    cache: TeacherFolder = None,
    var: Variables = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override any setting, such as synthesis.rule=mix."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make images from class names alone, and report whether they show their class and differ.

    Writes images/, contact.png, report.md and report.json; an interrupted call goes on where it was.
    """
    from .. import configfile
    from ..synthesising import run
    from ..vectoring import Request, class_names

    classes = class_names(Request(names, names_from, dataset))
    loaded = configfile.load(config, var or [], setting or [])
    with interruptible():
        made = run(classes or (), loaded, out, cache or out / "cache", stderr())
    if as_json:
        print(json.dumps(made))
    else:
        from rich.markdown import Markdown

        stdout().print(Markdown((out / "report.md").read_text()))
        stdout().print(f"{made['images_folder']}, {made['sheet']}", style="dim", soft_wrap=True)


def compress(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="An image classifier in float.")],
    data: Annotated[
        Path, typer.Option(help="Folder laid out as <domain>/<class>/<image>, or as <class>/<image>.")
    ],
    held_out: Annotated[
        str,
        typer.Option(
            help="Domains on which the guard judges, with commas between them; virtual ones, drawn from one image in "
            "five, if empty."
        ),
    ] = "",
    target: Annotated[
        str, typer.Option(help="Device; see 'vlkd-edge targets'. Decides how quantized graphs are written.")
    ] = "jetson",
    candidates: Annotated[
        str, typer.Option(help="What to try, boldest first, with commas; what suits the target if empty.")
    ] = "",
    normalise: Annotated[
        str, typer.Option(help="How a float input is normalised: imagenet, half, unit, clip, raw or auto.")
    ] = "",
    mean: Annotated[str, typer.Option(help="Three numbers taken off pixel values from 0 to 255.")] = "",
    std: Annotated[str, typer.Option(help="Three numbers that divide them.")] = "",
    layout: Annotated[str, typer.Option(help="Order of the input's axes: auto, nchw or nhwc.")] = "auto",
    bgr: Annotated[bool, typer.Option("--bgr", help="The input wants blue first.")] = False,
    output: Annotated[
        str | None, typer.Option(help="Output with the logits, where there are several.")
    ] = None,
    classes: Annotated[
        str, typer.Option(help="Folder names in the order of the logits; sorted ones if empty.")
    ] = "",
    size: Annotated[
        int | None, typer.Option(min=1, help="Height and width, where the graph leaves them open.")
    ] = None,
    resize: Annotated[str, typer.Option(help="How images are brought to size: squash or crop.")] = "squash",
    crop_fraction: Annotated[float, typer.Option(help="Share of the image that the crop covers.")] = 1.0,
    interpolation: Annotated[str, typer.Option(help="bilinear or bicubic.")] = "bilinear",
    jpeg_scale: Annotated[
        int, typer.Option(help="Decode JPEGs reduced, as far as this many input sizes are left; 0 for whole.")
    ] = 0,
    budget_worst: Annotated[float, typer.Option(help="Points any held-out domain may drop.")] = 1.0,
    budget_mean: Annotated[float, typer.Option(help="Points their mean may drop.")] = 0.5,
    confidence: Annotated[float, typer.Option(help="Of the bounds.")] = 0.95,
    trials: Annotated[int, typer.Option(min=1, help="Most candidates to judge.")] = 8,
    minutes: Annotated[float, typer.Option(min=0.0, help="Begin no candidate after this long.")] = 30.0,
    rank: Annotated[bool, typer.Option(help="Rank layers when the bold candidates fail.")] = True,
    calibration_images: Annotated[int, typer.Option(min=32, help="Source images that set the scales.")] = 256,
    coverage: Annotated[
        bool, typer.Option("--coverage", help="Choose them to cover the feature space, not evenly.")
    ] = False,
    qat_epochs: Annotated[
        int,
        typer.Option(
            min=0, max=1000, help="Passes of quantization-aware training, tried last in INT8; 0 for none."
        ),
    ] = 2,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the engine in races.")] = 1,
    seed: Annotated[
        int, typer.Option(min=0, help="Of calibration images, virtual domains and training.")
    ] = 0,
    out: OutFolder = Path("vlkd-out/compress"),
    as_json: Json = False,
) -> None:
    """Quantize any ONNX image classifier as far as accuracy on held-out domains allows, and say what it cost.

    Writes model.onnx (uint8 image in, normalisation inside), ladder.json, ladder.md and ladder.png. Pruning and 2:4
    sparsity need a student that can be trained again: they are build's.
    """
    from vlkd_bench.paired import GuardBudget
    from vlkd_compress.ladder import Limits

    from ..compressing import Request
    from ..compressing import compress as run
    from ..parsing import numbers, words

    request = Request(
        model=model,
        data=data,
        held_out=words(held_out),
        target=target,
        classes=words(classes),
        candidates=words(candidates),
        normalise=normalise,
        mean=numbers(mean, "--mean"),
        std=numbers(std, "--std"),
        layout=layout,  # type: ignore[arg-type]  # checked where the axes are looked at
        bgr=bgr,
        output=output,
        size=None if size is None else (size, size),
        resize=resize,
        crop_fraction=crop_fraction,
        interpolation=interpolation,
        jpeg_scale=jpeg_scale,
        calibration_images=calibration_images,
        coverage=coverage,
        budget=GuardBudget(worst_points=budget_worst, mean_points=budget_mean, confidence=confidence),
        limits=Limits(trials, minutes),
        ranked=rank,
        threads=threads,
        seed=seed,
        qat_epochs=qat_epochs,
    )
    with interruptible():
        outcome = run(request, out, stderr())
    answer(as_json, outcome.plain, outcome.text)
    raise typer.Exit(outcome.exit_code)
