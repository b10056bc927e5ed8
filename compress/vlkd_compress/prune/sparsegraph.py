"""Tells whether a graph's weights are 2:4 sparse along the axis that TensorRT looks at, in any number format.

TensorRT takes sparse kernels for convolutions whose filters ``(K, C, R, S)``, and for matrix products whose constant
operand, have at least two zeros in every four values along the input channels; and only if its builder was given the
flag for sparse weights. It then times both and keeps the faster.

Letters used in shapes: K output channels, C input channels, R and S kernel height and width.

References:
    TensorRT developer guide, "Structured Sparsity".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from ..graph import CONVOLUTIONS, LINEARS, Graph

_QUANTIZED = frozenset({"DequantizeLinear", "QuantizeLinear", "Cast", "Transpose", "Identity"})


@dataclass(frozen=True, slots=True)
class SparseCount:
    """How many layers are sparse.

    Attributes:
        sparse: names of the nodes whose weights have two zeros in every four input channels.
        layers: how many convolutions and linear layers there are.
    """

    sparse: tuple[str, ...]
    layers: int


def count_sparse(model: onnx.ModelProto) -> SparseCount:
    """Look through a graph's convolutions and linear layers."""
    graph = Graph(model)
    sparse, layers = [], 0
    for node in model.graph.node:
        if node.op_type not in CONVOLUTIONS | LINEARS:
            continue
        weight = _weight(graph, node.input[1])
        if weight is None:
            continue
        layers += 1
        if is_sparse(_inputs_last(node, weight)):
            sparse.append(node.name)
    return SparseCount(tuple(sparse), layers)


def is_sparse(weight: npt.NDArray[np.generic]) -> bool:
    """Whether at most two of every four values along the last axis differ from zero."""
    if weight.shape[-1] % 4:
        return False
    return bool((np.count_nonzero(weight.reshape(-1, 4), axis=1) <= 2).all())


def _weight(graph: Graph, name: str) -> npt.NDArray[np.generic] | None:
    """The stored values behind a weight and what quantizes them; None if no constant, or if zero is not zero."""
    transposed = False
    while name in graph.producers and graph.producers[name].op_type in _QUANTIZED:
        node = graph.producers[name]
        if node.op_type == "Transpose":
            transposed = not transposed
        if node.op_type == "DequantizeLinear" and len(node.input) > 2 and node.input[2]:
            point = graph.constant(node.input[2])
            if point is not None and np.any(np.asarray(point, dtype=np.float32) != 0):
                return None
        name = node.input[0]
    value = graph.constant(name)
    if value is None:
        return None
    found: npt.NDArray[np.generic] = value.swapaxes(-1, -2) if transposed and value.ndim == 2 else value
    return found


def _inputs_last(node: onnx.NodeProto, weight: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """The weight with its input channels along the last axis."""
    if node.op_type in CONVOLUTIONS:
        return np.moveaxis(weight, 0 if node.op_type == "ConvTranspose" else 1, -1)
    turned = any(item.name == "transB" and item.i for item in node.attribute)
    return weight if turned else np.swapaxes(weight, -1, -2)
