"""How the guard's risk of a false pass is shared: among candidates tried in turn, and among looks at the images.

``alpha = 1 - confidence`` is the risk that *anything* whose true drop is over budget ships.

Candidates. A ladder tries the boldest candidate first and stops at the first that passes. Each trial is one
more chance for a lucky pass, so trial ``i`` may spend ``alpha * w_i`` with ``sum(w) <= 1``, fixed beforehand:

* ``w_i = 1 / (i (i + 1))``: 1/2, 1/6, 1/12, ... The sum telescopes to 1, so a ladder of unknown length is safe,
  and candidates that are never reached cost those before them nothing. A share costs little: with no image lost,
  halving it takes ``log(2) / budget`` more images, 69 at a budget of 1 point.
* If the list is closed, its last candidate takes what is left (``1 / K``): two candidates have half each.
* When candidate ``i`` passes, its share is handed to the next bolder one, ``i - 1``, which is judged again with both
  shares, and so on while they pass. This is the fallback procedure from the shyest candidate tried to the boldest. It
  is a closed test, so the error rate over all candidates is at most ``alpha`` however their answers depend on
  each other. With two candidates it is Holm's procedure: once FP16 has passed, INT8 is judged at all of ``alpha``.

Plain fixed-sequence testing, which needs no shares, does not fit: it must stop at the first candidate that does *not*
pass, so it would have to begin with the shyest and would never get past one unlucky rung.

What the argument needs: each candidate is fixed without having looked at the guard's images other than through
"the ones before did not pass". A search that ranks layers by their harm must do so on other images.

Looks. Within a candidate's share, answers may be looked at before all are there. Look ``l`` at the share ``t_l`` of the
images spends ``t_l^3 - t_(l-1)^3`` of the candidate's risk (the power family of spending functions). The bounds of each
look hold on their own at that risk, so by Bonferroni's inequality a pass at *any* look is false with probability
at most the sum, which is the candidate's risk. The correlation between looks is not exploited; the last look
still keeps 7/8 of the risk, which costs 4 to 8 % more images where the decision is close.

Letters: K candidates.

References:
    Spending: K. K. G. Lan and D. L. DeMets, "Discrete sequential boundaries for clinical trials", Biometrika 70
    (1983). Power family: K. Kim and D. L. DeMets, Biometrika 74 (1987), with rho = 3.
    Fallback: B. L. Wiens and A. Dmitrienko, "The fallback procedure for evaluating a single family of
    hypotheses", Journal of Biopharmaceutical Statistics 15 (2005). S. Holm, Scandinavian Journal of Statistics
    6 (1979).
    Fixed sequence, for the alternative: A. N. Angelopoulos et al., "Learn then Test", arXiv:2110.01052, section 2.
"""

from __future__ import annotations

from collections.abc import Sequence

from vlkd_runtime.errors import ConfigError

FRACTIONS = (1 / 8, 1 / 4, 1 / 2, 1.0)
LEAST_IMAGES = 250
_POWER = 3


def candidate_share(trial: int, candidates: int | None = None) -> float:
    """Return which share of the risk a trial may spend.

    Args:
        trial: 1 for the first candidate tried.
        candidates: How many there are if the list is closed; None for a ladder of unknown length.

    Raises:
        ConfigError: The trial lies beyond the end of a closed list.
    """
    if trial < 1 or (candidates is not None and trial > candidates):
        msg = f"Expected a trial from 1 to {candidates or 'any number'}, found {trial}: the list was said to be closed."
        raise ConfigError(msg)
    return 1 / trial if trial == candidates else 1 / (trial * (trial + 1))


def look_fractions(images: int) -> tuple[float, ...]:
    """Return the shares of the images at which answers are looked at; the last is 1.

    A look at fewer than `LEAST_IMAGES` could not end in a pass at usual budgets and is not taken.

    Args:
        images: Images of the largest domain.
    """
    return tuple(part for part in FRACTIONS if part == 1 or part * images >= LEAST_IMAGES)


def look_shares(fractions: Sequence[float]) -> tuple[float, ...]:
    """Return which share of a candidate's risk each look may spend; the sum is 1."""
    ends = [0.0, *(part**_POWER for part in fractions)]
    return tuple(ends[index + 1] - ends[index] for index in range(len(fractions)))
