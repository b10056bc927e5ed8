"""The guard's judgement: does a compressed model keep its accuracy on held-out domains?

Reference and candidate answer the *same images*, so only images on which exactly one of them is right carry
information about the drop. The verdict is never a bare yes: with too few images it is inconclusive.

How risks are shared among several domains, with ``alpha = 1 - confidence``:

* A *pass* claims that every domain's drop, and the mean's, is within budget. It is given only if each upper
  bound at level ``1 - alpha`` is within budget. Were one domain truly over budget, its own bound alone would
  have to err, so a false pass has probability at most ``alpha`` with no correction for the number of domains
  (an intersection-union test). By the same argument the largest upper bound is a ``1 - alpha`` bound of the
  worst domain's drop.
* A *fail* claims that at least one drop is over budget, so each of the ``m`` criteria is one more chance to
  err: lower bounds are taken at level ``1 - alpha / m`` (Bonferroni).
* If ``c`` candidates are judged on the same images and the first to pass is shipped, each is one more chance
  for a false pass: ``GuardBudget.candidates`` replaces ``alpha`` by ``alpha / c``.

References:
    R. L. Berger, "Multiparameter hypothesis testing and acceptance sampling", Technometrics 24 (1982).
    O. J. Dunn, "Multiple comparisons among means", JASA 56 (1961).
    The bounds' own references are in `bounds` and `discordance`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal

from vlkd_runtime.errors import DataError

from .accuracy import expected_calibration_error
from .bounds import mcnemar_p
from .discordance import Discordance, DropBound, DropBounds, bound_drops
from .predictions import PredictionRow
from .sample_size import images_needed
from .verdict import DomainDrop, GuardBudget, GuardVerdict, PairedComparison, Verdict
from .verdict_text import explain

__all__ = [
    "DomainDrop",
    "GuardBudget",
    "GuardVerdict",
    "PairedComparison",
    "Verdict",
    "compare",
    "judge",
]

_ROUNDING = 1e-9


def compare(
    reference: Sequence[PredictionRow],
    candidate: Sequence[PredictionRow],
    *,
    budget: GuardBudget | None = None,
    seed: int = 0,
) -> PairedComparison:
    """Compare two models image by image.

    Args:
        reference: The reference's predictions.
        candidate: The candidate's predictions on the same images, in any order.
        budget: Gives the confidence levels; the default budget if None.
        seed: Seed of the bootstrap.

    Raises:
        DataError: The two did not answer the same images, or disagree about an image's class or domain.
    """
    budget = budget or GuardBudget()
    counts = _count(reference, candidate)
    lower_confidence = budget.lower_confidence(len(counts))
    bounds = bound_drops(
        counts, upper_confidence=budget.upper_confidence, lower_confidence=lower_confidence, seed=seed
    )
    domains = {}
    for name, bound in bounds.domains.items():
        item = counts[name]
        p_value = mcnemar_p(item.lost, item.won)
        domains[name] = DomainDrop(
            item.n, item.lost, item.won, item.flips, bound.drop, bound.lower, bound.upper, p_value
        )
    worst_domain = max(domains, key=lambda name: (domains[name].upper, domains[name].drop))
    return PairedComparison(
        domains=domains,
        mean=bounds.mean,
        worst=bounds.domains[worst_domain],
        worst_domain=worst_domain,
        flip_rate=sum(item.flips for item in counts.values()) / len(reference),
        ece_change=expected_calibration_error(candidate) - expected_calibration_error(reference),
        upper_confidence=budget.upper_confidence,
        lower_confidence=lower_confidence,
        seed=seed,
    )


def judge(
    reference: Sequence[PredictionRow],
    candidate: Sequence[PredictionRow],
    budget: GuardBudget,
    *,
    seed: int = 0,
) -> GuardVerdict:
    """Judge a candidate against its reference on the same held-out images.

    Raises:
        DataError: The two did not answer the same images, or disagree about an image's class or domain.
    """
    comparison = compare(reference, candidate, budget=budget, seed=seed)
    bounds = DropBounds(
        {name: DropBound(item.drop, item.lower, item.upper) for name, item in comparison.domains.items()},
        comparison.mean,
    )
    verdict: Verdict = "inconclusive"
    if _over(bounds, budget, "lower"):
        verdict = "fail"
    elif not _over(bounds, budget, "upper"):
        verdict = "pass"
    needed = None
    hopeless = _over(bounds, budget, "drop", strict=False)
    if verdict == "inconclusive" and not hopeless:
        counts = {
            name: Discordance(item.n, item.lost, item.won, item.flips)
            for name, item in comparison.domains.items()
        }
        rebound = partial(_rebound, budget=budget, seed=seed)
        needed = images_needed(counts, rebound, lambda b: not _over(b, budget, "upper"))
    return GuardVerdict(
        verdict=verdict,
        domains=comparison.domains,
        mean=comparison.mean,
        worst=comparison.worst,
        worst_domain=comparison.worst_domain,
        flip_rate=comparison.flip_rate,
        ece_change=comparison.ece_change,
        images_needed=needed,
        reason=explain(
            verdict,
            bounds,
            budget,
            images={name: item.n for name, item in comparison.domains.items()},
            needed=needed,
            hopeless=hopeless,
        ),
        seed=seed,
        budget=budget,
    )


def _rebound(
    counts: Mapping[str, Discordance], bootstrap: bool, *, budget: GuardBudget, seed: int
) -> DropBounds:
    """Bound hypothetical counts as `compare` would."""
    return bound_drops(
        counts,
        upper_confidence=budget.upper_confidence,
        lower_confidence=budget.lower_confidence(len(counts)),
        seed=seed if bootstrap else None,
    )


def _over(
    bounds: DropBounds, budget: GuardBudget, which: Literal["drop", "lower", "upper"], *, strict: bool = True
) -> bool:
    """Tell whether a domain's value, or the mean's, exceeds its budget (or reaches it, if not strict).

    With a single domain the mean is that domain; its own, stricter budget is then not judged a second time.
    """
    slack = _ROUNDING if strict else -_ROUNDING
    if any(getattr(bound, which) > budget.worst_points + slack for bound in bounds.domains.values()):
        return True
    return len(bounds.domains) > 1 and getattr(bounds.mean, which) > budget.mean_points + slack


def _count(reference: Sequence[PredictionRow], candidate: Sequence[PredictionRow]) -> dict[str, Discordance]:
    """Pair the rows by image and count discordant images per domain, domains in order of name."""
    first, second = _by_image(reference, "reference"), _by_image(candidate, "candidate")
    for missing_from, missing in (("candidate", first.keys() - second), ("reference", second.keys() - first)):
        if missing:
            shown = ", ".join(sorted(missing)[:5]) + (", ..." if len(missing) > 5 else "")
            msg = (
                f"Expected both models to answer the same images; {len(missing)} missing from the "
                f"{missing_from}: {shown}. Evaluate both on the same folder."
            )
            raise DataError(msg)
    tally: dict[str, list[int]] = {}
    for image, one in first.items():
        two = second[image]
        if (one.label, one.domain) != (two.label, two.domain):
            msg = (
                f"Expected one class and domain for {image}, found class {one.label} in {one.domain} for the "
                f"reference, class {two.label} in {two.domain} for the candidate: same order of classes?"
            )
            raise DataError(msg)
        counts = tally.setdefault(one.domain, [0, 0, 0, 0])
        counts[0] += 1
        counts[1] += one.correct and not two.correct
        counts[2] += two.correct and not one.correct
        counts[3] += one.prediction != two.prediction
    return {name: Discordance(*tally[name]) for name in sorted(tally)}


def _by_image(rows: Sequence[PredictionRow], who: str) -> dict[str, PredictionRow]:
    """Index rows by image, refusing none at all and duplicates."""
    if not rows:
        msg = f"Expected predictions of the {who}, found none: give the guard held-out images."
        raise DataError(msg)
    indexed: dict[str, PredictionRow] = {}
    for row in rows:
        if row.image in indexed:
            msg = f"Expected each image once in the {who}'s predictions, found {row.image!r} twice."
            raise DataError(msg)
        indexed[row.image] = row
    return indexed
