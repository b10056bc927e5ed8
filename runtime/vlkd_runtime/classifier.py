"""From a bundle and an image to a label: what an application on the device uses.

Letters: N images, H rows, W columns, D sizes of the joint space, C classes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeAlias, overload

import numpy as np
import numpy.typing as npt
from PIL import Image

from .bundle import Bundle
from .engines import open_engine
from .engines.base import Engine, EngineInfo, EngineOutput
from .errors import DataError, ImageError, SelfTestError, UsageError
from .manifest import Manifest
from .preprocess import ImageSource, PreprocessSpec, prepare
from .selftest import run_batches, run_self_test
from .vectors import ClassVectors, check_names
from .vocabulary import VocabularyEngine, check_same_space

Images: TypeAlias = "ImageSource | Sequence[ImageSource]"


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the classifier says of one image.

    Attributes:
        label: Name of the most likely class.
        index: Its position among the classes.
        probability: Its share in the softmax of the logits.
        similarity: Cosine between the image's embedding and the class vector; low for all classes alike
            where the image shows none of them.
        top: The most likely classes with their probabilities, best first.
    """

    label: str
    index: int
    probability: float
    similarity: float
    top: tuple[tuple[str, float], ...]


class Classifier:
    """Classifies images with a loaded model; may be used from several threads at once.

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
    ) -> None:
        self._engine = engine
        self.preprocess = preprocess
        self.names = tuple(names)
        check_names(self.names)
        if not (math.isfinite(logit_scale) and logit_scale > 0):
            msg = f"logit_scale: expected a finite number above 0, found {logit_scale}; take the teacher's"
            raise DataError(msg)
        self.logit_scale = float(logit_scale)
        self.manifest = manifest
        self._vectors = vectors

    @classmethod
    def load(
        cls,
        bundle: str | os.PathLike[str] | Bundle,
        *,
        engine: str = "auto",
        threads: int | None = None,
        self_test: bool = True,
    ) -> Classifier:
        """Check a bundle, load its model and compare it with the golden samples.

        Args:
            bundle: A bundle folder, a ``.vlkd`` archive, or a bundle that is open already.
            engine: Which engine to use; ``auto`` takes the best one on this machine.
            threads: How many threads the engine may use; None leaves it to the engine.
            self_test: Run the golden samples first; leave it on unless loading time is all that counts.

        Raises:
            BundleError: The bundle is damaged or altered.
            SelfTestError: The engine's answers are not the ones the desk measured.
            UnavailableError: The engine is not installed.
        """
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        manifest = opened.manifest
        loaded = open_engine(opened.model, engine=engine, threads=threads)
        try:
            if self_test:
                run_self_test(loaded, opened.golden, manifest.golden)
            return cls(
                loaded,
                manifest.preprocess,
                manifest.classes,
                logit_scale=manifest.logit_scale,
                manifest=manifest,
                vectors=opened.vectors,
            )
        except BaseException:
            loaded.close()
            raise

    @classmethod
    def from_model(
        cls,
        model: str | os.PathLike[str],
        preprocess: PreprocessSpec,
        names: Sequence[str],
        *,
        logit_scale: float,
        engine: str = "auto",
        threads: int | None = None,
    ) -> Classifier:
        """Load a model that is in no bundle yet, such as a candidate at the desk.

        Args:
            model: The ONNX file.
            preprocess: How images are brought to it.
            names: Class names in the order of its logits.
            logit_scale: What its logits are multiplied by.
            engine: Which engine to use.
            threads: How many threads the engine may use.
        """
        loaded = open_engine(Path(model), engine=engine, threads=threads)
        try:
            return cls(loaded, preprocess, names, logit_scale=logit_scale)
        except BaseException:
            loaded.close()
            raise

    @property
    def info(self) -> EngineInfo:
        """Say which engine runs the model."""
        return self._engine.info

    def with_classes(self, vectors: ClassVectors) -> Classifier:
        """Give a classifier for other classes that shares this one's engine: no training, no new model.

        Args:
            vectors: Class vectors of the same teacher.

        Raises:
            DataError: They are from another teacher, or this classifier came from no bundle.
        """
        if self._vectors is None:
            msg = (
                "with_classes: expected a classifier loaded from a bundle, which knows its teacher; load one"
            )
            raise DataError(msg)
        check_same_space(self._vectors, vectors)
        inner = self._engine.inner if isinstance(self._engine, VocabularyEngine) else self._engine
        return Classifier(
            VocabularyEngine(inner, vectors),
            self.preprocess,
            vectors.names,
            logit_scale=vectors.logit_scale,
            manifest=self.manifest,
            vectors=vectors,
        )

    # A string is a sequence of strings, too; the first overload is meant to win.
    @overload
    def predict(self, images: ImageSource, top: int = 5) -> Prediction: ...  # type: ignore[overload-overlap]

    @overload
    def predict(self, images: Sequence[ImageSource], top: int = 5) -> list[Prediction]: ...

    def predict(self, images: Images, top: int = 5) -> Prediction | list[Prediction]:
        """Classify one image or many.

        Args:
            images: A path, a Pillow image or a uint8 array; or a list or tuple of these, or an array
                (N, H, W, 3). Arrays are RGB; reverse the channels of what OpenCV gives.
            top: How many of the most likely classes to list.

        Returns:
            One prediction, or for many images a list in their order.

        Raises:
            ImageError: An image cannot be decoded; for many, the message says which.
        """
        if type(top) is not int or top < 1:
            msg = f"top: expected an integer of at least 1, found {top!r}; ask for at least one class"
            raise UsageError(msg)
        if isinstance(images, (str, os.PathLike, Image.Image)) or (
            isinstance(images, np.ndarray) and images.ndim != 4
        ):
            return self._predict(prepare(images, self.preprocess)[None], top)[0]
        if not isinstance(images, (list, tuple, np.ndarray)):
            msg = (
                "expected a path, a Pillow image, a uint8 array, or a list, tuple or 4-D array of images, "
                f"found {type(images).__name__}; convert it first"
            )
            raise ImageError(msg)
        predictions: list[Prediction] = []
        batch = self._engine.info.batch
        # By the batch, so that a long list of files never is in memory at once.
        for start in range(0, len(images), batch):
            prepared = [
                self._prepare(images, index) for index in range(start, min(start + batch, len(images)))
            ]
            predictions += self._predict(np.stack(prepared), top)
        return predictions

    def infer(self, images: npt.NDArray[np.uint8]) -> EngineOutput:
        """Run the model on prepared images.

        Args:
            images: (N, H, W, 3) uint8 of the model's size, N at least 1.

        Raises:
            UsageError: Another shape or dtype.
            SelfTestError: The engine gave numbers that are not finite.
        """
        expected = (self.preprocess.height, self.preprocess.width, 3)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != expected or not len(images):
            msg = (
                f"infer: expected uint8 (N, {expected[0]}, {expected[1]}, 3), found {images.dtype} "
                f"{images.shape}; use prepare()"
            )
            raise UsageError(msg)
        output = run_batches(self._engine, images)
        if output.logits.shape[1] != len(self.names):
            msg = (
                f"expected one logit for each of {len(self.names)} classes, found {output.logits.shape[1]}; "
                "give the names this model was exported with"
            )
            raise UsageError(msg)
        if not np.isfinite(output.logits).all():
            bad = int(np.flatnonzero(~np.isfinite(output.logits).all(axis=1))[0])
            msg = (
                f"engine {self.info.name} ({self.info.provider} {self.info.version}): expected finite "
                "logits, "
                f"found others for image {bad}; use another engine or a higher precision"
            )
            raise SelfTestError(msg)
        return output

    def close(self) -> None:
        """Let go of the model; classifiers made by `with_classes` share it."""
        self._engine.close()

    def __enter__(self) -> Classifier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _prepare(
        self, images: Sequence[ImageSource] | npt.NDArray[np.uint8], index: int
    ) -> npt.NDArray[np.uint8]:
        try:
            return prepare(images[index], self.preprocess)
        except ImageError as error:
            msg = f"image {index} of {len(images)}: {error}"
            raise ImageError(msg) from error

    def _predict(self, prepared: npt.NDArray[np.uint8], top: int) -> list[Prediction]:
        return [self._prediction(logits, top) for logits in self.infer(prepared).logits.astype(np.float64)]

    def _prediction(self, logits: npt.NDArray[np.float64], top: int) -> Prediction:
        # The largest is taken off first, so that no exponential overflows.
        weights = np.exp(logits - logits.max())
        probabilities = weights / weights.sum()
        order = np.argsort(-logits, kind="stable")[:top]
        best = int(order[0])
        return Prediction(
            label=self.names[best],
            index=best,
            probability=float(probabilities[best]),
            similarity=float(logits[best]) / self.logit_scale,
            top=tuple((self.names[index], float(probabilities[index])) for index in order),
        )
