"""Arrays mapped from files, read and written without the process growing by all that it has touched.

A page of a mapped file that was touched counts as the process's own memory until the kernel runs short. It need
not: let go of, it stays in the file's cache, and touching it again costs next to nothing.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

# Little, because the kernel maps more than was asked for: neighbours, since Linux 6.18 up to two megabytes of them, so
# that a batch of scattered rows may map a hundred times its size.
_MOST_BYTES = 1 << 20


def map_file(path: Path) -> mmap.mmap | bytes:
    """Map a file for reading; it is let go of with the last array that looks into it."""
    with path.open("rb") as file:
        if path.stat().st_size == 0:  # which cannot be mapped
            return b""
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


class Ebb:
    """Counts what is touched of some arrays, and lets go of their pages at every megabyte."""

    def __init__(self, *arrays: npt.NDArray[Any] | None) -> None:
        """Watch arrays; those that are mapped from no file are left alone."""
        self._maps = [found for found in map(_map_of, arrays) if found is not None]
        self._touched = 0

    def touch(self, size_bytes: int) -> None:
        """Say that this much was read or written since the last time."""
        self._touched += size_bytes
        if self._touched >= _MOST_BYTES:
            self.release()

    def release(self) -> None:
        """Let go of every page; what was written stays, in the file or on its way there."""
        self._touched = 0
        for found in self._maps:
            found.madvise(mmap.MADV_DONTNEED)


def _map_of(array: npt.NDArray[Any] | None) -> mmap.mmap | None:
    """The mapping below an array and its views."""
    base: object = array
    while isinstance(base, (np.ndarray, memoryview)):
        base = base.base if isinstance(base, np.ndarray) else base.obj
    return base if isinstance(base, mmap.mmap) else None
