"""How many images per domain would settle an inconclusive guard."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from .discordance import Discordance, DropBounds

MOST_IMAGES = 10_000_000


def images_needed(
    counts: Mapping[str, Discordance],
    bound: Callable[[Mapping[str, Discordance], bool], DropBounds],
    passes: Callable[[DropBounds], bool],
) -> int | None:
    """Return the images per domain with which the guard would pass, if discordance stays as observed.

    A prediction, not a promise: with the drop close to its budget the observed rates carry little.

    Args:
        counts: What was observed.
        bound: The guard's bounds for such counts; its second argument asks for the bootstrap as well.
        passes: The guard's criterion.

    Returns:
        The number of images, or None when not even ten million would do.
    """

    def enough(n: int, bootstrap: bool) -> bool:
        scaled = {name: scale(item, n) for name, item in counts.items()}
        return passes(bound(scaled, bootstrap))

    low = min(item.n for item in counts.values())
    high = low
    while not enough(high, False):
        low, high = high, high * 2
        if high > MOST_IMAGES:
            return None
    while high - low > max(1, high // 500):
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle, False) else (middle, high)
    # The search used the exact bounds alone, and rounding of counts makes them saw-toothed: step up until the
    # guard's full criterion holds as well.
    while not enough(high, True):
        high += max(1, high // 100)
        if high > MOST_IMAGES:
            return None
    return high


def scale(item: Discordance, n: int) -> Discordance:
    """Return the discordance expected on `n` images, rounded against the candidate; never fewer images."""
    if n <= item.n:
        return item
    factor = n / item.n
    return Discordance(
        n=n,
        lost=math.ceil(item.lost * factor - 1e-9),
        won=math.floor(item.won * factor + 1e-9),
        flips=math.ceil(item.flips * factor - 1e-9),
    )
