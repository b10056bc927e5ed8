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
_FEW_UNITS = 2000


def bound_ece_change(
    pairs: Pairs, *, upper_confidence: float, lower_confidence: float, seed: int, draws: int = DRAWS
) -> DropBound | None:
    """Bound candidate minus reference expected calibration error, in points; positive is worse.

    The change bounded is that of the error *as measured on this many images*. A model without any error is measured at
    some points on a few hundred images, so a drift below that noise stays hidden: give this criterion a budget
    where thousands of images are there.

    Units are resampled with replacement, both models' answers together. The error of few images is biased
    upwards, more so for the better calibrated model; the bootstrap's estimate of that bias moves a bound outwards
    where it points there and never inwards. The reach is the larger of the centred percentile and the normal limit,
    which alone resolves confidences beyond the number of resamples.

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
    value = _change(gaps.sum(axis=0, keepdims=True), np.array([images]))[0]
    sizes = np.bincount(pairs.unit, minlength=pairs.units)
    rng = np.random.default_rng(seed)
    if pairs.units <= _FEW_UNITS:
        times = rng.multinomial(pairs.units, np.full(pairs.units, 1 / pairs.units), size=draws)
        drift = _change(times @ gaps, times @ sizes)
    else:
        drift = _change(_normal_sums(np.hstack([gaps, sizes[:, None]]), draws, rng), None)
    bias = float(drift.mean() - value)
    drift -= drift.mean()
    spread, normal = float(drift.std()), NormalDist()
    high = max(spread * normal.inv_cdf(upper_confidence), float(np.quantile(drift, upper_confidence)))
    low = max(spread * normal.inv_cdf(lower_confidence), -float(np.quantile(drift, 1 - lower_confidence)))
    return DropBound(
        POINTS * float(value),
        POINTS * float(value - low - max(0.0, bias)),
        POINTS * float(value + high + max(0.0, -bias)),
    )


def _gaps(pairs: Pairs, answers: Answers) -> Floats:
    """Sum of right answer minus probability, per unit and bin of probability, ``(U, B)``."""
    index = np.clip(np.ceil(answers.probability * ECE_BINS).astype(int) - 1, 0, ECE_BINS - 1)
    table = np.zeros((pairs.units, ECE_BINS))
    np.add.at(table, (pairs.unit, index), answers.correct - answers.probability)
    return table


def _normal_sums(features: Floats, draws: int, rng: np.random.Generator) -> Floats:
    """Draw sums over resampled units from their normal limit, ``(R, 2 B + 1)``.

    Over thousands of units the resampled sums are normal for every purpose here, and thousands of times cheaper.
    """
    centred = features - features.mean(axis=0)
    left, scale, _ = np.linalg.svd(centred.T @ centred, hermitian=True)
    noise = rng.standard_normal((draws, len(scale))) * np.sqrt(scale)
    return np.asarray(features.sum(axis=0) + noise @ left.T, dtype=np.float64)


def _change(sums: Floats, images: Floats | npt.NDArray[np.int64] | None) -> Floats:
    """Candidate's error minus reference's from sums of gaps ``(R, 2 B)``; the images may be a last column."""
    images = sums[:, -1] if images is None else images
    candidate = np.abs(sums[:, :ECE_BINS]).sum(axis=1)
    reference = np.abs(sums[:, ECE_BINS : 2 * ECE_BINS]).sum(axis=1)
    return np.asarray((candidate - reference) / images, dtype=np.float64)
