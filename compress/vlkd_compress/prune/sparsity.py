"""2:4 sparsity: of four weights that follow each other along a layer's input channels, the two that matter least go.

Which layers: convolutions in one group and linear layers whose input channels come in sixteens and output channels in
eights, the shapes for which sparse tensor cores have kernels. Stem, depthwise convolutions and the projection into the
space of the class vectors stay dense.

A weight matters by its magnitude; or, where images decide, by what the loss loses without it in the second order with
the empirical Fisher information in place of the Hessian, ``1/2 w^2 mean g^2``, on all images or on the source domain
where that is most. ``g`` is the gradient of the mean loss of a probe's images, so that it takes small probes.

Letters used in shapes: K output channels, C input channels, R and S kernel height and width, B images.

References:
    The pattern and mask-aware training: Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021, sections 2
    and 3. The saliency: LeCun et al., "Optimal Brain Damage", NIPS 1989, equation 5. Which shapes: NVIDIA's ASP,
    github.com/NVIDIA/apex, apex/contrib/sparsity.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from vlkd_runtime.errors import CalibrationError, RefusalError

from .harm import Probe
from .settings import Importance

KEPT, BLOCK = 2, 4
INS, OUTS = 16, 8


def sparsify(
    network: nn.Module, probes: Sequence[Probe], importance: Importance, *, protected: Collection[str]
) -> tuple[str, ...]:
    """Zero two of every four weights along the input channels, in place.

    Args:
        network: in evaluation mode.
        probes: images of every source domain, with the loss; not looked at for ``magnitude``.
        importance: how weights are chosen.
        protected: names of layers that stay dense.

    Returns:
        Names of the weight tensors that are sparse now.

    Raises:
        RefusalError: no layer has a shape that sparse tensor cores compute.
        CalibrationError: a loss or a gradient is not finite.
    """
    layers = {
        name: layer
        for name, layer in network.named_modules()
        if name not in protected and isinstance(layer, (nn.Conv2d, nn.Linear)) and fits(layer)
    }
    if not layers:
        msg = (
            "Found no layer for 2:4 sparsity (compress.prune.sparsity): expected some convolution in one group, or "
            f"linear layer, with input channels in multiples of {INS} and output channels in multiples of {OUTS}. "
            "Take another student, or set it to 'none'."
        )
        raise RefusalError(msg)
    saliency = _saliency(network, layers, probes, importance)
    with torch.no_grad():
        for name, layer in layers.items():
            layer.weight.mul_(mask(saliency[name]))
    return tuple(f"{name}.weight" for name in layers)


def fits(layer: nn.Conv2d | nn.Linear) -> bool:
    """Whether sparse tensor cores compute layers of this shape."""
    outs, ins = layer.weight.shape[:2]
    grouped = isinstance(layer, nn.Conv2d) and layer.groups > 1
    return not grouped and ins % INS == 0 and outs % OUTS == 0


def mask(saliency: Tensor) -> Tensor:
    """Ones for the two of every four along axis 1 that matter most, zeros for the others.

    Args:
        saliency: ``(K, C)`` or ``(K, C, R, S)``, C a multiple of four.
    """
    last = saliency.movedim(1, -1)
    blocks = last.reshape(-1, BLOCK)
    chosen = torch.zeros_like(blocks).scatter_(1, blocks.topk(KEPT, dim=1).indices, 1.0)
    return chosen.reshape(last.shape).movedim(-1, 1)


def _saliency(
    network: nn.Module,
    layers: dict[str, nn.Conv2d | nn.Linear],
    probes: Sequence[Probe],
    importance: Importance,
) -> dict[str, Tensor]:
    """What each weight matters, in the shape of the weights."""
    if importance == "magnitude":
        return {name: layer.weight.detach().abs() for name, layer in layers.items()}
    squares: dict[str, list[Tensor]] = {}
    counts: dict[str, int] = {}
    weights = [layer.weight for layer in layers.values()]
    for weight in weights:
        weight.requires_grad_(True)
    for probe in probes:
        with torch.enable_grad():
            gradients = torch.autograd.grad(probe.loss(network(probe.views)), weights)
        if not all(bool(gradient.isfinite().all()) for gradient in gradients):
            msg = (
                f"The gradient of the loss on images of {probe.domain} is not finite: nothing can be told of which "
                "weights matter. Look at the training of this student first."
            )
            raise CalibrationError(msg)
        held = squares.setdefault(probe.domain, [torch.zeros_like(weight) for weight in weights])
        for square, gradient in zip(held, gradients, strict=True):
            square += gradient.square()
        counts[probe.domain] = counts.get(probe.domain, 0) + 1
    means = {domain: [square / counts[domain] for square in held] for domain, held in squares.items()}
    found = {}
    for index, name in enumerate(layers):
        by_domain = torch.stack([held[index] for held in means.values()])
        fisher = by_domain.amax(0) if importance == "worst-domain" else by_domain.mean(0)
        # Where no gradient came by, the larger weight stays.
        value = weights[index].detach().square()
        found[name] = 0.5 * value * (fisher + 1e-12 * fisher.mean() + torch.finfo(torch.float32).tiny)
    return found
