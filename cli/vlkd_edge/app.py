"""The verbs. Every heavy import waits inside its verb, so that ``--help`` is quick and needs no torch."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

app = typer.Typer(
    name="vlkd-edge",
    help="From a CLIP-like teacher to a classifier that fits a Jetson and keeps its robustness, with the numbers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


class BundleByDefault(TyperGroup):
    """``bench BUNDLE`` means ``bench bundle BUNDLE``, whatever is no benchmark's own name."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the default's name in front of what names no benchmark."""
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["bundle", *args]
        return super().parse_args(ctx, args)


bench_app = typer.Typer(
    cls=BundleByDefault,
    help="Measure: a bundle's latency on this machine ('bench BUNDLE'), or whole methods ('bench dg').",
    no_args_is_help=True,
    rich_markup_mode="rich",
)
app.add_typer(bench_app, name="bench")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle folder or .vlkd archive.")]
EngineName = Annotated[str, typer.Option(help="Inference engine; 'auto' takes the best one here.")]


@app.command()
def build(
    target: Annotated[str | None, typer.Option(help="Device; see 'vlkd-edge targets'.")] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="vlkd.toml or a recipe; the embedded demo if absent."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Output folder.")] = Path("vlkd-out"),
    cache: Annotated[
        Path | None, typer.Option(help="Where teacher embeddings are kept; share it between builds.")
    ] = None,
    var: Annotated[list[str] | None, typer.Option(help="name=value: override a variable of [vars].")] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value: override any setting.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Distill, compress under the guard, check against TensorRT, bundle, measure and report.

    With no configuration it builds the embedded demo: drawn scenes and a tiny stand-in teacher.
    """
    from . import config as configuration
    from .build import build as run

    settings = list(setting or [])
    if target is not None:
        settings.append(f'target="{target}"')
    try:
        outcome = run(configuration.load(config, var or [], settings), out, cache or out / "cache", _stderr())
    except KeyboardInterrupt:
        print("Interrupted. What is finished is kept; the same command goes on.", file=sys.stderr)
        raise typer.Exit(130) from None
    if as_json:
        print(outcome.json_text)
    raise typer.Exit(outcome.exit_code)


@app.command()
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
            _stdout().print(f"{mark} {check.name:<14}", end="")
            _stdout().print(check.detail, markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(0 if report.ok else 1)


@app.command()
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
    out, err = _stdout(), _stderr()
    for answer in answers:
        if "error" in answer:
            err.print(f"error: {answer['error']}", style="red", markup=False, soft_wrap=True)
            continue
        others = ", ".join(f"{entry['label']} {entry['probability']:.1%}" for entry in answer["top"][1:])
        line = f"{answer['image']}: {answer['label']} {answer['probability']:.1%}" + (
            f"  ({others})" if others else ""
        )
        out.print(line, markup=False, highlight=False, soft_wrap=True)


@bench_app.command("bundle")
def bench(
    bundle: BundlePath,
    samples: Annotated[int, typer.Option(min=10, help="Timed calls; a p99 needs 1000.")] = 1000,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the engine.")] = 1,
    engine: EngineName = "auto",
    record: Annotated[Path | None, typer.Option(help="Append the record to this JSON-lines file.")] = None,
    as_json: Json = False,
) -> None:
    """Time a bundle on this machine: latency percentiles of one prediction, decoding apart."""
    from .benching import bench as run
    from .benching import render

    result = run(bundle, samples=samples, threads=threads, engine=engine)
    if record is not None:
        from vlkd_bench.records import append_record

        append_record(record, "bench", result)
    if as_json:
        print(json.dumps(result))
    else:
        _stdout().print(render(result), markup=False, highlight=False)


@bench_app.command("dg")
def bench_dg(
    dataset: Annotated[
        str | None, typer.Option(help="Folder laid out as <domain>/<class>/<image>, or 'demo'.")
    ] = None,
    methods: Annotated[str, typer.Option(help="Methods, with commas between them.")] = "erm,kd,vl2v-adip",
    held_out: Annotated[str, typer.Option(help="Domains to leave out, one at a time, or 'all'.")] = "all",
    seeds: Annotated[str, typer.Option(help="Seeds, with commas between them.")] = "0",
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="vlkd.toml or a recipe; the demo's if absent.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Output folder.")] = Path("vlkd-out/dg"),
    cache: Annotated[Path | None, typer.Option(help="Where teacher embeddings are kept.")] = None,
    name: Annotated[str, typer.Option(help="Name of the table's files in the output folder.")] = "table",
    var: Annotated[list[str] | None, typer.Option(help="name=value: override a variable of [vars].")] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value: override any setting.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Leave one domain out at a time: train, export and measure every method, beside the teacher.

    Writes NAME.json, NAME.md and NAME.png; an interrupted table goes on where it was.
    """
    from . import config as configuration
    from .leaveout import command_line, leave_one_out, parse_plan, write

    plan = parse_plan(methods, held_out, seeds)
    settings = [*(setting or []), *([f"data.root={dataset}"] if dataset is not None else [])]
    loaded = configuration.load(config, var or [], settings)
    try:
        words = command_line(plan, config, var or [], setting or [], dataset)
        table = leave_one_out(loaded, plan, out, cache or out / "cache", _stderr(), words)
    except KeyboardInterrupt:
        print("Interrupted. What is finished is kept; the same command goes on.", file=sys.stderr)
        raise typer.Exit(130) from None
    write(table, out, name)
    if as_json:
        print(json.dumps(table.as_json()))
    else:
        from rich.markdown import Markdown

        _stdout().print(Markdown(table.markdown()))


@app.command()
def preflight(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="ONNX file, bundle folder or .vlkd archive.")
    ],
    timeout: Annotated[float, typer.Option(min=1, help="Seconds the builder may take.")] = 120.0,
    as_json: Json = False,
) -> None:
    """Show a graph to TensorRT's real parser and builder; no GPU is needed."""
    from .preflighting import preflight as run

    code = run(model, timeout, as_json, _stdout())
    raise typer.Exit(code)


@app.command()
def targets(as_json: Json = False) -> None:
    """List the devices a bundle can be built for."""
    import dataclasses

    from .targets import TARGETS

    if as_json:
        print(json.dumps([dataclasses.asdict(target) for target in TARGETS]))
        return
    from rich.table import Table

    table = Table("target", "device", "compute capability", "JetPack", "TensorRT", "DLA cores", box=None)
    for target in TARGETS:
        title = f"alias of {target.alias_of}" if target.alias_of else target.title
        table.add_row(
            target.name, title, target.compute_capability, target.jetpack, target.tensorrt, target.dla_cores
        )
    _stdout().print(table)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"vlkd-edge {version('vlkd-edge')}")
        raise typer.Exit


@app.callback()
def _face(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version


def _stderr() -> Console:
    return Console(stderr=True, width=None if sys.stderr.isatty() else 110)


def _stdout() -> Console:
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else 110)
