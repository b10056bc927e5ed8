"""Files that may not be opened for a while: what holds a run to its data contract.

No shapes here.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from vlkd_bench.samples import Sample
from vlkd_runtime.errors import DataError


@dataclass(slots=True)
class OpenedFiles:
    """Records which of some files this process opens; may refuse them.

    It hears every ``open`` that goes through Python, in any thread: worker threads do not inherit context
    variables, so a guard in one would miss those that decode. It does not hear other processes, native code
    that opens files itself, a second hard link to a watched file, or names relative to a folder descriptor.
    Where one file holds many images, who reads some of them says which: `announce`.

    Attributes:
        below: files and folders (with all in them) that are watched, links resolved.
        refuse: raise `DataError` in place of opening.
        paths: what was opened, or asked to be, in order, links resolved; of an announced image, its sample's path.
        images: domains, and classes as ``<domain>/<class>``, whose images are watched when they are announced.
    """

    below: frozenset[str]
    refuse: bool = False
    paths: list[Path] = field(default_factory=list)
    images: frozenset[str] = frozenset()

    def __enter__(self) -> OpenedFiles:
        _install()
        with _LOCK:
            _ACTIVE.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        with _LOCK:
            _ACTIVE[:] = [watch for watch in _ACTIVE if watch is not self]

    def covers(self, path: str) -> bool:
        """Whether a resolved path is one of the watched files or lies in a watched folder."""
        return path in self.below or any(str(parent) in self.below for parent in Path(path).parents)

    def covers_image(self, image: str) -> bool:
        """Whether an image, by its id ``<domain>/<class>/<file>``, is of a watched domain or class."""
        domain, _, rest = image.partition("/")
        return domain in self.images or f"{domain}/{rest.partition('/')[0]}" in self.images


_LOCK = threading.Lock()
_ACTIVE: list[OpenedFiles] = []
_INSTALLED: list[bool] = []


def _install() -> None:
    # An audit hook stays until the process ends, so there is one, and it is idle while nothing is watched.
    with _LOCK:
        if not _INSTALLED:
            sys.addaudithook(_on_event)
            _INSTALLED.append(True)


def _on_event(event: str, args: tuple[object, ...]) -> None:
    if event != "open" or not _ACTIVE:
        return
    name = args[0]
    if not isinstance(name, (str, bytes, os.PathLike)):  # a descriptor: its file was opened before
        return
    try:
        path = os.path.realpath(os.fsdecode(name))
    except (OSError, ValueError):  # open itself will say what is wrong with this name
        return
    for watch in tuple(_ACTIVE):
        if watch.covers(path):
            watch.paths.append(Path(path))
            if watch.refuse:
                raise DataError(_broken(path))


def announce(samples: Iterable[Sample]) -> None:
    """Say which images are about to be read out of a file that holds others, too.

    Opening such a file tells nothing: a store of many domains' rows, or a shard with images of every class. So
    whatever reads one calls this first.

    Args:
        samples: known by their ids; what domain or label they claim does not count.

    Raises:
        DataError: an image is of a domain or class that is closed at this moment.
    """
    watching = [watch for watch in tuple(_ACTIVE) if watch.images]
    for sample in samples if watching else ():
        for watch in watching:
            if watch.covers_image(sample.image):
                watch.paths.append(sample.path)
                if watch.refuse:
                    raise DataError(_broken(f"{sample.image} ({sample.path})"))


def watch_files(paths: Iterable[Path | str]) -> OpenedFiles:
    """A context manager that records which of these files are opened, and those in these folders.

    Raises:
        DataError: no path is given, or one does not exist: a watch over nothing proves nothing.
    """
    return OpenedFiles(_resolved(paths))


@contextlib.contextmanager
def forbid(paths: Iterable[Path | str], images: Iterable[str] = ()) -> Iterator[OpenedFiles]:
    """Refuse to open these files, and those in these folders, while the body runs.

    Args:
        paths: what must not be looked at, such as the images of held-out domains.
        images: domains, and classes as ``<domain>/<class>``, whose images may not be announced either.

    Raises:
        DataError: one was opened; raised where it was opened, and again at the end of a body that took the
            first error for a damaged image. Also where a path does not exist, or nothing is given.
    """
    named, given = frozenset(images), tuple(paths)
    below: frozenset[str] = _resolved(given) if given or not named else frozenset()
    with OpenedFiles(below, refuse=True, images=named) as watch:
        yield watch
    if watch.paths:
        raise DataError(_broken(str(watch.paths[0])))


def forbidden() -> tuple[Path, ...]:
    """What may not be opened at this moment, to tell a process that is started now."""
    with _LOCK:
        return tuple(
            Path(path) for path in sorted({p for watch in _ACTIVE if watch.refuse for p in watch.below})
        )


def _resolved(paths: Iterable[Path | str]) -> frozenset[str]:
    given = [Path(path) for path in paths]
    missing = [path for path in given if not path.exists()]
    if missing or not given:
        found = f"{missing[0]}, which does not exist" if missing else "none"
        msg = f"Expected files or folders that must not be opened, found {found}: name what is held out."
        raise DataError(msg)
    return frozenset(os.path.realpath(path) for path in given)


def _broken(path: str) -> str:
    return (
        f"Expected held-out files to stay closed, found {path} being opened: the data contract is broken. Take "
        "the file out of what is trained, calibrated or selected on."
    )
