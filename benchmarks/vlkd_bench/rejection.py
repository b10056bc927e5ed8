"""Whether a candidate still tells images of known classes from images that show none of them.

The score is the similarity to the predicted class vector, the largest of all; an unknown image should have a
low one. The area under the ROC curve (AUROC) is the probability that a known image scores higher than an unknown one.

Letters used in shapes: N known images, A unknown images.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

from .bounds import exact_upper
from .discordance import FEW, POINTS, DropBound
from .pairing import Answers, Floats, Pairs


def bound_rejection_drop(
    pairs: Pairs, *, upper_confidence: float, lower_confidence: float
) -> DropBound | None:
    """Bound reference minus candidate AUROC, in points; positive is worse.

    The variance of the paired difference is DeLong's, from each image's *placement*: the share of images of the
    other kind that it lies on the right side of. Views of one source image count as one, which sums
    their placements first. With fewer than `FEW` placements changed on either side the normal limit promises too
    much; the bound is then at least what no loss at all on that many images allows.

    Returns:
        The drop; None without unknown images or without similarities.

    References:
        E. R. DeLong et al., "Comparing the areas under two or more correlated receiver operating characteristic
        curves: a nonparametric approach", Biometrics 44 (1988), equations 3 to 8.
        N. A. Obuchowski, "Nonparametric analysis of clustered ROC curve data", Biometrics 53 (1997).
    """
    both = pairs.reference, pairs.candidate
    if not len(both[0].unknown_similarity) or any(
        np.isnan(side.similarity).any() or np.isnan(side.unknown_similarity).any() for side in both
    ):
        return None
    known, unknown = (first - second for first, second in zip(*map(_placements, both), strict=True))
    drop = float(known.mean())
    images, units = len(known), pairs.units
    per_unit = np.bincount(pairs.unit, weights=known - drop, minlength=units)
    variance = (per_unit**2).sum() / images**2 * units / max(1, units - 1)
    variance += float(unknown.var(ddof=1)) / len(unknown) if len(unknown) > 1 else 1.0
    spread = float(np.sqrt(variance))
    few = min(np.count_nonzero(known), np.count_nonzero(unknown)) < FEW
    least = min(units, len(unknown))

    def reach(confidence: float) -> float:
        normal = spread * NormalDist().inv_cdf(confidence)
        return max(normal, exact_upper(least, 0, 0, confidence)) if few else normal

    low, high = drop - reach(lower_confidence), drop + reach(upper_confidence)
    return DropBound(POINTS * drop, POINTS * low, POINTS * high)


def auroc(answers: Answers) -> float:
    """Return the probability that a known image is more similar to its class than an unknown one."""
    return float(_placements(answers)[0].mean())


def _placements(answers: Answers) -> tuple[Floats, Floats]:
    """Return for each known image the share of unknown ones below it, and for each unknown the share above it."""
    known, unknown = np.sort(answers.similarity), np.sort(answers.unknown_similarity)

    def below(values: Floats, others: Floats) -> Floats:
        left, right = np.searchsorted(others, values, "left"), np.searchsorted(others, values, "right")
        return np.asarray((left + right) / 2 / len(others), dtype=np.float64)

    return below(answers.similarity, unknown), 1 - below(answers.unknown_similarity, known)
