"""The guard's judgement: does a compressed model keep its accuracy on held-out domains?

Reference and candidate answer the *same images*, so only images on which exactly one of them is right carry
information about the drop. The verdict is never a bare yes: with too few images it is inconclusive.

How risks are shared among several domains, with ``alpha = 1 - confidence``:

* A *pass* claims that every domain's drop, and the mean's, is within budget. It is given only if each upper
  bound at level ``1 - alpha`` is within budget. Were one domain truly over budget, its own bound alone would
  have to err, so a false pass has probability at most ``alpha`` with no correction for the number of domains
  (an intersection-union test). By the same argument the largest upper bound is a ``1 - alpha`` bound of the
  worst domain's drop. Further criteria (flips, calibration error, rejection of unknowns) join at no cost in risk.
* A *fail* claims that at least one drop is over budget, so each of the ``m`` criteria is one more chance to
  err: lower bounds are taken at level ``1 - alpha / m`` (Bonferroni).
* If several candidates are judged on the same images, or one is judged on more and more of them, each judgement spends
  a share of ``alpha``, `GuardBudget.share`; `spending` says which, and why that holds.

References:
    R. L. Berger, "Multiparameter hypothesis testing and acceptance sampling", Technometrics 24 (1982).
    O. J. Dunn, "Multiple comparisons among means", JASA 56 (1961).
    The bounds' own references are in `bounds`, `discordance`, `ece_change` and `rejection`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vlkd_runtime.errors import DataError

from .bounds import exact_upper, mcnemar_p
from .discordance import POINTS, Discordance, DropBound, DropBounds, SharedSources, bound_drops, share_sources
from .ece_change import bound_ece_change
from .pairing import Pairs, pair
from .predictions import PredictionRow
from .rejection import bound_rejection_drop
from .sample_size import images_needed
from .verdict import Criterion, DomainDrop, GuardBudget, GuardVerdict, PairedComparison, Verdict
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


def compare(
    reference: Sequence[PredictionRow],
    candidate: Sequence[PredictionRow],
    *,
    budget: GuardBudget | None = None,
    seed: int = 0,
    names: Sequence[str] = (),
) -> PairedComparison:
    """Compare two models image by image.

    Args:
        reference: The reference's predictions.
        candidate: The candidate's predictions on the same images, in any order.
        budget: Gives the confidence levels; the default budget if None.
        seed: Seed of the bootstrap.
        names: Class names for messages, where known.

    Raises:
        DataError: The two did not answer the same images, or disagree about an image's class or domain.
    """
    pairs = pair(reference, candidate, names)
    return _compare(pairs, _shared(pairs), budget or GuardBudget(), seed)


def judge(
    reference: Sequence[PredictionRow],
    candidate: Sequence[PredictionRow],
    budget: GuardBudget,
    *,
    seed: int = 0,
    names: Sequence[str] = (),
) -> GuardVerdict:
    """Judge a candidate against its reference on the same held-out images.

    Raises:
        DataError: The two did not answer the same images, disagree about an image's class or domain, or lack what
            a criterion with a budget needs.
    """
    pairs = pair(reference, candidate, names)
    shared = _shared(pairs)
    comparison = _compare(pairs, shared, budget, seed)
    criteria = _criteria(comparison, budget)
    verdict: Verdict = "inconclusive"
    if any(criterion.over("lower") for criterion in criteria):
        verdict = "fail"
    elif not any(criterion.over("upper") for criterion in criteria):
        verdict = "pass"
    needed = None
    # Where an observed value reaches its budget, more images would rather show a failure.
    failing = any(criterion.over("drop", -1e-9) for criterion in criteria)
    if verdict == "inconclusive":

        def rebound(counts: Mapping[str, Discordance], bootstrap: bool) -> DropBounds:
            return bound_drops(
                counts,
                upper_confidence=budget.upper_confidence,
                lower_confidence=budget.lower_confidence(len(counts)),
                seed=seed if bootstrap and shared is None else None,
                shared=shared,
            )

        needed = images_needed(pairs.counts(), rebound, criteria, budget, failing=failing)
    return GuardVerdict(
        verdict=verdict,
        comparison=comparison,
        criteria=criteria,
        images_needed=needed,
        reason=explain(verdict, comparison, criteria, budget, needed=needed, failing=failing),
        budget=budget,
    )


def _shared(pairs: Pairs) -> SharedSources | None:
    """What ties the domains together, if views of one image are in several of them."""
    return None if pairs.units == len(pairs.unit) else share_sources(*pairs.deltas_by_unit())


def _compare(pairs: Pairs, shared: SharedSources | None, budget: GuardBudget, seed: int) -> PairedComparison:
    counts = pairs.counts()
    upper, lower = budget.upper_confidence, budget.lower_confidence(len(counts))
    bounds = bound_drops(counts, upper_confidence=upper, lower_confidence=lower, seed=seed, shared=shared)
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
        flip_rate=float(pairs.flipped.mean()),
        flips=_bound_flips(pairs, upper, lower),
        ece=bound_ece_change(pairs, upper_confidence=upper, lower_confidence=lower, seed=seed),
        rejection=bound_rejection_drop(pairs, upper_confidence=upper, lower_confidence=lower),
        unknowns=len(pairs.reference.unknown_similarity),
        virtual=pairs.virtual,
        upper_confidence=upper,
        lower_confidence=lower,
        seed=seed,
    )


def _bound_flips(pairs: Pairs, upper: float, lower: float) -> DropBound:
    """Bound the share of images with another answer (Clopper and Pearson).

    Views of one image count as that many images less: all of them may flip together.
    """
    images, flips = len(pairs.unit), int(pairs.flipped.sum())
    views = -(-images // pairs.units)
    n, fewest, most = pairs.units, flips // views, min(pairs.units, -(-flips // views))
    low, high = 1 - exact_upper(n, n - fewest, 0, lower), exact_upper(n, most, 0, upper)
    return DropBound(POINTS * flips / images, POINTS * low, POINTS * high)


def _criteria(comparison: PairedComparison, budget: GuardBudget) -> tuple[Criterion, ...]:
    """List what is judged or shown.

    With a single domain the mean is that domain; its own, stricter budget is then not judged a second time.

    Raises:
        DataError: A criterion has a budget but its data are missing.
    """
    images = comparison.images
    found = [
        Criterion(
            name, f"{name} drops", DropBound(item.drop, item.lower, item.upper), budget.worst_points, item.n
        )
        for name, item in comparison.domains.items()
    ]
    if len(comparison.domains) > 1:
        claim = "the mean over domains drops"
        found.append(Criterion("mean", claim, comparison.mean, budget.mean_points, images))
    claim = "the share of flipped predictions is"
    found.append(Criterion("flips", claim, comparison.flips, budget.flip_points, images))
    ece = "calibration error", "the calibration error grows", comparison.ece, budget.ece_points
    rejection = (
        "rejection of unknowns",
        "the AUROC of rejecting unknowns drops",
        comparison.rejection,
        budget.rejection_points,
    )
    for (label, claim, bound, points), used, lacking in (
        (ece, images, "probabilities"),
        (rejection, comparison.unknowns, "similarities, or images of absent classes (label null)"),
    ):
        if bound is not None:
            found.append(Criterion(label, claim, bound, points, used))
        elif points is not None:
            msg = (
                f"Expected data for the guard's budget of {points:g} points on {label}, found no {lacking} in the "
                "predictions: record them, or leave that budget out."
            )
            raise DataError(msg)
    return tuple(found)
