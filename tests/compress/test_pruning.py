"""Pruning: what is tied goes together, the embedding stays, costs and importance are true, errors are clear."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from vlkd_compress.prune import costs, cutting, harm, norms
from vlkd_compress.prune.channels import Channels, mute
from vlkd_compress.prune.harm import Probe
from vlkd_compress.prune.settings import Goal, PruneSettings
from vlkd_distill import students
from vlkd_distill.specs import StudentSpec
from vlkd_runtime.errors import CalibrationError, ConfigError, RefusalError

SIZE, EMBEDDING = 32, 8
NETWORKS = {
    "residual additions": StudentSpec(
        "resnet10t", SIZE, options={"channels": [8, 16, 16, 32], "stem_width": 8}
    ),
    "depthwise and squeeze": StudentSpec("mobilenetv3_small_050", SIZE),
    "concatenations": StudentSpec("ese_vovnet19b_slim_dw", SIZE),
    "attention": StudentSpec("vit_tiny_patch16_224", SIZE, options={"img_size": SIZE, "depth": 2}),
}
SETTINGS = PruneSettings(importance="worst-domain", rounds=2, round_to=2, least=0.2)


def student(name: str = "residual additions") -> students.Student:
    made = students.create(NETWORKS[name], EMBEDDING).eval()
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():  # a fresh network's norms and biases are all alike, and some are zero
        for parameter in made.parameters():
            if parameter.dim() == 1:
                parameter += 0.2 * torch.randn(parameter.shape, generator=random)
    return made


def views(count: int = 4, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def probes(count: int = 4) -> list[Probe]:
    """Two domains with goals of their own."""

    def loss(goal: float) -> Callable[[Tensor], Tensor]:
        return lambda outputs: (outputs - goal).square().sum(1).mean()

    return [Probe("day", views(count, 1), loss(0.5)), Probe("night", views(count, 2), loss(-1.0))]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_pruned_network_is_the_wide_one_with_its_channels_at_zero(name: str) -> None:
    network = student(name)
    wide, channels = copy.deepcopy(network), Channels(network, views(), ["head"])
    groups = channels.groups()
    assert groups
    before = {layer: (module.weight.shape, type(module)) for layer, module in _layers(network)}
    for group in groups:
        gone = torch.arange(0, group.size, 3)
        mute(wide, group, gone)
        channels.remove(group, gone)
    with torch.no_grad():
        assert torch.allclose(network(views()), wide(views()), atol=1e-4)
    assert sum(module.weight.shape != before[layer][0] for layer, module in _layers(network)) >= len(groups)
    assert network.head.out_features == EMBEDDING and network(views()).shape == (4, EMBEDDING)


def test_what_attention_reshapes_and_what_norms_mix_stays_whole() -> None:
    names = {group.name for group in Channels(student("attention"), views(), ["head"]).groups()}
    assert names == {"backbone.blocks.0.mlp.fc1", "backbone.blocks.1.mlp.fc1"}


def test_a_protected_layer_keeps_its_outputs_and_what_is_tied_to_them() -> None:
    network = student()
    free = {group.name for group in Channels(network, views(), ["head"]).groups()}
    held = {group.name for group in Channels(network, views(), ["head", "backbone.layer1.0.conv2"]).groups()}
    # The residual addition writes to the same channels as the shortcut beside it.
    tied = next(group for group in Channels(network, views(), ["head"]).groups() if group.name in free - held)
    assert len(free - held) == 1 and "backbone.layer1.0.conv2" in {slot.layer for slot in tied.slots}


@pytest.mark.parametrize("name", ["residual additions", "depthwise and squeeze", "attention"])
def test_multiply_adds_are_those_of_the_formula(name: str) -> None:
    """Count them again from shapes alone: filters times the places where they are laid."""
    network, places = student(name), {}

    def keep(layer: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _read: object, output: Tensor) -> None:
            places[layer] = output.shape

        return hook

    for layer, module in _layers(network):
        module.register_forward_hook(keep(layer))
    network(views(1))
    macs = sum(
        module.weight.numel() * shape[2] * shape[3]
        if isinstance(module, nn.Conv2d)
        else module.weight.numel() * shape.numel() // shape[-1]
        for layer, module in _layers(network)
        if (shape := places.get(layer)) is not None
    )
    found = costs.measure(network, views())
    assert costs.total(found, "macs") == macs
    weights = sum(
        module.weight.numel() + len(module.weight) for layer, module in _layers(network) if layer in places
    )
    assert costs.total(found, "size") == weights


@pytest.mark.parametrize("unit", ["macs", "size"])
@pytest.mark.parametrize("importance", ["magnitude", "taylor", "worst-domain"])
def test_the_goal_is_met_and_not_overshot_by_much(unit: str, importance: str) -> None:
    network = student("depthwise and squeeze")
    settings = PruneSettings(importance=importance, rounds=2, round_to=2)  # type: ignore[arg-type]
    found = cutting.prune(network, Goal(unit, 0.6), probes(), settings, protected=("head",))  # type: ignore[arg-type]
    left = found.macs / found.dense_macs if unit == "macs" else found.weights / found.dense_weights
    assert 0.55 < left <= 0.6
    again = costs.measure(network, views())
    assert (costs.total(again, "macs"), costs.total(again, "size")) == (found.macs, found.weights)
    widths = [module.out_channels for _, module in _layers(network) if isinstance(module, nn.Conv2d)]
    assert network(views()).shape == (4, EMBEDDING) and min(widths) >= 2


def test_gates_gradients_are_the_loss_without_a_channel_for_small_steps() -> None:
    """The gradient of each image's loss by each gate, against weights that are scaled down a little."""
    network = student()
    group = next(g for g in Channels(network, views(), ["head"]).groups() if len(g.readers) > 1)
    (probe, _) = probes(2)
    found = harm.gate_gradients(network, [group], [probe])[group.name]["day"]
    step = 1e-2
    for channel in range(0, group.size, 5):
        losses = []
        for factor in (1 + step, 1 - step):
            scaled = copy.deepcopy(network).double()
            with torch.no_grad():
                for slot in group.readers:
                    scaled.get_submodule(slot.layer).weight[:, slot.of(torch.tensor([channel]))] *= factor
            losses.append([probe.loss(scaled(probe.views[i : i + 1].double())).item() for i in range(2)])
        expected = [(up - down) / (2 * step) for up, down in zip(*losses, strict=True)]
        assert found[:, channel].tolist() == pytest.approx(expected, rel=2e-2, abs=1e-3)


class Two(nn.Module):
    """Two channels, of which each domain lives on one; the outputs are a sum, so that the first order is exact."""

    def __init__(self) -> None:
        super().__init__()
        self.write = nn.Linear(2, 4, bias=False)
        self.read = nn.Linear(4, 1, bias=False)
        with torch.no_grad():
            self.write.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.4, 0.4], [0.0, 0.0]]))
            self.read.weight.fill_(1.0)

    def forward(self, rows: Tensor) -> Tensor:
        return self.read(self.write(rows))


@pytest.mark.parametrize("importance", ["taylor", "worst-domain"])
def test_importance_is_the_change_of_the_loss_without_the_channel(importance: str) -> None:
    network = Two()
    rows = {"many": torch.tensor([[1.0, 0.0]] * 6), "few": torch.tensor([[0.0, 1.0], [0.0, 1.4]])}
    asked = [Probe(name, given, lambda outputs: outputs.mean()) for name, given in rows.items()]
    (group,) = Channels(network, torch.rand(2, 2), ["read"]).groups()
    found = harm.score(network, [group], asked, importance)[group.name]  # type: ignore[arg-type]
    changes: dict[str, list[list[float]]] = {}
    for name, given in rows.items():
        for row in given:
            without = []
            for channel in range(4):
                muted = copy.deepcopy(network)
                mute(muted, group, torch.tensor([channel]))
                without.append(abs(float((network(row[None]) - muted(row[None])).detach())))
            changes.setdefault(name, []).append(without)
    means = {name: torch.tensor(values).mean(0) for name, values in changes.items()}
    pooled = torch.tensor([value for values in changes.values() for value in values]).mean(0)
    worst = torch.stack(list(means.values())).amax(0)
    assert torch.allclose(found, worst if importance == "worst-domain" else pooled, atol=1e-6)
    # The channel that only the small domain lives on: rare on average, and dear to it.
    assert bool(worst[1] > worst[0]) and bool(pooled[1] < pooled[0])


def test_magnitude_is_the_norm_of_all_weights_that_meet_a_channel() -> None:
    network = Two()
    (group,) = Channels(network, torch.rand(2, 2), ["read"]).groups()
    norm = torch.tensor([1 + 1.0, 1 + 1.0, 0.32 + 1.0, 1.0]).sqrt()
    assert torch.allclose(harm.magnitude(network, group), norm / norm.mean())


def test_blocks_go_by_importance_for_each_unit_saved_and_floors_hold() -> None:
    network = student()
    groups = Channels(network, views(), ["head"]).groups()
    found = costs.measure(network, views())
    flat = {group.name: torch.arange(1.0, group.size + 1) for group in groups}
    floors = {group.name: group.size // 4 * 2 for group in groups}
    budget = int(0.7 * costs.total(found, "macs"))
    chosen = cutting.select(found, groups, flat, floors, "macs", budget, 2)
    left = dict(found)
    for group in groups:
        if group.name in chosen:
            left |= costs.narrow(left, group, chosen[group.name])
            assert chosen[group.name].tolist() == list(range(len(chosen[group.name])))  # the least important
            assert group.size - len(chosen[group.name]) >= floors[group.name]
    assert costs.total(left, "macs") <= budget
    for group in groups:  # nothing that would still fit is gone
        block = chosen.get(group.name, torch.tensor([]))[-2:].long()
        if len(block):
            back = dict(found)
            for other in groups:
                gone = chosen.get(other.name, torch.tensor([])).long()
                back |= costs.narrow(back, other, gone[:-2] if other is group else gone)
            assert costs.total(back, "macs") > budget, group.name
    everything = cutting.select(found, groups, flat, floors, "macs", 0, 2)
    assert {group.name: group.size - len(everything[group.name]) for group in groups} == floors


def test_norms_follow_a_cut_as_if_the_batch_had_been_normalised_anew() -> None:
    """Norms whose statistics are those of the images keep them: what they give has mean and spread as before."""
    network = student()
    for name, (mean, variance) in norms.observe(network, views(8)).items():
        layer = network.get_submodule(name)
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(variance)
    # Each observed with the others' old statistics: once more brings all of them in line.
    for _ in range(12):
        seen = norms.observe(network, views(8))
        for name, (mean, variance) in seen.items():
            network.get_submodule(name).running_mean.copy_(mean)
            network.get_submodule(name).running_var.copy_(variance)
    channels = Channels(network, views(), ["head"])
    cutting._take(
        channels,
        channels.groups(),
        {channels.groups()[0].name: torch.tensor([0, 3])},
        [Probe("day", views(8), lambda outputs: outputs.mean())],
    )
    for name, (mean, variance) in norms.observe(network, views(8)).items():
        layer = network.get_submodule(name)
        assert torch.allclose(layer.running_mean, mean, atol=1e-3), name
        assert torch.allclose(layer.running_var, variance, rtol=1e-2, atol=1e-4), name


def test_latency_is_approached_by_shares_of_the_multiply_adds() -> None:
    """A machine on which half of the time is for something else than multiply-adds."""
    network = student("depthwise and squeeze")
    dense = costs.total(costs.measure(network, views()), "macs")

    def time_share(trial: nn.Module) -> float:
        return 0.5 + 0.5 * costs.total(costs.measure(trial, views()), "macs") / dense

    def cut(trial: nn.Module, goal: Goal) -> object:
        return cutting.prune(trial, goal, probes(), SETTINGS, protected=("head",))

    said: list[str] = []
    found = cutting.prune_to_latency(network, Goal("latency", 0.8), cut, time_share, tell=said.append)  # type: ignore[arg-type]
    assert 0.8 - cutting.NEAR <= found.share <= 0.8 and len(said) <= cutting.LATENCY_TRIALS
    assert costs.total(costs.measure(network, views()), "macs") == dense  # the one given is left as it is
    with pytest.raises(RefusalError, match=r"takes 30 % of the latency .*, found .* at best"):
        cutting.prune_to_latency(network, Goal("latency", 0.3), cut, time_share)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", ["macs:1.0", "macs:1.5", "macs:0", "macs", "flops:0.5", "macs:half", "size:nan", ""]
)
def test_goals_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"macs:0.6, size:0.6 or latency:0.6 .* above 0 and below 1, found"):
        Goal.parse(text)


def test_eased_goals_ask_for_less_of_the_cut() -> None:
    goal = Goal.parse("macs:0.6")
    assert [goal.eased(part).name for part in (1.0, 0.6, 0.25)] == ["macs60", "macs76", "macs90"]


def test_a_goal_out_of_reach_says_how_far_one_can_get() -> None:
    with pytest.raises(RefusalError, match=r"leave 1 % of the multiply-adds .* least width \d"):
        cutting.prune(student(), Goal("macs", 0.01), probes(), SETTINGS, protected=("head",))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("residual additions", PruneSettings(round_to=64)),
        ("attention", PruneSettings(round_to=2, least=1.0)),
    ],
    ids=["layers thinner than a block", "everything kept"],
)
def test_a_student_without_channels_to_take_is_refused(name: str, settings: PruneSettings) -> None:
    with pytest.raises(RefusalError, match="Found no channels to take out of this student"):
        cutting.prune(student(name), Goal("macs", 0.6), probes(), settings, protected=("head",))


def test_channels_that_are_counted_in_code_are_noticed() -> None:
    """GhostNet cuts concatenations to widths that it keeps as numbers."""
    network = students.create(StudentSpec("ghostnet_050", SIZE), EMBEDDING).eval()
    with pytest.raises(RefusalError, match="ties channels in a way that the dependency graph does not see"):
        cutting.prune(network, Goal("macs", 0.5), probes(), SETTINGS, protected=("head",))


def test_a_loss_that_is_not_finite_tells_nothing() -> None:
    network = student()
    broken = [Probe("night", views(), lambda outputs: outputs.sum() * float("nan"))]
    with pytest.raises(CalibrationError, match="images of night, or its gradient, is not finite"):
        harm.score(network, Channels(network, views(), ["head"]).groups(), broken, "taylor")


def _layers(network: nn.Module) -> list[tuple[str, nn.Module]]:
    return [
        (name, module)
        for name, module in network.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    ]
