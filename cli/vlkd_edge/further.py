"""Further variants of the network that ships: float16, guarded and preflighted like the first, and the float graph.

A bundle's first graph is the boldest that passed. An engine that this one would slow down, such as TensorRT for RTX
with INT8 convolutions, takes a further one instead. On each device exactly one of them runs, and each is judged with
the whole risk of the guard, so that the error rate holds for whichever runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from vlkd_bench.paired import GuardVerdict
from vlkd_compress.guard import Guard
from vlkd_compress.ladder import Rung
from vlkd_compress.recipes import Recipe
from vlkd_runtime.errors import ConfigError
from vlkd_runtime.targets import Target

from . import ship
from .climbing import dialect_of

VariantName: TypeAlias = Literal["float16", "float32"]
FLOAT16: VariantName = "float16"
FLOAT32: VariantName = "float32"


@dataclass(frozen=True, slots=True)
class Further:
    """A graph beside the first, or why there is none.

    Attributes:
        name: of the variant.
        model: its ONNX file; None where it does not ship.
        reason: why it ships or does not, in one sentence.
        verdict: the guard's; None for the float graph, which is what the guard compares with.
        preflight: what the preflight said; None where it was not asked, as for the float graph, which
            `vlkd-edge preflight` of the finished bundle asks about.
    """

    name: str
    model: Path | None
    reason: str
    verdict: GuardVerdict | None = None
    preflight: Mapping[str, Any] | None = None


def wanted(names: tuple[VariantName, ...], target: Target) -> tuple[VariantName, ...]:
    """Give the variants to ship beside the first: those asked for, or what the target's engines have a use for.

    Raises:
        ConfigError: float16 for a target that gains nothing by it.
    """
    computes = target.engine != "onnxruntime-cpu" and FLOAT16 in target.precisions
    if not names:
        return (FLOAT16, FLOAT32) if computes else (FLOAT32,)
    if FLOAT16 in names and not computes:
        msg = (
            f"bundle.variants: expected no float16 for {target.name}, whose engine would convert it to float32 around "
            "each operator. Leave it out."
        )
        raise ConfigError(msg)
    return names


def judge(shared: ship.Shipping, compressed: ship.Compressed) -> tuple[Further, ...]:
    """Make each further variant that was asked for, and judge and preflight those that change anything.

    Args:
        shared: what the stages share.
        compressed: the first variant, which has passed, and who made it.
    """
    assert compressed.chosen is not None
    target = shared.config.device()
    found = []
    for name in wanted(shared.config.bundle.variants, target):
        if name == FLOAT32:
            found.append(Further(name, compressed.floating, "what the guard compares with"))
        elif ship.precision(compressed.chosen) != FLOAT16:
            found.append(_float16(shared, compressed, target))
            word = "ships along" if found[-1].model else "is left out"
            shared.live.say(f"bundle: {name} {word}, {found[-1].reason}")
    return tuple(found)


def _float16(shared: ship.Shipping, compressed: ship.Compressed, target: Target) -> Further:
    assert compressed.climb.chosen is not None
    climber, first = compressed.climber, compressed.climb.chosen.made.rung
    if first.graph and first.recipe is None:
        return Further(
            FLOAT16, None, "the first variant was trained as it is and has no float graph of its own"
        )
    made = climber.make(Rung.of(Recipe.named("fp16", dialect_of(target)), graph=first.graph))
    if made.candidate is None or made.refusal:
        return Further(FLOAT16, None, made.refusal)
    settings = shared.config.guard
    guard = Guard(
        climber.task.reference, climber.answer, settings.budget(), candidates=1, early=settings.early_stop
    )
    verdict = guard.trial(made.candidate).verdict
    said = f"{verdict.verdict}: {verdict.reason}"
    if not verdict.passed:
        return Further(FLOAT16, None, said, verdict)
    model = made.candidate.path
    checked = ship.preflight_of(shared, model, model.parent.name)
    if checked["verdict"] == "fail":
        return Further(FLOAT16, None, f"preflight: {checked['reason']}", verdict, checked)
    return Further(FLOAT16, model, said, verdict, checked)
