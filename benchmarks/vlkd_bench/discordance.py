"""From counts of discordant images per domain to bounds on the drop of each domain and of their mean.

Letters used in shapes: U units (images, or all views of one source image), K domains, P patterns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .bounds import bootstrap_drops, exact_lower, exact_upper

DRAWS = 20_000
POINTS = 100.0
FEW = 10

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Discordance:
    """How a candidate differs from its reference on the images of one domain.

    Attributes:
        n: Images.
        lost: Right with the reference, wrong with the candidate.
        won: Wrong with the reference, right with the candidate.
        flips: Images whose predicted class differs; includes one wrong answer replaced by another.
    """

    n: int
    lost: int
    won: int
    flips: int

    @property
    def drop(self) -> float:
        """Reference minus candidate accuracy, in points."""
        return POINTS * (self.lost - self.won) / self.n


@dataclass(frozen=True, slots=True)
class DropBound:
    """A drop in accuracy and its one-sided confidence bounds, in points (0..100); negative is a gain."""

    drop: float
    lower: float
    upper: float


@dataclass(frozen=True, slots=True)
class DropBounds:
    """Bounds for every domain and for the plain mean over domains."""

    domains: Mapping[str, DropBound]
    mean: DropBound


@dataclass(frozen=True, slots=True, eq=False)
class SharedSources:
    """How views of the same source images, one a domain, tie the domains together.

    Attributes:
        correlation: Of the domains' drops, ``(K, K)``, at least 0.
        patterns: Each distinct row of deltas over the domains, ``(P, K)``.
        presence: Group of units with images in the same domains that each pattern belongs to, ``(P,)``.
        units: Units that show each pattern, ``(P,)``.
    """

    correlation: Floats
    patterns: Integers
    presence: Integers
    units: Integers

    def resample(self, draws: int, rng: np.random.Generator) -> Integers:
        """Resample units with replacement, those in the same domains among themselves; sums ``(draws, K)``."""
        total = np.zeros((draws, self.patterns.shape[1]), dtype=np.int64)
        for group in range(int(self.presence.max()) + 1):
            chosen = self.presence == group
            times = self.units[chosen]
            total += rng.multinomial(times.sum(), times / times.sum(), size=draws) @ self.patterns[chosen]
        return total


def share_sources(delta: Integers, present: npt.NDArray[np.bool_]) -> SharedSources:
    """Find what domains have in common that were made from the same images.

    Where either of two domains has fewer than `FEW` discordant images their correlation cannot be estimated
    and is taken to be 1, the worst case; negative estimates are taken to be 0.

    Args:
        delta: 1 for lost, -1 for won, 0 for the rest or absent, ``(U, K)``.
        present: Whether the unit has an image in the domain, ``(U, K)``.
    """
    k = delta.shape[1]
    correlation = np.eye(k)
    for i in range(k):
        for j in range(i):
            both = present[:, i] & present[:, j]
            first, second = delta[both, i], delta[both, j]
            if (
                min(np.count_nonzero(first), np.count_nonzero(second)) < FEW
                or first.std() == 0
                or second.std() == 0
            ):
                value = 1.0
            else:
                value = max(0.0, float(np.corrcoef(first, second)[0, 1]))
            overlap = both.sum() / math.sqrt(present[:, i].sum() * present[:, j].sum())
            correlation[i, j] = correlation[j, i] = value * overlap
    rows, units = np.unique(np.hstack([present.astype(np.int64), delta]), axis=0, return_counts=True)
    _, presence = np.unique(rows[:, :k], axis=0, return_inverse=True)
    return SharedSources(correlation, rows[:, k:], presence.reshape(-1), units)


def bound_drops(
    counts: Mapping[str, Discordance],
    *,
    upper_confidence: float,
    lower_confidence: float,
    seed: int | None,
    draws: int = DRAWS,
    shared: SharedSources | None = None,
) -> DropBounds:
    """Bound the drop of each domain and their mean, taking the more conservative of two methods each time.

    Per domain these are the paired percentile bootstrap and the exact distribution (`bounds.exact_upper`).
    The bootstrap alone is not enough: where few images are discordant it promises too much (zero discordant
    images bootstrap to a bound of zero; at 300 images and a true drop of 1 point its 95 % bound fails to
    cover in 6 to 20 % of cases).

    For the mean they are the stratified bootstrap (domains resampled independently) and the combination of
    the domains' bounds by the method of variance estimates recovery: distances between estimate and bound add
    like standard deviations. Domains made from the same images are not independent: their units are resampled
    as a whole, and the distances add with the domains' correlation.

    Args:
        counts: Discordant images per domain.
        upper_confidence: One-sided confidence of the upper bounds.
        lower_confidence: One-sided confidence of the lower bounds.
        seed: Seed of the bootstrap; None leaves the bootstrap out.
        draws: Bootstrap resamples.
        shared: What ties the domains together, in order of their names; None if no image is in two of them.

    References:
        B. Efron and R. Tibshirani, "An introduction to the bootstrap" (1993), chapters 8 and 13.
        G. Y. Zou and A. Donner, "Construction of confidence limits about effect measures: a general
        approach", Statistics in Medicine 27 (2008), equation 4; with correlation, G. Y. Zou, "Toward using
        confidence intervals to compare correlations", Psychological Methods 12 (2007), equation 15.
    """
    names = sorted(counts)
    exact = {
        name: DropBound(
            counts[name].drop,
            POINTS * exact_lower(counts[name].n, counts[name].lost, counts[name].won, lower_confidence),
            POINTS * exact_upper(counts[name].n, counts[name].lost, counts[name].won, upper_confidence),
        )
        for name in names
    }
    k = len(names)
    tie = np.eye(k) if shared is None else shared.correlation
    centre = sum(bound.drop for bound in exact.values()) / k
    down = np.array([bound.drop - bound.lower for bound in exact.values()])
    up = np.array([bound.upper - bound.drop for bound in exact.values()])
    mean = DropBound(centre, centre - math.sqrt(down @ tie @ down) / k, centre + math.sqrt(up @ tie @ up) / k)
    if seed is None:
        return DropBounds(exact, mean)
    rng = np.random.default_rng(seed)
    images = np.array([counts[name].n for name in names])
    if shared is None:
        columns = [
            bootstrap_drops(item.n, item.lost, item.won, draws=draws, rng=rng)
            for item in (counts[name] for name in names)
        ]
        resampled = POINTS * np.stack(columns, axis=1)
    else:
        resampled = POINTS * shared.resample(draws, rng) / images
    domains = {
        name: _widen(exact[name], resampled[:, index], upper_confidence, lower_confidence)
        for index, name in enumerate(names)
    }
    return DropBounds(domains, _widen(mean, resampled.mean(axis=1), upper_confidence, lower_confidence))


def _widen(bound: DropBound, resampled: Floats, upper: float, lower: float) -> DropBound:
    """Return the bound, moved outwards where the bootstrap's percentiles lie further out."""
    low = float(np.quantile(resampled, 1 - lower, method="lower"))
    high = float(np.quantile(resampled, upper, method="higher"))
    return DropBound(bound.drop, min(bound.lower, low), max(bound.upper, high))
