"""Eight-bit quantization in the form TensorRT understands: explicit Q/DQ, symmetric, per-channel weights.

ONNX Runtime runs the calibration images; the Q/DQ nodes are placed here and not by its quantizer, because
that one replaces a tensor for all of its readers: a pooling or a shortcut beside a convolution would read
the quantized value too, and TensorRT would then pay for conversions around it.

Letters used in shapes: H and W pixels.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from vlkd_runtime.errors import DataError, RefusalError

from .calibrated import Calibration
from .dialect import check_dialect_model
from .graph import CONVOLUTIONS, Graph, save
from .placement import KeptFloat, Quantized, Residual, place, place_residuals
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
    calibration = images if isinstance(images, Calibration) else Calibration(model, images)
    plan = plan_for_tensorrt(calibration, method=method, keep_float=keep_float, form=form)
    return write_for_tensorrt(calibration.folded(), calibration, plan, out, method=method, form=form)


@dataclass(frozen=True, slots=True)
class Plan:
    """Which layers get eight-bit inputs, and with which ranges.

    Attributes:
        quantized: those that do, in graph order.
        kept: the others, and why.
        residuals: additions that read their shortcut quantized.
        ranges: tensor name to the value that maps to the largest level.
    """

    quantized: tuple[Quantized, ...]
    kept: tuple[KeptFloat, ...]
    residuals: tuple[Residual, ...]
    ranges: Mapping[str, float]

    def with_ranges(self, ranges: Mapping[str, float]) -> Plan:
        """The same layers with other ranges."""
        return replace(self, ranges=ranges)


def plan_for_tensorrt(
    calibration: Calibration,
    *,
    method: Method,
    keep_float: Collection[str] = (),
    form: NumberFormat = INT8,
) -> Plan:
    """Place Q/DQ and read the ranges off the calibration images.

    Raises:
        CalibrationError: activations that are not finite.
        DataError: no such method, or ``keep_float`` names an unknown node.
        RefusalError: nothing is left to quantize.
    """
    require_method(method)
    graph = Graph(calibration.folded())
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
    return Plan(plans, kept, residuals, ranges)


def write_for_tensorrt(
    model: onnx.ModelProto,
    calibration: Calibration,
    plan: Plan,
    out: Path,
    *,
    method: str,
    form: NumberFormat = INT8,
) -> QuantizationReport:
    """Put Q/DQ into a folded graph, check it against the dialect's rules and write it.

    Args:
        model: the folded graph, with its own weights or with trained ones; it is changed.
        calibration: where it comes from.
        plan: what is quantized.
        out: where the result is written.
        method: what the report says of the ranges.
        form: the number format.

    Raises:
        RefusalError: the result breaks a rule.
    """
    insert(Graph(model), plan.quantized, plan.residuals, plan.ranges, form)
    findings = check_dialect_model(model)
    if findings:
        listed = "; ".join(f"{finding.rule} at {finding.node}: {finding.message}" for finding in findings[:5])
        msg = (
            f"The {form.name} version of {calibration.model} breaks {len(findings)} rules of TensorRT's dialect: "
            f"{listed}"
        )
        raise RefusalError(msg)
    operators = {node.name: node.op_type for node in model.graph.node}
    convolutions = sum(operators[item.node] in CONVOLUTIONS for item in plan.quantized)
    return QuantizationReport(
        method=method,
        images=len(calibration.images),
        convolutions=convolutions,
        linears=len(plan.quantized) - convolutions,
        quantized=tuple(item.node for item in plan.quantized),
        kept_float=plan.kept,
        float_bytes=calibration.model.stat().st_size,
        int8_bytes=save(model, out),
        residuals=len(plan.residuals),
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
