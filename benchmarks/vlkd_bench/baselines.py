"""Accepted runs: one file per target, one line of history per machine, and why each regression was accepted.

A baseline file is JSON, kept under version control (``benchmarks/baselines/<target>.json``). Entries are only ever
added; the last one for a machine and setup is the baseline, the ones before it keep their numbers and lose their
predictions, which are only needed to pair a run with the current baseline.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from vlkd_runtime.atomic import write_text
from vlkd_runtime.errors import DataError

from .benchrecord import BenchRecord, load_bench_records
from .jsonvalues import decode, encode
from .metrics import Metric, Tolerance
from .records import Record, record_of
from .regression import assess, differences_of

FORMAT = "vlkd-baselines"
SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """One accepted run.

    Attributes:
        accepted: When, ISO 8601 in UTC.
        reason: Why, in the words of who accepted it.
        regressions: What was worse than the baseline before it; empty for a first or a better one.
        record: The run.
    """

    accepted: str
    reason: str
    regressions: tuple[Metric, ...]
    record: BenchRecord


@dataclass(frozen=True, slots=True)
class Baselines:
    """The history of one target, oldest first."""

    target: str
    entries: tuple[Entry, ...]

    def current(self, now: BenchRecord) -> Entry | None:
        """Return the baseline for this run's machine and setup, if one was accepted."""
        fitting = [entry for entry in self.entries if not differences_of(now, entry.record)]
        return fitting[-1] if fitting else None


def read_baselines(path: Path) -> Baselines:
    """Read a baseline file.

    Raises:
        DataError: There is none, or it is damaged or of another schema.
    """
    try:
        data: Any = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        msg = (
            f"Expected a baseline file at {path}, found: {error}. Make one with 'vlkd-edge baseline accept'."
        )
        raise DataError(msg) from error
    return _parse(data, str(path))


def _parse(data: Any, where: str) -> Baselines:
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        msg = f"Expected a baseline file of format {FORMAT!r} at {where}, found something else."
        raise DataError(msg)
    if data.get("schema") != SCHEMA:
        msg = (
            f"Expected baselines of schema {SCHEMA} in {where}, found {data.get('schema')!r}: written by another "
            "version. Accept a run of this version as the new baseline."
        )
        raise DataError(msg)
    if not isinstance(data.get("target"), str) or not isinstance(data.get("entries"), list):
        msg = f"Expected a text 'target' and a list 'entries' in {where}: restore the file from version control."
        raise DataError(msg)
    entries = []
    for number, item in enumerate(data["entries"], start=1):
        place = f"{where}, entry {number}"
        if not isinstance(item, dict):
            msg = f"Expected an object in {place}, found {type(item).__name__}: restore the file from version control."
            raise DataError(msg)
        record = record_of(item.get("record"))
        if not isinstance(record, Record):
            msg = f"Expected a bench record in {place}: {record}. Accept a run of this version as the new baseline."
            raise DataError(msg)
        head = decode(_Head, item, place)
        entries.append(
            Entry(head.accepted, head.reason, head.regressions, BenchRecord.from_record(record, place))
        )
    return Baselines(data["target"], tuple(entries))


@dataclass(frozen=True, slots=True)
class _Head:
    """An entry's own fields."""

    accepted: str
    reason: str
    regressions: tuple[Metric, ...]


def accept(
    path: Path,
    now: BenchRecord,
    reason: str,
    *,
    tolerance: Tolerance | None = None,
    disturbed: bool = False,
    when: datetime | None = None,
) -> Entry:
    """Make a run the baseline of its target, machine and setup, and keep what it was worse in.

    Args:
        path: The baseline file; made if missing.
        now: The run.
        reason: Why it is accepted.
        tolerance: What counts as a regression.
        disturbed: Accept it although the device changed its mode or throttled during the run.
        when: Time; the current one if None.

    Raises:
        DataError: No reason, a damaged file, another target, or a disturbed run.
    """
    if not reason.strip():
        msg = "Expected a reason for the new baseline, found none: say why with --reason, for who reads it in a year."
        raise DataError(msg)
    if now.disturbances and not disturbed:
        msg = (
            f"Expected a run on a device that stayed as it was, found: {'; '.join(now.disturbances)}. Measure again, "
            "or accept it knowingly with --disturbed."
        )
        raise DataError(msg)
    known = read_baselines(path) if path.exists() else Baselines(now.bundle.target, ())
    if known.target != now.bundle.target:
        msg = (
            f"Expected a run for {known.target} in {path}, found one for {now.bundle.target}: each target has a file "
            "of its own."
        )
        raise DataError(msg)
    before = known.current(now)
    report = assess(now, before.record, tolerance=tolerance) if before else None
    stamp = (when or datetime.now(timezone.utc)).astimezone(timezone.utc).isoformat(timespec="seconds")
    entry = Entry(stamp, reason.strip(), report.regressions if report else (), now)
    older = [
        replace(old, record=_without_predictions(old.record)) if old is before else old
        for old in known.entries
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, _format(known.target, [*older, entry]))
    return entry


def _without_predictions(record: BenchRecord) -> BenchRecord:
    if record.accuracy is None:
        return record
    return replace(record, accuracy=replace(record.accuracy, predictions=None))


def _format(target: str, entries: Sequence[Entry]) -> str:
    """Return the file's text: a line for each entry, so that a diff shows what was added."""
    lines = [
        json.dumps(
            {
                "accepted": entry.accepted,
                "reason": entry.reason,
                "regressions": [encode(metric) for metric in entry.regressions],
                "record": entry.record.to_record().to_json(),
            },
            allow_nan=False,
        )
        for entry in entries
    ]
    head = (
        f'{{"format": {json.dumps(FORMAT)}, "schema": {SCHEMA}, "target": {json.dumps(target)}, "entries": ['
    )
    return head + "\n" + ",\n".join(lines) + "\n]}\n"


def entries_of(path: Path) -> tuple[Entry, ...]:
    """Return the accepted runs of a baseline file; none where the file is a log of records.

    Raises:
        DataError: It is a baseline file that is damaged or of another schema.
    """
    data = _baseline_data(path)
    return () if data is None else _parse(data, str(path)).entries


def _baseline_data(path: Path) -> dict[str, Any] | None:
    """Return what a baseline file holds; None if this is no such file."""
    try:
        data: Any = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) and "format" in data else None


def find_baseline(path: Path, now: BenchRecord) -> tuple[BenchRecord, tuple[BenchRecord, ...]]:
    """Return the baseline for a run and further runs of the same bundle, from whatever file is given.

    From a baseline file the current entry for the run's machine is taken, and where there is none the last, for
    `assess` to say how it differs. From a log of records the last one is taken, and earlier ones of the same
    bundle on the same machine are A/A runs.

    Raises:
        DataError: The file is missing, damaged, of another schema, or holds no bench.
    """
    data = _baseline_data(path)
    if data is not None:
        known = _parse(data, str(path))
        if not known.entries:
            msg = (
                f"Expected at least one accepted run in {path}, found none: run 'vlkd-edge baseline accept'."
            )
            raise DataError(msg)
        return (known.current(now) or known.entries[-1]).record, ()
    *others, last = load_bench_records(path)
    same = tuple(
        record
        for record in others
        if record.bundle.digest == last.bundle.digest and not differences_of(last, record)
    )
    return last, same
