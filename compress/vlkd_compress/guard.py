"""Keeps only a compressed model whose accuracy on held-out domains is within budget, the boldest such one.

The statistics are `vlkd_bench.paired`'s; this module decides who is judged, in which order, and what is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vlkd_bench.paired import GuardBudget, GuardVerdict, judge
from vlkd_bench.predictions import PredictionRow, evaluate
from vlkd_bench.samples import Sample
from vlkd_runtime.classifier import Classifier
from vlkd_runtime.errors import GuardError
from vlkd_runtime.preprocess import PreprocessSpec

Evaluate = Callable[[Path], Sequence[PredictionRow]]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A compressed model that asks to be shipped.

    Attributes:
        name: what the report calls it.
        path: its ONNX file.
        steps: what was done to the float model, in order.
    """

    name: str
    path: Path
    steps: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Trial:
    """One candidate with its verdict.

    Attributes:
        candidate: who was judged.
        verdict: what came out, with its numbers.
        rows: the candidate's predictions the verdict rests on.
    """

    candidate: Candidate
    verdict: GuardVerdict
    rows: tuple[PredictionRow, ...]


@dataclass(frozen=True, slots=True)
class GuardOutcome:
    """All that was tried, and what may ship.

    Attributes:
        chosen: the first candidate that passed, None when none did.
        trials: each candidate judged, in the order of judging.
        budget: what was allowed, the risk shared among all candidates.
    """

    chosen: Candidate | None
    trials: tuple[Trial, ...]
    budget: GuardBudget

    def require(self) -> Candidate:
        """Return the chosen candidate.

        Raises:
            GuardError: none passed; the message holds each verdict's reason.
        """
        if self.chosen is not None:
            return self.chosen
        listed = "; ".join(
            f"{trial.candidate.name}: {trial.verdict.verdict}, {trial.verdict.reason}"
            for trial in self.trials
        )
        msg = f"Expected one candidate within the guard's budget, found none of {len(self.trials)}. {listed}"
        raise GuardError(msg)


def guard_candidates(
    reference_rows: Sequence[PredictionRow],
    candidates: Sequence[Candidate],
    evaluate: Evaluate,
    budget: GuardBudget,
    *,
    seed: int = 0,
) -> GuardOutcome:
    """Judge candidates in the order given, boldest first, and stop at the first that passes.

    Because the first to pass ships, each candidate is one more chance for a lucky pass: the budget's risk is
    shared among all of them, the ones not reached included.

    Args:
        reference_rows: the float model's predictions on the held-out images.
        candidates: boldest first.
        evaluate: gives a candidate's predictions on the same images.
        budget: what may be lost.
        seed: seed of the bootstrap.

    Raises:
        GuardError: there is no candidate, or two share a name.
        DataError: a candidate answered other images than the reference.
    """
    names = [candidate.name for candidate in candidates]
    if not names or len(set(names)) != len(names):
        msg = f"Expected candidates with names of their own, at least one, found {names}."
        raise GuardError(msg)
    shared = replace(budget, candidates=max(budget.candidates, len(candidates)))
    trials: list[Trial] = []
    for candidate in candidates:
        rows = tuple(evaluate(candidate.path))
        verdict = judge(reference_rows, rows, shared, seed=seed)
        trials.append(Trial(candidate, verdict, rows))
        if verdict.verdict == "pass":
            return GuardOutcome(candidate, tuple(trials), shared)
    return GuardOutcome(None, tuple(trials), shared)


def held_out_evaluator(
    samples: Sequence[Sample],
    *,
    preprocess: PreprocessSpec,
    names: Sequence[str],
    logit_scale: float,
    engine: str = "auto",
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Evaluate:
    """Return a function that predicts the held-out samples with a model file, through the runtime's own code.

    Args:
        samples: the held-out images.
        preprocess: how the device will prepare images.
        names: class names in the order of the logits.
        logit_scale: what the logits are multiplied by.
        engine: which engine of the runtime.
        threads: its number of threads.
        progress: called with the number of images done.
    """

    def run(model: Path) -> tuple[PredictionRow, ...]:
        with Classifier.from_model(
            model, preprocess, names, logit_scale=logit_scale, engine=engine, threads=threads
        ) as classifier:
            return evaluate(classifier, samples, progress)

    return run
