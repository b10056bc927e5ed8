from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from vlkd_bench.paired import GuardBudget
from vlkd_bench.predictions import PredictionRow
from vlkd_compress import record
from vlkd_compress.guard import Candidate
from vlkd_compress.ladder import Climb, Limits, Made, Rung, climb, plan
from vlkd_compress.ranking import Group, Ranking, flips, is_for_ranking, margin, split
from vlkd_compress.recipes import Recipe
from vlkd_compress.speed import Speed
from vlkd_runtime.errors import GuardError

IMAGES = [f"night/cat/{index}.png" for index in range(2000)]


def rows(wrong: int, images: Sequence[str] = IMAGES) -> tuple[PredictionRow, ...]:
    """Predictions with this many mistakes in each thousand images."""
    return tuple(
        PredictionRow(image, "night", 0, int(int(image[10:-4]) % 1000 < wrong), 0.9, 0.5) for image in images
    )


class Bench:
    """Stands for everything between a rung and its predictions; harm is mistakes in a thousand images."""

    def __init__(self, harms: dict[str, int], refusals: dict[str, str] | None = None) -> None:
        self.harms = harms
        self.refusals = refusals or {}
        self.asked: dict[str, set[str]] = {}
        self.made: list[str] = []

    def make(self, rung: Rung) -> Made:
        self.made.append(rung.name)
        candidate = Candidate(rung.name, Path(rung.name), rung.steps)
        speed = Speed("test", 1, 30, 2.0, 1.0, 2.0, 1.9, 2.1)
        return Made(rung, candidate, self.refusals.get(rung.name, ""), speed, None, 1000)

    def answer(self, model: Path, images: Sequence[str], /) -> tuple[PredictionRow, ...]:
        self.asked.setdefault(str(model), set()).update(images)
        return rows(self.harms[str(model)], images)

    def climb(self, rungs: Iterator[Rung] | list[Rung], trials: int = 8, **options: object) -> Climb:
        limits = Limits(trials, 10.0)
        return climb(rungs, self.make, rows(0), self.answer, GuardBudget(), limits, **options)  # type: ignore[arg-type]


def ladder(ranking: Ranking) -> Iterator[Rung]:
    first = [Recipe.named("int8-percentile", "tensorrt")]
    last = [Recipe.named("fp16", "tensorrt")]
    return plan(first, lambda recipe, others: ranking, layers=lambda recipe: 10, last=last)


GROUPS = tuple(Group((f"layer{index}",), harm, 10.0) for index, harm in enumerate((8.0, 3.0, 1.0, 0.1)))
RANKING = Ranking("night", 96, {"percentile": 9.0, "mse": 4.0, "entropy": 12.0}, GROUPS, "microseconds")


def test_the_first_to_pass_ends_the_climb_and_nothing_is_ranked() -> None:
    def never(*_: object) -> Ranking:
        raise AssertionError

    bench = Bench({"int8-percentile": 0})
    rungs = plan([Recipe.named("int8-percentile", "tensorrt")], never, layers=lambda _: 1)
    found = bench.climb(rungs, bold=1)
    assert found.chosen is not None and found.chosen.name == "int8-percentile" and found.stopped == ""


def test_on_failure_ranges_change_then_the_worst_layers_go_back_to_float() -> None:
    names = [rung.name for rung in ladder(RANKING)]
    assert names[:2] == ["int8-percentile", "int8-mse"] and names[-1] == "fp16"
    kept = [rung.recipe.keep_float for rung in ladder(RANKING) if rung.recipe]
    assert kept[2:-1] == [("layer0",), ("layer0", "layer1"), ("layer0", "layer1", "layer2")]
    harms = dict.fromkeys(names, 40) | {names[3]: 0}
    bench = Bench(harms)
    found = bench.climb(ladder(RANKING), bold=1)
    assert found.chosen is not None and found.chosen.name == names[3]
    assert found.chosen.made.rung.steps[1] == "2 of 10 layers kept in float"
    assert bench.made == names[:4]


def test_images_that_rank_do_not_judge_what_came_of_it() -> None:
    bench = Bench({rung.name: 9 for rung in ladder(RANKING)})
    bench.climb(ladder(RANKING), bold=1, early=False)
    ranking = {image for image in IMAGES if is_for_ranking(image)}
    assert 0.15 < len(ranking) / len(IMAGES) < 0.25
    assert bench.asked["int8-percentile"] == set(IMAGES)
    assert bench.asked["int8-mse"] == set(IMAGES) - ranking
    assert bench.asked["fp16"] == set(IMAGES) - ranking


def test_the_risk_of_all_rungs_together_is_the_budgets() -> None:
    bench = Bench({rung.name: 9 for rung in ladder(RANKING)})
    found = bench.climb(ladder(RANKING), bold=1, early=False)
    assert found.chosen is None and len(found.attempts) == 6
    spent = [item.trial.looks[0].share for item in found.attempts if item.trial]
    assert spent[0] == 0.5 and sum(spent) <= 1.0 + 1e-12
    assert (
        "None of 6 candidates is within the budget. The best, int8-percentile, drops 0.90" in found.explain()
    )


def test_limits_end_the_climb_with_the_best_candidates_figures() -> None:
    bench = Bench({rung.name: 40 for rung in ladder(RANKING)} | {"int8-mse": 15})
    found = bench.climb(ladder(RANKING), trials=3, bold=1)
    assert found.chosen is None and len(found.attempts) == 3
    assert found.best is not None and found.best.name == "int8-mse"
    assert "Stopped after 3 candidates" in found.explain()
    clock = iter([0.0, 1e6, 1e6])
    short = bench.climb(ladder(RANKING), bold=1, clock=lambda: next(clock))
    assert [item.name for item in short.attempts] == ["int8-percentile"]
    assert "the same command goes on" in short.explain()


def test_a_refused_candidate_is_kept_in_the_record_and_not_judged(tmp_path: Path) -> None:
    bench = Bench({"fp16": 0}, {"int8-percentile": "slower than float on the target's engine: 0.48 times"})
    rungs = [Rung.of(Recipe.named(name, "tensorrt")) for name in ("int8-percentile", "fp16")]
    found = bench.climb(rungs, ranked=False, bold=2)
    assert found.chosen is not None and found.chosen.name == "fp16" and "int8-percentile" not in bench.asked
    plain = json.loads(json.dumps(record.as_json(found, RANKING)))
    assert plain["chosen"] == "fp16" and plain["candidates"][0]["verdict"] == "refused"
    assert "0.48 times" in plain["candidates"][0]["reason"]
    judged = plain["candidates"][1]
    assert judged["worst"]["domain"] == "night" and judged["worst"]["upper"] < 1.0
    assert judged["latency_ms"] == 1.0 and judged["size_bytes"] == 1000
    table = record.markdown(found, 4000, RANKING)
    assert "| int8-percentile | not judged |" in table and "Chosen: **fp16**" in table
    assert "| layer0 | 8.00 | 10.0 |" in table
    assert record.picture(found, 4000)[:8] == b"\x89PNG\r\n\x1a\n"


def test_two_rungs_of_one_name_and_no_rung_are_refused() -> None:
    rung = Rung.of(Recipe.named("fp16", "tensorrt"))
    with pytest.raises(GuardError, match="found 'fp16' twice"):
        Bench({"fp16": 40}).climb([rung, rung], ranked=False)
    with pytest.raises(GuardError, match="at least one candidate"):
        Bench({}).climb([])


def test_margin_flips_count_lost_images_and_lost_parts_of_margins() -> None:
    logits = np.asarray([[3.0, 1.0, 0.0], [0.0, 5.0, 1.0]], dtype=np.float32)
    assert margin(logits, np.asarray([0, 2])).tolist() == [2.0, -4.0]
    before, after = np.asarray([2.0, 4.0, 1.0]), np.asarray([-3.0, 3.0, 2.0])
    assert flips(before, after) == pytest.approx(1.0 + 0.25 + 0.0)


def test_groups_are_neighbours_and_prefixes_cover_the_harm() -> None:
    assert split(list("abcdefg"), 3) == [("a", "b"), ("c", "d"), ("e", "f", "g")]
    assert split(["a"], 20) == [("a",)]
    assert RANKING.prefixes((0.5,)) == (("layer0",),)
    silent = Ranking("night", 1, {}, (Group(("a",), 0.0, 1.0),), "microseconds")
    assert silent.prefixes() == ()
