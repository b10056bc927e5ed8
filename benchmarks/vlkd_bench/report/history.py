"""How a bundle's numbers moved over its runs, for the history of a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..baselines import Entry
from ..benchrecord import BenchRecord
from ..records import Record

MOST_POINTS = 40
PointKind = Literal["run", "accepted", "now"]


@dataclass(frozen=True, slots=True)
class Point:
    """One run of the history.

    Attributes:
        when: Time, ISO 8601 in UTC.
        kind: "run" for an earlier one, "accepted" for one that became the baseline, "now" for the report's own.
        bundle: The bundle's digest.
        p50_ms: Median latency of a call; None where it was not measured.
        mean: Mean accuracy over the domains that count, in [0, 1]; None where it was not measured.
        size_bytes: Size of the bundle; None where it is not known.
        worse: Names of the metrics that were accepted as worse.
        reason: Why it was accepted, or how the run ended.
    """

    when: str
    kind: PointKind
    bundle: str
    p50_ms: float | None
    mean: float | None
    size_bytes: int | None = None
    worse: tuple[str, ...] = ()
    reason: str = ""


def bench_history(
    entries: Sequence[Entry], runs: Sequence[BenchRecord], now: BenchRecord
) -> tuple[Point, ...]:
    """Put accepted runs, other runs and this one in the order of time; at most the last `MOST_POINTS`.

    Args:
        entries: Accepted runs of one machine and setup.
        runs: Runs of a log on that machine and setup; those that were accepted are not repeated.
        now: The report's own run.
    """
    points = {
        _identity(entry.record): _point(
            entry.record, "accepted", tuple(metric.name for metric in entry.regressions), entry.reason
        )
        for entry in entries
    }
    for run in runs:
        points.setdefault(_identity(run), _point(run, "run"))
    accepted = points.get(_identity(now))
    if accepted is None or accepted.kind != "accepted":
        points[_identity(now)] = _point(now, "now")
    return tuple(sorted(points.values(), key=lambda point: point.when)[-MOST_POINTS:])


def _identity(record: BenchRecord) -> tuple[str, str]:
    return record.when, record.bundle.digest


def _point(record: BenchRecord, kind: PointKind, worse: tuple[str, ...] = (), reason: str = "") -> Point:
    mean = record.accuracy.mean if record.accuracy else None
    p50 = record.latency["call"].stats.p50_ms
    return Point(record.when, kind, record.bundle.digest, p50, mean, record.bundle.size_bytes, worse, reason)


def build_history(records: Sequence[Record]) -> tuple[Point, ...]:
    """Return the builds that these records are of, the last as this one; at most the last `MOST_POINTS`.

    A log may have been edited, and written by other versions: what is no number is left out.
    """
    found = records[-MOST_POINTS:]
    return tuple(
        Point(
            record.when,
            "now" if number == len(found) else "run",
            str(record.data.get("digest") or ""),
            _number(record.data.get("p50_ms")),
            _number(record.data.get("mean")),
            size if isinstance(size := record.data.get("size_bytes"), int) else None,
            reason=str(record.data.get("outcome") or ""),
        )
        for number, record in enumerate(found, start=1)
    )


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
