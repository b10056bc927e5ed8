"""Reads JSON without leniency and writes it in the one form that bundles are hashed in.

Python's reader takes NaN, keeps the last of two equal keys and turns ``1e999`` into infinity. A bundle may
come from anywhere and be read by programs in other languages, so all of these are refused here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import NoReturn, TypeAlias

JsonValue: TypeAlias = "bool | int | float | str | Sequence[JsonValue] | Mapping[str, JsonValue] | None"

_DEEPEST = 32


class JsonProblems(ValueError):
    """Text that is not strict JSON; ``problems`` has everything that was found."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def canonical(value: JsonValue) -> bytes:
    """Serialise in the canonical form: sorted keys, indent of two, UTF-8, one newline at the end.

    Raises:
        ValueError: A number is not finite, or a string holds half a surrogate pair.
    """
    text = json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode("utf-8")


def compact(value: JsonValue, *, sort_keys: bool = True) -> str:
    """Serialise on one line without spaces."""
    return json.dumps(value, sort_keys=sort_keys, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def parse(data: bytes | str) -> object:
    """Parse strict JSON.

    Raises:
        JsonProblems: Not UTF-8, not JSON, nested too deeply, or it holds repeated keys, numbers that are
            not finite or half surrogate pairs; all problems are listed.
    """
    problems: list[str] = []

    def pairs(items: list[tuple[str, object]]) -> dict[str, object]:
        found: dict[str, object] = {}
        for key, value in items:
            if key in found:
                problems.append(f"the key {key!r} is there twice")
            found[key] = value
        return found

    def constant(text: str) -> float:
        problems.append(f"{text} is no JSON number")
        return 0.0

    def number(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            problems.append(f"the number {text[:40]} is out of range")
        return value

    try:
        text = data.decode("utf-8") if isinstance(data, bytes) else data
        if (depth := _depth(text)) > _DEEPEST:
            _give_up(f"nested {depth} deep, at most {_DEEPEST} is read")
        value: object = json.loads(text, object_pairs_hook=pairs, parse_constant=constant, parse_float=number)
    except UnicodeDecodeError as error:
        _give_up(f"not UTF-8 at byte {error.start}", error)
    except RecursionError as error:
        _give_up("nested too deeply", error)
    except json.JSONDecodeError as error:
        _give_up(f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}", error)
    except ValueError as error:
        if isinstance(error, JsonProblems):
            raise
        _give_up(f"not JSON that can be read: {error}", error)
    if _has_surrogate(value):
        problems.append("a string holds half a surrogate pair, which is no text")
    if problems:
        raise JsonProblems(problems)
    return value


def _give_up(problem: str, cause: Exception | None = None) -> NoReturn:
    raise JsonProblems([problem]) from cause


def _depth(text: str) -> int:
    """Count the deepest nesting without recursion, ignoring brackets inside strings."""
    depth = deepest = 0
    in_string = escaped = False
    if text.count("[") + text.count("{") <= _DEEPEST:
        return 0
    for char in text:
        if in_string:
            if escaped:
                escaped = False
            elif char == "\\":
                escaped = True
            elif char == '"':
                in_string = False
        elif char == '"':
            in_string = True
        elif char in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif char in "]}":
            depth -= 1
    return deepest


def _has_surrogate(value: object) -> bool:
    if isinstance(value, str):
        return any("\ud800" <= char <= "\udfff" for char in value) if not value.isascii() else False
    if isinstance(value, dict):
        return any(_has_surrogate(key) or _has_surrogate(item) for key, item in value.items())
    if isinstance(value, list):
        return any(_has_surrogate(item) for item in value)
    return False


class Fields:
    """Takes typed fields out of a parsed object and collects every problem instead of stopping at the first.

    A getter whose field is missing or wrong notes the problem and returns a placeholder of the right type;
    the caller raises when all fields were read and ``problems`` is not empty.
    """

    def __init__(self, value: object, where: str, problems: list[str]) -> None:
        self._where = where
        self.problems = problems
        self._values: dict[str, object] = {}
        if isinstance(value, dict):
            self._values = dict(value)
        else:
            problems.append(f"{where or 'the whole'} must be an object, found {_kind(value)}")
            self._broken = True
            return
        self._broken = False

    def note(self, key: str, problem: str) -> None:
        """Record a problem with one field."""
        if not self._broken:
            self.problems.append(f"{self._where}{'.' if self._where else ''}{key} {problem}")

    def take(self, key: str) -> object:
        """Take a field of any type; the placeholder is None."""
        if key not in self._values:
            self.note(key, "is missing")
            return None
        return self._values.pop(key)

    def text(self, key: str, *, longest: int = 4096) -> str:
        """Take a string that is not empty."""
        if key not in self._values:
            self.note(key, "is missing")
            return ""
        value = self._values.pop(key)
        if not isinstance(value, str) or not value.strip():
            self.note(key, f"must be text, found {_kind(value)}")
            return ""
        if len(value) > longest:
            self.note(key, f"has {len(value)} characters, at most {longest} are read")
            return ""
        return value

    def optional_text(self, key: str) -> str | None:
        """Take a string that is not empty, or null."""
        if key in self._values and self._values[key] is None:
            del self._values[key]
            return None
        return self.text(key)

    def integer(self, key: str, low: int, high: int) -> int:
        """Take an integer from low to high, both included."""
        if key not in self._values:
            self.note(key, "is missing")
            return low
        value = self._values.pop(key)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            self.note(key, f"must be an integer from {low} to {high}, found {_kind(value)}")
            return low
        return value

    def number(self, key: str, low: float, high: float) -> float:
        """Take a number from low to high, both included."""
        if key not in self._values:
            self.note(key, "is missing")
            return low
        value = self._values.pop(key)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
            self.note(key, f"must be a number from {low:g} to {high:g}, found {_kind(value)}")
            return low
        return float(value)

    def texts(self, key: str) -> tuple[str, ...]:
        """Take a list of strings."""
        value = self.take(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self.note(key, f"must be a list of text, found {_kind(value)}")
            return ()
        return tuple(value)

    def inner(self, key: str) -> Fields:
        """Take an object field as fields of its own."""
        where = f"{self._where}{'.' if self._where else ''}{key}"
        if key not in self._values:
            self.note(key, "is missing")
            nothing = Fields({}, where, self.problems)
            nothing._broken = True
            return nothing
        return Fields(self._values.pop(key), where, self.problems)

    def left(self) -> tuple[str, ...]:
        """Names of the fields not taken yet."""
        return tuple(self._values)

    def finish(self) -> None:
        """Note every field that nobody asked for."""
        for key in self._values:
            self.note(key, "is not known to this version")


def _kind(value: object) -> str:
    """Say what a JSON value is, short enough for a message."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"{value[:40]!r}"
    if isinstance(value, (int, float)):
        return str(value)[:40]
    return "a list" if isinstance(value, list) else "an object"
