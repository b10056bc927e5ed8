"""The log of measured runs: JSON lines that are only ever appended to.

Each line holds ``schema``, ``kind``, ``when`` and ``data``. A process killed while writing leaves a damaged
last line; it is reported when the log is read and never costs the lines around it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from vlkd_runtime.errors import DataError

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Record:
    """One measured run.

    Attributes:
        kind: What was measured, for example "build" or "bench".
        when: Time of writing, ISO 8601 in UTC.
        data: The measurement, JSON values.
    """

    kind: str
    when: str
    data: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class DamagedLine:
    """A line of the log that could not be read, by number from 1, and why."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class RecordLog:
    """All readable records in the order written, and the lines that were skipped."""

    records: tuple[Record, ...]
    damaged: tuple[DamagedLine, ...]


def append_record(
    path: Path, kind: str, data: Mapping[str, object], *, when: datetime | None = None
) -> Record:
    """Add one record to the log in a single write, flushed to the disk.

    Args:
        path: The log; it and its folder are created if missing.
        kind: What was measured.
        data: The measurement, JSON values.
        when: Time of the run; the current time if None.

    Raises:
        DataError: The data cannot be written as JSON (NaN and infinity included).
    """
    stamp = (when or datetime.now(timezone.utc)).astimezone(timezone.utc).isoformat(timespec="seconds")
    try:
        line = json.dumps({"schema": SCHEMA, "kind": kind, "when": stamp, "data": data}, allow_nan=False)
    except (TypeError, ValueError) as error:
        msg = f"Expected JSON values for a {kind!r} record in {path}, found: {error}. Nothing was written."
        raise DataError(msg) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        # After a killed write the last line has no end; without one the new record would be glued to it.
        file.seek(0, os.SEEK_END)
        prefix = b""
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            prefix = b"" if file.read(1) == b"\n" else b"\n"
        file.write(prefix + line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    return Record(kind, stamp, dict(data))


def read_records(path: Path) -> RecordLog:
    """Read the log, skipping and reporting what is damaged.

    Raises:
        DataError: There is no such file.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        msg = (
            f"Expected a log of records (JSON lines) at {path}, found: {error}. Run a build or a bench first."
        )
        raise DataError(msg) from error
    records: list[Record] = []
    damaged: list[DamagedLine] = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        result = _parse(line)
        if isinstance(result, Record):
            records.append(result)
        else:
            damaged.append(DamagedLine(number, result))
    return RecordLog(tuple(records), tuple(damaged))


def _parse(line: bytes) -> Record | str:
    """Return the record of one line, or why there is none."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"not JSON, probably cut while it was written ({error})"
    if not isinstance(value, dict):
        return f"expected an object, found {type(value).__name__}"
    if value.get("schema") != SCHEMA:
        return f"expected schema {SCHEMA}, found {value.get('schema')!r}: written by another version"
    kind, when, data = value.get("kind"), value.get("when"), value.get("data")
    if not (isinstance(kind, str) and isinstance(when, str) and isinstance(data, dict)):
        return "expected a text 'kind', a text 'when' and an object 'data'"
    return Record(kind, when, data)
