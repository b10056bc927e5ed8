"""How likely the guard is to pass a candidate on one domain, and how many images that takes.

``python -m vlkd_bench.power`` prints the table of sample sizes.

A candidate *flips* a share of the images to and from the right answer; the drop is the difference of the two
directions. With ``d`` discordant images in a hundred and no drop at all, losses and wins are ``d / 2`` each.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from .bounds import bootstrap_cdf, drop_p_value

BUDGETS = (2.0, 1.0, 0.5)
DISCORDANT = (0.0, 0.5, 1.0, 2.0, 5.0)
POWER = 0.9
_NODES = 41


@lru_cache(maxsize=1 << 18)
def passes(n: int, lost: int, won: int, budget: float, confidence: float = 0.95) -> bool:
    """Tell whether a domain's upper bound is within `budget` points, by both of the guard's methods.

    The same answer as `discordance.bound_drops` gives, without finding the bound and with all bootstrap resamples.
    """
    if drop_p_value(n, lost, won, budget / 100) > 1 - confidence:
        return False
    return bootstrap_cdf(n, lost, won, math.floor(budget / 100 * n + 1e-9)) >= confidence


def most_lost(n: int, discordant: int, budget: float, confidence: float = 0.95) -> int:
    """Return the largest number of lost images among the discordant ones with which a domain passes; -1 if none."""
    low, high = -1, discordant
    while low < high:
        middle = (low + high + 1) // 2
        if passes(n, middle, discordant - middle, budget, confidence):
            low = middle
        else:
            high = middle - 1
    return low


def pass_probability(
    n: int, discordant: float, drop: float, budget: float, confidence: float = 0.95
) -> float:
    """Return the probability that one domain passes.

    Args:
        n: Images.
        discordant: Points of images right with exactly one of the two models, on average.
        drop: True drop, in points; at most `discordant`.
        budget: What it may be, in points.
        confidence: Of the guard.
    """
    rate = discordant / 100
    towards_loss = 0.5 if rate == 0 else (1 + drop / discordant) / 2
    counts, weights = _binomial(n, rate)
    if len(counts) > _NODES:  # the probability changes slowly with the number of discordant images
        picked = np.linspace(0, len(counts) - 1, _NODES).round().astype(int)
        counts, weights = counts[picked], weights[picked] / weights[picked].sum()
    total = 0.0
    for count, weight in zip(counts.tolist(), weights.tolist(), strict=True):
        lost, chances = _binomial(count, towards_loss)
        total += weight * float(chances[lost <= most_lost(n, count, budget, confidence)].sum())
    return total


def images_for_power(
    discordant: float, budget: float, *, power: float = POWER, confidence: float = 0.95
) -> int:
    """Return the images of a domain with which a candidate without any drop passes as often as `power`.

    The answer is rounded up to two digits.
    """
    n = 10
    while pass_probability(_two_digits(n), discordant, 0.0, budget, confidence) < power:
        n *= 2
    low, high = n // 2, n
    while _two_digits(high) > _two_digits(low + 1):
        middle = (low + high) // 2
        if pass_probability(_two_digits(middle), discordant, 0.0, budget, confidence) < power:
            low = middle
        else:
            high = middle
    return _two_digits(high)


def table(confidence: float = 0.95) -> str:
    """Return the sample sizes as a Markdown table."""
    heads = ["discordant images", *(f"budget {budget:g} points" for budget in BUDGETS)]
    lines = ["| " + " | ".join(heads) + " |", "| ---: " * len(heads) + "|"]
    for discordant in DISCORDANT:
        cells = [f"{images_for_power(discordant, budget, confidence=confidence):,}" for budget in BUDGETS]
        lines.append("| " + " | ".join([f"{discordant:g} %", *cells]) + " |")
    return "\n".join(lines)


def _two_digits(n: int) -> int:
    """Round up to two significant digits."""
    unit = int(10 ** max(0, len(str(n)) - 2))
    return -(-n // unit) * unit


def _binomial(n: int, rate: float) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return the counts that matter, within 5 standard deviations, and their probabilities."""
    if n == 0 or rate <= 0 or rate >= 1:
        return np.array([0 if rate <= 0 else n]), np.ones(1)
    reach = 5 * math.sqrt(n * rate * (1 - rate)) + 3
    counts = np.arange(max(0, math.floor(n * rate - reach)), min(n, math.ceil(n * rate + reach)) + 1)
    logs = np.array(
        [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in counts.tolist()]
    )
    chances = np.exp(logs + counts * math.log(rate) + (n - counts) * math.log1p(-rate))
    return counts, chances / chances.sum()


if __name__ == "__main__":
    print(table())
