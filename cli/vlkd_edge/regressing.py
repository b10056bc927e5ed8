"""The ``report`` and ``baseline`` verbs: is this run worse than its baseline, and which runs are baselines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from vlkd_bench.baselines import Baselines, Entry, accept, entries_of, find_baseline, read_baselines
from vlkd_bench.benchrecord import BenchRecord, load_bench_records
from vlkd_bench.metrics import Tolerance
from vlkd_bench.regression import RegressionReport, assess, differences_of
from vlkd_bench.report import (
    render_junit,
    render_regression_html,
    render_regression_markdown,
)
from vlkd_bench.report.flips import DomainFlips, find_flips
from vlkd_bench.report.history import Point, bench_history
from vlkd_runtime.atomic import write_text
from vlkd_runtime.errors import DataError

FOLDER = Path("benchmarks/baselines")


@dataclass(frozen=True, slots=True)
class Files:
    """Where the report is written besides the terminal; None leaves a form out."""

    junit: Path | None = None
    html: Path | None = None
    markdown: Path | None = None


def judge(
    record: Path,
    baseline: Path,
    *,
    more_runs: Path | None = None,
    tolerance: Tolerance,
    across: bool = False,
    files: Files,
    images: Path | None = None,
) -> RegressionReport:
    """Judge the last run in a file against a baseline and write what was asked for.

    Args:
        record: A log of records, or what ``bench --json`` printed.
        baseline: The same, or a baseline file.
        more_runs: A log of further runs of the baseline's bundle on its machine: A/A runs.
        tolerance: What counts as a regression.
        across: Compare although machine, target or setup differ.
        files: Where to write.
        images: Folder of the measured images, for thumbnails in the HTML page.

    Raises:
        DataError: A file is missing, damaged, of another schema, or holds no bench.
    """
    runs = load_bench_records(record)
    now = runs[-1]
    before, others = find_baseline(baseline, now)
    if more_runs is not None:
        others = (*others, *_same_bundle(load_bench_records(more_runs), before, more_runs))
    report = assess(now, before, more_runs=others, tolerance=tolerance, across=across)

    def page(report: RegressionReport) -> str:
        history = () if not report.metrics else _history(runs, (*others, before), baseline, now)
        return render_regression_html(report, flips=_flips(report, images), history=history)

    renders: tuple[tuple[Path | None, Callable[[RegressionReport], str]], ...] = (
        (files.junit, render_junit),
        (files.html, page),
        (files.markdown, render_regression_markdown),
    )
    for path, render in renders:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, render(report))
    return report


def _history(
    runs: Sequence[BenchRecord], others: Sequence[BenchRecord], baseline: Path, now: BenchRecord
) -> tuple[Point, ...]:
    """Put together what was measured for this target, machine and setup: accepted runs and those of both logs."""
    entries = [item for item in entries_of(baseline) if not differences_of(now, item.record)]
    fitting = [run for run in (*others, *runs) if not differences_of(now, run)]
    return bench_history(entries, fitting, now)


def _flips(report: RegressionReport, images: Path | None) -> tuple[DomainFlips, ...]:
    """What is answered otherwise than in the baseline; nothing where answers were not or cannot be paired."""
    first, last = report.baseline.accuracy, report.now.accuracy
    compared = any(m.name.startswith("accuracy ") and m.verdict != "incomparable" for m in report.metrics)
    if first is None or last is None or not compared:
        return ()
    rows = last.rows("this run")
    paths: dict[str, Path] = {}
    if images is not None:
        # The names come from a record, perhaps a stranger's: none may lead out of the folder.
        names = [PurePosixPath(row.image) for row in rows]
        inside = [name for name in names if not name.is_absolute() and ".." not in name.parts]
        paths = {str(name): images / name for name in inside}
    return find_flips(first.rows("the baseline"), rows, last.classes, paths)


def _same_bundle(
    records: tuple[BenchRecord, ...], before: BenchRecord, path: Path
) -> tuple[BenchRecord, ...]:
    """Refuse A/A runs of something else: their difference would hide a regression as noise."""
    wrong = [
        record
        for record in records
        if record.bundle.digest != before.bundle.digest or differences_of(record, before)
    ]
    if wrong:
        why = differences_of(wrong[0], before)
        msg = (
            f"Expected A/A runs of the baseline's bundle {before.bundle.digest[:12]} on its machine and setup in "
            f"{path}, found bundle {wrong[0].bundle.digest[:12]}{f' where {why[0]}' if why else ''}: bench that bundle "
            "again."
        )
        raise DataError(msg)
    return records


def exit_code(report: RegressionReport, fail_on: str) -> int:
    """Return 0, 1 for what `fail_on` names, or 2 where there was nothing to judge by."""
    if report.verdict == "incomparable":
        return 2
    if fail_on == "never":
        return 0
    undecided = any(metric.verdict == "inconclusive" for metric in report.metrics)
    return 1 if report.verdict == "regression" or (fail_on == "inconclusive" and undecided) else 0


def accept_run(
    record: Path, reason: str, folder: Path, *, tolerance: Tolerance, disturbed: bool = False
) -> tuple[Path, Entry]:
    """Make the last run in a file the baseline of its target and machine."""
    now = load_bench_records(record)[-1]
    path = folder / f"{now.bundle.target}.json"
    return path, accept(path, now, reason, tolerance=tolerance, disturbed=disturbed)


def all_baselines(folder: Path) -> tuple[Baselines, ...]:
    """Read every baseline file of a folder.

    Raises:
        DataError: The folder is missing or empty, or a file is damaged.
    """
    found = tuple(read_baselines(path) for path in sorted(folder.glob("*.json")))
    if not found:
        msg = f"Expected baseline files in {folder}, found none: run 'vlkd-edge baseline accept RECORD --reason ...'."
        raise DataError(msg)
    return found


def entry_line(entry: Entry) -> str:
    """Return one line on an accepted run."""
    record = entry.record
    call = record.latency["call"].stats
    accuracy = f", mean accuracy {100 * record.accuracy.mean:.1f} %" if record.accuracy else ""
    worse = "; ".join(f"{metric.name} ({metric.reason})" for metric in entry.regressions)
    return (
        f"{entry.accepted}  {record.fingerprint}  {record.bundle.name} {record.bundle.digest[:12]}, "
        f"{record.setup.describe()}: p50 {call.p50_ms:.3f} ms{accuracy}\n    reason: {entry.reason}"
        + (f"\n    accepted as worse: {worse}" if worse else "")
    )


def entry_json(entry: Entry) -> dict[str, object]:
    """Return what programs read of an accepted run."""
    record = entry.record
    return {
        "accepted": entry.accepted,
        "reason": entry.reason,
        "target": record.bundle.target,
        "fingerprint": record.fingerprint,
        "machine": record.machine.describe(),
        "setup": record.setup.describe(),
        "bundle": record.bundle.name,
        "digest": record.bundle.digest,
        "latency_ms": {"p50": record.latency["call"].stats.p50_ms},
        "accuracy": {name: item.accuracy for name, item in record.accuracy.domains.items()}
        if record.accuracy
        else None,
        "regressions": [{"name": metric.name, "reason": metric.reason} for metric in entry.regressions],
    }
