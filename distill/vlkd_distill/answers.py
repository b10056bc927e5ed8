"""What a teacher's answers are held to, whoever gives them: unit rows, all finite, and who is to blame by name.

Letters used in shapes: N images or texts, D embedding size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vlkd_runtime.errors import DataError

FloatArray = npt.NDArray[np.float32]


def unit_rows(rows: npt.NDArray[Any]) -> FloatArray:
    """Scale rows ``(N, D)`` to length one; a row of zeros, which has no direction, becomes NaN."""
    exact = np.asarray(rows, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(exact / np.linalg.norm(exact, axis=1, keepdims=True), np.float32)


def refuse_not_finite(rows: FloatArray, who: str, kind: str, names: Sequence[object]) -> None:
    """Refuse embeddings that nothing can be learned from.

    Raises:
        DataError: names the first and counts the others.
    """
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        msg = (
            f"{who} has embeddings that are zero or not finite for {len(bad)} of {len(names)} {kind}s: "
            f"{few([names[int(row)] for row in bad])}. Embed them again, or leave them out."
        )
        raise DataError(msg)


def few(names: Sequence[object]) -> str:
    """The first names of a list, and how many more there are."""
    return ", ".join(map(str, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
