from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlkd_bench.paired import GuardBudget
from vlkd_bench.predictions import PredictionRow
from vlkd_bench.samples import Sample
from vlkd_compress.guard import Candidate, guard_candidates, held_out_evaluator
from vlkd_compress.quantize import quantize_for_tensorrt
from vlkd_runtime.errors import DataError, GuardError
from vlkd_runtime.preprocess import PreprocessSpec

IMAGES = 600


def rows(wrong: int, count: int = IMAGES) -> tuple[PredictionRow, ...]:
    """Predictions on two domains of which the first ``wrong`` of ``sketch`` are wrong."""
    return tuple(
        PredictionRow(f"{domain}/0/{i}.png", domain, 0, int(domain == "sketch" and i < wrong), 0.9, 0.3)
        for domain in ("photo", "sketch")
        for i in range(count)
    )


def candidate(name: str) -> Candidate:
    return Candidate(name, Path(f"/models/{name}.onnx"), ("int8",))


class Evaluator:
    def __init__(self, wrong: dict[str, int], count: int = IMAGES) -> None:
        self.wrong, self.count = wrong, count
        self.asked: list[str] = []

    def __call__(self, path: Path, images: Sequence[str], /) -> Sequence[PredictionRow]:
        if path.stem not in self.asked:
            self.asked.append(path.stem)
        wanted = set(images)
        return [row for row in rows(self.wrong[path.stem], self.count) if row.image in wanted]


BUDGET = GuardBudget(worst_points=2.0, mean_points=2.0)


def test_the_first_that_passes_is_chosen_and_none_after_it_is_asked() -> None:
    evaluate = Evaluator({"bold": 120, "middle": 0, "shy": 0})
    outcome = guard_candidates(rows(0), [candidate(name) for name in evaluate.wrong], evaluate, BUDGET)
    assert outcome.chosen == outcome.require() == candidate("middle")
    assert evaluate.asked == ["bold", "middle"]
    assert [(trial.candidate.name, trial.verdict.verdict) for trial in outcome.trials] == [
        ("bold", "fail"),
        ("middle", "pass"),
    ]
    assert outcome.trials[0].verdict.worst_domain == "sketch"
    assert set(outcome.trials[0].rows) <= set(rows(120))


def test_without_a_pass_nothing_is_chosen() -> None:
    evaluate = Evaluator({"bold": 300, "shy": 100})
    outcome = guard_candidates(rows(0), [candidate(name) for name in evaluate.wrong], evaluate, BUDGET)
    assert outcome.chosen is None
    assert len(outcome.trials) == 2
    with pytest.raises(GuardError, match=r"none of 2\. bold: fail, .*; shy: fail, "):
        outcome.require()


def test_too_few_images_are_no_pass() -> None:
    outcome = guard_candidates(rows(0, 20), [candidate("only")], Evaluator({"only": 0}, 20), BUDGET)
    assert (outcome.chosen, outcome.trials[0].verdict.verdict) == (None, "inconclusive")


@pytest.mark.parametrize(
    ("names", "error", "match"),
    [
        pytest.param([], GuardError, r"at least one, found \[\]", id="none"),
        pytest.param(["a", "a"], GuardError, r"names of their own.*\['a', 'a'\]", id="same name"),
    ],
)
def test_refusals(names: list[str], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        guard_candidates(rows(0), [candidate(name) for name in names], Evaluator({"a": 0}), BUDGET)


def test_other_images_than_the_references_are_refused() -> None:
    def answer(path: Path, images: Sequence[str], /) -> Sequence[PredictionRow]:
        return [row for row in rows(0) if row.image in images][:-1]

    with pytest.raises(DataError, match="1 missing from the candidate"):
        guard_candidates(rows(0), [candidate("a")], answer, BUDGET)


def test_candidates_are_judged_through_the_runtime(
    float_model: Path, make_pictures: Callable[..., Any], tmp_path: Path
) -> None:
    held_out = []
    for index, picture in enumerate(make_pictures(24, seed=5)):
        path = tmp_path / f"{index}.png"
        Image.fromarray(picture[0]).save(path)
        held_out.append(Sample(path, f"sketch/0/{index}.png", "sketch", 0))
    int8 = tmp_path / "int8.onnx"
    quantize_for_tensorrt(float_model, make_pictures(8), int8, method="minmax")
    done: list[int] = []
    evaluate = held_out_evaluator(
        held_out,
        preprocess=PreprocessSpec(32, 32, "squash"),
        names=["a", "b", "c", "d", "e"],
        logit_scale=30.0,
        threads=1,
        progress=done.append,
    )
    reference = evaluate(float_model, [sample.image for sample in held_out])
    assert done == list(range(1, 25))
    assert [row.image for row in reference] == [sample.image for sample in held_out]
    outcome = guard_candidates(
        reference,
        [Candidate("int8", int8, ("int8",))],
        evaluate,
        GuardBudget(worst_points=60, mean_points=60),
    )
    verdict = outcome.trials[0].verdict
    agreement = np.mean(
        [a.prediction == b.prediction for a, b in zip(reference, outcome.trials[0].rows, strict=True)]
    )
    assert verdict.flip_rate == pytest.approx(1 - agreement)
    assert outcome.chosen is not None
