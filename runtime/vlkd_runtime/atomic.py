"""Writes files and folders that are there whole or not at all, whatever kills the process in between.

What several processes read, change and write again takes a lock besides: `exclusive`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from .errors import DataError


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file under a temporary name beside it, flush it to the disk, then rename it into place.

    Args:
        path: The file; an existing one is replaced, and stays untouched if anything fails.
        data: Its content.
    """
    final = Path(path)
    temporary = _beside(final)
    try:
        # 0o666 less the umask, which tempfile.mkstemp would not respect.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(final)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(final.parent)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write text as UTF-8, newlines as they are, the way `write_bytes` does."""
    write_bytes(path, text.encode("utf-8"))


@contextlib.contextmanager
def exclusive(path: str | os.PathLike[str]) -> Iterator[None]:
    """Wait until no other process or thread is in the body for this file, and keep them out while this one is.

    Args:
        path: A file that is there for this alone; it is made if needed, and stays. It is free again when the
            process ends, however it ends.
    """
    import fcntl

    with Path(path).open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def atomic_folder(final: str | os.PathLike[str], *, replace: bool = False) -> Iterator[Path]:
    """Fill a temporary folder beside ``final`` that takes its name when the body ends well.

    If the body raises, the temporary folder is removed and ``final`` is as it was.

    Args:
        final: Where the folder shall be; its parent is made if needed.
        replace: Put it in the place of an existing folder. Between the two renames this takes, a crash
            leaves neither under the final name; the old one is then still beside it, ending in ``.old``.

    Yields:
        The temporary folder.

    Raises:
        DataError: ``final`` exists, is not an empty folder, and ``replace`` was not asked for; or it is a
            file.
    """
    target = Path(final)
    if os.path.lexists(target):
        if target.is_symlink() or not target.is_dir():
            msg = f"{target}: expected a folder or nothing here, found a file or link; choose another place"
            raise DataError(msg)
        if not replace and any(target.iterdir()):
            msg = (
                f"{target}: expected nothing or an empty folder here, found files; "
                "remove it or choose another place"
            )
            raise DataError(msg)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(target)
    temporary.mkdir()
    try:
        yield temporary
        _sync_tree(temporary)
        _swap_in(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync_folder(target.parent)


def _swap_in(new: Path, final: Path) -> None:
    if not final.exists():
        new.rename(final)
        return
    old = final.with_name(f".{final.name}.{secrets.token_hex(4)}.old")
    final.rename(old)
    try:
        new.rename(final)
    except BaseException:
        old.rename(final)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _beside(final: Path) -> Path:
    # A long final name must not make the temporary one longer than file systems allow.
    return final.with_name(f".{final.name[:200]}.{secrets.token_hex(4)}.tmp")


def _sync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            with (Path(parent) / name).open("rb") as file:
                os.fsync(file.fileno())
        _sync_folder(Path(parent))


def _sync_folder(folder: Path) -> None:
    """Make renames inside a folder last; file systems that cannot are left alone."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
