"""Predictions for images that keep coming: decoded ahead in threads, within bounded memory, in their order."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from .decoding import ImageSource
from .errors import ConfigError, ImageError
from .prediction import Prediction

Prepared: TypeAlias = npt.NDArray[np.uint8]
OnError: TypeAlias = Literal["raise", "yield"]
_Item: TypeAlias = "Future[Prepared] | BaseException | None"
# How long the feeder waits before it looks whether anybody still wants its images.
_PATIENCE_S = 0.1


def run_stream(
    sources: Iterable[ImageSource],
    prepare: Callable[[ImageSource], Prepared],
    predict: Callable[[list[Prepared]], list[Prediction]],
    *,
    batch: int,
    ahead: int,
    workers: int,
    on_error: OnError,
) -> Iterator[Prediction | ImageError]:
    """Predict image by image.

    A thread of its own asks the source for images and stops asking while ``ahead`` of them wait: a fast source
    is held back, and a slow one never holds back what is there already.

    Args:
        sources: The images.
        prepare: Brings one to the network's size; runs in ``workers`` threads.
        predict: Classifies up to ``batch`` prepared images; runs in the caller's thread.
        batch: Images per run of the network.
        ahead: Most images that wait.
        workers: Threads that decode.
        on_error: Raise the error of an image that cannot be read, or give it in the image's place.

    Raises:
        ConfigError: A number below 1, or another word for ``on_error``.
        ImageError: An image cannot be read and ``on_error`` is ``raise``.
    """
    for name, value in (("ahead", ahead), ("workers", workers)):
        if type(value) is not int or not 1 <= value <= 1024:
            msg = f"{name}: expected an integer from 1 to 1024, found {value!r}; leave it out for the default"
            raise ConfigError(msg)
    if on_error not in ("raise", "yield"):
        msg = f"on_error: expected 'raise' or 'yield', found {on_error!r}; choose one of them"
        raise ConfigError(msg)
    return _generate(sources, prepare, predict, batch, ahead, workers, on_error)


def _generate(
    sources: Iterable[ImageSource],
    prepare: Callable[[ImageSource], Prepared],
    predict: Callable[[list[Prepared]], list[Prediction]],
    batch: int,
    ahead: int,
    workers: int,
    on_error: OnError,
) -> Iterator[Prediction | ImageError]:
    waiting: queue.Queue[_Item] = queue.Queue(ahead)
    stopped = threading.Event()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="vlkd-decode")
    feeder = threading.Thread(
        target=_feed, args=(sources, prepare, pool, waiting, stopped), name="vlkd-feed", daemon=True
    )
    feeder.start()
    try:
        ended = False
        while not ended:
            items = [waiting.get()]
            with contextlib.suppress(queue.Empty):
                while len(items) < batch and items[-1] is not None:
                    items.append(waiting.get_nowait())
            ended = any(not isinstance(item, Future) for item in items)
            yield from _answer([item for item in items if isinstance(item, Future)], predict, on_error)
            for item in items:
                if isinstance(item, BaseException):
                    raise item
    finally:
        stopped.set()
        # Not waited for: a source may be waiting for a camera that has gone.
        pool.shutdown(wait=False, cancel_futures=True)


def _answer(
    futures: list[Future[Prepared]], predict: Callable[[list[Prepared]], list[Prediction]], on_error: OnError
) -> Iterator[Prediction | ImageError]:
    found: list[Prepared | ImageError] = []
    for future in futures:
        try:
            found.append(future.result())
        except ImageError as error:
            if on_error == "raise":
                raise
            found.append(error)
    whole = [image for image in found if not isinstance(image, ImageError)]
    predictions = iter(predict(whole) if whole else [])
    for image in found:
        yield image if isinstance(image, ImageError) else next(predictions)


def _feed(
    sources: Iterable[ImageSource],
    prepare: Callable[[ImageSource], Prepared],
    pool: ThreadPoolExecutor,
    waiting: queue.Queue[_Item],
    stopped: threading.Event,
) -> None:
    """Take images from the source and put them in the queue, its end or its error last."""
    last: BaseException | None = None
    try:
        for source in sources:
            if stopped.is_set() or not _put(waiting, pool.submit(prepare, source), stopped):
                break
    except BaseException as error:
        last = error
    finally:
        _put(waiting, last, stopped)


def _put(waiting: queue.Queue[_Item], item: _Item, stopped: threading.Event) -> bool:
    while not stopped.is_set():
        with contextlib.suppress(queue.Full):
            waiting.put(item, timeout=_PATIENCE_S)
            return True
    return False
