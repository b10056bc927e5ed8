"""Images that cannot be decoded: found before they are needed, and refused where they are too many to leave out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from vlkd_bench.samples import Sample
from vlkd_runtime.errors import DataError, ImageError
from vlkd_runtime.preprocess import PreprocessSpec, decode, prepare

MOST_BAD = 0.01
_AT_ONCE = 64


def find_bad(
    samples: Sequence[Sample], spec: PreprocessSpec, progress: Callable[[int], None] = lambda _: None
) -> list[tuple[str, str]]:
    """Decode images whole, as the teacher does, and bring them to the student's size; nothing is kept.

    Args:
        samples: images on disk.
        spec: how an image is prepared.
        progress: called with the number of images just decoded.

    Returns:
        Id of each image that cannot be decoded, and why.
    """
    bad: list[tuple[str, str]] = []
    with ThreadPoolExecutor(2) as pool:
        for start in range(0, len(samples), _AT_ONCE):  # the pool would run ahead without end
            chunk = samples[start : start + _AT_ONCE]
            for sample, problem in zip(chunk, pool.map(partial(problem_of, spec=spec), chunk), strict=True):
                if problem:
                    bad.append((sample.image, problem))
                progress(1)
    return bad


def problem_of(sample: Sample, spec: PreprocessSpec) -> str:
    """Say why an image cannot be decoded; an empty text if it can."""
    try:
        prepare(decode(sample.path), spec)
    except ImageError as error:
        text = str(error)
        return text if str(sample.path) in text else f"{sample.path}: {text}"
    return ""


def refuse_too_many(bad: Sequence[tuple[str, str]], count: int, kind: str) -> None:
    """Refuse a set of images of which more than one in a hundred is bad; a single one never is too many.

    Args:
        bad: id and reason of each bad image.
        count: how many there are in all.
        kind: what they are.

    Raises:
        DataError: counts them and names the first.
    """
    if len(bad) > max(1, int(MOST_BAD * count)):
        listed = "\n".join(f"  {reason}" for _, reason in bad[:5])
        msg = (
            f"{len(bad)} of {count} {kind} cannot be decoded; at most {MOST_BAD:.0%} may be. "
            f"Replace or remove them. The first ones:\n{listed}"
        )
        raise DataError(msg)
