"""How many images per domain would settle an inconclusive guard."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from .discordance import Discordance, DropBounds
from .verdict import Criterion, GuardBudget

MOST_IMAGES = 10_000_000

Bound = Callable[[Mapping[str, Discordance], bool], DropBounds]


def images_needed(
    counts: Mapping[str, Discordance],
    bound: Bound,
    criteria: Sequence[Criterion],
    budget: GuardBudget,
    *,
    failing: bool,
) -> int | None:
    """Return the images per domain with which the guard would decide, if everything stays as observed.

    A prediction, not a promise: with the drop close to its budget the observed rates carry little.

    Args:
        counts: What was observed.
        bound: The guard's bounds for such counts; its second argument asks for the bootstrap as well.
        criteria: What was judged. Drops of accuracy are bounded again; the bounds of the others are taken to
            close in on the observed value as the square root of the number of images grows.
        budget: What is allowed.
        failing: Whether to look for a fail, because an observed value reaches its budget, or for a pass.

    Returns:
        The number of images, or None when not even ten million would do.
    """
    drops = len(counts) + (len(counts) > 1)
    others = criteria[drops:]
    least = min(item.n for item in counts.values())

    def enough(n: int, bootstrap: bool) -> bool:
        bounds = bound({name: scale(item, n, failing) for name, item in counts.items()}, bootstrap)
        allowed = [(item, budget.worst_points) for item in bounds.domains.values()]
        allowed += [(bounds.mean, budget.mean_points)] * (len(counts) > 1)
        shrink = math.sqrt(least / n)
        if failing:
            return any(item.lower > points + 1e-9 for item, points in allowed) or any(
                item.budget is not None
                and item.bound.drop - shrink * (item.bound.drop - item.bound.lower) > item.budget
                for item in others
            )
        return all(item.upper <= points + 1e-9 for item, points in allowed) and all(
            item.budget is None
            or item.bound.drop + shrink * (item.bound.upper - item.bound.drop) <= item.budget + 1e-9
            for item in others
        )

    return _search(enough, least)


def _search(enough: Callable[[int, bool], bool], least: int) -> int | None:
    """Return about the smallest number of images from `least` on that is enough."""
    low = high = least
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


def scale(item: Discordance, n: int, failing: bool = False) -> Discordance:
    """Return the discordance expected on `n` images, never fewer than there are.

    Counts are rounded so that they do not make the answer too hopeful: against the candidate if a pass is looked for,
    in its favour if a fail is.
    """
    if n <= item.n:
        return item
    factor = n / item.n

    def up(value: int) -> int:
        return math.ceil(value * factor - 1e-9)

    def down(value: int) -> int:
        return math.floor(value * factor + 1e-9)

    lost, won = (down(item.lost), up(item.won)) if failing else (up(item.lost), down(item.won))
    return Discordance(n=n, lost=lost, won=min(won, n - lost), flips=up(item.flips))
