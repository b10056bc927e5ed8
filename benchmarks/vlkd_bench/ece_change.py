"""How much a candidate's stated probabilities drifted from the truth, with bounds.

Letters used in shapes: U units, B bins, R resamples.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from .accuracy import ECE_BINS
from .discordance import POINTS, DropBound
from .pairing import Answers, Floats, Pairs

DRAWS = 1000
_MOST_AT_ONCE = 4_000_000


def bound_ece_change(
    pairs: Pairs, *, upper_confidence: float, lower_confidence: float, seed: int, draws: int = DRAWS
) -> DropBound | None:
    """Bound candidate minus reference expected calibration error, in points; positive is worse.

    Units are resampled with replacement, both models' answers together. The error of few images is
    biased upwards, in a resample still more; the bias is much the same for both models, and what is left of it is
    subtracted. The bound is the more conservative of the shifted percentile and the normal limit, which alone
    resolves confidences beyond the number of resamples.

    Returns:
        The change; None if probabilities are missing.

    References:
        C. Guo et al., "On calibration of modern neural networks", ICML 2017, equation 3.
        B. Efron and R. Tibshirani, "An introduction to the bootstrap" (1993), section 10.
    """
    if np.isnan(pairs.reference.probability).any() or np.isnan(pairs.candidate.probability).any():
        return None
    gaps = np.hstack([_gaps(pairs, pairs.candidate), _gaps(pairs, pairs.reference)])
    images = len(pairs.unit)
    value = _change(gaps.sum(axis=0, keepdims=True), images)[0]
    sizes = np.bincount(pairs.unit, minlength=pairs.units)
    rng = np.random.default_rng(seed)
    parts = []
    left = draws
    while left:
        now = min(left, max(1, _MOST_AT_ONCE // pairs.units))
        times = rng.multinomial(pairs.units, np.full(pairs.units, 1 / pairs.units), size=now)
        parts.append(_change(times @ gaps, times @ sizes))
        left -= now
    drift = np.concatenate(parts)
    drift -= drift.mean()
    spread, normal = float(drift.std()), NormalDist()
    high = max(spread * normal.inv_cdf(upper_confidence), float(np.quantile(drift, upper_confidence)))
    low = max(spread * normal.inv_cdf(lower_confidence), -float(np.quantile(drift, 1 - lower_confidence)))
    return DropBound(POINTS * float(value), POINTS * float(value - low), POINTS * float(value + high))


def _gaps(pairs: Pairs, answers: Answers) -> Floats:
    """Sum of right answer minus probability, per unit and bin of probability, ``(U, B)``."""
    index = np.clip(np.ceil(answers.probability * ECE_BINS).astype(int) - 1, 0, ECE_BINS - 1)
    table = np.zeros((pairs.units, ECE_BINS))
    np.add.at(table, (pairs.unit, index), answers.correct - answers.probability)
    return table


def _change(sums: Floats, images: int | npt.NDArray[np.int64]) -> Floats:
    """Candidate's error minus reference's from sums of gaps ``(R, 2 B)``."""
    candidate, reference = np.abs(sums[:, :ECE_BINS]).sum(axis=1), np.abs(sums[:, ECE_BINS:]).sum(axis=1)
    return np.asarray((candidate - reference) / images, dtype=np.float64)
