"""Q/DQ's rounding as torch computes it, with gradients: straight through for values, learned steps for scales.

Letters used in shapes: O output channels.

References:
    Y. Bengio, N. Leonard, A. Courville, "Estimating or propagating gradients through stochastic neurons for conditional
    computation", 2013 (straight-through estimator).
    S. K. Esser et al., "Learned step size quantization", ICLR 2020, equations 1 to 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..qdq import BIAS_MAX, TINY

LOWEST, HIGHEST = -128.0, 127.0


def fake_quantize(value: Tensor, scale: Tensor) -> Tensor:
    """``scale * round(clip(value / scale, -128, 127))``, as QuantizeLinear and DequantizeLinear compute it.

    The gradient of the value is 1 within the range and 0 outside; that of the scale is
    ``round(v / s) - v / s`` within and -128 or 127 outside.

    Args:
        value: any shape.
        scale: positive; one number, or a shape that broadcasts.
    """
    scaled = torch.clamp(value / scale, LOWEST, HIGHEST)
    whole = scaled + (torch.round(scaled) - scaled).detach()
    return whole * scale


def weight_scale(weight: Tensor, axis: int, bias: Tensor | None, activation: Tensor) -> Tensor:
    """Scales ``(O,)`` of a weight, as `vlkd_compress.qdq.scale_weight` with `smallest_scale` chooses them.

    They follow the weight and take no gradient.

    Args:
        weight: the float weight.
        axis: its output-channel axis.
        bias: ``(O,)``, None without one.
        activation: scale of the layer's input.
    """
    with torch.no_grad():
        others = [index for index in range(weight.ndim) if index != axis]
        peak = weight.abs().amax(others) / HIGHEST
        floor = torch.full_like(peak, TINY)
        if bias is not None:
            floor = torch.maximum(floor, bias.abs() / (activation * BIAS_MAX))
        return torch.maximum(peak, floor)
