"""Reads a value again and again in a thread of its own, for what only a look from outside can show."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Watch(Generic[T]):
    """Collects a value until it is stopped.

    Args:
        value: What to read; None is not kept.
        interval_s: Time between readings.
    """

    def __init__(self, value: Callable[[], T | None], interval_s: float = 0.1) -> None:
        self.values: list[T] = []
        self._value, self._interval = value, interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Watch[T]:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._stop.wait(self._interval):
            found = self._value()
            if found is not None:
                self.values.append(found)
