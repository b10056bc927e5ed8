"""Quantization in TensorRT's dialect with training: the escalation for graphs that rounding alone breaks.

Letters used in shapes: N images, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import numpy.typing as npt
from onnx import numpy_helper

from ..calibrated import Calibration
from ..graph import Graph
from ..quantize import QuantizationReport, plan_for_tensorrt, write_for_tensorrt
from ..ranges import Method
from .network import QuantizedGraph
from .settings import QatSettings
from .training import CHECKPOINT, Loss, train


def quantize_with_training(
    calibration: Calibration,
    images: npt.NDArray[np.uint8],
    loss: Loss,
    out: Path,
    *,
    method: Method,
    settings: QatSettings,
    keep_float: Collection[str] = (),
    on_step: Callable[[int, float], None] = lambda *_: None,
) -> QuantizationReport:
    """Train the graph with Q/DQ's rounding in place and write it; the same arguments give the same graph.

    The projection is trained, too, in float; the class-vector product is what it was.

    Args:
        calibration: the float graph and what its activations do.
        images: ``(N, H, W, 3)`` uint8 of source domains.
        loss: what to make small.
        out: where the INT8 graph is written; a checkpoint lies beside it until then.
        method: how the ranges are chosen that training starts from.
        settings: how it trains.
        keep_float: names of convolutions or linear layers to leave in float.
        on_step: called with the number of steps done and the loss.

    Raises:
        CalibrationError: activations that are not finite.
        DataError: ``keep_float`` names an unknown node.
        RefusalError: too few images, an operator that cannot be trained through, a loss that is not finite, nothing
            is left to quantize, or the result breaks a rule of TensorRT's dialect.
    """
    plan = plan_for_tensorrt(calibration, method=method, keep_float=keep_float)
    network = QuantizedGraph(
        Graph(calibration.folded()),
        plan.quantized,
        plan.residuals,
        plan.ranges,
        frozen=calibration.head.class_product,
    )
    train(network, images, loss, settings, out.parent, on_step)
    model = calibration.folded()
    values = network.values()
    for constant in model.graph.initializer:
        if constant.name in values:
            constant.CopyFrom(numpy_helper.from_array(values[constant.name], constant.name))
    report = write_for_tensorrt(
        model, calibration, plan.with_ranges(network.ranges()), out, method=f"{method}, trained"
    )
    (out.parent / CHECKPOINT).unlink(missing_ok=True)
    return report
