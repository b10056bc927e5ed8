"""What ``bench --watch`` shows: a panel that is alive on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator

from rich import live
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vlkd_bench.observing import Glimpse

from .progress import Advance, Live

LINE_EVERY_S = 5.0
BARS = "▁▂▃▄▅▆▇█"
CURVE = 60


class Watching(Live):
    """Progress of a bench with what its device is doing.

    Args:
        console: where to write; lines where it is no terminal.
    """

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._console = console
        self._curve: deque[float] = deque(maxlen=CURVE)
        self._panel: live.Live | None = None
        self._last_line = float("-inf")
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def task(self, title: str, total: int | None) -> Iterator[Advance]:
        """Show one piece of work; that of unknown length is the one that is watched."""
        if total is not None or not self._console.is_terminal:
            with super().task(title, total) as advance:
                yield advance
            return
        with live.Live(
            Text(title, style="dim"), console=self._console, transient=True, auto_refresh=False
        ) as panel:
            with self._lock:
                self._panel = panel
            try:
                yield lambda _count=1, note="": None
            finally:
                with self._lock:
                    self._panel = None

    def glimpse(self, glimpse: Glimpse) -> None:
        """Show one look at the bench."""
        with self._lock:
            if glimpse.p50_ms is not None:
                self._curve.append(glimpse.p50_ms)
            if self._panel is not None:
                self._panel.update(panel(glimpse, tuple(self._curve)), refresh=True)
            elif not self._console.is_terminal and glimpse.seconds - self._last_line >= LINE_EVERY_S:
                first = self._last_line < 0
                self._last_line = glimpse.seconds
                self._console.print(
                    line(glimpse, reasons=first), markup=False, highlight=False, soft_wrap=True
                )


def line(glimpse: Glimpse, *, reasons: bool = True) -> str:
    """A glimpse as one line of a log, with or without the reasons why there is no power."""
    facts = _facts(glimpse)
    if glimpse.watts is None and not reasons:
        facts["power"] = glimpse.sensor.partition(":")[0]
    return f"{glimpse.seconds:6.1f} s  " + "; ".join([glimpse.phase, *facts.values()])


def panel(glimpse: Glimpse, curve: tuple[float, ...]) -> Table:
    """A glimpse as what a terminal shows, with the medians so far as a curve."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    table.add_row("bench", f"{glimpse.phase}, {glimpse.seconds:.0f} s")
    for name, fact in _facts(glimpse).items():
        table.add_row(name, Text(fact, style="yellow" if name == "careful" else ""))
        if name == "latency" and len(curve) > 1:
            table.add_row("", f"{sparks(curve)}  {min(curve):.3f} to {max(curve):.3f} ms")
    return table


def sparks(values: tuple[float, ...]) -> str:
    """Values as bars of eight heights, the lowest of them the lowest bar."""
    low, span = min(values), max(values) - min(values)
    return "".join(BARS[round((value - low) / span * (len(BARS) - 1)) if span else 0] for value in values)


def _facts(glimpse: Glimpse) -> dict[str, str]:
    found = {"latency": _latency(glimpse)}
    found["power"] = glimpse.sensor if glimpse.watts is None else f"{glimpse.watts:.2f} W ({glimpse.sensor})"
    hottest = sorted(glimpse.temperatures_c.items(), key=lambda item: -item[1])[:3]
    found["temperature"] = (
        ", ".join(f"{name} {value:.0f} °C" for name, value in hottest) or "no temperature told"
    )
    clocks = []
    if glimpse.cpu_mhz:
        clocks.append(f"CPU {min(glimpse.cpu_mhz):.0f} to {max(glimpse.cpu_mhz):.0f} MHz")
    if glimpse.gpu_mhz is not None:
        clocks.append(f"GPU {glimpse.gpu_mhz:.0f} MHz")
    found["clocks"] = ", ".join(clocks) or "no clocks told"
    if glimpse.changes:
        found["careful"] = "; ".join(glimpse.changes)
    return found


def _latency(glimpse: Glimpse) -> str:
    if glimpse.p50_ms is None:
        return "no call timed yet"
    tail = "p99 after 1000 calls" if glimpse.p99_ms is None else f"p99 {glimpse.p99_ms:.3f} ms"
    return f"p50 {glimpse.p50_ms:.3f} ms, {tail} (last {min(glimpse.calls, 1000)} of {glimpse.calls} calls)"
