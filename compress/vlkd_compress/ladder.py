"""Climbs down from the boldest candidate until one keeps its accuracy on the held-out domains.

The boldest is tried first. When it fails, the layers are ranked on images set apart for that (`ranking`), the
ranges that suit the worst domain are taken, and step by step the most harmful layers go back to float. The
order of rungs depends on the ranking images alone and never on the images that judge, which is what
`vlkd_bench.spending` asks for. Half of the risk is for the bold rungs, judged on all held-out images; the other
half is for those that rest on the ranking, judged on the images that did not rank.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from vlkd_bench.paired import GuardBudget
from vlkd_bench.predictions import PredictionRow
from vlkd_runtime.errors import GuardError

from .fused import FusedCount
from .guard import Candidate, Evaluate, Guard, GuardOutcome, Trial
from .prune.settings import Pruned
from .ranking import Ranking, is_for_ranking
from .recipes import Recipe
from .speed import Speed


@dataclass(frozen=True, slots=True)
class Limits:
    """When to stop climbing.

    Attributes:
        trials: most candidates that are judged.
        minutes: after this long no further candidate is begun.
    """

    trials: int = 8
    minutes: float = 30.0


@dataclass(frozen=True, slots=True)
class Rung:
    """A candidate that may be tried.

    Attributes:
        name: what the record calls it.
        steps: what is done to the float model, in order.
        ranked: whether it rests on the ranking images; those then do not judge it.
        recipe: what is done to its float graph; None where the graph that ``graph`` names is itself the candidate.
        graph: names a graph that training has to make first, such as a pruned student; "" for the float model.
    """

    name: str
    steps: tuple[str, ...]
    ranked: bool
    recipe: Recipe | None = None
    graph: str = ""

    @classmethod
    def of(cls, recipe: Recipe, *, ranked: bool = False, graph: str = "") -> Rung:
        """The rung on which a recipe stands, on the float model or on another graph."""
        name = f"{graph}-{recipe.name}" if graph else recipe.name
        return cls(name, recipe.steps, ranked, recipe, graph)


@dataclass(frozen=True, slots=True)
class Made:
    """What became of a rung before the guard saw it.

    Attributes:
        rung: which one.
        candidate: its file; None when it could not be made.
        refusal: why the guard does not see it, "" when it does.
        speed: how fast it is beside the float graph; None where the target's engine does not run.
        fused: what the engine made of it; None for a graph without integers.
        size_bytes: of its file.
        pruned: what pruning did to the float graph it was made of; None if nothing.
    """

    rung: Rung
    candidate: Candidate | None
    refusal: str
    speed: Speed | None
    fused: FusedCount | None
    size_bytes: int
    pruned: Pruned | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """A rung that was tried, with the guard's trial; None when it was refused before that."""

    made: Made
    trial: Trial | None

    @property
    def name(self) -> str:
        """The rung's name."""
        return self.made.rung.name


@dataclass(frozen=True, slots=True)
class Climb:
    """All that was tried.

    Attributes:
        attempts: in the order tried.
        chosen: what may ship; None when nothing passed.
        budget: what was allowed in all.
        stopped: "" or the limit that was met before anything passed.
        seconds: how long it took, this time.
    """

    attempts: tuple[Attempt, ...]
    chosen: Attempt | None
    budget: GuardBudget
    stopped: str
    seconds: float

    @property
    def best(self) -> Attempt | None:
        """What may ship, or else what came nearest: the smallest upper bound of the worst domain's drop."""
        judged = [(item.trial.verdict.worst.upper, item) for item in self.attempts if item.trial is not None]
        if self.chosen is not None or not judged:
            return self.chosen
        return min(judged, key=lambda pair: pair[0])[1]

    @property
    def outcome(self) -> GuardOutcome:
        """The guard's view: who was judged, and who may ship."""
        trials = tuple(item.trial for item in self.attempts if item.trial is not None)
        return GuardOutcome(self.chosen.made.candidate if self.chosen else None, trials, self.budget)

    def explain(self) -> str:
        """Why nothing ships, with the best candidate's figures."""
        best = self.best
        tail = f" {self.stopped}" if self.stopped else ""
        if best is None or best.trial is None:
            refused = "; ".join(f"{item.name}: {item.made.refusal}" for item in self.attempts)
            return f"No candidate came before the guard. {refused}{tail}"
        verdict = best.trial.verdict
        return (
            f"None of {len(self.outcome.trials)} candidates is within the budget. The best, {best.name}, drops "
            f"{verdict.worst.drop:.2f} points on {verdict.worst_domain}, at most {verdict.worst.upper:.2f}: "
            f"{verdict.reason}{tail}"
        )


class _Judges:
    """Two guards that share the risk: one on all images, one on those that did not rank layers."""

    def __init__(
        self,
        reference: Sequence[PredictionRow],
        evaluate: Evaluate,
        budget: GuardBudget,
        bold: int | None,
        *,
        ranked: bool,
        early: bool,
    ) -> None:
        part = replace(budget, share=budget.share / 2) if ranked else budget
        rest = [row for row in reference if not is_for_ranking(row.source or row.image)]
        self._bold = Guard(reference, evaluate, part, candidates=bold, early=early)
        self._fine = Guard(rest, evaluate, part, early=early) if ranked and rest else None

    def judge(self, rung: Rung, candidate: Candidate) -> Trial:
        guard = self._fine if rung.ranked and self._fine is not None else self._bold
        return guard.trial(candidate)

    @property
    def chosen(self) -> Candidate | None:
        return self._bold.outcome.chosen or (self._fine.outcome.chosen if self._fine else None)

    def trials(self) -> dict[str, Trial]:
        """Each candidate's trial, with the verdict as it stands now: a later pass may have changed it."""
        fine = self._fine.outcome.trials if self._fine else ()
        return {trial.candidate.name: trial for trial in (*self._bold.outcome.trials, *fine)}


def climb(
    rungs: Iterable[Rung],
    make: Callable[[Rung], Made],
    reference: Sequence[PredictionRow],
    evaluate: Evaluate,
    budget: GuardBudget,
    limits: Limits,
    *,
    bold: int | None = None,
    ranked: bool = True,
    early: bool = True,
    say: Callable[[str], None] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
) -> Climb:
    """Try rungs in turn until one passes, the rungs end or a limit is met.

    Args:
        rungs: boldest first; later ones may be worked out when they are asked for.
        make: makes one, races it, and says whether the guard should see it.
        reference: the float model's predictions on the held-out images.
        evaluate: asks a candidate about some of the same images.
        budget: what may be lost.
        limits: when to stop.
        bold: how many rungs do not rest on the ranking, if that is known.
        ranked: whether any rung may rest on the ranking images; without, all of the risk is for the others.
        early: whether a clear answer may come before all images are answered.
        say: called with a line for people after each rung.
        clock: seconds.

    Raises:
        GuardError: two rungs share a name, or there is none.
    """
    started = clock()
    judges = _Judges(reference, evaluate, budget, bold, ranked=ranked, early=early)
    tried: list[Made] = []
    stopped = ""
    for rung in rungs:
        if any(done.rung.name == rung.name for done in tried):
            msg = f"Expected rungs with names of their own, found {rung.name!r} twice."
            raise GuardError(msg)
        if len(tried) >= limits.trials:
            stopped = f"Stopped after {limits.trials} candidates (trials)."
            break
        if tried and clock() - started > limits.minutes * 60:
            stopped = (
                f"Stopped after {limits.minutes:g} minutes (minutes); the same command goes on from here."
            )
            break
        made = make(rung)
        tried.append(made)
        if made.candidate is None or made.refusal:
            say(f"{rung.name}: refused: {made.refusal}")
            continue
        trial = judges.judge(rung, made.candidate)
        early_words = f" ({len(trial.rows)} of {trial.images} images sufficed)" if trial.saved else ""
        say(f"{rung.name}: {trial.verdict.verdict}{early_words}. {trial.verdict.reason}")
        if judges.chosen is not None:
            break
    if not tried:
        msg = "Expected at least one candidate to try, found none."
        raise GuardError(msg)
    trials, ships = judges.trials(), judges.chosen
    attempts = tuple(Attempt(made, trials.get(made.rung.name)) for made in tried)
    chosen = next((item for item in attempts if ships is not None and item.made.candidate is ships), None)
    return Climb(attempts, chosen, budget, "" if chosen else stopped, clock() - started)


def plan(
    first: Sequence[Recipe],
    ranked: Callable[[Recipe, Sequence[Recipe]], Ranking],
    *,
    layers: Callable[[Recipe], int],
    last: Sequence[Recipe] = (),
    escalate: Iterable[Rung] = (),
) -> Iterator[Rung]:
    """Yield rungs, boldest first, and rank layers only when the bold ones have failed.

    Args:
        first: the recipes to begin with.
        ranked: ranks layers for the recipe that it is given, comparing it with the others.
        layers: how many layers a recipe quantizes; 0 if it cannot be made or is too slow to be worth ranking.
        last: recipes for the end, which cost speed or size but hardly any accuracy.
        escalate: rungs of other kinds to try between the two, such as less pruning or training.
    """
    yield from (Rung.of(recipe) for recipe in first)
    head = next((recipe for recipe in first if recipe.kind in ("int8", "dynamic", "fp8")), None)
    climbs = head is not None and layers(head) > 1
    if head is not None and climbs:
        others = [replace(head, method=name) for name in ("mse", "entropy", "percentile", "minmax")]
        others = [item for item in others if item.method != head.method] if head.kind == "int8" else []
        ranking = ranked(head, others)
        best = min((head, *others), key=lambda item: ranking.methods.get(item.method, float("inf")))
        if best.name not in {recipe.name for recipe in first}:
            yield Rung.of(best, ranked=True)
        total = layers(best)
        for kept in ranking.prefixes():
            yield Rung.of(best.keeping(kept, total), ranked=True)
    yield from escalate
    names = {recipe.name for recipe in first}
    # Only after the ranking: what is tried last is judged where its neighbours on the ladder are.
    yield from (Rung.of(recipe, ranked=head is not None) for recipe in last if recipe.name not in names)
