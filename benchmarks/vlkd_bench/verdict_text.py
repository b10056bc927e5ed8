"""The guard's verdict in words a person can act on."""

from __future__ import annotations

from collections.abc import Sequence

from .verdict import Criterion, GuardBudget, PairedComparison, Verdict


def explain(
    verdict: Verdict,
    comparison: PairedComparison,
    criteria: Sequence[Criterion],
    budget: GuardBudget,
    *,
    needed: int | None,
    failing: bool,
) -> str:
    """Say what was found, against which budget, and what to do next.

    Args:
        verdict: The verdict to explain.
        comparison: The numbers.
        criteria: What was judged or shown.
        budget: What was allowed.
        needed: Images per domain that would probably decide.
        failing: Whether an observed value reaches its budget, so that more images would rather show a failure.
    """
    judged = [criterion for criterion in criteria if criterion.budget is not None]
    if verdict == "pass":
        sentences = [_passed(comparison, judged, budget)]
    elif verdict == "fail":
        sentences = [_failed(judged, budget)]
    else:
        sentences = [_undecided(judged, budget), _way_out(comparison, needed, failing)]
    if len(comparison.domains) == 1:
        name = next(iter(comparison.domains))
        kind = "virtual" if comparison.virtual else "held-out"
        sentences.append(
            f"With {name} as the only {kind} domain the mean is the worst domain, so the mean's budget "
            f"({budget.mean_points:.2f} points) is not judged separately."
        )
    if comparison.virtual:
        sentences.append(
            "The domains are virtual: views made from images of the source domains, since none was held out; "
            "real unseen domains may behave otherwise."
        )
    return " ".join(sentences)


def _at(budget: GuardBudget) -> str:
    """Return the confidence as words."""
    text = f"at {100 * budget.confidence:g} % confidence"
    return text if budget.share == 1 else f"{text} ({100 * budget.share:.3g} % of the risk spent here)"


def _capital(text: str) -> str:
    """Return the text as a sentence."""
    return text[:1].upper() + text[1:] + "."


def _passed(comparison: PairedComparison, judged: Sequence[Criterion], budget: GuardBudget) -> str:
    name, kind = comparison.worst_domain, "virtual" if comparison.virtual else "held-out"
    text = (
        f"{_at(budget)} no {kind} domain drops more than {comparison.worst.upper:.2f} points "
        f"({name}; budget {budget.worst_points:.2f})"
    )
    if len(comparison.domains) > 1:
        text += f" and their mean no more than {comparison.mean.upper:.2f} (budget {budget.mean_points:.2f})"
    for criterion in judged[len(comparison.domains) + (len(comparison.domains) > 1) :]:
        text += f"; {criterion.claim} at most {criterion.bound.upper:.2f} (budget {criterion.budget:.2f})"
    return _capital(text)


def _failed(judged: Sequence[Criterion], budget: GuardBudget) -> str:
    over = [
        f"{item.claim} {item.bound.drop:.2f} points, at least {item.bound.lower:.2f} (budget {item.budget:.2f})"
        for item in judged
        if item.over("lower")
    ]
    return _capital(f"{_at(budget)} " + "; ".join(over))


def _undecided(judged: Sequence[Criterion], budget: GuardBudget) -> str:
    still_open = [
        f"{item.claim} perhaps {item.bound.upper:.2f} points (observed {item.bound.drop:.2f} on {item.images} images; "
        f"budget {item.budget:.2f})"
        for item in judged
        if item.over("upper")
    ]
    return _capital(f"the images do not decide {_at(budget)}: " + "; ".join(still_open))


def _way_out(comparison: PairedComparison, needed: int | None, failing: bool) -> str:
    """Say whether more images would help, and how many."""
    advice = " Compress less, or widen the budget knowingly." if failing else ""
    if needed is None:
        return (
            f"What was observed is so close to its budget that no practical number of images decides.{advice}"
        )
    more = needed - min(item.n for item in comparison.domains.values())
    kind = "source images in each" if comparison.virtual else "images per held-out"
    outcome = "would probably show a failure" if failing else "would decide"
    return f"About {needed} {kind} domain, {more} more than now, {outcome}, if all stays as observed.{advice}"
