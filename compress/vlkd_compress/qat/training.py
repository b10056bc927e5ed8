"""The training loop of quantization-aware training: bounded, seeded, and resumed where it was interrupted.

Letters used in shapes: N images, B batch, H and W pixels, D embedding size, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from torch import Tensor

from vlkd_runtime.atomic import write_bytes
from vlkd_runtime.errors import RefusalError

from .network import QuantizedGraph
from .settings import QatSettings

CHECKPOINT = "qat.safetensors"
LEAST_IMAGES = 64


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """What a graph says of a batch.

    Attributes:
        embedding: ``(B, D)`` unit rows.
        logits: ``(B, C)``.
    """

    embedding: Tensor
    logits: Tensor


Loss = Callable[[Answers, Answers, npt.NDArray[np.int64]], Tensor]
"""Of the rounded graph's answers, the float graph's on the same views, and the rows ``(B,)`` of the images."""


def steps(images: int, settings: QatSettings) -> int:
    """How often `train` calls ``on_step``."""
    return settings.epochs * math.ceil(images / settings.batch)


def train(
    network: QuantizedGraph,
    images: npt.NDArray[np.uint8],
    loss: Loss,
    settings: QatSettings,
    folder: Path,
    on_step: Callable[[int, float], None] = lambda *_: None,
) -> None:
    """Train a graph in place so that it answers well after rounding.

    Batch normalisation is folded, so its statistics stay those of the float graph. A checkpoint is written
    after each epoch; a run that finds one ends with the same weights as an uninterrupted one.

    Args:
        network: the graph, which is trained in place.
        images: ``(N, H, W, 3)`` uint8 of source domains; each is seen once an epoch, every second one mirrored.
        loss: what to make small.
        settings: how.
        folder: where the checkpoint lies.
        on_step: called with the number of steps done and the loss.

    Raises:
        RefusalError: too few images, or the loss is not finite.
    """
    if len(images) < LEAST_IMAGES:
        msg = (
            f"Expected at least {LEAST_IMAGES} source images to train the rounded graph on, found {len(images)}: add "
            "images of the source domains, or leave it out (qat_epochs = 0)."
        )
        raise RefusalError(msg)
    reference = _frozen(network)
    weights = [value for name, value in network.named_parameters() if name != "log_scales"]
    optimizer = torch.optim.Adam(
        [
            {"params": weights, "peak": settings.lr},
            {"params": [network.log_scales], "peak": settings.scale_lr},
        ]
    )
    first = _resume(folder, network, optimizer)
    per_epoch = math.ceil(len(images) / settings.batch)
    total, done = settings.epochs * per_epoch, first * per_epoch
    if done:
        on_step(done, math.nan)
    for epoch in range(first, settings.epochs):
        random = np.random.default_rng([settings.seed, epoch])
        order = random.permutation(len(images))
        for start in range(0, len(order), settings.batch):
            rows = order[start : start + settings.batch]
            views = torch.from_numpy(_mirrored(images[rows], random))
            with torch.no_grad():
                goal = Answers(*reference(views))
            value = loss(Answers(*network(views)), goal, rows)
            if not torch.isfinite(value):
                msg = (
                    f"Expected a finite loss in quantization-aware training, found {float(value.detach())} at step "
                    f"{done}: the float graph's answers, or the teacher's, are not finite."
                )
                raise RefusalError(msg)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * _share(done, total)
            optimizer.zero_grad(set_to_none=True)
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            done += 1
            on_step(1, float(value.detach()))
        _save(folder, network, optimizer, epoch + 1)


def _frozen(network: QuantizedGraph) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The float graph as it is before training."""
    start = {name: value.detach().clone() for name, value in network.named_parameters()}

    def answer(views: Tensor) -> tuple[Tensor, Tensor]:
        network.rounds = False
        try:
            made: tuple[Tensor, Tensor] = torch.func.functional_call(network, start, (views,))
        finally:
            network.rounds = True
        return made

    return answer


def _mirrored(images: npt.NDArray[np.uint8], random: np.random.Generator) -> npt.NDArray[np.uint8]:
    flip = random.random(len(images)) < 0.5
    return np.where(flip[:, None, None, None], images[:, :, ::-1], images)


def _share(done: int, steps: int) -> float:
    """Linear warm-up over a twentieth of the steps, then half a cosine to zero."""
    warm = max(1, steps // 20)
    if done < warm:
        return (done + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (done - warm) / max(1, steps - warm)))


def _save(folder: Path, network: QuantizedGraph, optimizer: torch.optim.Optimizer, epochs: int) -> None:
    tensors = {f"network.{name}": value.detach().clone() for name, value in network.named_parameters()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {
            f"optimizer.{index}.{key}": torch.as_tensor(value).clone() for key, value in state.items()
        }
    data = safetensors.torch.save(tensors, metadata={"epochs": str(epochs)})
    write_bytes(folder / CHECKPOINT, data)


def _resume(folder: Path, network: QuantizedGraph, optimizer: torch.optim.Optimizer) -> int:
    """Load a checkpoint, if there is one; return how many epochs are done."""
    path = folder / CHECKPOINT
    if not path.exists():
        return 0
    with safetensors.safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (the file is no mapping)
        epochs = int(file.metadata()["epochs"])
    own = {
        key.removeprefix("network."): value for key, value in tensors.items() if key.startswith("network.")
    }
    network.load_state_dict(own, strict=False)
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".")
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    return epochs
