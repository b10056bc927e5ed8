"""The command line: which verbs there are."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .verbs import device, exporting, gating, judging, making, measuring

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
    help="Measure: a bundle's latency here ('bench BUNDLE'), or whole methods ('bench dg', 'bench data-free').",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

app.command()(making.build)
app.command()(device.verify)
app.command()(device.predict)
app.command()(device.sign)
app.command()(device.keygen)
app.command()(judging.preflight)
app.command()(judging.guard)
app.command()(exporting.export)
app.command()(making.compress)
app.command()(making.vectors)
app.command()(making.synth)
app.command()(measuring.align)
app.command()(device.targets)
app.command()(gating.report)
app.add_typer(gating.baseline_app, name="baseline")
app.command()(device.doctor)
app.add_typer(bench_app, name="bench")
bench_app.command("bundle")(measuring.bench)
bench_app.command("dg")(measuring.bench_dg)
bench_app.command("disjoint")(measuring.bench_disjoint)
bench_app.command("data-free")(measuring.bench_data_free)


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
