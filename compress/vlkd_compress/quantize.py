"""Static INT8 quantization in the form TensorRT understands: explicit Q/DQ, symmetric, per-channel weights.

ONNX Runtime runs the calibration images; the Q/DQ nodes are placed here and not by its quantizer, because
that one replaces a tensor for all of its readers: a residual Add or a pooling beside a convolution would read
the quantized value too, and TensorRT would then pay for conversions around it.

Letters used in shapes: H and W pixels, O output channels.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from vlkd_runtime.errors import DataError, RefusalError

from .dialect import check_dialect_model
from .fold import fold
from .graph import CONVOLUTIONS, Graph, drop_unused_constants, load, replace_nodes, save, tensor_names, unused
from .inputs import check_images, require_head
from .placement import KeptFloat, Quantized, place
from .ranges import METHODS, Method, observe

INT8_MAX = 127
TINY = float(np.finfo(np.float32).tiny)
BIAS_MAX = 2.0**30


@dataclass(frozen=True, slots=True)
class QuantizationReport:
    """What one quantization did.

    Attributes:
        method: how the activation ranges were chosen.
        images: number of calibration images.
        convolutions: number of quantized convolutions.
        linears: number of quantized linear layers.
        quantized: names of the quantized nodes, in graph order.
        kept_float: the convolutions and linear layers left in float, and why.
        float_bytes: size of the float file.
        int8_bytes: size of the written file.
    """

    method: Method
    images: int
    convolutions: int
    linears: int
    quantized: tuple[str, ...]
    kept_float: tuple[KeptFloat, ...]
    float_bytes: int
    int8_bytes: int


def quantize_for_tensorrt(
    model: Path,
    images: Iterable[npt.NDArray[np.uint8]],
    out: Path,
    *,
    method: Method,
    keep_float: Collection[str] = (),
) -> QuantizationReport:
    """Write an INT8 version of a float graph; the same model and images give the same bytes.

    Args:
        model: the float ONNX graph: uint8 ``(1, H, W, 3)`` in, ``embedding`` and ``logits`` out.
        images: calibration images, each ``(1, H, W, 3)`` or ``(H, W, 3)`` uint8.
        out: where the INT8 graph is written.
        method: ``minmax``, ``entropy`` or ``percentile``.
        keep_float: names of convolutions or linear layers to leave in float.

    Raises:
        CalibrationError: no image, an image of the wrong shape, or activations that are not finite.
        DataError: the file is no such graph, or ``keep_float`` names an unknown node.
        RefusalError: nothing is left to quantize, or the result breaks a rule of TensorRT's dialect.
    """
    if method not in METHODS:
        msg = f"Expected a calibration method of {METHODS}, found {method!r}."
        raise DataError(msg)
    folded = fold(load(model))
    graph = Graph(folded)
    head = require_head(graph, model)
    batch = check_images(images, graph)
    planned, kept = place(graph, head, keep_float)
    watched = tuple(dict.fromkeys(plan.activation for plan in planned))
    ranges = observe(folded, watched, batch, method) if watched else {}
    plans = tuple(plan for plan in planned if ranges[plan.activation] > 0.0)
    kept += tuple(
        KeptFloat(plan.node, "its input was zero on each calibration image")
        for plan in planned
        if plan not in plans
    )
    if not plans:
        msg = f"Found nothing to quantize in {model}: " + "; ".join(f"{k.node}: {k.reason}" for k in kept)
        raise RefusalError(msg)
    _insert(graph, plans, ranges)
    findings = check_dialect_model(folded)
    if findings:
        listed = "; ".join(f"{finding.rule} at {finding.node}: {finding.message}" for finding in findings[:5])
        msg = f"The INT8 version of {model} breaks {len(findings)} rules of TensorRT's dialect: {listed}"
        raise RefusalError(msg)
    operators = {node.name: node.op_type for node in folded.graph.node}
    convolutions = sum(operators[plan.node] in CONVOLUTIONS for plan in plans)
    return QuantizationReport(
        method=method,
        images=len(batch),
        convolutions=convolutions,
        linears=len(plans) - convolutions,
        quantized=tuple(plan.node for plan in plans),
        kept_float=kept,
        float_bytes=model.stat().st_size,
        int8_bytes=save(folded, out),
    )


def _insert(graph: Graph, plans: tuple[Quantized, ...], ranges: dict[str, float]) -> None:
    """Rewrite the graph's nodes so that each planned node reads dequantized INT8 values."""
    model = graph.model
    writer = _Writer(graph)
    by_name = {plan.node: plan for plan in plans}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        plan = by_name.get(node.name)
        if plan is not None:
            scale = activation_scale(ranges[plan.activation])
            node.input[0] = writer.activation(plan.activation, scale, nodes)
            node.input[1] = writer.weight(plan, scale, nodes)
        nodes.append(node)
    replace_nodes(model, nodes)
    model.graph.initializer.extend(writer.constants)
    drop_unused_constants(model)


class _Writer:
    """Makes the Q/DQ nodes: one pair per activation and one DQ per weight, however many nodes read them."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._taken = tensor_names(graph.model) | {node.name for node in graph.model.graph.node}
        self._made: dict[tuple[str, ...], str] = {}
        self.constants: list[onnx.TensorProto] = []

    def activation(self, tensor: str, scale: np.float32, nodes: list[onnx.NodeProto]) -> str:
        """Append Q and DQ of an activation to ``nodes`` once; return the name of the dequantized tensor."""
        key = (tensor,)
        if key not in self._made:
            parameters = self._parameters(tensor, np.asarray(scale))
            whole, back = self._name(f"{tensor}/int8"), self._name(f"{tensor}/dequantized")
            nodes.append(self._node("QuantizeLinear", [tensor, *parameters], whole))
            nodes.append(self._node("DequantizeLinear", [whole, *parameters], back))
            self._made[key] = back
        return self._made[key]

    def weight(self, plan: Quantized, scale: np.float32, nodes: list[onnx.NodeProto]) -> str:
        """Store a weight as INT8, append its DQ to ``nodes`` once; return the dequantized tensor's name."""
        key = (plan.weight, str(plan.axis), plan.activation, plan.bias or "")
        if key not in self._made:
            value = self._graph.constant(plan.weight)
            assert value is not None
            bias = None if plan.bias is None else self._graph.constant(plan.bias)
            whole, scales = quantize_weight(value, plan.axis, smallest_scale(bias, scale))
            name, back = self._name(f"{plan.weight}/int8"), self._name(f"{plan.weight}/dequantized")
            self.constants.append(numpy_helper.from_array(whole, name))
            inputs = [name, *self._parameters(plan.weight, scales)]
            nodes.append(self._node("DequantizeLinear", inputs, back, axis=plan.axis))
            self._made[key] = back
        return self._made[key]

    def _parameters(self, tensor: str, scale: npt.NDArray[np.float32]) -> tuple[str, str]:
        # The zero point is written out: TensorRT's older parsers want three inputs, as many zeros as scales.
        names = self._name(f"{tensor}/scale"), self._name(f"{tensor}/zero")
        self.constants.append(numpy_helper.from_array(scale, names[0]))
        self.constants.append(numpy_helper.from_array(np.zeros(scale.shape, dtype=np.int8), names[1]))
        return names

    def _node(self, operator: str, inputs: list[str], output: str, **attributes: int) -> onnx.NodeProto:
        name = self._name(f"{output}/{operator}")
        node = helper.make_node(operator, inputs, [output], name=name)
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        return node

    def _name(self, wanted: str) -> str:
        name = unused(wanted, self._taken)
        self._taken.add(name)
        return name


def activation_scale(largest: float) -> np.float32:
    """Return the scale that maps the largest absolute value of an activation to 127."""
    return np.float32(max(largest / INT8_MAX, TINY))


def smallest_scale(
    bias: npt.NDArray[np.float32] | None, scale: np.float32
) -> npt.NDArray[np.float64] | float:
    """Return the smallest weight scale per channel, ``(O,)``, with which a bias still fits into 32 bits.

    A channel that batch normalisation all but switched off has weights near 0 beside a normal bias. Engines
    that add the bias in units of activation scale times weight scale, as INT8 kernels do, would overflow.
    With this floor they do not, and rounding such weights errs by at most 6e-8 of the bias per input.

    Args:
        bias: ``(O,)``, None without one.
        scale: scale of the activations.
    """
    if bias is None:
        return TINY
    return np.maximum(np.abs(bias.astype(np.float64)) / (float(scale) * BIAS_MAX), TINY)


def quantize_weight(
    value: npt.NDArray[np.float32], axis: int, floor: npt.NDArray[np.float64] | float = TINY
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Return a weight as INT8 in -127..127 and its scales ``(O,)``, one per output channel.

    Args:
        value: the float weight.
        axis: its output-channel axis.
        floor: smallest scale, for all channels or ``(O,)``.
    """
    others = tuple(index for index in range(value.ndim) if index != axis)
    peak = np.abs(value).max(axis=others).astype(np.float64)
    scale = np.maximum(peak / INT8_MAX, floor).astype(np.float32)
    shape = [-1 if index == axis else 1 for index in range(value.ndim)]
    levels = np.rint(value / scale.reshape(shape))
    return np.clip(levels, -INT8_MAX, INT8_MAX).astype(np.int8), scale
