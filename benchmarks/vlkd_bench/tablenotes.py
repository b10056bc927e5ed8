"""What stands below every table: who saw what, how it was made, and what the teacher was asked for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def who_saw_what(contract: Sequence[Mapping[str, Any]]) -> list[str]:
    """The data contract as lines of Markdown, a sentence or two a method; nothing where none is recorded."""
    texts = dict.fromkeys(f"- {one['method']}: {one['text']}" for one in contract)
    return ["", "## Who saw what", "", *texts] if texts else []


def beside_it(notes: Sequence[str]) -> list[str]:
    """What the reader must know beside the numbers, a paragraph each, as lines of Markdown; nothing without notes."""
    return ["", "## Notes", *(line for note in notes for line in ("", note))] if notes else []


def how_it_was_made(command: str, machine: str, settings: Mapping[str, Any] | None = None) -> list[str]:
    """What to run for the same table again, as lines of Markdown.

    Args:
        command: what was run; a line for each run that added to the table.
        machine: where, in words; likewise.
        settings: what the numbers rest on.
    """
    lines = ["", "## How it was made", "", *(f"    {line}" for line in command.splitlines()), ""]
    lines += [f"Machine: {line}." for line in machine.splitlines()]
    if settings is not None:
        lines += ["", ", ".join(f"{name} {value}" for name, value in settings.items()) + "."]
    return lines


def what_was_asked(queries: Mapping[str, Any] | None) -> list[str]:
    """What a teacher whose questions are counted was asked, as lines of Markdown; nothing for any other."""
    return [] if queries is None else ["", f"Questions to the teacher: {queries['text']}."]
