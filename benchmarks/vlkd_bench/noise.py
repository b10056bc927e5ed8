"""How much a number moves when nothing changed, and whether a ratio is more than that.

Letters: R processes of a run. Values are one per process, for example its median latency, and are compared as
logarithms of their medians over processes: a slowdown is a factor, and one disturbed process moves no median.

References:
    B. Efron and R. Tibshirani, "An introduction to the bootstrap" (1993), chapters 13 and 16 (bootstrap under
    the null hypothesis from centred samples).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

DRAWS = 4_000
LEAST_PROCESSES = 3


@dataclass(frozen=True, slots=True)
class RatioBounds:
    """A ratio of medians and what it must clear.

    Attributes:
        baseline: Median over the baseline's processes.
        now: Median over this run's processes.
        ratio: Now over baseline.
        interval: Two-sided confidence interval of the ratio; None with too few processes.
        noise: Relative change that A/A runs stay below at the same confidence; None with too few processes.
    """

    baseline: float
    now: float
    ratio: float
    interval: tuple[float, float] | None
    noise: float | None


def compare_runs(
    baseline: Sequence[float],
    now: Sequence[float],
    more_runs: Sequence[Sequence[float]] = (),
    *,
    risk: float,
    seed: int,
) -> RatioBounds:
    """Compare the processes of two runs.

    Args:
        baseline: Value of each process of the baseline (R).
        now: Value of each process of this run.
        more_runs: The same of further runs of what the baseline measured.
        risk: Probability allowed on each side.
        seed: Seed of the bootstrap.
    """
    first, last = np.log(np.asarray(baseline)), np.log(np.asarray(now))
    middle = float(np.median(first)), float(np.median(last))
    ratio = math.exp(middle[1] - middle[0])
    values = math.exp(middle[0]), math.exp(middle[1]), ratio
    if min(len(first), len(last)) < LEAST_PROCESSES:
        return RatioBounds(*values, None, None)
    rng = np.random.default_rng(seed)
    drawn = (
        np.log(ratio)
        + _medians(last - middle[1], len(last), rng)
        - _medians(first - middle[0], len(first), rng)
    )
    low, high = np.quantile(drawn, (risk, 1 - risk))
    # Under "nothing changed" both runs come from one population: all processes, each about its run's median.
    # Centring on a median of R values takes away the share 1/R of their variance, which is given back.
    centred = np.concatenate([_spread(first), _spread(last), *(_spread(np.log(run)) for run in more_runs)])
    null = _medians(centred, len(last), rng) - _medians(centred, len(first), rng)
    within = float(np.quantile(null, 1 - risk))
    noise = math.expm1(max(within, _between([first, *map(np.log, more_runs)])))
    return RatioBounds(*values, (math.exp(low), math.exp(high)), noise)


def _spread(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return values about their median, widened for its having been taken from them."""
    n = len(values)
    return (values - np.median(values)) * math.sqrt(n / (n - 1))


def _medians(values: npt.NDArray[np.float64], size: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return the medians of resamples with replacement, ``(DRAWS,)``."""
    ordered = np.sort(rng.choice(values, (DRAWS, size)), axis=1)
    return np.asarray((ordered[:, (size - 1) // 2] + ordered[:, size // 2]) / 2)


def _between(runs: Sequence[npt.NDArray[np.float64]]) -> float:
    """Return the largest difference between whole runs of the same thing; 0 for a single run."""
    middles = [float(np.median(run)) for run in runs]
    return max(middles) - min(middles)


def compare_turns(baseline: Sequence[float], now: Sequence[float], *, risk: float) -> RatioBounds:
    """Compare two runs whose processes took turns: each process with the other run's process beside it.

    What a machine does for longer than a turn falls on both of a pair, so that only differences within pairs count.
    Their centre is the median of all pairwise means, and its interval that of the exact signed-rank test, which
    supposes nothing of the differences but that they are as likely above their centre as below it by as much.

    Args:
        baseline: Value of each process of the baseline, in the order of turns (R).
        now: Value of each process of this run.
        risk: Probability allowed on each side; at least ``0.5**R``, or no difference could be told.

    References:
        J. L. Hodges and E. L. Lehmann, "Estimates of location based on rank tests", Annals of Mathematical
        Statistics 34 (1963).
        M. Hollander, D. A. Wolfe and E. Chicken, "Nonparametric statistical methods", 3rd edition (2014),
        sections 3.2 and 3.3 (estimator and exact interval of the signed-rank test).
    """
    pairs = np.log(np.asarray(now)) - np.log(np.asarray(baseline))
    middle = float(np.median(_means(pairs)))
    values = float(np.median(baseline)), float(np.median(now)), math.exp(middle)
    if len(pairs) < LEAST_PROCESSES:
        return RatioBounds(*values, None, None)
    low, high = _signed_rank_interval(pairs, risk)
    # With no change the estimate strays upwards as far from none as it may lie here above the centre.
    noise = math.expm1(middle - low)
    return RatioBounds(*values, (math.exp(low), math.exp(high)), noise)


def _means(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the means of all pairs along the last axis, each value with itself as well."""
    i, j = np.triu_indices(values.shape[-1])
    return np.asarray((values[..., i] + values[..., j]) / 2)


def _signed_rank_interval(pairs: npt.NDArray[np.float64], risk: float) -> tuple[float, float]:
    """Return the exact interval of the centre with this risk on each side."""
    counts = np.ones(1)
    for rank in range(1, len(pairs) + 1):  # of the sums that subsets of the ranks 1 to R have
        longer = np.zeros(len(counts) + rank)
        longer[: len(counts)] += counts
        longer[rank:] += counts
        counts = longer
    below = np.cumsum(counts) / counts.sum()
    # The test refuses a centre with fewer means than this below it, and accepts one just above the last of them.
    outside = max(1, int(np.searchsorted(below, risk, side="right")))
    ordered = np.sort(_means(pairs))
    return float(ordered[outside - 1]), float(ordered[-outside])
