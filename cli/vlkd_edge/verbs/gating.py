"""Verbs for a CI: judge a run against its baseline, and say which runs are baselines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ..options import Json, choice, stdout

RecordPath = Annotated[
    Path,
    typer.Argument(metavar="RECORD", help="What bench --record or bench --json wrote; the last run counts."),
]
BaselineFolder = Annotated[Path, typer.Option("--folder", help="Folder of baseline files, one a target.")]
Relative = Annotated[float, typer.Option(min=0, help="Relative floor of latencies, in percent.")]
Milliseconds = Annotated[float, typer.Option(min=0, help="Absolute floor of latencies, in milliseconds.")]
Points = Annotated[float, typer.Option(min=0, help="Floor of a drop in accuracy, in points.")]


def report(
    record: RecordPath,
    baseline: Annotated[
        Path, typer.Option(help="Baseline file, or a log of records whose last run is the baseline.")
    ],
    fail_on: Annotated[
        str, typer.Option(help="Exit with 1 on 'regression', also on 'inconclusive' ones, or 'never'.")
    ] = "regression",
    aa: Annotated[
        Path | None, typer.Option(help="Log of further runs of the baseline's bundle: what noise there is.")
    ] = None,
    latency_percent: Relative = 5.0,
    latency_ms: Milliseconds = 0.01,
    accuracy_points: Points = 0.5,
    confidence: Annotated[
        float, typer.Option(help="Confidence of all latencies together, and of all accuracies.")
    ] = 0.95,
    across: Annotated[
        bool, typer.Option("--across", help="Compare although machine, target or setup differ.")
    ] = False,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML to this file.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write one HTML page to this file.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write Markdown for a pull request.")] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder that bench --data measured: thumbnails for the HTML page.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Judge a bench against its baseline: 0 no regression, 1 regression, 2 not comparable."""
    from vlkd_bench.metrics import Tolerance
    from vlkd_bench.report import render_regression_lines

    from ..regressing import Files, exit_code, judge

    wanted = choice("--fail-on", fail_on, ("regression", "inconclusive", "never"))
    found = judge(
        record,
        baseline,
        more_runs=aa,
        tolerance=Tolerance(
            relative=latency_percent / 100,
            latency_ms=latency_ms,
            accuracy_points=accuracy_points,
            confidence=confidence,
        ),
        across=across,
        files=Files(junit, html, markdown),
        images=images,
    )
    if as_json:
        print(json.dumps(found.to_json(), allow_nan=False))
    else:
        stdout().print(render_regression_lines(found), markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(exit_code(found, wanted))


baseline_app = typer.Typer(
    help="The runs that others are judged against, with the reasons why they were accepted.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


@baseline_app.command("accept")
def accept_baseline(
    record: RecordPath,
    reason: Annotated[
        str, typer.Option(help="Why this run is the new baseline, for who reads it in a year.")
    ],
    folder: BaselineFolder = Path("benchmarks/baselines"),
    latency_percent: Relative = 5.0,
    latency_ms: Milliseconds = 0.01,
    accuracy_points: Points = 0.5,
    disturbed: Annotated[
        bool, typer.Option("--disturbed", help="Accept it although the device throttled or changed its mode.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make a run the baseline of its target and machine; what it is worse in is kept with the reason."""
    from vlkd_bench.metrics import Tolerance

    from ..regressing import accept_run, entry_json, entry_line

    tolerance = Tolerance(
        relative=latency_percent / 100, latency_ms=latency_ms, accuracy_points=accuracy_points
    )
    path, entry = accept_run(record, reason, folder, tolerance=tolerance, disturbed=disturbed)
    if as_json:
        print(json.dumps({"file": str(path), "entry": entry_json(entry)}))
    else:
        stdout().print(
            f"accepted in {path}\n{entry_line(entry)}", markup=False, highlight=False, soft_wrap=True
        )


@baseline_app.command("list")
def list_baselines(folder: BaselineFolder = Path("benchmarks/baselines"), as_json: Json = False) -> None:
    """List the current baseline of every target, machine and setup."""
    from ..regressing import all_baselines, entry_json, entry_line

    current = [
        entry
        for known in all_baselines(folder)
        for entry in known.entries
        if known.current(entry.record) is entry
    ]
    if as_json:
        print(json.dumps([entry_json(entry) for entry in current]))
        return
    for entry in current:
        text = f"{entry.record.bundle.target}  {entry_line(entry)}"
        stdout().print(text, markup=False, highlight=False, soft_wrap=True)


@baseline_app.command("show")
def show_baseline(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="Target whose history to show.")],
    folder: BaselineFolder = Path("benchmarks/baselines"),
    as_json: Json = False,
) -> None:
    """Show the history of a target's baselines, oldest first, with what was accepted as worse."""
    from vlkd_bench.baselines import read_baselines

    from ..regressing import entry_json, entry_line

    entries = read_baselines(folder / f"{target}.json").entries
    if as_json:
        print(json.dumps([entry_json(entry) for entry in entries]))
        return
    for entry in entries:
        stdout().print(entry_line(entry), markup=False, highlight=False, soft_wrap=True)
