"""From a bundle and an image to a label: what an application on the device uses.

Letters: N images, H rows, W columns, D sizes of the joint space, C classes.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, cast, overload

import numpy as np
import numpy.typing as npt

from .bundle import Bundle
from .engines import open_engine
from .engines.base import Engine, EngineInfo, EngineOptions, EngineOutput, Selection
from .engines.enginecache import default_cache, prepare_cache
from .errors import ConfigError, DataError, ImageError
from .loading import SelfTest, load_engine
from .manifest import Manifest
from .prediction import Prediction, Reading, read_logits
from .preprocess import ImageSource, PreprocessSpec
from .running import Images, Runner, one_or_many
from .streaming import AHEAD, OnError
from .vectors import ClassVectors, check_names
from .vocabulary import Vocabulary, VocabularyOwner


class Classifier(VocabularyOwner):
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
        check_names(tuple(names))
        if not (math.isfinite(logit_scale) and logit_scale > 0):
            msg = f"logit_scale: expected a finite number above 0, found {logit_scale}; take the teacher's"
            raise DataError(msg)
        super().__init__(Vocabulary(tuple(names), float(logit_scale), vectors))
        self._engine = engine
        self._runner = Runner(engine, preprocess)
        self.preprocess = preprocess
        self.manifest = manifest
        self.selection = selection

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
        chosen = dataclasses.replace(
            given, threads=given.threads if threads is None else threads, cache=place
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
        """Classify one image or many, these side by side: on a CPU, one image on each processor, at most four.

        On a GPU, on a CPU with ``threads`` given, and for models of more than one image a run, the network takes
        one run after the other, and files are decoded meanwhile.

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
        one, many = one_or_many(images)
        if many is None:
            output = self._runner.one(cast("ImageSource", one), vocabulary)
            return read_logits(output.logits, vocabulary.names, vocabulary.logit_scale, reading)[0]
        return list(
            self._runner.many(
                many,
                vocabulary,
                lambda output: read_logits(output.logits, vocabulary.names, vocabulary.logit_scale, reading),
            )
        )

    def embed(self, images: Images) -> npt.NDArray[np.float32]:
        """Give the embedding of one image, (D,), or of many, (N, D): unit rows in the teacher's space.

        Args:
            images: As for `predict`.

        Raises:
            ImageError: An image cannot be decoded; for many, the message says which.
        """
        vocabulary = self._vocabulary
        one, many = one_or_many(images)
        if many is None:
            row: npt.NDArray[np.float32] = self._runner.one(cast("ImageSource", one), vocabulary).embedding[0]
            return row
        rows = list(self._runner.many(many, vocabulary, lambda output: list(output.embedding)))
        if not rows:
            size = 0 if self.manifest is None else self.manifest.model.embedding[1]
            return np.zeros((0, size), np.float32)
        return np.stack(rows)

    @overload
    def stream(
        self,
        images: Iterable[ImageSource],
        top: int = 5,
        *,
        threshold: float | None = None,
        min_similarity: float | None = None,
        ahead: int = AHEAD,
        workers: int | None = None,
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
        ahead: int = AHEAD,
        workers: int | None = None,
        on_error: Literal["yield"],
    ) -> Iterator[Prediction | ImageError]: ...

    def stream(
        self,
        images: Iterable[ImageSource],
        top: int = 5,
        *,
        threshold: float | None = None,
        min_similarity: float | None = None,
        ahead: int = AHEAD,
        workers: int | None = None,
        on_error: OnError = "raise",
    ) -> Iterator[Any]:
        """Classify images that keep coming, such as a camera's or a folder's, in their order.

        The next images are decoded, or on a CPU classified, while one is answered, as in lists given to `predict`.
        The source is asked for more only while fewer than ``ahead`` images wait, so that memory stays bounded
        however fast it is. It is asked in a thread of its own, and an array that it gave may be filled anew as
        soon as it is asked again.

        Args:
            images: Any iterable; it need not end.
            top: As for `predict`.
            threshold: As for `predict`.
            min_similarity: As for `predict`.
            ahead: Most images that wait.
            workers: Threads that read files while the caller's runs the network; None takes one for each processor, at
                most four, and lets them run a CPU's network, too.
            on_error: ``raise`` ends at the first image that cannot be read, ``yield`` gives its
                `ImageError` in its place and goes on.

        Yields:
            A prediction for each image.
        """
        reading = Reading(top, threshold, min_similarity)

        def read(output: EngineOutput, vocabulary: Vocabulary) -> list[Prediction]:
            return read_logits(output.logits, vocabulary.names, vocabulary.logit_scale, reading)

        return self._runner.stream(
            images, lambda: self._vocabulary, read, ahead=ahead, workers=workers, on_error=on_error
        )

    def infer(self, images: npt.NDArray[np.uint8]) -> EngineOutput:
        """Run the model on prepared images.

        Args:
            images: (N, H, W, 3) uint8 of the model's size, N at least 1.

        Raises:
            UsageError: Another shape or dtype.
            SelfTestError: The engine gave numbers that are not finite.
        """
        return self._runner.run(images, self._vocabulary)

    def close(self) -> None:
        """Let go of the model; classifiers made by `with_vocabulary` share it."""
        self._engine.close()

    def __enter__(self) -> Classifier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


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
