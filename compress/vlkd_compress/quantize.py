"""Eight-bit quantization in the form TensorRT understands: explicit Q/DQ, symmetric, per-channel weights.

ONNX Runtime runs the calibration images; the Q/DQ nodes are placed here and not by its quantizer, because
that one replaces a tensor for all of its readers: a pooling or a shortcut beside a convolution would read
the quantized value too, and TensorRT would then pay for conversions around it.

Letters used in shapes: H and W pixels.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vlkd_runtime.errors import DataError, RefusalError

from .calibrated import Calibration
from .dialect import check_dialect_model
from .graph import CONVOLUTIONS, Graph, save
from .placement import KeptFloat, place, place_residuals
from .qdq import FP8, INT8, NumberFormat, insert
from .ranges import METHODS, Method

# FP8 kernels want more channels than INT8's, and filters that are worth a tensor core.
FP8_LEAST_WEIGHTS, FP8_LEAST_CHANNELS = 33, 17


@dataclass(frozen=True, slots=True)
class QuantizationReport:
    """What one quantization did.

    Attributes:
        method: how the activation ranges were chosen; ``dynamic`` where they are taken at run time.
        images: number of calibration images.
        convolutions: number of quantized convolutions.
        linears: number of quantized linear layers.
        quantized: names of the quantized nodes, in graph order.
        kept_float: the convolutions and linear layers left in float, and why.
        float_bytes: size of the float file.
        int8_bytes: size of the written file.
        residuals: number of additions that read their shortcut in INT8.
    """

    method: str
    images: int
    convolutions: int
    linears: int
    quantized: tuple[str, ...]
    kept_float: tuple[KeptFloat, ...]
    float_bytes: int
    int8_bytes: int
    residuals: int = 0


def quantize_for_tensorrt(
    model: Path,
    images: Iterable[npt.NDArray[np.uint8]] | Calibration,
    out: Path,
    *,
    method: Method,
    keep_float: Collection[str] = (),
    form: NumberFormat = INT8,
) -> QuantizationReport:
    """Write an eight-bit version of a float graph; the same model and images give the same bytes.

    Args:
        model: the float ONNX graph: uint8 ``(1, H, W, 3)`` in, ``embedding`` and ``logits`` out.
        images: calibration images, each ``(1, H, W, 3)`` or ``(H, W, 3)`` uint8; or what was measured on them.
        out: where the quantized graph is written.
        method: ``minmax``, ``entropy``, ``percentile`` or ``mse``.
        keep_float: names of convolutions or linear layers to leave in float.
        form: INT8, or FP8 for devices that have it.

    Raises:
        CalibrationError: no image, an image of the wrong shape, or activations that are not finite.
        DataError: the file is no such graph, or ``keep_float`` names an unknown node.
        RefusalError: nothing is left to quantize, or the result breaks a rule of TensorRT's dialect.
    """
    require_method(method)
    calibration = images if isinstance(images, Calibration) else Calibration(model, images)
    folded = calibration.folded()
    graph = Graph(folded)
    planned, kept = place(graph, calibration.head, keep_float)
    if form is FP8:
        thin = {plan.node: reason for plan in planned if (reason := _too_small_for_fp8(graph, plan.weight))}
        kept += tuple(KeptFloat(node, reason) for node, reason in thin.items())
        planned = tuple(plan for plan in planned if plan.node not in thin)
    shortcuts = place_residuals(graph, planned)
    watched = [plan.activation for plan in planned] + [item.tensor for item in shortcuts]
    table = calibration.table(watched)
    ranges = {name: table.symmetric(name, method) for name in table.tensors}
    plans = tuple(plan for plan in planned if ranges[plan.activation] > 0.0)
    silent = "its input was zero on each calibration image"
    kept += tuple(KeptFloat(plan.node, silent) for plan in planned if plan not in plans)
    calibration.require_some(plans, ((item.node, item.reason) for item in kept))
    residuals = tuple(item for item in place_residuals(graph, plans) if ranges[item.tensor] > 0.0)
    insert(graph, plans, residuals, ranges, form)
    findings = check_dialect_model(folded)
    if findings:
        listed = "; ".join(f"{finding.rule} at {finding.node}: {finding.message}" for finding in findings[:5])
        msg = (
            f"The {form.name} version of {model} breaks {len(findings)} rules of TensorRT's dialect: {listed}"
        )
        raise RefusalError(msg)
    operators = {node.name: node.op_type for node in folded.graph.node}
    convolutions = sum(operators[plan.node] in CONVOLUTIONS for plan in plans)
    return QuantizationReport(
        method=method,
        images=len(calibration.images),
        convolutions=convolutions,
        linears=len(plans) - convolutions,
        quantized=tuple(plan.node for plan in plans),
        kept_float=kept,
        float_bytes=model.stat().st_size,
        int8_bytes=save(folded, out),
        residuals=len(residuals),
    )


def require_method(method: str) -> None:
    """Refuse an unknown way of choosing ranges.

    Raises:
        DataError: names the ways there are.
    """
    if method not in METHODS:
        msg = f"Expected a calibration method of {METHODS}, found {method!r}."
        raise DataError(msg)


def _too_small_for_fp8(graph: Graph, weight: str) -> str | None:
    value = graph.constant(weight)
    assert value is not None
    small = value[0].size < FP8_LEAST_WEIGHTS or max(value.shape[:2]) < FP8_LEAST_CHANNELS
    return "too few weights or channels for an FP8 kernel" if small else None
