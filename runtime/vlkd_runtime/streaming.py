"""Answers for many images: the next ones are decoded meanwhile, within bounded memory, in their order."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from .decoding import ImageSource
from .errors import ConfigError, ImageError

T = TypeVar("T")
Prepared: TypeAlias = npt.NDArray[np.uint8]
OnError: TypeAlias = Literal["raise", "yield"]
Run: TypeAlias = "Callable[[Prepared], Any] | None"
_Item: TypeAlias = "Future[Any] | BaseException | None"
# How long the feeder waits before it looks whether anybody still wants its images.
_PATIENCE_S = 0.1
# Each holds a whole decoded image, which is what bounds memory.
_MOST_WORKERS = 4
AHEAD = 8


def default_workers() -> int:
    """Give the number of threads that decode: one for each processor this process may use, at most four."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(_MOST_WORKERS, usable)


def run_stream(
    sources: Iterable[ImageSource],
    prepare: Callable[[ImageSource], Prepared],
    answer: Callable[[list[Any]], Sequence[T]],
    *,
    run: Run = None,
    batch: int,
    ahead: int = AHEAD,
    workers: int | None = None,
    on_error: OnError = "raise",
    whole_batches: bool = False,
) -> Generator[T | ImageError, None, None]:
    """Answer image by image.

    A thread of its own asks the source for images and stops asking while ``ahead`` of them wait: a fast source
    is held back, and a slow one never holds back what is there already. Files are read in further threads, and
    ``run`` is run in these for every image.
    Arrays and Pillow images are brought to size before the source is asked again, because it may fill the same
    buffer anew.

    Args:
        sources: The images.
        prepare: Brings one to the network's size.
        answer: Answers up to ``batch`` images, prepared or as ``run`` left them; runs in the caller's thread.
        run: What to do with each prepared image, several of them at a time.
        batch: Images per call of ``answer``.
        ahead: Most images that wait.
        workers: Threads that read files and call ``run``; None takes `default_workers`.
        on_error: Raise the error of an image that cannot be read, after the answers to those before it, or give it
            in the image's place.
        whole_batches: Wait for ``batch`` images before a run, as long as more may come.

    Raises:
        ConfigError: A number below 1, or another word for ``on_error``.
        ImageError: An image cannot be read and ``on_error`` is ``raise``.
    """
    workers = default_workers() if workers is None else workers
    for name, value in (("ahead", ahead), ("workers", workers)):
        if type(value) is not int or not 1 <= value <= 1024:
            msg = f"{name}: expected an integer from 1 to 1024, found {value!r}; leave it out for the default"
            raise ConfigError(msg)
    if on_error not in ("raise", "yield"):
        msg = f"on_error: expected 'raise' or 'yield', found {on_error!r}; choose one of them"
        raise ConfigError(msg)
    waiting: queue.Queue[_Item] = queue.Queue(ahead)
    return _generate(
        sources, prepare, answer, run, waiting, workers, on_error, batch, whole_batches=whole_batches
    )


def _generate(
    sources: Iterable[ImageSource],
    prepare: Callable[[ImageSource], Prepared],
    answer: Callable[[list[Any]], Sequence[T]],
    run: Run,
    waiting: queue.Queue[_Item],
    workers: int,
    on_error: OnError,
    batch: int,
    *,
    whole_batches: bool,
) -> Generator[T | ImageError, None, None]:
    stopped = threading.Event()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="vlkd-decode")
    feeder = threading.Thread(
        target=_feed, args=(sources, prepare, run, pool, waiting, stopped), name="vlkd-feed", daemon=True
    )
    feeder.start()
    try:
        ended = False
        while not ended:
            items = [waiting.get()]
            with contextlib.suppress(queue.Empty):
                while len(items) < batch and isinstance(items[-1], Future):
                    items.append(waiting.get(block=whole_batches))
            ended = not isinstance(items[-1], Future)
            yield from _answer([item for item in items if isinstance(item, Future)], answer, on_error)
            if isinstance(items[-1], BaseException):
                raise items[-1]
    finally:
        stopped.set()
        # Not waited for: a source may be waiting for a camera that has gone.
        pool.shutdown(wait=False, cancel_futures=True)


def _answer(
    futures: list[Future[Any]], answer: Callable[[list[Any]], Sequence[T]], on_error: OnError
) -> Iterator[T | ImageError]:
    found: list[Any] = []
    for future in futures:
        try:
            found.append(future.result())
        except ImageError as error:
            found.append(error)
            if on_error == "raise":
                break
    whole = [image for image in found if not isinstance(image, ImageError)]
    answers = iter(answer(whole) if whole else [])
    for image in found:
        if isinstance(image, ImageError) and on_error == "raise":
            raise image
        yield image if isinstance(image, ImageError) else next(answers)


def _feed(
    sources: Iterable[ImageSource],
    prepare: Callable[[ImageSource], Prepared],
    run: Run,
    pool: ThreadPoolExecutor,
    waiting: queue.Queue[_Item],
    stopped: threading.Event,
) -> None:
    """Take images from the source and put them in the queue, its end or its error last."""
    last: BaseException | None = None
    try:
        for source in sources:
            if stopped.is_set() or not _put(waiting, _start(source, prepare, run, pool), stopped):
                break
    except BaseException as error:
        last = error
    finally:
        _put(waiting, last, stopped)


def _start(
    source: ImageSource, prepare: Callable[[ImageSource], Prepared], run: Run, pool: ThreadPoolExecutor
) -> Future[Any]:
    if isinstance(source, (str, os.PathLike)):
        return pool.submit(lambda: prepare(source) if run is None else run(prepare(source)))
    done: Future[Any] = Future()
    try:
        prepared = prepare(source)
    except Exception as error:
        done.set_exception(error)
        return done
    if run is not None:
        return pool.submit(run, prepared)
    done.set_result(prepared)
    return done


def _put(waiting: queue.Queue[_Item], item: _Item, stopped: threading.Event) -> bool:
    while not stopped.is_set():
        with contextlib.suppress(queue.Full):
            waiting.put(item, timeout=_PATIENCE_S)
            return True
    return False
