"""From image sources to the engine's answers, one image or many.

Letters: N images, H rows, W columns, C classes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from .decoding import ImageSource, as_array
from .engines.base import Engine, EngineOutput
from .errors import ImageError, SelfTestError, UsageError
from .prediction import FEW
from .preprocess import PreprocessSpec, prepare
from .selftest import run_batches
from .streaming import AHEAD, OnError, default_workers, run_stream
from .vocabulary import Vocabulary

T = TypeVar("T")
Images: TypeAlias = "ImageSource | Sequence[ImageSource]"
Many: TypeAlias = "Sequence[ImageSource] | npt.NDArray[np.uint8]"


@dataclass(frozen=True, slots=True)
class Runner:
    """An engine with the way images are brought to it.

    Attributes:
        engine: What runs the network.
        spec: How an image becomes its input.
    """

    engine: Engine
    spec: PreprocessSpec

    def run(self, images: npt.NDArray[np.uint8], vocabulary: Vocabulary) -> EngineOutput:
        """Run prepared images, (N, H, W, 3) uint8, and give the logits of a vocabulary.

        Raises:
            UsageError: Another shape or dtype.
            SelfTestError: The engine gave numbers that are not finite.
        """
        return self._read(self._run(images), vocabulary)

    def _run(self, images: npt.NDArray[np.uint8]) -> EngineOutput:
        expected = (self.spec.height, self.spec.width, 3)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != expected or not len(images):
            msg = (
                f"infer: expected uint8 (N, {expected[0]}, {expected[1]}, 3), found {images.dtype} "
                f"{images.shape}; use prepare()"
            )
            raise UsageError(msg)
        return run_batches(self.engine, images)

    def _read(self, output: EngineOutput, vocabulary: Vocabulary) -> EngineOutput:
        """Give what the engine said with the logits of a vocabulary, if they can be used."""
        logits = vocabulary.logits(output)
        if logits.shape[1] != len(vocabulary.names):
            msg = (
                f"expected one logit for each of {len(vocabulary.names)} classes, found {logits.shape[1]}; "
                "give the names this model was exported with"
            )
            raise UsageError(msg)
        # Of few, one by one: see `prediction`.
        finite = (
            all(map(isfinite, logits.ravel().tolist())) if logits.size <= FEW else np.isfinite(logits).all()
        )
        if not finite:
            info, bad = self.engine.info, int(np.flatnonzero(~np.isfinite(logits).all(axis=1))[0])
            msg = (
                f"engine {info.name} ({info.provider} {info.version}): expected finite logits, "
                f"found others for image {bad}; use another engine or a higher precision"
            )
            raise SelfTestError(msg)
        return output if logits is output.logits else EngineOutput(output.embedding, logits)

    def one(self, source: ImageSource, vocabulary: Vocabulary) -> EngineOutput:
        """Prepare and run one image.

        Raises:
            ImageError: It cannot be decoded.
        """
        if isinstance(source, np.ndarray) and self._is_prepared(source) and source.dtype == np.uint8:
            # As it is: no copy, for nothing keeps it, and no check, for this was one.
            return self._read(run_batches(self.engine, source[None]), vocabulary)
        return self.run(prepare(source, self.spec)[None], vocabulary)

    def many(
        self, images: Many, vocabulary: Vocabulary, read: Callable[[EngineOutput], Sequence[T]]
    ) -> Iterator[T]:
        """Prepare and run images and give what ``read`` makes of them; see `stream`.

        Raises:
            ImageError: One cannot be decoded; the message says which.
        """
        count, batch = len(images), self.engine.info.batch
        if count <= 1 or (self._is_prepared(images[0]) and not self._is_spread()):
            # Nothing to do that would be worth a thread.
            for start in range(0, count, batch):
                prepared = [
                    self._numbered(images, index) for index in range(start, min(start + batch, count))
                ]
                yield from read(self.run(np.stack(prepared), vocabulary))
            return
        answers = self.stream(
            images,
            lambda: vocabulary,
            lambda output, _: read(output),
            ahead=max(AHEAD, 2 * batch),
            on_error="yield",
            whole_batches=True,
        )
        with contextlib.closing(answers):
            for index, answer in enumerate(answers):
                if isinstance(answer, ImageError):
                    msg = f"image {index} of {count}: {answer}"
                    raise ImageError(msg) from answer
                yield answer

    def stream(
        self,
        images: Iterable[ImageSource],
        vocabulary: Callable[[], Vocabulary],
        read: Callable[[EngineOutput, Vocabulary], Sequence[T]],
        *,
        ahead: int,
        workers: int | None = None,
        on_error: OnError,
        whole_batches: bool = False,
    ) -> Generator[T | ImageError, None, None]:
        """Prepare images that keep coming and give what ``read`` makes of each batch; see `run_stream`.

        On a CPU, a processor does better with an image of its own than with its share of each operator of one
        network: unless told how many threads there may be, every worker runs the network, all of them one and
        the same session. Vocabularies are taken as the answers are, not before.
        """

        def answer(output: EngineOutput) -> Sequence[T]:
            current = vocabulary()
            return read(self._read(output, current), current)

        spread = workers is None and self._is_spread()
        return run_stream(
            images,
            lambda source: prepare(source, self.spec),
            (lambda outputs: answer(outputs[0]))
            if spread
            else (lambda prepared: answer(self._run(np.stack(prepared)))),
            run=(lambda prepared: self._run(prepared[None])) if spread else None,
            batch=self.engine.info.batch,
            ahead=ahead,
            workers=workers,
            on_error=on_error,
            whole_batches=whole_batches,
        )

    def _is_spread(self) -> bool:
        info = self.engine.info
        # A GPU has one queue and wants memory for each run; a batch of several images splits well by itself.
        on_cpu = not info.device and info.batch == 1
        return on_cpu and info.threads is None and default_workers() > 1

    def _is_prepared(self, source: object) -> bool:
        """Tell whether `prepare` would give it back: the same condition, but for its dtype."""
        spec = self.spec
        return (
            isinstance(source, np.ndarray)
            and source.shape == (spec.height, spec.width, 3)
            and spec.crop_fraction == 1.0
        )

    def _numbered(self, images: Many, index: int) -> npt.NDArray[np.uint8]:
        try:
            return prepare(images[index], self.spec)
        except ImageError as error:
            msg = f"image {index} of {len(images)}: {error}"
            raise ImageError(msg) from error


def one_or_many(images: Images) -> tuple[object, Many | None]:
    """Tell one image from many: the one and None, or None and the many.

    Raises:
        ImageError: It is neither.
    """
    array: npt.NDArray[Any] | None
    if isinstance(images, np.ndarray):  # the quickest to ask for first
        array = images
    elif isinstance(images, (str, os.PathLike, Image.Image)):
        return images, None
    elif isinstance(images, (list, tuple)):
        return None, images
    else:
        array = as_array(images)
    if array is None:
        msg = (
            "expected a path, a Pillow image, a uint8 array, or a list, tuple or 4-D array of images, "
            f"found {type(images).__name__}; convert it first"
        )
        raise ImageError(msg)
    return (None, array) if array.ndim == 4 else (array, None)
