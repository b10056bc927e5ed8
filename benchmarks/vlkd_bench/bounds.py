"""Confidence bounds for proportions and for differences of paired proportions, in numpy alone.

Letters: a model pair is run on the same ``n`` images of one domain. ``lost`` images were right with the
reference and wrong with the candidate, ``won`` images the other way round; both are the *discordant* images.
The drop in accuracy is ``(lost - won) / n``. All values here are shares in [-1, 1], not points.

References:
    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).
    C. J. Clopper and E. S. Pearson, "The use of confidence or fiducial limits illustrated in the case of the
    binomial", Biometrika 26 (1934).
    Q. McNemar, "Note on the sampling error of the difference between correlated proportions or percentages",
    Psychometrika 12 (1947).
    B. Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 7 (1979).
    T. Tango, "Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design", Statistics in Medicine 17 (1998), for the restricted maximum likelihood estimate.
    C. J. Lloyd, "Exact p-values for discrete models obtained by estimation and maximization", Australian
    & New Zealand Journal of Statistics 50 (2008), for the estimated (E) p-value.
"""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt


def wilson(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's two-sided interval of a share; honest at 0 %, at 100 % and for few images."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = correct / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar_p(lost: int, won: int) -> float:
    """Return the exact two-sided p-value of McNemar's test: are losses and wins equally likely?

    Under that hypothesis ``lost`` is binomial with ``lost + won`` trials and probability one half.
    """
    pairs = lost + won
    if pairs == 0:
        return 1.0
    log_half = pairs * math.log(2)
    log_choose = (
        math.lgamma(pairs + 1) - math.lgamma(k + 1) - math.lgamma(pairs - k + 1)
        for k in range(min(lost, won) + 1)
    )
    return min(1.0, 2 * math.fsum(math.exp(value - log_half) for value in log_choose))


def bootstrap_drops(
    n: int, lost: int, won: int, *, draws: int, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Resample the images of one domain with replacement; return the drop of each resample, ``(draws,)``.

    An image is lost, won or neither, so the resampled counts are multinomial: drawing the three counts is the
    paired bootstrap over images itself, only without building the resamples.
    """
    counts = rng.multinomial(n, [lost / n, won / n, (n - lost - won) / n], size=draws)
    return np.asarray((counts[:, 0] - counts[:, 1]) / n, dtype=np.float64)


@lru_cache(maxsize=65536)
def exact_upper(n: int, lost: int, won: int, confidence: float) -> float:
    """Return the one-sided upper confidence bound of the drop from its exact distribution.

    The bound is the largest drop ``d`` that still explains a difference as small as the observed one with
    probability ``1 - confidence``. That probability is exact for given rates of losses and wins; the wins'
    rate, a nuisance, is replaced by its maximum likelihood estimate under ``d`` (Tango's closed form, Lloyd's
    E p-value). Without wins the bound is Clopper and Pearson's for the share of lost images: zero losses in
    300 images give 0.99 points at 95 %, where a bootstrap would give 0.
    """
    risk = 1 - confidence
    if lost == n:
        return 1.0
    low = (lost - won) / n
    step = (2 * math.sqrt(lost + won) + 4) / n
    while low + step < 1 and drop_p_value(n, lost, won, low + step) > risk:
        low, step = low + step, 2 * step
    high = min(1.0, low + step)
    while high - low > 1e-7 * max(1e-3, abs(low)):
        middle = (low + high) / 2
        if drop_p_value(n, lost, won, middle) > risk:
            low = middle
        else:
            high = middle
    return high


def drop_p_value(n: int, lost: int, won: int, drop: float) -> float:
    """Return how probable a difference as small as the observed one is if the true drop is `drop` (Lloyd's E)."""
    rate_won = _restricted_won_rate(n, lost, won, drop)
    return _difference_cdf(n, rate_won + drop, rate_won, lost - won)


def bootstrap_cdf(n: int, lost: int, won: int, at: int) -> float:
    """Return the share of all bootstrap resamples in which losses minus wins is at most `at`."""
    return _difference_cdf(n, lost / n, won / n, at)


def exact_lower(n: int, lost: int, won: int, confidence: float) -> float:
    """Return the one-sided lower confidence bound of the drop: `exact_upper` with the roles swapped."""
    return -exact_upper(n, won, lost, confidence)


def _restricted_won_rate(n: int, lost: int, won: int, drop: float) -> float:
    """Return the most likely rate of won images if the true drop were `drop` (Tango 1998, section 3)."""
    a = 2.0 * n
    b = -(lost + won) + drop * (2 * n - lost + won)
    c = -won * drop * (1 - drop)
    root = (-b + math.sqrt(max(0.0, b * b - 4 * a * c))) / (2 * a)
    return min(max(root, 0.0, -drop), (1 - drop) / 2)


def _difference_cdf(n: int, rate_lost: float, rate_won: float, at: int) -> float:
    """Return P(losses - wins <= at) over ``n`` independent images.

    The difference's characteristic function is a closed form; its inverse Fourier transform on a window of
    ten standard deviations and more is the distribution, exact to rounding.
    """
    mean = n * (rate_lost - rate_won)
    variance = n * max(0.0, rate_lost + rate_won - (rate_lost - rate_won) ** 2)
    reach = min(2 * n, int(10 * math.sqrt(variance)) + 40)
    size = 1 << (2 * reach + 1).bit_length()
    lowest = round(mean) - size // 2
    if at < lowest:
        return 0.0
    angle = 2 * np.pi * np.arange(size // 2 + 1) / size
    turn = np.exp(1j * angle)
    characteristic = (1 - rate_lost - rate_won + rate_lost * turn + rate_won * turn.conj()) ** n
    mass = np.fft.irfft(characteristic.conj(), size)
    values = np.arange(lowest, min(at, lowest + size - 1) + 1)
    return float(min(1.0, max(0.0, mass[values % size].sum())))
