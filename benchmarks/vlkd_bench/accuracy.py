"""Accuracy by domain, with intervals, from stored predictions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vlkd_runtime.errors import DataError

from .bounds import wilson
from .predictions import PredictionRow
from .samples import ABSENT

ECE_BINS = 15


@dataclass(frozen=True, slots=True)
class DomainAccuracy:
    """Top-1 accuracy on one domain with Wilson's 95 % interval; all shares in [0, 1]."""

    n: int
    correct: int
    accuracy: float
    lower: float
    upper: float


@dataclass(frozen=True, slots=True)
class AccuracySummary:
    """How right a model is, domain by domain.

    Attributes:
        domains: Accuracy of each domain, in alphabetical order of the names.
        mean: Plain mean over domains, so that a large domain does not hide a small one.
        worst: Accuracy of the worst domain.
        worst_domain: Its name; the first by name among equals.
        ece: Expected calibration error over all images, see `expected_calibration_error`.
    """

    domains: Mapping[str, DomainAccuracy]
    mean: float
    worst: float
    worst_domain: str
    ece: float

    def only(self, names: Sequence[str]) -> tuple[float, float]:
        """Return mean and worst accuracy over the named domains, for example the held-out ones."""
        missing = [name for name in names if name not in self.domains]
        if missing or not names:
            msg = f"Expected domains among {', '.join(self.domains)}, found {', '.join(missing) or 'none'}."
            raise DataError(msg)
        values = [self.domains[name].accuracy for name in names]
        return sum(values) / len(values), min(values)


def summarise(rows: Sequence[PredictionRow]) -> AccuracySummary:
    """Count right answers per domain and put intervals on them; images of absent classes do not count.

    Raises:
        DataError: There are no rows.
    """
    rows = [row for row in rows if row.label != ABSENT]
    if not rows:
        msg = "Expected at least one prediction to summarise, found none: evaluate the model first."
        raise DataError(msg)
    tally: dict[str, tuple[int, int]] = {}
    for row in rows:
        n, correct = tally.get(row.domain, (0, 0))
        tally[row.domain] = (n + 1, correct + row.correct)
    domains = {}
    for name in sorted(tally):
        n, correct = tally[name]
        domains[name] = DomainAccuracy(n, correct, correct / n, *wilson(correct, n))
    worst_domain = min(domains, key=lambda name: domains[name].accuracy)
    return AccuracySummary(
        domains=domains,
        mean=sum(value.accuracy for value in domains.values()) / len(domains),
        worst=domains[worst_domain].accuracy,
        worst_domain=worst_domain,
        ece=expected_calibration_error(rows),
    )


def expected_calibration_error(rows: Sequence[PredictionRow], bins: int = ECE_BINS) -> float:
    """Return how far probabilities are from the share of right answers, averaged over bins of probability.

    Bins are of equal width, open below and closed above; an empty bin counts nothing.

    References:
        C. Guo et al., "On calibration of modern neural networks", ICML 2017, equation 3.
    """
    probability = np.array([row.probability for row in rows], dtype=np.float64)
    correct = np.array([row.correct for row in rows], dtype=np.float64)
    index = np.clip(np.ceil(probability * bins).astype(int) - 1, 0, bins - 1)
    gap = correct - probability
    # fsum does not depend on the order of the rows, so that equal predictions give equal reports.
    return math.fsum(abs(math.fsum(gap[index == k])) for k in range(bins)) / len(rows)
