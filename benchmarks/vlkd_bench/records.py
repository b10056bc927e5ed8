"""The log of measured runs: JSON lines that are only ever appended to.

Each line is one object with ``schema``, ``kind`` and ``when``, and beside them the measurement's own fields. A
process killed while writing leaves a damaged last line; it is reported when the log is read and never costs the
lines around it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from vlkd_runtime.errors import DataError

SCHEMA = 2
HEAD = ("schema", "kind", "when")


@dataclass(frozen=True, slots=True)
class Record:
    """One measured run.

    Attributes:
        kind: What was measured, for example "build" or "bench".
        when: Time of the run, ISO 8601 in UTC.
        data: The measurement's own fields, JSON values.
    """

    kind: str
    when: str
    data: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the object that one line of the log holds."""
        return {"schema": SCHEMA, "kind": self.kind, "when": self.when, **self.data}


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


def new_record(kind: str, data: Mapping[str, object], *, when: datetime | None = None) -> Record:
    """Stamp a measurement with its kind and the time.

    Raises:
        DataError: The data uses a name that the record's head needs.
    """
    if taken := [name for name in HEAD if name in data]:
        msg = f"Expected no field called {', '.join(taken)} in a {kind!r} record: the record's head has it."
        raise DataError(msg)
    stamp = (when or datetime.now(timezone.utc)).astimezone(timezone.utc).isoformat(timespec="seconds")
    return Record(kind, stamp, dict(data))


def append_record(
    path: Path, kind: str, data: Mapping[str, object], *, when: datetime | None = None
) -> Record:
    """Add one record to the log in a single write, flushed to the disk.

    If the write fails half way (a full disk), the log is cut back to what it was.

    Args:
        path: The log; it and its folder are created if missing.
        kind: What was measured.
        data: The measurement, JSON values.
        when: Time of the run; the current time if None.

    Raises:
        DataError: The data cannot be written as JSON (NaN and infinity included).
        OSError: The file cannot be written.
    """
    record = new_record(kind, data, when=when)
    append(path, record)
    return record


def append(path: Path, record: Record) -> None:
    """Add a record that is stamped already; see `append_record`."""
    try:
        line = json.dumps(record.to_json(), allow_nan=False)
    except (TypeError, ValueError) as error:
        msg = f"Expected JSON values for a {record.kind!r} record in {path}, found: {error}. Nothing was written."
        raise DataError(msg) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    # Unbuffered: what a failed write leaves behind must be in the file, to be cut off, and not in a buffer
    # that is written when the file is closed.
    with path.open("ab+", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        prefix = b""
        if size > 0:
            # After a killed write the last line has no end; the new record must not be glued to it.
            file.seek(-1, os.SEEK_END)
            prefix = b"" if file.read(1) == b"\n" else b"\n"
        data = prefix + line.encode() + b"\n"
        try:
            written = 0
            while written < len(data):
                written += file.write(data[written:]) or 0
            os.fsync(file.fileno())
        except BaseException as error:
            with contextlib.suppress(OSError):
                file.truncate(size)
            if isinstance(error, OSError) and error.filename is None:  # a write does not say to what
                error.filename = str(path)
            raise


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
        result = parse_record(line)
        if isinstance(result, Record):
            records.append(result)
        else:
            damaged.append(DamagedLine(number, result))
    return RecordLog(tuple(records), tuple(damaged))


def parse_record(line: bytes) -> Record | str:
    """Return the record of one line, or why there is none."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"not JSON, probably cut while it was written ({error})"
    return record_of(value)


def record_of(value: object) -> Record | str:
    """Return the record that JSON values hold, or why they hold none."""
    if not isinstance(value, dict):
        return f"expected an object, found {type(value).__name__}"
    if value.get("schema") != SCHEMA:
        return f"expected schema {SCHEMA}, found {value.get('schema')!r}: written by another version"
    kind, when = value.get("kind"), value.get("when")
    if not (isinstance(kind, str) and isinstance(when, str)):
        return "expected a text 'kind' and a text 'when'"
    return Record(kind, when, {name: item for name, item in value.items() if name not in HEAD})
