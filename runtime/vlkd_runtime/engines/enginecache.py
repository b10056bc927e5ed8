"""Keeps what is costly to make again: built engines, timing caches and the results of self-tests.

An engine file is code that will run. Nothing from this folder is used unless it lies where only its owner can
write, its side-car says that it was made for exactly this model, machine and software, and its SHA-256 is the
side-car's. Whatever fails a check is made again, never trusted.

The side-car is a file of its own, beside the engine: an engine with a header in front is no engine any more.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from .. import atomic
from ..errors import ConfigError
from ..strictjson import JsonProblems, JsonValue, canonical, parse

_FORMAT = "vlkd-cache/1"
_LARGEST = 4 << 30
_LARGEST_NOTE = 1 << 20
VARIABLE = "VLKD_CACHE"


def default_cache() -> Path | None:
    """Choose where to keep things: ``VLKD_CACHE``, systemd's ``CACHE_DIRECTORY``, or the user's cache.

    Returns:
        The folder, made if needed; None where there is none that can be written.

    Raises:
        ConfigError: One was named that is relative or cannot be used.
    """
    own = os.environ.get(VARIABLE) or os.environ.get("CACHE_DIRECTORY", "").partition(":")[0]
    if own and not Path(own).is_absolute():
        msg = f"{VARIABLE}: expected an absolute path, found {own!r}; nothing is expanded in it"
        raise ConfigError(msg)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111  (it never raises)
    path = Path(own) if own else Path(base) / "vlkd-edge"
    if not path.is_absolute():
        return None
    try:
        return prepare_cache(path)
    except ConfigError:
        if own:
            raise
        return None


def prepare_cache(path: Path) -> Path:
    """Make the cache folder, or check that nobody else can write to it.

    Raises:
        ConfigError: It cannot be made or written, or others may write to it.
    """
    try:
        if not path.is_dir():
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.stat()
    except OSError as error:
        msg = f"{path}: cannot make the cache folder: {error.strerror}; set {VARIABLE} to another place"
        raise ConfigError(msg) from error
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        own = status.st_uid == os.geteuid()
        remedy = f"run: chmod go-w {path}" if own else f"set {VARIABLE} to a folder of user {os.geteuid()}"
        msg = (
            f"{path}: expected a cache folder of this user that nobody else can write to, found mode "
            f"{stat.S_IMODE(status.st_mode):o} of user {status.st_uid}; {remedy}"
        )
        raise ConfigError(msg)
    if not os.access(path, os.W_OK | os.X_OK):
        msg = f"{path}: expected a cache folder that can be written, found none; set {VARIABLE} to another place"
        raise ConfigError(msg)
    return path


@dataclass(frozen=True, slots=True)
class Entry:
    """One folder of the cache, for one identity.

    Attributes:
        folder: Where it lies.
        identity: What its content was made for.
    """

    folder: Path
    identity: Mapping[str, str]

    @classmethod
    def of(cls, cache: Path, identity: Mapping[str, str]) -> Entry:
        """Find the place for an identity; nothing is made yet."""
        key = hashlib.sha256(canonical(dict(identity))).hexdigest()[:32]
        return cls(cache / key, dict(identity))

    def make(self) -> Path:
        """Make the folder."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self.folder

    def read(self, name: str) -> tuple[bytes | None, str]:
        """Read a file that `write` wrote for this identity.

        Returns:
            Its bytes, or None; and what was found.
        """
        note, problem = self.read_note(name)
        if note is None:
            return None, problem
        try:
            data = _read(self.folder / name, _LARGEST)
        except OSError as error:
            return None, f"{name}: {error.strerror}"
        if hashlib.sha256(data).hexdigest() != note.get("sha256"):
            return None, f"{name} is not the file its side-car describes"
        return data, "found"

    def write(self, name: str, data: bytes, more: Mapping[str, JsonValue] | None = None) -> None:
        """Write a file and its side-car; the side-car last, so that a file without one is no file."""
        self.make()
        with contextlib.suppress(OSError):
            (self.folder / f"{name}.json").unlink()
        atomic.write_bytes(self.folder / name, data)
        self.write_note(
            name, {**(more or {}), "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        )

    def read_note(self, name: str) -> tuple[dict[str, object] | None, str]:
        """Read a side-car, or a note that stands alone."""
        try:
            value = parse(_read(self.folder / f"{name}.json", _LARGEST_NOTE))
        except OSError as error:
            return None, f"{name}.json: {error.strerror}"
        except JsonProblems as error:
            return None, f"{name}.json: {error}"
        if not isinstance(value, dict) or value.get("format") != _FORMAT:
            return None, f"{name}.json is no note of this cache"
        if value.get("identity") != dict(self.identity):
            return None, f"{name}.json was made for another model, machine or version"
        return value, "found"

    def write_note(self, name: str, values: Mapping[str, JsonValue]) -> None:
        """Write a side-car, or a note that stands alone."""
        self.make()
        note: dict[str, JsonValue] = {**values, "format": _FORMAT, "identity": dict(self.identity)}
        atomic.write_bytes(self.folder / f"{name}.json", canonical(note))

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from making the same thing at the same time."""
        with atomic.exclusive(self.make() / "lock"):
            yield


def cpu_identity() -> str:
    """Name this CPU with what decides which kernels a library picks."""
    wanted = ("model name", "flags", "Features", "CPU implementer", "CPU part")
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
            first = file.read(1 << 16).split("\n\n")[0].splitlines()
    except OSError:
        first = []
    lines = [line for line in first if line.partition("\t")[0].strip() in wanted]
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    # Not platform.processor(), which starts a process to find out.
    return f"{platform.machine()} {digest}"


def _read(path: Path, limit: int) -> bytes:
    """Read a plain file of this user; no link can lead elsewhere, and no pipe can block this."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_size > limit:
            raise OSError(0, "it is no plain file of this user, or too large")
        return file.read(limit)
