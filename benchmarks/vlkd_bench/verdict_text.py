"""The guard's verdict in words a person can act on."""

from __future__ import annotations

from collections.abc import Mapping

from .discordance import DropBounds
from .verdict import GuardBudget, Verdict


def explain(
    verdict: Verdict,
    bounds: DropBounds,
    budget: GuardBudget,
    *,
    images: Mapping[str, int],
    needed: int | None,
    hopeless: bool,
) -> str:
    """Say what was found, against which budget, and what to do next.

    Args:
        verdict: The verdict to explain.
        bounds: Drops and bounds in points.
        budget: What was allowed.
        images: Images per domain.
        needed: Images per domain that would probably give a pass.
        hopeless: Whether an observed drop reaches its budget, so that more images would hardly give a pass.
    """
    if verdict == "pass":
        sentences = [_passed(bounds, budget)]
    elif verdict == "fail":
        sentences = [_failed(bounds, budget)]
    else:
        sentences = [_undecided(bounds, budget, images), _way_out(needed, hopeless)]
    if len(bounds.domains) == 1:
        name = next(iter(bounds.domains))
        sentences.append(
            f"With {name} as the only held-out domain the mean is the worst domain, so the mean's budget "
            f"({budget.mean_points:.2f} points) is not judged separately."
        )
    return " ".join(sentences)


def _at(budget: GuardBudget) -> str:
    """Return the confidence as words."""
    shared = f", shared among {budget.candidates} candidates" if budget.candidates > 1 else ""
    return f"at {100 * budget.confidence:g} % confidence{shared}"


def _capital(text: str) -> str:
    """Return the text as a sentence."""
    return text[:1].upper() + text[1:] + "."


def _passed(bounds: DropBounds, budget: GuardBudget) -> str:
    name = max(bounds.domains, key=lambda key: bounds.domains[key].upper)
    text = (
        f"{_at(budget)} no held-out domain drops more than {bounds.domains[name].upper:.2f} points "
        f"({name}; budget {budget.worst_points:.2f})"
    )
    if len(bounds.domains) > 1:
        text += f" and their mean no more than {bounds.mean.upper:.2f} (budget {budget.mean_points:.2f})"
    return _capital(text)


def _failed(bounds: DropBounds, budget: GuardBudget) -> str:
    over = [
        f"{name} drops {bound.drop:.2f} points, at least {bound.lower:.2f} (budget {budget.worst_points:.2f})"
        for name, bound in bounds.domains.items()
        if bound.lower > budget.worst_points
    ]
    if len(bounds.domains) > 1 and bounds.mean.lower > budget.mean_points:
        over.append(
            f"the mean over domains drops {bounds.mean.drop:.2f} points, at least {bounds.mean.lower:.2f} "
            f"(budget {budget.mean_points:.2f})"
        )
    return _capital(f"{_at(budget)} " + "; ".join(over))


def _undecided(bounds: DropBounds, budget: GuardBudget, images: Mapping[str, int]) -> str:
    still_open = [
        f"{name} may drop up to {bound.upper:.2f} points (observed {bound.drop:.2f} on {images[name]} "
        f"images; budget {budget.worst_points:.2f})"
        for name, bound in bounds.domains.items()
        if bound.upper > budget.worst_points
    ]
    if len(bounds.domains) > 1 and bounds.mean.upper > budget.mean_points:
        still_open.append(
            f"the mean over domains may drop up to {bounds.mean.upper:.2f} (observed {bounds.mean.drop:.2f}; "
            f"budget {budget.mean_points:.2f})"
        )
    return _capital(f"the images do not decide {_at(budget)}: " + "; ".join(still_open))


def _way_out(needed: int | None, hopeless: bool) -> str:
    """Say whether more images would help, and how many."""
    if hopeless:
        return (
            "The observed drop is at or over its budget: more images would probably show a failure. "
            "Compress less, or widen the budget knowingly."
        )
    if needed is None:
        return "The observed drop is so close to its budget that no practical number of images decides."
    return f"About {needed} images per held-out domain would decide, if the discordance stays as observed."
