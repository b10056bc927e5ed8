"""Lets frozen batch norms follow a cut: their statistics move by what it changed on source images, and no further.

Re-estimating them would replace what a backbone learned from a large data set by the statistics of a few source
images, and frozen statistics are part of what a student's robustness rests on. So the mean moves by the difference, and
the variance scales by the quotient, of the inputs' statistics after and before the cut on the same images.

Letters used in shapes: B images, n channels of a batch norm, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Statistics = Mapping[str, tuple[Tensor, Tensor]]
"""Mean and variance ``(n,)`` of what each batch norm reads, by name."""

SMALLEST, LARGEST = 0.01, 100.0  # a variance of hardly anything says nothing by its quotient


@torch.no_grad()
def observe(network: nn.Module, views: Tensor) -> Statistics:
    """Statistics of every batch norm's input on some images ``(B, 3, H, W)``."""
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            found[name] = _statistics(inputs[0])

        return keep

    _run(network, views, hook)
    return found


@torch.no_grad()
def follow(network: nn.Module, before: Statistics, views: Tensor) -> None:
    """Move the running statistics in place, layer after layer in one pass, so that each sees the ones before it moved.

    Args:
        network: after the cut.
        before: the statistics before it, of the channels that are left.
        views: the same images.
    """

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def move(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            assert isinstance(layer, _BatchNorm)
            if layer.running_mean is None or layer.running_var is None:
                return
            (mean, variance), (old_mean, old_variance) = _statistics(inputs[0]), before[name]
            layer.running_mean += mean - old_mean
            quotient = variance / old_variance.clamp_min(torch.finfo(torch.float32).tiny)
            layer.running_var *= torch.where(old_variance > 0, quotient.clamp(SMALLEST, LARGEST), 1.0)

        return move

    _run(network, views, hook)


def _run(
    network: nn.Module, views: Tensor, hook: Callable[[str], Callable[[nn.Module, tuple[Tensor, ...]], None]]
) -> None:
    handles = [
        module.register_forward_pre_hook(hook(name))
        for name, module in network.named_modules()
        if isinstance(module, _BatchNorm)
    ]
    try:
        network(views)
    finally:
        for handle in handles:
            handle.remove()


def _statistics(read: Tensor) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(read, [axis for axis in range(read.dim()) if axis != 1], correction=0)
    return mean, variance
