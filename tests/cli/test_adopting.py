"""What counts as better than guessing, where a classifier's normalisation is found by trying."""

from __future__ import annotations

import math

import pytest

from vlkd_edge.adopting import clear_of_chance


@pytest.mark.parametrize("images", [32, 96])
@pytest.mark.parametrize("classes", [2, 3, 10, 100, 1000])
def test_guessing_hardly_ever_passes_and_a_fair_classifier_does(classes: int, images: int) -> None:
    least = math.ceil(clear_of_chance(classes, images) * images)
    tail = sum(
        math.comb(images, hits) * (1 / classes) ** hits * (1 - 1 / classes) ** (images - hits)
        for hits in range(least, images + 1)
    )
    assert tail < 0.02
    assert least <= 0.8 * images  # of two classes as well
