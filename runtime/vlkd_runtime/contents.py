"""Gives a bundle's files to read, one by one, whether it is a folder or an archive.

Names, kinds and sizes are checked before a byte is read, and each file is read once: what was hashed is what
is used, however the disk changes in between.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from .archive import read_archive
from .errors import BundleError, DataError
from .manifest import LIMITS, MOST_BYTES, file_limit

SUFFIX = ".vlkd"

_OVERHEAD = 1 << 20


@dataclass(frozen=True, slots=True)
class Contents:
    """The files of a bundle that has the right ones.

    Attributes:
        path: The folder or archive.
        sizes: Length of each file in bytes.
        read: Gives one file's bytes.
    """

    path: Path
    sizes: Mapping[str, int]
    read: Callable[[str], bytes]

    def where(self, name: str) -> str:
        """Name a file inside this bundle, for messages."""
        return f"{name} in {self.path}"


def open_contents(path: str | os.PathLike[str]) -> Contents:
    """Look at a bundle's files without trusting them.

    Raises:
        DataError: Nothing is there, or it cannot be read.
        BundleError: It is neither a bundle folder nor a whole ``.vlkd`` archive.
    """
    place = Path(path)
    try:
        mode = place.stat().st_mode
        if stat.S_ISDIR(mode):
            return _folder(place)
        if not stat.S_ISREG(mode):
            _refuse(place, "expected a bundle folder or a .vlkd archive, found neither")
        data = _read_file(place, MOST_BYTES + _OVERHEAD, follow=True)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        msg = f"{place}: cannot read the bundle: {reason}; check the path"
        raise DataError(msg) from error
    members = read_archive(data, where=str(place))
    return Contents(
        place, {name: len(content) for name, content in members.items()}, lambda name: bytes(members[name])
    )


def _folder(place: Path) -> Contents:
    sizes: dict[str, int] = {}
    with os.scandir(place) as entries:
        for entry in entries:
            if file_limit(entry.name) is None:
                _refuse(
                    place,
                    f"{entry.name!r} does not belong in a bundle, which has {', '.join(LIMITS)} and what its "
                    "manifest adds",
                )
            if not entry.is_file(follow_symlinks=False):
                _refuse(place, f"{entry.name!r} is a link, a folder or a device, expected a plain file")
            sizes[entry.name] = entry.stat(follow_symlinks=False).st_size
    missing = sorted(set(LIMITS) - set(sizes))
    if missing:
        _refuse(place, f"{', '.join(missing)} is missing")
    for name, size in sizes.items():
        if size > (limit := file_limit(name) or 0):
            _refuse(place, f"{name!r} has {size} bytes, at most {limit} are read")
    if sum(sizes.values()) > MOST_BYTES:
        _refuse(place, f"its files have {sum(sizes.values())} bytes, at most {MOST_BYTES} are read")
    return Contents(place, sizes, lambda name: _read_member(place, name, sizes[name]))


def _read_member(place: Path, name: str, size: int) -> bytes:
    try:
        data = _read_file(place / name, size, follow=False)
    except OSError as error:
        msg = f"{name} in {place}: cannot read it: {error.strerror}; check the file"
        raise BundleError(msg) from error
    if len(data) != size:
        _refuse(place, f"{name!r} changed while it was read")
    return data


def _read_file(path: Path, limit: int, *, follow: bool) -> bytes:
    """Read a regular file; no pipe can block this and no link can lead it away."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    if not follow:
        flags |= getattr(os, "O_NOFOLLOW", 0)
    with os.fdopen(os.open(path, flags), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
            _refuse(path, f"expected a plain file of at most {limit} bytes, found {status.st_size}")
        return file.read(limit + 1)


def _refuse(path: Path, problem: str) -> NoReturn:
    msg = f"{path}: not a bundle: {problem}; build or copy it again"
    raise BundleError(msg)
