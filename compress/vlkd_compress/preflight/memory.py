"""How much memory a graph will take on a device, told from the graph alone.

Letters used in shapes: none; sizes are in bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx

from vlkd_runtime.targets import EngineKind

from ..graph import Graph

# What a builder takes before it has seen a graph. TensorRT on a Jetson Orin: 0.93 GB for the processor's part and
# 0.98 GB for the GPU's, in memory they share (https://github.com/ultralytics/ultralytics/issues/19302). TensorRT
# for RTX and ONNX Runtime: the resident memory of a process that built a small graph here, rounded up.
BUILDER_BYTES: dict[EngineKind, int] = {
    "tensorrt": 1_910_000_000,
    "tensorrt-rtx": 400_000_000,
    "onnxruntime-cpu": 100_000_000,
}
# While it builds, the file, the parsed weights and the engine that comes of them exist at once.
WEIGHT_COPIES = 3


@dataclass(frozen=True, slots=True)
class Forecast:
    """Memory at the moment when most is taken: while the engine is built.

    Attributes:
        weights: of all constants, as stored.
        activations: the most that live tensors take together, over the graph's order.
        peak_node: the node at which they do.
        builder: what the builder takes, with its copies of the weights.
    """

    weights: int
    activations: int
    peak_node: str
    builder: int

    @property
    def total(self) -> int:
        """All of it together."""
        return self.weights + self.activations + self.builder


def forecast(graph: Graph, engine: EngineKind) -> Forecast | None:
    """Forecast the memory of building and running a graph; None where a shape is not known.

    Activations are counted by liveness: a tensor lives from the node that makes it to the last one that reads it,
    and the nodes run in the graph's order. An engine that fuses nodes keeps fewer tensors; one that runs
    branches at once keeps more.
    """
    live = activations(graph)
    if live is None:
        return None
    weights = sum(_tensor_bytes(item) for item in graph.constants.values())
    for node in graph.model.graph.node:
        weights += sum(_tensor_bytes(attribute.t) for attribute in node.attribute if attribute.HasField("t"))
    peak, where = live
    return Forecast(weights, peak, where, BUILDER_BYTES[engine] + WEIGHT_COPIES * weights)


def activations(graph: Graph) -> tuple[int, str] | None:
    """Return the largest sum of the bytes of tensors that live at once, and the node where it is reached."""
    folded = folded_tensors(graph)
    nodes = graph.model.graph.node
    last: dict[str, int] = {name: len(nodes) for name in graph.outputs}
    for index, node in enumerate(nodes):
        for name in node.input:
            last[name] = max(last.get(name, index), index)
    sizes: dict[str, int] = {}
    for name in (*graph.inputs, *graph.producers):
        size = 0 if name in folded or not name else _size(graph, name)
        if size is None:
            return None
        sizes[name] = size
    current = sum(sizes[name] for name in graph.inputs)
    peak, where = current, "graph"
    for index, node in enumerate(nodes):
        current += sum(sizes[name] for name in node.output)
        if current > peak:
            peak, where = current, node.name
        done = {
            name for name in (*node.input, *node.output) if name in sizes and last.get(name, index) == index
        }
        current -= sum(sizes[name] for name in done)
    return peak, where


def folded_tensors(graph: Graph) -> frozenset[str]:
    """Return the names of tensors that depend on constants only: a builder works them out beforehand."""
    known = set(graph.constants)
    for node in graph.model.graph.node:
        if all(name in known for name in node.input if name):
            known.update(node.output)
    return frozenset(known)


def _size(graph: Graph, name: str) -> int | None:
    shape = graph.shapes.get(name)
    if shape is None or name not in graph.types:
        return None
    dimensions = [dimension for dimension in shape if dimension is not None]
    if len(dimensions) != len(shape):
        return None
    return math.ceil(math.prod(dimensions) * element_bytes(graph.types[name]))


def _tensor_bytes(tensor: onnx.TensorProto) -> int:
    return math.ceil(math.prod(int(size) for size in tensor.dims) * element_bytes(tensor.data_type))


def element_bytes(kind: int) -> float:
    """Return the bytes of one element of an ONNX type."""
    name = onnx.TensorProto.DataType.Name(kind)
    if name in ("INT4", "UINT4", "FLOAT4E2M1"):
        return 0.5
    if name in ("INT2", "UINT2"):
        return 0.25
    if name.startswith("FLOAT8"):
        return 1.0
    return float(onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize)
