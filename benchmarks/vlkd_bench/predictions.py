"""What a model answered on each image: the raw material of every accuracy number and guard verdict.

The file format is JSON lines, one object a line, with the keys of `KEYS` and perhaps those of `OPTIONAL`. Labels
and predictions are written as class names so that a file can be read without the bundle it came from; the
label ``null`` marks an image that shows none of the classes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from vlkd_runtime.atomic import write_text
from vlkd_runtime.errors import DataError, ImageError

from .samples import ABSENT, Sample

KEYS = ("image", "domain", "label", "prediction")
OPTIONAL = ("probability", "similarity", "source")


@dataclass(frozen=True, slots=True)
class PredictionRow:
    """One image and the model's answer for it.

    Attributes:
        image: Identity of the image, ``<domain>/<class>/<file>``.
        domain: Its domain.
        label: Index of the true class; `ABSENT` if the image shows none of the classes.
        prediction: Index of the predicted class.
        probability: Softmax probability of the predicted class, in [0, 1]; None if not recorded.
        similarity: Cosine between the image's embedding and the predicted class vector; None if not recorded.
        source: For a view made from another image, that image; "" for an image of its own.
    """

    image: str
    domain: str
    label: int
    prediction: int
    probability: float | None = None
    similarity: float | None = None
    source: str = ""

    @property
    def correct(self) -> bool:
        """Whether the top-1 answer is the true class."""
        return self.label == self.prediction


@runtime_checkable
class Answer(Protocol):
    """What `evaluate` reads from one prediction."""

    @property
    def index(self) -> int:
        """Index of the predicted class."""
        ...

    @property
    def probability(self) -> float:
        """Softmax probability of the predicted class."""
        ...

    @property
    def similarity(self) -> float:
        """Cosine to the predicted class vector."""
        ...


class Predictor(Protocol):
    """Anything that answers for one image; `vlkd_runtime.Classifier` does."""

    def predict(self, image: Path, /) -> object:
        """Return an `Answer` for the image at this path."""
        ...


def evaluate(
    classifier: Predictor, samples: Sequence[Sample], progress: Callable[[int], None] | None = None
) -> tuple[PredictionRow, ...]:
    """Ask the classifier about each sample through the same call a user's program makes.

    Args:
        classifier: The artifact under test, opened by the runtime.
        samples: The images, each at most once.
        progress: Called after each image with the number done so far.

    Raises:
        DataError: An image cannot be read, or the list is empty or names an image twice.
    """
    if not samples:
        msg = "Expected at least one sample to evaluate, found none: check the data folder and the domains."
        raise DataError(msg)
    rows: list[PredictionRow] = []
    for sample in samples:
        try:
            answer = classifier.predict(sample.path)
        except ImageError as error:
            msg = (
                f"Expected a readable image at {sample.path} ({sample.image}), found: {error} "
                "Remove or replace the file, then evaluate again."
            )
            raise DataError(msg) from error
        if not isinstance(answer, Answer):
            msg = f"predict() must return index, probability and similarity, got {type(answer).__name__}"
            raise TypeError(msg)
        rows.append(
            PredictionRow(
                image=sample.image,
                domain=sample.domain,
                label=sample.label,
                prediction=int(answer.index),
                probability=float(answer.probability),
                similarity=float(answer.similarity),
                source=sample.source,
            )
        )
        if progress is not None:
            progress(len(rows))
    _refuse_duplicates(rows, "the list of samples")
    return tuple(rows)


def write_predictions(path: Path, rows: Iterable[PredictionRow], names: Sequence[str]) -> None:
    """Store predictions as JSON lines, whole or not at all.

    Args:
        path: The file to write.
        rows: The predictions.
        names: Class names; ``names[i]`` is written for class ``i``.

    Raises:
        DataError: A label or prediction has no name, or a number is not finite.
    """
    write_text(path, format_predictions(rows, names))


def format_predictions(rows: Iterable[PredictionRow], names: Sequence[str]) -> str:
    """Return predictions as the JSON lines that `write_predictions` stores."""
    return "".join(json.dumps(_plain(row, names), allow_nan=False) + "\n" for row in rows)


def _plain(row: PredictionRow, names: Sequence[str]) -> dict[str, object]:
    """Return a row as the JSON object of its line."""
    for what, index in (("label", row.label), ("prediction", row.prediction)):
        if not 0 <= index < len(names) and (what, index) != ("label", ABSENT):
            msg = (
                f"Expected {what} between 0 and {len(names) - 1} ({len(names)} class names), found "
                f"{index} for {row.image}: pass the names the predictions were made with."
            )
            raise DataError(msg)
    if not all(value is None or math.isfinite(value) for value in (row.probability, row.similarity)):
        msg = (
            f"Expected finite numbers, found probability {row.probability} and similarity "
            f"{row.similarity} for {row.image}: the model produced NaN or infinity; do not use it."
        )
        raise DataError(msg)
    plain: dict[str, object] = {
        "image": row.image,
        "domain": row.domain,
        "label": None if row.label == ABSENT else names[row.label],
        "prediction": names[row.prediction],
    }
    extra = zip(OPTIONAL, (row.probability, row.similarity, row.source or None), strict=True)
    return plain | {key: value for key, value in extra if value is not None}


def read_predictions(path: Path, names: Sequence[str] | None = None) -> tuple[PredictionRow, ...]:
    """Read predictions back, naming the line of whatever is wrong with them.

    Args:
        path: A file of JSON lines.
        names: Class names, needed when the file holds names (files of class indices are read without).

    Raises:
        DataError: The file is missing, empty or damaged, misses a key, holds an unknown class
            or an image twice.
    """
    index_of = None if names is None else {name: index for index, name in enumerate(names)}
    return _read(path, index_of)


def read_pair(
    reference: Path, candidate: Path
) -> tuple[tuple[PredictionRow, ...], tuple[PredictionRow, ...], tuple[str, ...]]:
    """Read two models' predictions without knowing the classes.

    Returns:
        The reference's rows, the candidate's, and the names of the classes in order of first mention; indices agree
        between the two and mean nothing elsewhere.

    Raises:
        DataError: As `read_predictions`.
    """
    numbering = _Numbering()
    return _read(reference, numbering), _read(candidate, numbering), tuple(numbering)


class _Numbering(dict[str, int]):
    """Gives each new name the next free index; indices in the files stay what they are."""

    def __missing__(self, name: str) -> int:
        self[name] = len(self)
        return self[name]


def _read(path: Path, index_of: dict[str, int] | None) -> tuple[PredictionRow, ...]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"Expected a predictions file (JSON lines, UTF-8) at {path}, found: {error}. Evaluate again."
        raise DataError(msg) from error
    return _parse_lines(text, index_of, str(path))


def parse_predictions(text: str, names: Sequence[str] | None, where: str) -> tuple[PredictionRow, ...]:
    """Return the predictions in a text of JSON lines; `where` names it in errors. See `read_predictions`."""
    index_of = None if names is None else {name: index for index, name in enumerate(names)}
    return _parse_lines(text, index_of, where)


def _parse_lines(text: str, index_of: dict[str, int] | None, where: str) -> tuple[PredictionRow, ...]:
    rows = []
    # split("\n") and not splitlines(): a class name may hold U+2028, which ends a line for splitlines.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            rows.append(_parse(line, index_of, f"{where} line {number}"))
    if not rows:
        msg = f"Expected at least one prediction in {where}, found an empty file: evaluate again."
        raise DataError(msg)
    _refuse_duplicates(rows, where)
    return tuple(rows)


def _parse(line: str, index_of: dict[str, int] | None, where: str) -> PredictionRow:
    """Turn one line into a row; `where` names the line in errors."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        msg = f"Expected one JSON object in {where}, found: {error}. The file was damaged; evaluate again."
        raise DataError(msg) from error
    if not isinstance(value, dict):
        msg = f"Expected one JSON object in {where}, found {type(value).__name__}: evaluate again."
        raise DataError(msg)
    missing = [key for key in KEYS if key not in value]
    if missing:
        msg = f"Expected the keys {', '.join(KEYS)} in {where}, missing {', '.join(missing)}: evaluate again."
        raise DataError(msg)
    for key in ("image", "domain", "source"):
        if key in value and (not isinstance(value[key], str) or not value[key]):
            msg = f"Expected a non-empty text for {key!r} in {where}, found {value[key]!r}."
            raise DataError(msg)
    probability = _number(value.get("probability"), "probability", where)
    if probability is not None and not -1e-6 <= probability <= 1 + 1e-6:
        msg = f"Expected a probability between 0 and 1 in {where}, found {probability}."
        raise DataError(msg)
    absent = value["label"] is None
    return PredictionRow(
        image=value["image"],
        domain=value["domain"],
        label=ABSENT if absent else _class_index(value["label"], index_of, "label", where),
        prediction=_class_index(value["prediction"], index_of, "prediction", where),
        probability=probability,
        similarity=_number(value.get("similarity"), "similarity", where),
        source=value.get("source", ""),
    )


def _number(value: object, key: str, where: str) -> float | None:
    """Return a finite number, None for none, or say which key of which line is no number."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        msg = f"Expected a finite number for {key!r} in {where}, found {value!r}."
        raise DataError(msg)
    return float(value)


def _class_index(value: object, index_of: dict[str, int] | None, key: str, where: str) -> int:
    """Return the index of a class given by name or by index."""
    if isinstance(value, str):
        if index_of is None:
            msg = f"Found the class name {value!r} for {key!r} in {where}: pass names= to read it."
            raise DataError(msg)
        if value not in index_of and not isinstance(index_of, _Numbering):
            known = ", ".join(list(index_of)[:10])
            msg = (
                f"Expected one of the {len(index_of)} classes ({known}, ...) for {key!r} in {where}, "
                f"found {value!r}: pass the names the file was written with."
            )
            raise DataError(msg)
        return index_of[value]
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        msg = f"Expected a class name or index for {key!r} in {where}, found {value!r}."
        raise DataError(msg)
    if isinstance(index_of, _Numbering):
        return index_of[f"class {value}"]
    if index_of is not None and value >= len(index_of):
        msg = f"Expected a class index below {len(index_of)} for {key!r} in {where}, found {value}."
        raise DataError(msg)
    return value


def _refuse_duplicates(rows: Iterable[PredictionRow], where: str) -> None:
    """Refuse an image that appears twice: it would be counted twice and could not be paired."""
    seen: set[str] = set()
    for row in rows:
        if row.image in seen:
            msg = f"Expected each image once in {where}, found {row.image!r} twice: remove the duplicate."
            raise DataError(msg)
        seen.add(row.image)
