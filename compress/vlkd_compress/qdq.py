"""Writes Q/DQ pairs into a graph: symmetric, one scale per activation and one per output channel of a weight.

Letters used in shapes: O output channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from .graph import Graph, drop_unused_constants, replace_nodes, tensor_names, unused
from .placement import Quantized, Residual

TINY = float(np.finfo(np.float32).tiny)
BIAS_MAX = 2.0**30


@dataclass(frozen=True, slots=True)
class NumberFormat:
    """A number format of eight bits.

    Attributes:
        name: as reports name it.
        largest: the largest value it holds.
        element: its ONNX element type.
    """

    name: str
    largest: float
    element: int

    def store(self, scaled: npt.NDArray[np.float32], name: str) -> onnx.TensorProto:
        """Return values that are already divided by their scale as a constant of this format."""
        kept = np.clip(scaled, -self.largest, self.largest)
        if self.element == TensorProto.INT8:
            return numpy_helper.from_array(np.rint(kept).astype(np.int8), name)
        return numpy_helper.from_array(kept.astype(helper.tensor_dtype_to_np_dtype(self.element)), name)


INT8 = NumberFormat("int8", 127.0, TensorProto.INT8)
# The format of 4 exponent and 3 mantissa bits without infinities; its largest value is 448.
FP8 = NumberFormat("fp8", 448.0, TensorProto.FLOAT8E4M3FN)


def insert(
    graph: Graph,
    plans: Sequence[Quantized],
    residuals: Sequence[Residual],
    ranges: Mapping[str, float],
    form: NumberFormat = INT8,
) -> None:
    """Rewrite the graph's nodes so that each planned node reads dequantized values.

    Args:
        graph: the graph, whose model is changed.
        plans: the convolutions and linear layers.
        residuals: additions that read their shortcut dequantized.
        ranges: tensor name to the value that maps to the format's largest.
        form: the number format.
    """
    model = graph.model
    writer = _Writer(graph, form)
    by_name = {plan.node: plan for plan in plans}
    shortcuts = {item.node: item for item in residuals}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        plan, shortcut = by_name.get(node.name), shortcuts.get(node.name)
        if plan is not None:
            scale = activation_scale(ranges[plan.activation], form)
            node.input[0] = writer.activation(plan.activation, scale, nodes)
            node.input[1] = writer.weight(plan, scale, nodes)
        elif shortcut is not None:
            scale = activation_scale(ranges[shortcut.tensor], form)
            node.input[shortcut.index] = writer.activation(shortcut.tensor, scale, nodes)
        nodes.append(node)
    replace_nodes(model, nodes)
    model.graph.initializer.extend(writer.constants)
    drop_unused_constants(model)


class _Writer:
    """Makes the Q/DQ nodes: one pair per activation and one DQ per weight, however many nodes read them."""

    def __init__(self, graph: Graph, form: NumberFormat) -> None:
        self._graph = graph
        self._form = form
        self._taken = tensor_names(graph.model) | {node.name for node in graph.model.graph.node}
        self._made: dict[tuple[str, ...], str] = {}
        self.constants: list[onnx.TensorProto] = []

    def activation(self, tensor: str, scale: np.float32, nodes: list[onnx.NodeProto]) -> str:
        """Append Q and DQ of an activation to ``nodes`` once; return the name of the dequantized tensor."""
        key = (tensor,)
        if key not in self._made:
            parameters = self._parameters(tensor, np.asarray(scale))
            whole, back = self._name(f"{tensor}/{self._form.name}"), self._name(f"{tensor}/dequantized")
            nodes.append(self._node("QuantizeLinear", [tensor, *parameters], whole))
            nodes.append(self._node("DequantizeLinear", [whole, *parameters], back))
            self._made[key] = back
        return self._made[key]

    def weight(self, plan: Quantized, scale: np.float32, nodes: list[onnx.NodeProto]) -> str:
        """Store a weight in eight bits, append its DQ to ``nodes`` once; return the dequantized tensor's name."""
        key = (plan.weight, str(plan.axis), plan.activation, plan.bias or "")
        if key not in self._made:
            value = self._graph.constant(plan.weight)
            assert value is not None
            bias = None if plan.bias is None else self._graph.constant(plan.bias)
            # An engine adds FP8's products in float, so that only INT8's scales need a floor.
            floor = smallest_scale(bias, scale) if self._form is INT8 else TINY
            scaled, scales = scale_weight(value, plan.axis, floor, self._form)
            name = self._name(f"{plan.weight}/{self._form.name}")
            back = self._name(f"{plan.weight}/dequantized")
            self.constants.append(self._form.store(scaled, name))
            inputs = [name, *self._parameters(plan.weight, scales)]
            nodes.append(self._node("DequantizeLinear", inputs, back, axis=plan.axis))
            self._made[key] = back
        return self._made[key]

    def _parameters(self, tensor: str, scale: npt.NDArray[np.float32]) -> tuple[str, str]:
        # The zero point is written out: TensorRT's older parsers want three inputs, as many zeros as scales.
        names = self._name(f"{tensor}/scale"), self._name(f"{tensor}/zero")
        self.constants.append(numpy_helper.from_array(scale, names[0]))
        self.constants.append(self._form.store(np.zeros(scale.shape, dtype=np.float32), names[1]))
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


def activation_scale(largest: float, form: NumberFormat = INT8) -> np.float32:
    """Return the scale that maps the largest absolute value of an activation to the format's largest."""
    return np.float32(max(largest / form.largest, TINY))


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


def scale_weight(
    value: npt.NDArray[np.float32],
    axis: int,
    floor: npt.NDArray[np.float64] | float = TINY,
    form: NumberFormat = INT8,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return a weight divided by its scales, and the scales ``(O,)``, one per output channel.

    Args:
        value: the float weight.
        axis: its output-channel axis.
        floor: smallest scale, for all channels or ``(O,)``.
        form: the number format whose largest value a channel's largest weight maps to.
    """
    others = tuple(index for index in range(value.ndim) if index != axis)
    peak = np.abs(value).max(axis=others).astype(np.float64)
    scale = np.maximum(peak / form.largest, floor).astype(np.float32)
    shape = [-1 if index == axis else 1 for index in range(value.ndim)]
    return value / scale.reshape(shape), scale


def quantize_weight(
    value: npt.NDArray[np.float32], axis: int, floor: npt.NDArray[np.float64] | float = TINY
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Return a weight as INT8 in -127..127 and its scales ``(O,)``; the arguments are `scale_weight`'s."""
    scaled, scale = scale_weight(value, axis, floor)
    return np.clip(np.rint(scaled), -INT8.largest, INT8.largest).astype(np.int8), scale
