"""Shows what a run on a device says as if the bench ran here."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from vlkd_bench.jsonvalues import decode
from vlkd_bench.observing import Glimpse

from ..benching import Show


class Follower:
    """Takes the agent's lines, over as many connections as it needs.

    Args:
        show: where the progress goes.
        say: prints a line.
        host: the device's name.

    Attributes:
        offset: how much of the run's progress was heard.
        stack: what must be closed when the run is over.
    """

    def __init__(self, show: Show, say: Callable[[str], None], host: str) -> None:
        self.offset = 0
        self.stack = contextlib.ExitStack()
        self._show, self._say, self._host = show, say, host
        self._advance: Callable[..., None] | None = None

    def hear(self, line: Mapping[str, Any]) -> None:
        """Take one line of the agent's."""
        self.offset = line.get("offset", self.offset)
        told = line.get("progress", {})
        if "waiting" in told:
            self._say(f"waiting: {told['waiting']}")
        if "task" in told:
            self.stack.close()
            self._advance = self.stack.enter_context(
                self._show.task(f"{told['task']} on {self._host}", told["total"])
            )
        if "advance" in told and self._advance is not None:
            self._advance(told["advance"], note=told["note"])
        if "glimpse" in told:
            self._show.glimpse(decode(Glimpse, told["glimpse"]))
