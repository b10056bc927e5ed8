"""Keeps only a compressed model whose accuracy on held-out domains is within budget, the boldest such one.

The statistics are `vlkd_bench.paired`'s, and `vlkd_bench.spending` argues why trying several candidates keeps the error
rate; this module decides who is judged, in which order, and what is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from vlkd_bench.paired import GuardBudget, GuardVerdict, judge
from vlkd_bench.predictions import PredictionRow, evaluate
from vlkd_bench.samples import Sample
from vlkd_bench.sequential import Look, judge_in_looks
from vlkd_bench.spending import candidate_share
from vlkd_runtime.classifier import Classifier
from vlkd_runtime.errors import GuardError
from vlkd_runtime.preprocess import PreprocessSpec


class Evaluate(Protocol):
    """Answers held-out images with a model file."""

    def __call__(self, model: Path, images: Sequence[str], /) -> Sequence[PredictionRow]:
        """Return the predictions on the images of these names, `vlkd_bench.samples.Sample.image`."""
        ...


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
        rows: the candidate's predictions the verdict rests on; fewer than there are images if it was clear early.
        looks: each look at the growing predictions.
        images: how many held-out images there are.
    """

    candidate: Candidate
    verdict: GuardVerdict
    rows: tuple[PredictionRow, ...]
    looks: tuple[Look, ...]
    images: int

    @property
    def saved(self) -> float:
        """Share of the images that did not need an answer."""
        return 1 - len(self.rows) / self.images


@dataclass(frozen=True, slots=True)
class GuardOutcome:
    """All that was tried, and what may ship.

    Attributes:
        chosen: the boldest candidate that passed, None when none did.
        trials: each candidate judged, in the order of judging.
        budget: what was allowed to all of them together.
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


class Guard:
    """Judges candidates one after another, boldest first, within one risk for all of them.

    A candidate may be made after the ones before it were judged, from the fact that they did not pass; not from
    the guarded images or the answers to them, which would make the verdict one about images it was fitted to.
    """

    def __init__(
        self,
        reference_rows: Sequence[PredictionRow],
        evaluate: Evaluate,
        budget: GuardBudget,
        *,
        candidates: int | None = None,
        seed: int = 0,
        early: bool = True,
    ) -> None:
        """Prepare to judge.

        Args:
            reference_rows: the float model's predictions on the held-out images.
            evaluate: asks a candidate about some of the same images.
            budget: what may be lost.
            candidates: how many there will be at most, if that is known beforehand; the last one's share of the
                risk is then all that is left.
            seed: of the order of the images and of the bootstrap.
            early: whether a clear answer may come before all images are answered.
        """
        self._reference = {row.image: row for row in reference_rows}
        self._rows = tuple(reference_rows)
        self._evaluate = evaluate
        self._budget = budget
        self._closed = candidates
        self._seed = seed
        self._early = early
        self._trials: list[Trial] = []
        self._chosen: Candidate | None = None

    @property
    def outcome(self) -> GuardOutcome:
        """What was tried so far, and what may ship."""
        return GuardOutcome(self._chosen, tuple(self._trials), self._budget)

    def trial(self, candidate: Candidate) -> Trial:
        """Judge the next candidate; when one has passed, nothing bolder or shyer may be tried any more.

        A pass hands its share of the risk to the candidate before it, which may then pass as well: look at
        `outcome` for what ships.

        Raises:
            GuardError: one of that name was tried, or one has passed already.
            DataError: a candidate answered other images than it was asked about.
        """
        if self._chosen is not None or candidate.name in {trial.candidate.name for trial in self._trials}:
            names = [trial.candidate.name for trial in self._trials]
            msg = (
                f"Expected candidates with names of their own until one passes, found {candidate.name!r} after {names}"
                + (f", of which {self._chosen.name!r} passed." if self._chosen else ".")
            )
            raise GuardError(msg)
        found = judge_in_looks(
            self._rows,
            partial(self._evaluate, candidate.path),
            replace(self._budget, share=self._share(len(self._trials) + 1)),
            seed=self._seed,
            early=self._early,
        )
        self._trials.append(Trial(candidate, found.verdict, found.rows, found.looks, found.images))
        if found.verdict.passed:
            self._chosen = candidate
            self._hand_back()
        return self._trials[-1]

    def _share(self, number: int) -> float:
        return self._budget.share * candidate_share(number, self._closed)

    def _hand_back(self) -> None:
        """Judge bolder candidates again with the share of the one that passed, as long as they pass as well."""
        freed = self._share(len(self._trials))
        for index in reversed(range(len(self._trials) - 1)):
            before = self._trials[index]
            if before.verdict.verdict != "inconclusive":
                return
            share = before.looks[-1].share + freed
            reference = [self._reference[row.image] for row in before.rows]
            verdict = judge(reference, before.rows, replace(self._budget, share=share), seed=self._seed)
            look = Look(len(before.rows), share, verdict.verdict)
            self._trials[index] = replace(before, verdict=verdict, looks=(*before.looks, look))
            if not verdict.passed:
                return
            self._chosen = before.candidate
            freed += self._share(index + 1)


def guard_candidates(
    reference_rows: Sequence[PredictionRow],
    candidates: Sequence[Candidate],
    evaluate: Evaluate,
    budget: GuardBudget,
    *,
    seed: int = 0,
    early: bool = True,
) -> GuardOutcome:
    """Judge a closed list of candidates in the order given, boldest first, until one passes.

    Args:
        reference_rows: the float model's predictions on the held-out images.
        candidates: boldest first.
        evaluate: gives a candidate's predictions on some of the same images.
        budget: what may be lost.
        seed: of the order of the images and of the bootstrap.
        early: whether a clear answer may come before all images are answered.

    Raises:
        GuardError: there is no candidate, or two share a name.
        DataError: a candidate answered other images than it was asked about.
    """
    names = [candidate.name for candidate in candidates]
    if not names or len(set(names)) != len(names):
        msg = f"Expected candidates with names of their own, at least one, found {names}."
        raise GuardError(msg)
    guard = Guard(reference_rows, evaluate, budget, candidates=len(candidates), seed=seed, early=early)
    for candidate in candidates:
        guard.trial(candidate)
        if guard.outcome.chosen is not None:
            break
    return guard.outcome


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
    by_name = {sample.image: sample for sample in samples}

    def run(model: Path, images: Sequence[str], /) -> tuple[PredictionRow, ...]:
        with Classifier.from_model(
            model, preprocess, names, logit_scale=logit_scale, engine=engine, threads=threads
        ) as classifier:
            return evaluate(classifier, [by_name[image] for image in images], progress)

    return run
