"""Resizing as runtime/README.md writes it down, in plain arithmetic, against what the library does."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest

from vlkd_runtime.preprocess import PreprocessSpec, prepare


def triangle(x: float) -> float:
    return max(0.0, 1.0 - abs(x))


def cubic(x: float) -> float:
    x = abs(x)
    if x < 1:
        return ((1.5 * x) - 2.5) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * -0.5 if x < 2 else 0.0


FILTERS: dict[str, tuple[Callable[[float], float], float]] = {
    "bilinear": (triangle, 1.0),
    "bicubic": (cubic, 2.0),
}


def resize_rows(image: np.ndarray, size: int, name: str) -> np.ndarray:
    """Resize the first axis."""
    if len(image) == size:
        return image
    function, radius = FILTERS[name]
    scale = len(image) / size
    stretch = max(scale, 1.0)
    result = np.zeros((size, *image.shape[1:]), np.uint8)
    for row in range(size):
        centre = (row + 0.5) * scale
        first = max(0, int(centre - radius * stretch + 0.5))
        last = min(len(image), int(centre + radius * stretch + 0.5))
        weights = [function((source - centre + 0.5) * (1.0 / stretch)) for source in range(first, last)]
        total = 0.0
        for weight in weights:
            total += weight
        fixed = [int(math.copysign(0.5, w) + w / total * (1 << 22)) for w in weights]
        for index in np.ndindex(*image.shape[1:]):
            value = 1 << 21
            for weight, source in zip(fixed, range(first, last), strict=True):
                value += weight * int(image[(source, *index)])
            result[(row, *index)] = min(255, max(0, value >> 22))
    return result


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    "size", [(5, 9), (23, 17), (12, 40), (12, 10), (1, 1), (61, 3), (33, 7), (18, 18)], ids=str
)
def test_resize_is_as_written_down(
    size: tuple[int, int], interpolation: Literal["bilinear", "bicubic"]
) -> None:
    # Black and white only, so that bicubic overshoots and is cut off.
    image = (np.random.default_rng(2).integers(0, 2, (*size, 3)) * 255).astype(np.uint8)
    columns_first = resize_rows(image.transpose(1, 0, 2), 10, interpolation).transpose(1, 0, 2)
    expected = resize_rows(columns_first, 12, interpolation)
    assert np.array_equal(prepare(image, PreprocessSpec(12, 10, "squash", 1.0, interpolation)), expected)
