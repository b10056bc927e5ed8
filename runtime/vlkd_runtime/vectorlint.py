"""Looks class vectors over: what makes them unusable, and what makes them weaker than they could be.

The strict reader of `vectors` stops at the first thing that is wrong and gives nothing back. Here a file is
read as far as it goes, and everything that can be said of it is said at once.

Letters: C classes, D sizes of the teacher's joint space.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .errors import DataError
from .strictjson import JsonProblems
from .tensorfile import read_tensors
from .vectors import _NORM_TOLERANCE, _TENSOR, ClassVectors, _nested_texts, _texts, check_names

NEAR = 0.98
# From here on two float32 rows are the same row.
_SAME = 1 - 1e-6
# CLIP reads 77 tokens and drops the rest; English has about 1.3 tokens a word.
_MOST_WORDS = 55
_LISTED = 6


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, or could be better.

    Attributes:
        severity: ``error`` where the vectors cannot or must not be used, ``warning`` where they can.
        check: which check speaks, one word.
        message: what was expected and what was found.
        advice: what to do.
    """

    severity: Literal["error", "warning"]
    check: str
    message: str
    advice: str


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """What the checks look at; unlike `ClassVectors` it promises nothing.

    Attributes:
        names: Class names as they were found.
        vectors: Whatever array was found, of any type and shape.
        prompts: For each class its texts, as far as known.
    """

    names: tuple[str, ...]
    vectors: npt.NDArray[Any]
    prompts: tuple[tuple[str, ...], ...] = ()


def lint(
    vectors: ClassVectors | Rows,
    expected_names: Sequence[str] | None = None,
    expected_dim: int | None = None,
    near: float = NEAR,
) -> tuple[Finding, ...]:
    """Check class vectors.

    Args:
        vectors: Sound ones, or what was read of a file.
        expected_names: The classes in label order, such as sorted folder names.
        expected_dim: The embedding size D that the student has.
        near: From this cosine on, two classes are called hard to tell apart.

    Returns:
        Errors first; nothing where nothing was found.
    """
    found = [*_names(vectors.names), *_rows(vectors, expected_dim)]
    if expected_names is not None:
        found += _order(vectors.names, tuple(expected_names))
    found += _near(vectors, near)
    found += _prompts(vectors)
    return tuple(sorted(found, key=lambda finding: finding.severity))


def lint_file(
    path: str | os.PathLike[str],
    expected_names: Sequence[str] | None = None,
    expected_dim: int | None = None,
    near: float = NEAR,
) -> tuple[Rows | ClassVectors | None, tuple[Finding, ...]]:
    """Check a file of class vectors, also one that `ClassVectors.load` refuses.

    Returns:
        The vectors where the strict reader takes them, otherwise what could be read, if anything; and the
        findings as of `lint`.

    Raises:
        DataError: There is no file that can be opened.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        msg = f"{path}: cannot read the class vectors: {error.strerror}; check the path"
        raise DataError(msg) from error
    rows: Rows | ClassVectors | None
    try:
        rows, refusal = ClassVectors.from_bytes(data, where=os.fspath(path)), None
    except DataError as error:
        rows, refusal = _as_far_as_it_goes(data), str(error)
    found = lint(rows, expected_names, expected_dim, near) if rows is not None else ()
    # Where a check above says the same in more detail, the strict reader's words are left out.
    if refusal is not None and not {one.check for one in found} & {"names", "finite", "norm", "shape"}:
        found = (Finding("error", "file", f"Refused: {refusal}.", "Make the vectors again."), *found)
    return rows, found


def cosines(vectors: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Cosine of every class with every other, (C, C); NaN for rows that have no direction."""
    with np.errstate(all="ignore"):
        rows = vectors.astype(np.float64)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows[~np.isfinite(rows).all(axis=1)] = np.nan
    found: npt.NDArray[np.float64] = np.clip(rows @ rows.T, -1.0, 1.0)
    return found


def _as_far_as_it_goes(data: bytes) -> Rows | None:
    try:
        tensors, metadata = read_tensors(data, where="")
        rows = Rows(_texts(metadata["names"]), tensors[_TENSOR])
    except (DataError, JsonProblems, KeyError):
        return None
    with contextlib.suppress(DataError, JsonProblems, KeyError):
        return dataclasses.replace(rows, prompts=_nested_texts(metadata["prompts"]))
    return rows


def _names(names: tuple[str, ...]) -> Iterator[Finding]:
    advice = "Rename the classes and make the vectors again."
    bad = []
    for index, name in enumerate(names):
        try:
            check_names((name,))
        except DataError:
            bad.append(f"{name!r} (class {index})")
    if bad:
        message = f"Expected printable names without blanks around them, found {_few(bad)}."
        yield Finding("error", "names", message, advice)
    repeated = [repr(name) for name, count in Counter(names).items() if count > 1]
    if repeated:
        message = f"Expected each class name once, found {_few(repeated)} repeated."
        yield Finding("error", "names", message, advice)


def _rows(found: ClassVectors | Rows, expected_dim: int | None) -> Iterator[Finding]:
    vectors, names = found.vectors, found.names
    if not _is_table(vectors) or vectors.dtype != np.float32:
        message = f"Expected float32 rows of shape (C, D), found {vectors.dtype} {vectors.shape}."
        yield Finding("error", "shape", message, "Convert the rows to float32 and store them again.")
    if not _is_table(vectors):
        return
    if len(vectors) != len(names):
        message = f"Expected one row per class, found {len(vectors)} rows and {len(names)} names."
        yield Finding("error", "shape", message, "Make the vectors again for the classes you have.")
    if expected_dim is not None and vectors.shape[1] != expected_dim:
        message = f"Expected rows of {expected_dim} values, found {vectors.shape[1]}."
        yield Finding(
            "error", "dimension", message, "Use the vectors of the teacher that taught the student."
        )
    with np.errstate(all="ignore"):
        norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
    broken = [_label(names, int(row)) for row in np.flatnonzero(~np.isfinite(norms))]
    if broken:
        message = f"Expected finite values, found NaN or infinity for {_few(broken)}."
        yield Finding("error", "finite", message, "Look at what the teacher answers for their prompts.")
    wrong = np.flatnonzero(np.isfinite(norms) & (np.abs(norms - 1) > _NORM_TOLERANCE))
    if wrong.size:
        listed = _few([f"{norms[row]:.4g} for {_label(names, int(row))}" for row in wrong])
        message = f"Expected rows of length 1, found {listed}."
        yield Finding("error", "norm", message, "Divide each row by its length before it is stored.")


def _order(names: tuple[str, ...], expected: tuple[str, ...]) -> Iterator[Finding]:
    if names == expected:
        return
    pairs = list(itertools.zip_longest(expected, names))
    first = next(index for index, (wanted, name) in enumerate(pairs) if wanted != name)
    wanted, name = ("nothing" if side is None else repr(side) for side in pairs[first])
    missing = [repr(one) for one in expected if one not in names]
    extra = [repr(one) for one in names if one not in expected]
    whole = [f"missing {_few(missing)}"] * bool(missing) + [f"not expected {_few(extra)}"] * bool(extra)
    message = (
        f"Class {first}: expected {wanted}, found {name} ({'; '.join(whole) or 'names in another order'})."
    )
    advice = "Make the vectors for the names in label order; nothing else tells that classes are swapped."
    yield Finding("error", "order", message, advice)


def _near(found: ClassVectors | Rows, near: float) -> Iterator[Finding]:
    if not _is_table(found.vectors):
        return
    table = cosines(found.vectors)
    pairs = [(int(i), int(j)) for i, j in np.argwhere(np.triu(table >= min(near, _SAME), 1))]
    pairs.sort(key=lambda pair: -table[pair])
    texts = {pair: " and ".join(_label(found.names, row) for row in pair) for pair in pairs}
    same = [texts[pair] for pair in pairs if table[pair] >= _SAME]
    alike = [f"{texts[pair]} ({table[pair]:.4f})" for pair in pairs if table[pair] < _SAME]
    advice = "Merge the classes, or tell them apart by attributes or clearer names."
    if same:
        message = f"Expected a vector of its own for each class, found the same one for {_few(same)}."
        yield Finding("error", "near", message, advice)
    if alike:
        message = f"Expected cosines below {near:g} between classes, found {_few(alike)}."
        yield Finding("warning", "near", message, advice)


def _prompts(found: ClassVectors | Rows) -> Iterator[Finding]:
    owners: dict[str, list[str]] = {}
    for row, texts in enumerate(found.prompts):
        for text in texts:
            owners.setdefault(text, []).append(_label(found.names, row))
    shared = [f"{text!r} of {' and '.join(dict.fromkeys(o))}" for text, o in owners.items() if len({*o}) > 1]
    repeated = [f"{text!r} of {max(o, key=o.count)}" for text, o in owners.items() if len({*o}) < len(o)]
    long = [f"{text[:40]!r}... of {o[0]}" for text, o in owners.items() if len(text.split()) > _MOST_WORDS]
    for items, expected, advice in (
        (shared, "prompts that tell the classes apart", "Give the classes names or attributes that differ."),
        (repeated, "no prompt of a class twice", "Leave the copies out; they count more than the others."),
        (long, f"at most {_MOST_WORDS} words", "Shorten them; CLIP drops what is beyond 77 tokens."),
    ):
        if items:
            yield Finding("warning", "prompts", f"Expected {expected}, found {_few(items)}.", advice)


def _is_table(vectors: npt.NDArray[Any]) -> bool:
    return vectors.ndim == 2 and vectors.shape[1] > 0 and vectors.dtype.kind in "fiu"


def _label(names: tuple[str, ...], row: int) -> str:
    return repr(names[row]) if row < len(names) else f"row {row}"


def _few(items: Sequence[str]) -> str:
    more = f" and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return ", ".join(items[:_LISTED]) + more
