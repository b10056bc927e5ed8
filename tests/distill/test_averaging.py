"""Which weights a training ends with: the valley, the mean, the best on source images, exact after a resume."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from vlkd_distill import averaging

U_SHAPE = [3.0, 2.0, 1.2, 1.0, 1.1, 1.05, 1.2, 1.25, 1.1, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 6.5]


def weights(value: float) -> dict[str, torch.Tensor]:
    return {"w": torch.tensor([float(value), -float(value)]), "steps": torch.tensor(int(value))}


def run(keeper: averaging.Keeper, losses: list[float], steps: int = 2) -> averaging.Keeper:
    """Step t has the weights t, the start none; a judgement comes after every ``steps`` steps."""
    live = weights(0)
    keeper.begin(live)
    for at, loss in enumerate(losses):
        for step in range(steps):
            number = at * steps + step + 1
            for name, tensor in weights(number).items():
                live[name].copy_(tensor)
            keeper.step(live, number / (len(losses) * steps))
        keeper.judge(loss, weights((at + 1) * steps))
    return keeper


def final(keeper: averaging.Keeper) -> float:
    chosen = keeper.final()
    assert chosen is not None
    return float(chosen["w"][0])


def valley(losses: list[float]) -> range:
    """Indices of the valley's segments, from the whole sequence at once."""
    begin = next(i for i in range(len(losses) - 2) if losses[i] == min(losses[i : i + 3]))
    floor = np.mean(losses[begin : begin + 3]) * 1.3
    end = begin
    while end < len(losses) and min(losses[end : end + 6]) <= floor:
        end += 1
    return range(begin, end)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        pytest.param(U_SHAPE, range(3, 9), id="u"),
        pytest.param([1.0] * 9, range(9), id="flat converges at once"),
        pytest.param([1.0, 1.1, 1.2, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 1.0], range(3), id="left for good"),
        pytest.param([1.0, 1.1, 1.2, 9.0, 9.0, 9.0, 1.1, 1.1], range(8), id="a bump is tolerated"),
    ],
)
def test_swad_averages_the_valley(losses: list[float], expected: range) -> None:
    assert valley(losses) == expected
    steps = [2 * i + s for i in expected for s in (1, 2)]
    assert final(run(averaging.Swad(), losses)) == pytest.approx(np.mean(steps))


def test_swad_without_a_valley_takes_the_last_segment() -> None:
    assert final(run(averaging.Swad(), [5.0, 4.0, 3.0, 2.0])) == pytest.approx(7.5)


@pytest.mark.parametrize("seed", range(20))
def test_swad_agrees_with_the_definition_on_noise(seed: int) -> None:
    losses = (1 + np.random.default_rng(seed).random(24)).tolist()
    steps = [2 * i + s for i in valley(losses) for s in (1, 2)]
    assert final(run(averaging.Swad(), losses)) == pytest.approx(np.mean(steps), rel=1e-5)


def test_mean_counts_the_second_half_and_takes_whole_numbers_as_they_are() -> None:
    keeper = run(averaging.SecondHalf(), [1.0] * 5)
    chosen = keeper.final()
    assert chosen is not None
    assert chosen["w"].tolist() == pytest.approx([8.0, -8.0])  # steps 6 to 10
    assert chosen["steps"].item() == 10


@pytest.mark.parametrize(
    ("rule", "share", "expected"),
    [("last", 0.5, 5.0), ("last", 0.2, 8.0), ("mean", 0.5, 4.0), ("last", 1, 0)],
)
def test_a_share_of_the_start_is_mixed_with_what_a_rule_chose(
    rule: Any, share: float, expected: float
) -> None:
    keeper = run(averaging.keeper(rule, share), [1.0] * 5)
    chosen = keeper.final()
    assert chosen is not None
    assert chosen["w"].tolist() == pytest.approx([expected, -expected]) and chosen["steps"].item() == 10
    again = keeper.final()  # asking changes neither the answer nor the network
    assert again is not None and torch.equal(again["w"], chosen["w"])


def test_the_best_on_source_is_the_least_loss() -> None:
    assert final(run(averaging.BestOnSource(), [3.0, 1.0, 2.0])) == 4.0


def test_the_last_keeps_nothing() -> None:
    keeper = run(averaging.Last(), [1.0, 2.0])
    assert keeper.final() is None and keeper.state() == {}


@pytest.mark.parametrize("rule", ["last", "mean", "source-best", "swad"])
@pytest.mark.parametrize("share", [0.0, 0.5])
@pytest.mark.parametrize("cut", [1, 4, 11, 16])
def test_state_and_restore_change_nothing(rule: Any, share: float, cut: int) -> None:
    whole = run(averaging.keeper(rule, share), U_SHAPE).final()
    keeper, live = averaging.keeper(rule, share), weights(0)
    keeper.begin(live)
    for at, loss in enumerate(U_SHAPE):
        if at == cut:
            state = {name: tensor.clone() for name, tensor in keeper.state().items()}
            keeper = averaging.keeper(rule, share)
            keeper.begin(live)  # as the network is by now
            keeper.restore(state)
        for step in (1, 2):
            for name, tensor in weights(2 * at + step).items():
                live[name].copy_(tensor)
            keeper.step(live, (2 * at + step) / (2 * len(U_SHAPE)))
        keeper.judge(loss, weights(2 * at + 2))
    again = keeper.final()
    assert (whole is None) == (again is None)
    assert whole is None or again is None or torch.equal(whole["w"], again["w"])


def test_choosing_leaves_a_network_alone_where_there_is_nothing_to_choose() -> None:
    network = torch.nn.Linear(2, 1)
    before = network.weight.clone()
    averaging.select(network, None)
    assert torch.equal(network.weight, before)
    averaging.select(network, {"weight": torch.zeros(1, 2), "bias": torch.zeros(1)})
    assert not network.weight.any()
