"""The demo world as files: DomainBed folders `root/<style>/<class>/<index>.png`."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from vlkd_runtime.atomic import atomic_folder
from vlkd_runtime.errors import ConfigError

from .render import render, require_size
from .scene import CLASSES, STYLES, require, sample_scene

_CHUNK = 64
_MOST_PER_CLASS = 100_000


@dataclass(frozen=True, slots=True)
class _Chunk:
    """One process's next piece of work: scenes start..stop of a class in a style."""

    folder: str
    style: str
    class_name: str
    start: int
    stop: int
    seed: int
    size: int


def write_world(
    root: Path,
    *,
    per_class: Mapping[str, int],
    seed: int,
    size: int = 96,
    processes: int = 2,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Render a data set in DomainBed's layout, whole or not at all.

    The pictures go to a temporary folder beside `root`, which is renamed when the last one is written and
    removed on any error or interrupt. The same arguments give the same bytes, whatever `processes` is.

    Args:
        root: The folder to make; it must not exist, or be empty.
        per_class: Style to number of pictures of each class in it.
        seed: Which world.
        size: Side of the pictures in pixels.
        processes: How many processes render; above 1 they are spawned, so a script that calls this needs
            the usual `if __name__ == "__main__":`.
        progress: Called with the number of pictures just finished.

    Returns:
        `root`.

    Raises:
        ConfigError: An unknown style, or a number that cannot be meant.
        DataError: `root` is a file or a folder that holds something.
    """
    _check(per_class, seed, size, processes)
    with atomic_folder(root) as partial:
        for style in per_class:
            for class_name in CLASSES:
                (partial / style / class_name).mkdir(parents=True)
        for done in _run(list(_chunks(partial, per_class, seed, size)), processes):
            if progress is not None:
                progress(done)
    return root


def _check(per_class: Mapping[str, int], seed: int, size: int, processes: int) -> None:
    if not per_class:
        msg = f"Expected pictures per class for some style, found none: name some of {', '.join(STYLES)}."
        raise ConfigError(msg)
    for style, count in per_class.items():
        require("style", style, STYLES)
        if not 1 <= count <= _MOST_PER_CLASS:
            msg = f"Expected 1 to {_MOST_PER_CLASS} pictures per class for style {style!r}, found {count}."
            raise ConfigError(msg)
    require_size(size)
    if seed < 0 or processes < 1:
        msg = f"Expected seed 0 or more and at least 1 process, found seed {seed} and {processes} processes."
        raise ConfigError(msg)


def _chunks(folder: Path, per_class: Mapping[str, int], seed: int, size: int) -> Iterator[_Chunk]:
    for style, count in per_class.items():
        for class_name in CLASSES:
            for start in range(0, count, _CHUNK):
                yield _Chunk(str(folder), style, class_name, start, min(count, start + _CHUNK), seed, size)


def _run(chunks: list[_Chunk], processes: int) -> Iterator[int]:
    """Render the chunks and yield how many pictures each held, in the order they finish."""
    if processes == 1:
        yield from map(_render_chunk, chunks)
        return
    pool = rendering_pool(min(processes, len(chunks)))
    try:
        for future in as_completed([pool.submit(_render_chunk, chunk) for chunk in chunks]):
            yield future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def rendering_pool(processes: int) -> ProcessPoolExecutor:
    """Spawned processes that leave Ctrl-C to the one that started them."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(processes, mp_context=context, initializer=_ignore_interrupts)


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _render_chunk(chunk: _Chunk) -> int:
    folder = Path(chunk.folder) / chunk.style / chunk.class_name
    for index in range(chunk.start, chunk.stop):
        scene = sample_scene(chunk.seed, chunk.style, chunk.class_name, index)
        render(scene, chunk.size).save(folder / f"{index:05d}.png", compress_level=6)
    return chunk.stop - chunk.start
