"""Finds a target by name: the built-in ones of `vlkd_runtime.targets`, and those a TOML file defines."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlkd_runtime.errors import ConfigError
from vlkd_runtime.targets import JETPACKS, TARGETS, Target

from .parsing import nearest, parse

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["TARGETS", "Target", "describe", "find", "from_tables", "load"]

_RANGES = {
    "memory_gib": (0.25, 4096),
    "reserved_gib": (0, 4096),
    "dla_cores": (0, 16),
    "newest_opset": (13, 20),
}
_REQUIRED = {f.name for f in dataclasses.fields(Target) if f.default is dataclasses.MISSING} - {
    "name",
    "title",
}


def find(name: str, own: Sequence[Target] = ()) -> Target:
    """The target of that name; an alias gives what it stands for.

    Args:
        name: as the user gave it.
        own: targets that the user defined.

    Raises:
        ConfigError: no such target.
    """
    by_name = {target.name: target for target in (*TARGETS, *own)}
    if name not in by_name:
        msg = f"Unknown target '{name}'. Expected one of {', '.join(by_name)}.{nearest(name, by_name)}"
        raise ConfigError(msg)
    target = by_name[name]
    return by_name[target.alias_of] if target.alias_of else target


def load(path: Path | None) -> tuple[Target, ...]:
    """Read the ``[targets.NAME]`` tables of a TOML file, which may be a vlkd.toml.

    Raises:
        ConfigError: the file cannot be read, or names every problem found in it.
    """
    if path is None:
        return ()
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8")).get("targets", {})
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        msg = f"Expected a TOML file with [targets.NAME] tables at {path}: {error}"
        raise ConfigError(msg) from error
    errors: list[str] = []
    found = from_tables(table, errors)
    if not found and not errors:
        errors.append("expected at least one table [targets.NAME], found none.")
    if errors:
        listed = "\n".join(f"  {error}" for error in errors)
        msg = f"{len(errors)} problem{'s' * (len(errors) > 1)} in {path}:\n{listed}"
        raise ConfigError(msg)
    return found


def from_tables(tables: Any, errors: list[str]) -> tuple[Target, ...]:
    """Make targets of ``[targets.NAME]`` tables, adding a line to ``errors`` for everything that does not fit.

    A table with ``inherits = "<built-in target>"`` states only what differs.
    """
    if not isinstance(tables, Mapping):
        errors.append(f"targets: expected tables [targets.NAME], found {tables!r}.")
        return ()
    made = (_from_table(str(name), table, errors) for name, table in tables.items())
    return tuple(target for target in made if target is not None)


def _from_table(name: str, table: Any, errors: list[str]) -> Target | None:
    where, before = f"targets.{name}", len(errors)
    builtin = {target.name: target for target in TARGETS}
    if not isinstance(table, Mapping):
        errors.append(f"{where}: expected a table, found {table!r}.")
        return None
    if name in builtin or not name.replace("-", "").replace("_", "").isalnum():
        errors.append(f"{where}: expected a new name of letters, digits, '-' and '_', found '{name}'.")
    values = dict(table)
    parent = values.pop("inherits", None)
    errors += [f"{where}.{key}: is not set by hand." for key in ("name", "alias_of") if key in values]
    if parent is not None and parent not in builtin:
        hint = nearest(str(parent), builtin)
        errors.append(f"{where}.inherits: expected a built-in target, found {parent!r}.{hint}")
    elif parent is None and (missing := sorted(_REQUIRED - set(values))):
        errors.append(f'{where}: expected {", ".join(missing)}, or inherits = "<built-in target>".')
    # Whatever is missing is told above; a stand-in for it lets the rest be looked over in the same go.
    base = _plain(find(str(parent) if parent in builtin else TARGETS[0].name))
    target = parse(Target, base | {"title": name} | values | {"name": name, "note": ""}, where, errors)
    if target is not None:
        errors += _misfits(target, where)
    return target if len(errors) == before else None


def _plain(target: Target) -> dict[str, Any]:
    """The target as TOML would have it."""
    fields = dataclasses.asdict(target)
    return {key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()}


def _misfits(target: Target, where: str) -> list[str]:
    found = [
        f"{where}.{key}: expected {low:g} to {high:g}, found {getattr(target, key):g}."
        for key, (low, high) in _RANGES.items()
        if not low <= getattr(target, key) <= high
    ]
    if not 13 <= target.opset <= target.newest_opset:
        found.append(
            f"{where}.opset: expected 13 to newest_opset ({target.newest_opset}), found {target.opset}."
        )
    if target.reserved_gib >= target.memory_gib:
        found.append(f"{where}.reserved_gib: expected less than memory_gib, found {target.reserved_gib:g}.")
    if target.prefers not in target.precisions:
        found.append(f"{where}.prefers: expected one of its precisions, found '{target.prefers}'.")
    known = [item.release for item in JETPACKS]
    if strange := [release for release in target.jetpack if release not in known]:
        found.append(f"{where}.jetpack: expected releases of {', '.join(known)}, found {strange}.")
    return found


def describe(target: Target) -> dict[str, Any]:
    """The target as JSON values, with what each of its JetPack releases brings and what a bundle may use."""
    releases = [
        dataclasses.asdict(item) for name in target.jetpack for item in JETPACKS if item.release == name
    ]
    return dataclasses.asdict(target) | {"releases": releases, "budget_bytes": target.budget_bytes}
