"""Turns JSON into the frozen dataclasses of this package, and says which field of which value is wrong.

Records come from other machines, other versions and half-written files. A wrong value is refused by its path
in the file; an unknown field is left alone, so that an older reader opens a newer record of the same schema.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NoReturn, TypeVar

from vlkd_runtime.errors import DataError

T = TypeVar("T")


def encode(value: Any) -> dict[str, Any]:
    """Return a dataclass as JSON values: objects, lists, numbers, texts."""
    plain = _plain(value)
    assert isinstance(plain, dict)
    return plain


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def decode(cls: type[T], data: object, where: str = "") -> T:
    """Make a dataclass from what `encode` gave.

    Args:
        cls: The dataclass; its annotations say what is expected.
        data: JSON values.
        where: What the value is called in messages, for example ``record.latency``.

    Raises:
        DataError: A field is missing or holds something else than its annotation says.
    """
    if not isinstance(data, dict):
        _refuse("an object", data, where)
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    missing = [field.name for field in fields if _needed(field) and field.name not in data]
    if missing:
        place = f" in {where}" if where else ""
        msg = (
            f"Expected the fields {', '.join(field.name for field in fields)}{place}, found "
            f"{', '.join(map(str, data)) or 'none'}: measure again."
        )
        raise DataError(msg)
    hints = _hints(typing.cast(Any, cls))
    values = {
        field.name: _convert(hints[field.name], data[field.name], f"{where}.{field.name}".lstrip("."))
        for field in fields
        if field.name in data
    }
    return cls(**values)


def _needed(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


@lru_cache(maxsize=64)
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Return a value of the annotated type, or say what was found instead."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return _convert(inner, value, where)
    if origin is typing.Literal:
        return value if value in arguments else _refuse(f"one of {', '.join(arguments)}", value, where)
    if origin is tuple:
        return _sequence(arguments, value, where)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            _refuse("an object", value, where)
        return {key: _convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return decode(hint, value, where)  # type: ignore[arg-type]
    return _simple(hint, value, where)


def _sequence(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        _refuse("a list", value, where)
    if arguments[-1] is Ellipsis:
        return tuple(_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if len(value) != len(arguments):
        _refuse(f"a list of {len(arguments)}", value, where)
    return tuple(
        _convert(hint, item, f"{where}[{i}]")
        for i, (hint, item) in enumerate(zip(arguments, value, strict=True))
    )


def _simple(hint: Any, value: Any, where: str) -> Any:
    if hint is float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            _refuse("a finite number", value, where)
        return float(value)
    names = {int: "a whole number", str: "a text", bool: "true or false"}
    if type(value) is not hint:
        _refuse(names[hint], value, where)
    return value


def _refuse(expected: str, found: object, where: str) -> NoReturn:
    shown = repr(found)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    msg = f"Expected {expected} at {where or 'the top'}, found {shown}: measure again."
    raise DataError(msg)
