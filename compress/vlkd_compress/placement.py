"""Decides which convolutions and linear layers become INT8, and says why the others stay float.

The rules are those under which TensorRT finds an INT8 kernel and gains from it; each reason is written into
the report, so that a reader sees what was not compressed.

References:
    https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-quantized-types.html
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from vlkd_runtime.errors import DataError

from .graph import CONVOLUTIONS, WEIGHTED, Graph, Head

MINIMUM_CHANNELS = 16


@dataclass(frozen=True, slots=True)
class Quantized:
    """A node that gets INT8 inputs.

    Attributes:
        node: its name.
        activation: name of the tensor at its first input.
        weight: name of the constant at its second input.
        axis: the weight's output-channel axis.
        bias: name of the tensor at its third input, which stays float; None without one.
    """

    node: str
    activation: str
    weight: str
    axis: int
    bias: str | None


@dataclass(frozen=True, slots=True)
class Residual:
    """An addition that reads its shortcut in INT8, so that the convolution beside it can take the addition in.

    Attributes:
        node: name of the addition.
        tensor: the shortcut.
        index: which of the two inputs it is.
    """

    node: str
    tensor: str
    index: int


@dataclass(frozen=True, slots=True)
class KeptFloat:
    """A convolution or linear layer that was left in float, and why."""

    node: str
    reason: str


def place(
    graph: Graph, head: Head, keep_float: Collection[str]
) -> tuple[tuple[Quantized, ...], tuple[KeptFloat, ...]]:
    """Sort the graph's convolutions and linear layers into quantized and kept, in graph order.

    Raises:
        DataError: ``keep_float`` names a node that is no convolution or linear layer of this graph.
    """
    names = [node.name for node in graph.model.graph.node if node.op_type in WEIGHTED]
    unknown = sorted(set(keep_float) - set(names))
    if unknown:
        msg = (
            f"Expected keep_float to name convolutions or linear layers of the graph, found {unknown}; "
            f"it has {names}."
        )
        raise DataError(msg)
    quantized: list[Quantized] = []
    kept: list[KeptFloat] = []
    for node in graph.model.graph.node:
        if node.op_type not in WEIGHTED:
            continue
        if node.name in keep_float:
            reason: str | None = "asked to stay float"
        else:
            reason = _head_reason(node, head) or _shape_reason(node, graph)
        if reason is None:
            bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
            quantized.append(Quantized(node.name, node.input[0], node.input[1], weight_axis(node), bias))
        else:
            kept.append(KeptFloat(node.name, reason))
    return tuple(quantized), tuple(kept)


def place_residuals(graph: Graph, planned: Sequence[Quantized]) -> tuple[Residual, ...]:
    """Find the additions whose shortcut is worth quantizing: the branch that no convolution takes in.

    An INT8 convolution can add a shortcut before it writes its output, but only one it reads in INT8. The
    branch that the convolution makes stays float: quantizing it, too, would part the two. In transformers,
    where no convolution makes a branch, the residual stream stays float altogether.
    """
    int8 = {plan.node for plan in planned}
    order = {node.name: index for index, node in enumerate(graph.model.graph.node)}
    found: list[Residual] = []
    for node in graph.model.graph.node:
        if node.op_type != "Add" or not _feeds(graph, node, int8):
            continue
        fused: list[tuple[int, int]] = []
        for index, name in enumerate(node.input):
            maker = graph.producers.get(name)
            if maker is not None and takes_in(graph, maker, node) and maker.name in int8:
                fused.append((order[maker.name], index))
        if fused and all(graph.constant(name) is None for name in node.input):
            other = 1 - max(fused)[1]  # of two convolutions the later one takes the addition in
            found.append(Residual(node.name, node.input[other], other))
    return tuple(found)


def takes_in(graph: Graph, maker: onnx.NodeProto, addition: onnx.NodeProto) -> bool:
    """Tell whether a convolution's output goes into this addition and nowhere else."""
    name = maker.output[0]
    return (
        maker.op_type in CONVOLUTIONS
        and name not in graph.outputs
        and [reader.name for reader in graph.consumers.get(name, [])] == [addition.name]
    )


def _feeds(graph: Graph, node: onnx.NodeProto, int8: Collection[str]) -> bool:
    """Tell whether an addition's output, through an activation at most, is read by a quantized layer."""
    readers = list(graph.consumers.get(node.output[0], []))
    for reader in tuple(readers):
        if reader.op_type in ("Relu", "Clip"):
            readers += graph.consumers.get(reader.output[0], [])
    return any(reader.name in int8 for reader in readers)


def weight_axis(node: onnx.NodeProto) -> int:
    """Return the output-channel axis of a node's weight."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 0 if _attribute(node, "transB", 0) else 1
    return 1  # MatMul: (K, N); ConvTranspose: (inputs, outputs / groups, ...)


def _head_reason(node: onnx.NodeProto, head: Head) -> str | None:
    if node.name in head.class_product:
        return "class-vector product: cosines near the decision border decide"
    if node.name in head.projection:
        return "projection to the embedding: it feeds the class-vector product"
    return None


def _shape_reason(node: onnx.NodeProto, graph: Graph) -> str | None:
    weight = graph.constant(node.input[1])
    if weight is None:
        return "its weight is not a constant"
    if graph.constant(node.input[0]) is not None:
        return "its first input is a constant"
    if _reads_image(node, graph):
        # Some TensorRT builders find no INT8 kernel for a stem fused with its activation and pooling, and
        # fail the whole build; the stem is also where quantization noise spreads furthest.
        return "first layer: it reads the image"
    if node.op_type in CONVOLUTIONS:
        return _convolution_reason(node, weight)
    if weight.ndim != 2 or _attribute(node, "transA", 0):
        return "not a plain product of activations with a weight matrix"
    axis = weight_axis(node)
    outputs, inputs = weight.shape[axis], weight.shape[1 - axis]
    shape = graph.shapes.get(node.input[0])
    rows = None if shape is None or None in shape else int(np.prod([d for d in shape[:-1] if d is not None]))
    if rows is None:
        return "its input shape is not fixed"
    if rows == 1 or outputs == 1:
        return "matrix-vector product: bound by reading the weights, INT8 kernels do not help"
    if inputs < MINIMUM_CHANNELS or outputs < MINIMUM_CHANNELS:
        return f"fewer than {MINIMUM_CHANNELS} inputs or outputs ({inputs} and {outputs})"
    return None


def _convolution_reason(node: onnx.NodeProto, weight: np.ndarray) -> str | None:
    groups = _attribute(node, "group", 1)
    if node.op_type == "ConvTranspose":
        if groups != 1:
            return "grouped transposed convolution"
        inputs, outputs = weight.shape[:2]
    else:
        inputs, outputs = weight.shape[1] * groups, weight.shape[0]
    kernel = weight.shape[2:]
    if inputs >= MINIMUM_CHANNELS and outputs >= MINIMUM_CHANNELS:
        return None
    if groups == 1:
        aligned = inputs % 8 == 0 or outputs % 8 == 0
        wide = inputs >= MINIMUM_CHANNELS or outputs >= MINIMUM_CHANNELS
        if aligned and wide and len(set(kernel)) == 1:
            return None
    elif outputs % 8 == 0 and min(kernel) >= 3:
        return None
    return f"fewer than {MINIMUM_CHANNELS} channels ({inputs} in, {outputs} out)"


def _reads_image(node: onnx.NodeProto, graph: Graph) -> bool:
    """Tell whether no other convolution or linear layer lies between the image and this node."""
    seen: set[str] = set()
    pending = [node.input[0]]
    while pending:
        maker = graph.producers.get(pending.pop())
        if maker is None or maker.name in seen:
            continue
        if maker.op_type in WEIGHTED:
            return False
        seen.add(maker.name)
        pending.extend(maker.input)
    return True


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    for attribute in node.attribute:
        if attribute.name == name:
            return int(attribute.i)
    return default
