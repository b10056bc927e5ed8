"""A read-only view of an ONNX graph: who makes a tensor, who reads it, its shape, and where the head begins.

Letters used in shapes: N images, C classes, D embedding size, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from vlkd_runtime.atomic import write_bytes
from vlkd_runtime.errors import DataError, first_line

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
LINEARS = frozenset({"Gemm", "MatMul"})
WEIGHTED = CONVOLUTIONS | LINEARS
EMBEDDING, LOGITS = "embedding", "logits"

Shape = tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Head:
    """The end of the graph, where the embedding is made, normalised and multiplied with the class vectors.

    Attributes:
        projection: names of the linear layers that produce the embedding before it is normalised; empty when
            a convolution produces it.
        normalisation: names of the nodes between the projection and the unit embedding.
        class_product: names of the nodes from the embedding to the logits.
    """

    projection: frozenset[str]
    normalisation: frozenset[str]
    class_product: frozenset[str]

    @property
    def after_projection(self) -> frozenset[str]:
        """Everything that stays float32 in each variant."""
        return self.normalisation | self.class_product


class Graph:
    """Producers, consumers, constants and shapes of a model, computed once.

    Attributes:
        model: the model as it was given; never changed through this view.
        producers: tensor name to the node that makes it.
        consumers: tensor name to the nodes that read it, in graph order.
        constants: tensor name to its initializer.
        shapes: tensor name to its shape, None for a dimension that is not fixed.
        types: tensor name to its ONNX element type.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.producers: dict[str, onnx.NodeProto] = {}
        self.consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in node.output:
                self.producers[name] = node
            for name in dict.fromkeys(filter(None, node.input)):
                self.consumers.setdefault(name, []).append(node)
        self.constants: dict[str, onnx.TensorProto] = {item.name: item for item in model.graph.initializer}
        self.inputs = tuple(item.name for item in model.graph.input if item.name not in self.constants)
        self.outputs = tuple(item.name for item in model.graph.output)
        self.shapes: dict[str, Shape] = {}
        self.types: dict[str, int] = {}
        self._infer()

    def _infer(self) -> None:
        inferred = onnx.shape_inference.infer_shapes(self.model, data_prop=True).graph
        for value in (*inferred.value_info, *inferred.input, *inferred.output):
            tensor = value.type.tensor_type
            self.types[value.name] = tensor.elem_type
            if tensor.HasField("shape"):
                self.shapes[value.name] = tuple(
                    dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None
                    for dim in tensor.shape.dim
                )
        for name, constant in self.constants.items():
            self.types[name] = constant.data_type
            self.shapes[name] = tuple(constant.dims)

    def constant(self, name: str) -> np.ndarray | None:
        """Return the value of a constant tensor, or None when it is computed at run time."""
        found = self.constants.get(name)
        if found is not None:
            return onnx.numpy_helper.to_array(found)
        node = self.producers.get(name)
        if node is not None and node.op_type == "Constant" and node.attribute[0].name == "value":
            return onnx.numpy_helper.to_array(node.attribute[0].t)
        return None

    def descendants(self, tensor: str) -> frozenset[str]:
        """Return the names of all nodes that depend on this tensor."""
        found: set[str] = set()
        pending = [tensor]
        while pending:
            for node in self.consumers.get(pending.pop(), []):
                if node.name not in found:
                    found.add(node.name)
                    pending.extend(node.output)
        return frozenset(found)

    def ancestors(self, tensor: str) -> frozenset[str]:
        """Return the names of all nodes that a tensor depends on."""
        return frozenset(node.name for node in self._back(tensor, stop=frozenset()))

    def _back(self, tensor: str, stop: frozenset[str]) -> Iterator[onnx.NodeProto]:
        """Walk from a tensor towards the inputs, each node once, and not past operators to stop at."""
        seen: set[str] = set()
        pending = [tensor]
        while pending:
            node = self.producers.get(pending.pop())
            if node is None or node.name in seen:
                continue
            seen.add(node.name)
            yield node
            if node.op_type not in stop:
                pending.extend(filter(None, node.input))

    def head(self) -> Head | None:
        """Find the head from the outputs ``embedding`` and ``logits``; None when the graph lacks them.

        In a classifier that is no student the logits do not come from the embedding: there the last layer
        stands for the class-vector product.
        """
        if EMBEDDING not in self.outputs or LOGITS not in self.outputs:
            return None
        if LOGITS in self.producers and self.producers[LOGITS].name not in self.descendants(EMBEDDING):
            beside = self.ancestors(EMBEDDING) - self.ancestors(LOGITS)
            last = frozenset(node.name for node in self._back(LOGITS, stop=WEIGHTED))
            return Head(frozenset(), beside, last)
        projection: set[str] = set()
        normalisation: set[str] = set()
        pending = [EMBEDDING]
        while pending:
            node = self.producers.get(pending.pop())
            if node is None or node.name in projection | normalisation or node.op_type in CONVOLUTIONS:
                continue
            if node.op_type in LINEARS:
                projection.add(node.name)
                continue
            normalisation.add(node.name)
            pending.extend(filter(None, node.input))
        return Head(frozenset(projection), frozenset(normalisation), self.descendants(EMBEDDING))


def load(path: Path) -> onnx.ModelProto:
    """Read an ONNX file and give each node a name.

    Raises:
        DataError: the file is missing or is no valid ONNX model.
    """
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf, onnx and the file system each raise their own kind
        msg = f"Expected an ONNX model at {path}, found: {first_line(error)}. Export it again."
        raise DataError(msg) from error
    name_nodes(model)
    return model


def save(model: onnx.ModelProto, path: Path) -> int:
    """Check a model, write it atomically and byte-reproducibly, and return its size in bytes."""
    onnx.checker.check_model(model, full_check=True)
    data = model.SerializeToString(deterministic=True)
    write_bytes(path, data)
    return len(data)


def name_nodes(model: onnx.ModelProto) -> None:
    """Give nodes without a name, or with a name already taken, one of their own."""
    taken = {node.name for node in model.graph.node}
    seen: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if not node.name or node.name in seen:
            node.name = unused(f"{node.op_type}_{index}", taken)
            taken.add(node.name)
        seen.add(node.name)


def unused(name: str, taken: Iterable[str] | Mapping[str, object]) -> str:
    """Return ``name``, with underscores appended until nothing else is called so."""
    while name in taken:
        name += "_"
    return name


def tensor_names(model: onnx.ModelProto) -> set[str]:
    """Return each tensor name in use."""
    graph = model.graph
    names = {item.name for item in (*graph.initializer, *graph.input, *graph.output)}
    for node in graph.node:
        names.update(node.input)
        names.update(node.output)
    return names


def drop_unused_constants(model: onnx.ModelProto) -> None:
    """Remove initializers that no node reads any more."""
    used = {name for node in model.graph.node for name in node.input}
    used.update(item.name for item in model.graph.output)
    for index in reversed(range(len(model.graph.initializer))):
        if model.graph.initializer[index].name not in used:
            del model.graph.initializer[index]


def replace_nodes(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]) -> None:
    """Put these nodes, old ones among them, in place of the model's."""
    fresh = onnx.GraphProto(node=nodes)  # copies: clearing the old list would take its nodes along
    del model.graph.node[:]
    model.graph.node.extend(fresh.node)
