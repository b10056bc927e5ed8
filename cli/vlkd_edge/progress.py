"""What a person sees while a build runs: one line a stage, alive on a terminal, silent elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

from vlkd_bench.observing import Glimpse

Advance = Callable[..., None]


class Live:
    """Progress of stages on standard error.

    Args:
        console: where to write; nothing is drawn when it is no terminal.
    """

    def __init__(self, console: Console) -> None:
        self._console = console

    def say(self, text: str) -> None:
        """Print one line, on a terminal only."""
        if self._console.is_terminal:
            self._console.print(text, style="dim", markup=False, highlight=False)

    def glimpse(self, glimpse: Glimpse) -> None:
        """Show one look at a bench: nothing, unless it is watched."""

    def banner(self, title: str, lines: Sequence[str]) -> None:
        """Print lines that belong before any work, whoever reads: a log needs them, too."""
        self._console.print(title, markup=False, highlight=False)
        for line in lines:
            self._console.print(f"  {line}", style="dim", markup=False, highlight=False)

    @contextlib.contextmanager
    def task(self, title: str, total: int | None) -> Iterator[Advance]:
        """Show one piece of work; the value is called as ``advance(count, note="...")``."""
        if not self._console.is_terminal:
            yield lambda _count=1, note="": None
            return
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description:<22}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            TextColumn("[dim]{task.fields[note]}"),
        )
        with Progress(*columns, console=self._console, transient=True) as bar:
            task = bar.add_task(title, total=total, note="")

            def advance(count: int = 1, note: str = "") -> None:
                if note:
                    bar.update(task, advance=count, note=note)
                else:
                    bar.update(task, advance=count)

            yield advance
