"""TOML tables into dataclasses, with a line for everything that does not fit instead of the first error only."""

from __future__ import annotations

import dataclasses
import difflib
import re
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

from vlkd_runtime.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")


def overrides(variables: Sequence[str], known: Mapping[str, str], errors: list[str]) -> dict[str, str]:
    """Read ``name=value`` pairs for variables that exist."""
    given = {}
    for pair in variables:
        name, equals, value = pair.partition("=")
        if not equals:
            errors.append(f"--var {pair}: expected name=value.")
        elif name not in known:
            errors.append(f"--var {pair}: the file has no variable '{name}'.{nearest(name, known)}")
        else:
            given[name] = value
    return given


def substitute(value: Any, variables: Mapping[str, str], errors: list[str], where: str) -> Any:
    """Replace ``${name}`` in every string."""
    if isinstance(value, dict):
        return {k: substitute(v, variables, errors, f"{where}.{k}".lstrip(".")) for k, v in value.items()}
    if isinstance(value, list):
        return [substitute(item, variables, errors, where) for item in value]
    if not isinstance(value, str):
        return value

    def insert(match: re.Match[str]) -> str:
        name = match[1]
        if name not in variables:
            errors.append(f"{where}: '{match[0]}' names no variable of [vars].{nearest(name, variables)}")
        return variables.get(name, "")

    return re.sub(r"\$\{([^}]*)\}", insert, value)


def put(table: dict[str, Any], setting: str, errors: list[str]) -> None:
    """Apply one ``section.key=value`` override; values are TOML, bare words are strings."""
    key, equals, text = setting.partition("=")
    if not equals:
        errors.append(f"--set {setting}: expected section.key=value.")
        return
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *parents, last = key.strip().split(".")
    for parent in parents:
        inner = table.setdefault(parent, {})
        if not isinstance(inner, dict):
            errors.append(f"--set {setting}: '{parent}' is not a section.")
            return
        table = inner
    table[last] = value


def parse(kind: type[T], table: Mapping[str, Any], where: str, errors: list[str]) -> T | None:
    """Build a dataclass from a table, adding a line to ``errors`` for everything that does not fit."""
    hints = typing.get_type_hints(kind)
    before = len(errors)
    values = {}
    for key, value in table.items():
        path = f"{where}.{key}" if where else key
        if key not in hints:
            errors.append(f"{path}: unknown key.{nearest(key, hints)}")
        elif dataclasses.is_dataclass(hints[key]):
            if isinstance(value, dict):
                values[key] = parse(typing.cast(type[Any], hints[key]), value, path, errors)
            else:
                errors.append(f"{path}: expected a section, found {value!r}.")
        else:
            problem, converted = _convert(hints[key], value)
            if problem:
                errors.append(f"{path}: {problem}")
            values[key] = converted
    return kind(**values) if len(errors) == before else None


def _convert(kind: Any, value: Any) -> tuple[str, Any]:
    """A value as the type asks for it, or what is wrong with it."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if value in arguments:
            return "", value
        near = nearest(str(value), arguments)
        return f"expected one of {', '.join(map(repr, arguments))}, found {value!r}.{near}", None
    if origin in (types.UnionType, typing.Union):
        attempts = [_convert(argument, value) for argument in arguments]
        meant = [a for kind, a in zip(arguments, attempts, strict=True) if kind is not types.NoneType]
        return next((attempt for attempt in attempts if not attempt[0]), meant[-1])
    if origin is tuple:
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list):
            return f"expected a list, found {value!r}.", None
        converted = [_convert(arguments[0], item) for item in items]
        return next((problem for problem, _ in converted if problem), ""), tuple(
            item for _, item in converted
        )
    if origin is dict:
        return ("", value) if isinstance(value, dict) else (f"expected a table, found {value!r}.", None)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return "", float(value)
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return "", value
    words = {"str": "a string", "int": "a whole number", "float": "a number", "bool": "true or false"}
    return f"expected {words.get(kind.__name__, kind.__name__)}, found {value!r}.", None


def nearest(name: str, known: Any) -> str:
    """A hint at the known word that a mistyped one may stand for, or nothing."""
    near = difflib.get_close_matches(name, [str(item) for item in known], n=1)
    return f" Did you mean '{near[0]}'?" if near else ""


def words(text: str) -> tuple[str, ...]:
    """The words of a list with commas."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def numbers(text: str, option: str) -> tuple[float, ...]:
    """The numbers of a list with commas.

    Raises:
        ConfigError: one of them is no number.
    """
    try:
        return tuple(float(word) for word in words(text))
    except ValueError:
        msg = f"Expected numbers with commas between them for {option}, found '{text}'."
        raise ConfigError(msg) from None
