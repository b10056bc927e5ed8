"""From a bundle and an image to a label: what an application on the device uses.

Letters: N images, H rows, W columns, D sizes of the joint space, C classes.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeAlias, cast, overload

import numpy as np
import numpy.typing as npt
from PIL import Image

from .bundle import Bundle
from .decoding import as_array
from .engines import open_engine
from .engines.base import Engine, EngineInfo, EngineOptions, EngineOutput, Selection
from .engines.enginecache import default_cache, prepare_cache
from .errors import ConfigError, DataError, ImageError, SelfTestError, UsageError
from .loading import SelfTest, load_engine
from .manifest import Manifest
from .prediction import Prediction, Reading, read_logits
from .preprocess import ImageSource, PreprocessSpec, prepare
from .selftest import run_batches
from .streaming import OnError, run_stream
from .vectors import ClassVectors, check_names
from .vocabulary import Vocabulary

Images: TypeAlias = "ImageSource | Sequence[ImageSource]"


class Classifier:
    """Classifies images with a loaded model; may be used from several threads at once.

    Attributes:
        preprocess: How images are brought to the network.
        manifest: What the bundle says of itself; None for a model in no bundle.
        selection: Which engine and variant run, and why no other; None for a model in no bundle.

    Example:
        >>> with Classifier.load("model.vlkd") as classifier:  # doctest: +SKIP
        ...     print(classifier.predict("photo.jpg").label)
    """

    def __init__(
        self,
        engine: Engine,
        preprocess: PreprocessSpec,
        names: Sequence[str],
        *,
        logit_scale: float,
        manifest: Manifest | None = None,
        vectors: ClassVectors | None = None,
        selection: Selection | None = None,
    ) -> None:
        self._engine = engine
        self.preprocess = preprocess
        check_names(tuple(names))
        if not (math.isfinite(logit_scale) and logit_scale > 0):
            msg = f"logit_scale: expected a finite number above 0, found {logit_scale}; take the teacher's"
            raise DataError(msg)
        self.manifest = manifest
        self.selection = selection
        # Replaced as a whole and read once in each call, so that no call sees half a change.
        self._vocabulary = Vocabulary(tuple(names), float(logit_scale), vectors)
        self._changing = threading.Lock()

    @classmethod
    def load(
        cls,
        bundle: str | os.PathLike[str] | Bundle,
        *,
        engine: str = "auto",
        variant: str | None = None,
        threads: int | None = None,
        self_test: SelfTest = "cached",
        cache: str | os.PathLike[str] | None = "auto",
        public_keys: Sequence[bytes | Path] = (),
        require_signature: bool = False,
        options: EngineOptions | None = None,
    ) -> Classifier:
        """Check a bundle, load its model and compare it with the golden samples.

        Args:
            bundle: A bundle folder, a ``.vlkd`` archive, or a bundle that is open already.
            engine: Which engine to use; ``auto`` takes the first that is there and passes the self-test, and
                `selection` says why it passed over the others.
            variant: Which of the bundle's graphs to use; None takes the one that suits the engine.
            threads: How many threads the engine may use; None leaves it to the engine.
            self_test: ``cached`` runs the golden samples once for each bundle, engine, machine and version;
                ``always`` at each start; ``never`` where loading time is all that counts.
            cache: Where built engines and self-test results are kept; ``auto`` takes ``VLKD_CACHE``,
                systemd's ``CACHE_DIRECTORY`` or the user's cache folder, None keeps nothing.
            public_keys: Keys of whom to trust; given any, one of them must have signed the bundle.
            require_signature: Refuse to load without a public key to check against.
            options: How to open the engine; ``threads`` and ``cache`` go before what it says.

        Raises:
            BundleError: The bundle is damaged, altered, or not signed by a key given.
            ConfigError: An engine, variant or option that cannot be meant.
            FallbackError: The engine runs something else than the bundle planned.
            SelfTestError: The engine's answers are not the ones the desk measured.
            UnavailableError: The engine is not installed.
        """
        opened = _open_bundle(bundle, public_keys, require_signature)
        given = options or EngineOptions()
        if cache == "auto":
            place = given.cache or default_cache()
        else:
            place = None if cache is None else prepare_cache(Path(cache))
        chosen = EngineOptions(
            given.threads if threads is None else threads,
            place,
            given.device,
            given.dla_core,
            given.workspace_bytes,
            given.cuda_graph,
        )
        loaded = load_engine(opened, engine=engine, variant=variant, options=chosen, self_test=self_test)
        manifest = opened.manifest
        try:
            return cls(
                loaded.engine,
                manifest.preprocess,
                manifest.classes,
                logit_scale=manifest.logit_scale,
                manifest=manifest,
                vectors=opened.vectors,
                selection=loaded.selection,
            )
        except BaseException:
            loaded.engine.close()
            raise

    @classmethod
    def from_model(
        cls,
        model: str | os.PathLike[str],
        preprocess: PreprocessSpec,
        names: Sequence[str],
        *,
        logit_scale: float,
        engine: str = "ort-cpu",
        threads: int | None = None,
        vectors: ClassVectors | None = None,
    ) -> Classifier:
        """Load a model that is in no bundle yet, such as a candidate at the desk.

        Args:
            model: The ONNX file.
            preprocess: How images are brought to it.
            names: Class names in the order of its logits.
            logit_scale: What its logits are multiplied by.
            engine: Which engine to use; the CPU's, so that desks agree whatever GPU they have.
            threads: How many threads the engine may use.
            vectors: Class vectors to compare its embedding with, instead of the ones inside the graph.
        """
        loaded = open_engine(Path(model), engine=engine, threads=threads)
        try:
            made = cls(loaded, preprocess, names, logit_scale=logit_scale)
            if vectors is not None:
                made._vocabulary = Vocabulary.of(vectors, vectors)
            return made
        except BaseException:
            loaded.close()
            raise

    @property
    def info(self) -> EngineInfo:
        """Say which engine runs the model."""
        return self._engine.info

    @property
    def names(self) -> tuple[str, ...]:
        """The classes, in the order of the logits."""
        return self._vocabulary.names

    @property
    def logit_scale(self) -> float:
        """What cosines are multiplied by to get logits."""
        return self._vocabulary.logit_scale

    @property
    def vocabulary(self) -> Vocabulary:
        """The classes at this moment, with what a check of their vectors had to say."""
        return self._vocabulary

    def with_vocabulary(self, vectors: ClassVectors) -> Classifier:
        """Give a classifier for other classes that shares this one's engine: no training, no new model.

        Args:
            vectors: Class vectors of the same teacher.

        Raises:
            DataError: They are from another teacher, unusable, or this classifier came from no bundle.
        """
        made = Classifier(
            self._engine,
            self.preprocess,
            vectors.names,
            logit_scale=vectors.logit_scale,
            manifest=self.manifest,
            selection=self.selection,
        )
        made._vocabulary = Vocabulary.of(vectors, self._known_vectors())
        return made

    def set_vocabulary(self, vectors: ClassVectors) -> None:
        """Change the classes of this classifier; predictions under way in other threads end with the old ones.

        Raises:
            DataError: As for `with_vocabulary`; nothing is changed then.
        """
        with self._changing:
            self._vocabulary = Vocabulary.of(vectors, self._known_vectors())

    def add_classes(self, vectors: ClassVectors) -> None:
        """Add classes behind the ones that are there.

        Raises:
            DataError: As for `with_vocabulary`, or a class is there already; nothing is changed then.
        """
        with self._changing:
            known = self._known_vectors()
            self._vocabulary = Vocabulary.of(known.added(vectors), known)

    def remove_classes(self, names: Iterable[str]) -> None:
        """Take classes out.

        Raises:
            DataError: A class is not there, or none would be left; nothing is changed then.
        """
        with self._changing:
            known = self._known_vectors()
            self._vocabulary = Vocabulary.of(known.removed(names), known)

    def rename_classes(self, names: Mapping[str, str]) -> None:
        """Call classes something else; their vectors stay.

        Args:
            names: New names by old ones.

        Raises:
            DataError: A class is not there, or two would have one name; nothing is changed then.
        """
        with self._changing:
            known = self._known_vectors()
            self._vocabulary = Vocabulary.of(known.renamed(names), known)

    def _known_vectors(self) -> ClassVectors:
        if self._vocabulary.vectors is None:
            msg = "vocabulary: expected a classifier loaded from a bundle, which knows its teacher; load one"
            raise DataError(msg)
        return self._vocabulary.vectors

    # A string is a sequence of strings, too; the first overload is meant to win.
    @overload
    def predict(  # type: ignore[overload-overlap]
        self,
        images: ImageSource,
        top: int = 5,
        *,
        threshold: float | None = None,
        min_similarity: float | None = None,
    ) -> Prediction: ...

    @overload
    def predict(
        self,
        images: Sequence[ImageSource],
        top: int = 5,
        *,
        threshold: float | None = None,
        min_similarity: float | None = None,
    ) -> list[Prediction]: ...

    def predict(
        self,
        images: Images,
        top: int = 5,
        *,
        threshold: float | None = None,
        min_similarity: float | None = None,
    ) -> Prediction | list[Prediction]:
        """Classify one image or many.

        Args:
            images: A path, a Pillow image, a uint8 array or anything with DLPack in the CPU's memory; or a
                list or tuple of these, or an array (N, H, W, 3). Arrays are RGB; reverse the channels of what
                OpenCV gives.
            top: How many of the most likely classes to list.
            threshold: Least probability of the most likely class; below it, the label is ``unknown``.
            min_similarity: Least cosine of the most likely class; below it, the label is ``unknown``. Unlike
                a probability it does not depend on which other classes there are.

        Returns:
            One prediction, or for many images a list in their order.

        Raises:
            ImageError: An image cannot be decoded; for many, the message says which.
        """
        reading = Reading(top, threshold, min_similarity)
        vocabulary = self._vocabulary
        one, many = _one_or_many(images)
        if many is None:
            output = self._run(prepare(cast("ImageSource", one), self.preprocess)[None], vocabulary)
            return read_logits(output.logits, vocabulary.names, vocabulary.logit_scale, reading)[0]
        predictions: list[Prediction] = []
        for output in self._batches(many, vocabulary):
            predictions += read_logits(output.logits, vocabulary.names, vocabulary.logit_scale, reading)
        return predictions

    def embed(self, images: Images) -> npt.NDArray[np.float32]:
        """Give the embedding of one image, (D,), or of many, (N, D): unit rows in the teacher's space.

        Args:
            images: As for `predict`.

        Raises:
            ImageError: An image cannot be decoded; for many, the message says which.
        """
        vocabulary = self._vocabulary
        one, many = _one_or_many(images)
        if many is None:
            prepared = prepare(cast("ImageSource", one), self.preprocess)[None]
            row: npt.NDArray[np.float32] = self._run(prepared, vocabulary).embedding[0]
            return row
        rows = [output.embedding for output in self._batches(many, vocabulary)]
        if not rows:
            size = 0 if self.manifest is None else self.manifest.model.embedding[1]
            return np.zeros((0, size), np.float32)
        return np.concatenate(rows)

    @overload
    def stream(
        self,
        images: Iterable[ImageSource],
        top: int = 5,
        *,
        threshold: float | None = None,
        min_similarity: float | None = None,
        ahead: int = 8,
        workers: int = 2,
        on_error: Literal["raise"] = "raise",
    ) -> Iterator[Prediction]: ...

    @overload
    def stream(
        self,
        images: Iterable[ImageSource],
        top: int = 5,
        *,
        threshold: float | None = None,
        min_similarity: float | None = None,
        ahead: int = 8,
        workers: int = 2,
        on_error: Literal["yield"],
    ) -> Iterator[Prediction | ImageError]: ...

    def stream(
        self,
        images: Iterable[ImageSource],
        top: int = 5,
        *,
        threshold: float | None = None,
        min_similarity: float | None = None,
        ahead: int = 8,
        workers: int = 2,
        on_error: OnError = "raise",
    ) -> Iterator[Any]:
        """Classify images that keep coming, such as a camera's or a folder's, in their order.

        The next images are decoded while one is classified. The source is asked for more only while fewer
        than ``ahead`` images wait, so that memory stays bounded however fast it is. It is asked in a thread of
        its own.

        Args:
            images: Any iterable; it need not end.
            top: As for `predict`.
            threshold: As for `predict`.
            min_similarity: As for `predict`.
            ahead: Most images that wait.
            workers: Threads that decode.
            on_error: ``raise`` ends at the first image that cannot be read, ``yield`` gives its
                `ImageError` in its place and goes on.

        Yields:
            A prediction for each image.
        """
        reading = Reading(top, threshold, min_similarity)

        def classify(prepared: list[npt.NDArray[np.uint8]]) -> list[Prediction]:
            vocabulary = self._vocabulary
            logits = self._run(np.stack(prepared), vocabulary).logits
            return read_logits(logits, vocabulary.names, vocabulary.logit_scale, reading)

        return run_stream(
            images,
            lambda image: prepare(image, self.preprocess),
            classify,
            batch=self._engine.info.batch,
            ahead=ahead,
            workers=workers,
            on_error=on_error,
        )

    def infer(self, images: npt.NDArray[np.uint8]) -> EngineOutput:
        """Run the model on prepared images.

        Args:
            images: (N, H, W, 3) uint8 of the model's size, N at least 1.

        Raises:
            UsageError: Another shape or dtype.
            SelfTestError: The engine gave numbers that are not finite.
        """
        return self._run(images, self._vocabulary)

    def close(self) -> None:
        """Let go of the model; classifiers made by `with_vocabulary` share it."""
        self._engine.close()

    def __enter__(self) -> Classifier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, images: npt.NDArray[np.uint8], vocabulary: Vocabulary) -> EngineOutput:
        expected = (self.preprocess.height, self.preprocess.width, 3)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != expected or not len(images):
            msg = (
                f"infer: expected uint8 (N, {expected[0]}, {expected[1]}, 3), found {images.dtype} "
                f"{images.shape}; use prepare()"
            )
            raise UsageError(msg)
        output = run_batches(self._engine, images)
        logits = vocabulary.logits(output)
        if logits.shape[1] != len(vocabulary.names):
            msg = (
                f"expected one logit for each of {len(vocabulary.names)} classes, found {logits.shape[1]}; "
                "give the names this model was exported with"
            )
            raise UsageError(msg)
        if not np.isfinite(logits).all():
            bad = int(np.flatnonzero(~np.isfinite(logits).all(axis=1))[0])
            msg = (
                f"engine {self.info.name} ({self.info.provider} {self.info.version}): expected finite logits, "
                f"found others for image {bad}; use another engine or a higher precision"
            )
            raise SelfTestError(msg)
        return EngineOutput(output.embedding, logits)

    def _batches(
        self, images: Sequence[ImageSource] | npt.NDArray[np.uint8], vocabulary: Vocabulary
    ) -> Iterator[EngineOutput]:
        """Run by the batch, so that a long list of files never is in memory at once."""
        batch = self._engine.info.batch
        for start in range(0, len(images), batch):
            prepared = [
                self._prepare(images, index) for index in range(start, min(start + batch, len(images)))
            ]
            yield self._run(np.stack(prepared), vocabulary)

    def _prepare(
        self, images: Sequence[ImageSource] | npt.NDArray[np.uint8], index: int
    ) -> npt.NDArray[np.uint8]:
        try:
            return prepare(images[index], self.preprocess)
        except ImageError as error:
            msg = f"image {index} of {len(images)}: {error}"
            raise ImageError(msg) from error


def _one_or_many(images: Images) -> tuple[object, Sequence[ImageSource] | npt.NDArray[Any] | None]:
    """Tell one image from many."""
    if isinstance(images, (str, os.PathLike, Image.Image)):
        return images, None
    if isinstance(images, (list, tuple)):
        return None, images
    array = as_array(images)
    if array is None:
        msg = (
            "expected a path, a Pillow image, a uint8 array, or a list, tuple or 4-D array of images, "
            f"found {type(images).__name__}; convert it first"
        )
        raise ImageError(msg)
    return (None, array) if array.ndim == 4 else (array, None)


def _open_bundle(
    bundle: str | os.PathLike[str] | Bundle, public_keys: Sequence[bytes | Path], required: bool
) -> Bundle:
    if required and not public_keys:
        msg = "signature: expected a public key to check it with, found none; give the key of the bundle's maker"
        raise ConfigError(msg)
    if not isinstance(bundle, Bundle):
        return Bundle.open(bundle, public_keys=public_keys)
    if public_keys:
        msg = (
            "signature: expected a path, found a bundle that is open already; give public_keys to Bundle.open"
        )
        raise ConfigError(msg)
    return bundle
