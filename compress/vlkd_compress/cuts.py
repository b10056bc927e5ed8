"""Where to cut a histogram of activations, so that what is left is resolved finely enough.

Letters used in shapes: B bins of a histogram of magnitudes (2048); one of signed values has twice as many.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

BINS = 2048
LEVELS = 128
PERCENTILE = 99.99
# Shares of the whole range that the search for the least squared error tries.
SHARES = np.linspace(1.0, 0.1, 91)


def percentile_cut(histogram: npt.NDArray[np.int64], percentile: float = PERCENTILE) -> int:
    """Return how many bins hold ``percentile`` of all values, at least one."""
    cumulative = np.cumsum(histogram)
    wanted = cumulative[-1] * percentile / 100.0
    return int(np.searchsorted(cumulative, wanted)) + 1


def percentile_interval(
    histogram: npt.NDArray[np.int64], percentile: float = PERCENTILE
) -> tuple[float, float]:
    """Return the bins between which values lie when ``100 - percentile`` is cut off at each end."""
    return float(len(histogram) - percentile_cut(histogram[::-1], percentile)), float(
        percentile_cut(histogram, percentile)
    )


def entropy_cut(histogram: npt.NDArray[np.int64], step: int = 16) -> int:
    """Return the cut (in bins) whose 128-level version is nearest to the histogram in KL divergence.

    Values beyond a cut saturate, so the reference counts them in its last bin while the quantized version,
    which is made from the values below the cut only, does not: that is what makes a low cut cost something.

    References:
        S. Migacz, "8-bit Inference with TensorRT", GTC 2017, slides 30-38.
    """
    counts = histogram.astype(np.float64)
    # Exact zeros (every ReLU makes many) are exact at any scale, so they must not pull the cut down.
    counts[0] = counts[1]
    if counts.sum() == 0.0:
        return len(counts)
    best, best_cost = len(counts), np.inf
    for cut in range(LEVELS, len(counts) + 1, step):
        inside = counts[:cut]
        reference = inside.copy()
        reference[-1] += counts[cut:].sum()
        cost = _divergence(reference, _quantized(inside))
        if cost <= best_cost:
            best, best_cost = cut, cost
    return best


def mse_cut(histogram: npt.NDArray[np.int64]) -> float:
    """Return the cut (in bins of magnitude) whose symmetric INT8 version has the least squared error.

    References:
        M. Nagel et al., "A White Paper on Neural Network Quantization", arXiv 2106.08295, section 3.1, eq. 9.
    """
    counts = histogram.astype(np.float64)
    counts[0] = counts[1]  # exact zeros, as above
    centres = np.arange(len(counts), dtype=np.float64) + 0.5
    cuts = len(counts) * SHARES
    costs = [_squared_error(centres, counts, 0.0, cut, LEVELS - 1) for cut in cuts]
    return float(cuts[int(np.argmin(costs))])


def mse_interval(histogram: npt.NDArray[np.int64]) -> tuple[float, float]:
    """Return the bins between which an asymmetric 8-bit version of signed values has the least squared error.

    Both ends are shrunk in turn, each while the other stands still; zero stays within.
    """
    counts = histogram.astype(np.float64)
    middle = len(counts) // 2
    counts[middle] = counts[middle + 1]
    filled = np.flatnonzero(histogram)
    low = min(float(filled[0]), middle) - middle if len(filled) else -float(middle)
    high = max(float(filled[-1]) + 1, middle) - middle if len(filled) else float(middle)
    centres = np.arange(len(counts), dtype=np.float64) + 0.5 - middle
    first, last = low, high
    for _ in range(2):
        costs = [_squared_error(centres, counts, first, high * share, 255) for share in SHARES]
        last = float(high * SHARES[int(np.argmin(costs))])
        costs = [_squared_error(centres, counts, low * share, last, 255) for share in SHARES]
        first = float(low * SHARES[int(np.argmin(costs))])
    return first + middle, last + middle


def _squared_error(
    centres: npt.NDArray[np.floating],
    counts: npt.NDArray[np.float64],
    low: float,
    high: float,
    levels: int,
) -> float:
    """Return the summed squared error of rounding to ``levels`` equal steps from ``low`` to ``high``."""
    step = (high - low) / levels
    if step <= 0.0:
        return float(np.inf)
    # The zero point is a level itself, so that zero stays exact.
    zero = np.rint(-low / step)
    rounded = (np.clip(np.rint(centres / step) + zero, 0, levels) - zero) * step
    return float((counts * (centres - rounded) ** 2).sum())


def _quantized(inside: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Merge the bins into 128 levels and spread each level's mass over its bins that are not empty."""
    starts = np.arange(LEVELS) * len(inside) // LEVELS
    widths = np.diff(np.append(starts, len(inside)))
    mass = np.add.reduceat(inside, starts)
    filled = np.add.reduceat((inside > 0).astype(np.float64), starts)
    share = np.divide(mass, filled, out=np.zeros_like(mass), where=filled > 0)
    return np.repeat(share, widths) * (inside > 0)


def _divergence(reference: npt.NDArray[np.float64], quantized: npt.NDArray[np.float64]) -> float:
    """Return KL(reference || quantized) of two histograms; infinite when the second is empty."""
    total = quantized.sum()
    if total == 0.0:
        return float(np.inf)
    p, q = reference / reference.sum(), quantized / total
    seen = p > 0
    if np.any(q[seen] == 0):
        # The reference's last bin may hold clipped mass where the quantized one is empty.
        q = np.maximum(q, 1e-12)
    return float(np.sum(p[seen] * np.log(p[seen] / q[seen])))
