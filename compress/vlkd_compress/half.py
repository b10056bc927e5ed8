"""A float16 version of a graph: the fallback when INT8 costs too much, and the company INT8 keeps.

TensorRT runs each tensor in the type the graph gives it, so the types are written into the graph. The unit
norm and the class-vector product stay float32: they cost nothing and decide between near classes.

A float16 version of an INT8 graph has to be judged with ONNX Runtime's ``WeightBiasQuantization`` switched
off: on the CPU that rewrite (seen in 1.31) passes biases through float16 in units of the scales' product, where
they overflow. The graph itself is right, as a run without rewrites shows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from vlkd_runtime.errors import DataError, RefusalError

from .dialect import check_dialect_model
from .fold import fold
from .graph import Graph, drop_unused_constants, load, replace_nodes, save, tensor_names, unused
from .inputs import check_images, require_head
from .placement import KeptFloat
from .ranges import observe

HALF_MAX = float(np.finfo(np.float16).max)
HEADROOM = 2.0
# Below this a float16 scale has lost its precision; a channel this small adds nothing that is seen.
SMALLEST_SCALE = 1e-6
# Inputs that ONNX wants in float32 whatever the type of the others: Resize's regions and scales.
FLOAT_ONLY = {"Resize": (1, 2)}


@dataclass(frozen=True, slots=True)
class HalfReport:
    """What one conversion did.

    Attributes:
        images: number of images the overflow check ran on.
        half_nodes: number of nodes that compute in float16.
        kept_float: nodes that stay float32, and why.
        largest_activation: largest absolute value seen in a tensor that is float16 now.
        float_bytes: size of the file it was made from.
        half_bytes: size of the written file.
    """

    images: int
    half_nodes: int
    kept_float: tuple[KeptFloat, ...]
    largest_activation: float
    float_bytes: int
    half_bytes: int


def to_float16(
    model: Path,
    images: Iterable[npt.NDArray[np.uint8]],
    out: Path,
    *,
    keep_float: Collection[str] = (),
) -> HalfReport:
    """Write a float16 version of a float graph or of an INT8 graph; same inputs, same bytes.

    Args:
        model: uint8 ``(1, H, W, 3)`` in, ``embedding`` and ``logits`` out.
        images: images on which no activation may come near float16's largest value.
        out: where the result is written.
        keep_float: names of nodes to leave in float32.

    Raises:
        CalibrationError: no usable image, or the graph is not finite even in float32.
        DataError: the file is no such graph, or ``keep_float`` names an unknown node.
        RefusalError: float16 would overflow, or the result breaks a rule of TensorRT's dialect.
    """
    source = load(model)
    if not any(node.op_type == "QuantizeLinear" for node in source.graph.node):
        source = fold(source)  # an INT8 graph was folded before it was quantized
    graph = Graph(source)
    batch = check_images(images, graph)
    kept = _kept(graph, model, keep_float)
    names = {item.node for item in kept}
    half = [node for node in source.graph.node if node.name not in names]
    largest = _refuse_overflow(graph, half, batch)
    _Converter(graph, {node.name for node in half}).convert()
    findings = check_dialect_model(source)
    if findings:
        first = findings[0]
        msg = (
            f"The float16 version of {model} breaks a rule of TensorRT's dialect: {first.rule} at "
            f"{first.node}: {first.message}"
        )
        raise RefusalError(msg)
    return HalfReport(
        images=len(batch),
        half_nodes=len(half),
        kept_float=kept,
        largest_activation=largest,
        float_bytes=model.stat().st_size,
        half_bytes=save(source, out),
    )


def _kept(graph: Graph, where: Path, keep_float: Collection[str]) -> tuple[KeptFloat, ...]:
    names = [node.name for node in graph.model.graph.node]
    unknown = sorted(set(keep_float) - set(names))
    if unknown:
        msg = f"Expected keep_float to name nodes of the graph {where}, found {unknown}."
        raise DataError(msg)
    head = require_head(graph, where)
    reasons = dict.fromkeys(keep_float, "asked to stay float32")
    reasons.update(dict.fromkeys(head.normalisation, "unit norm of the embedding"))
    reasons.update(dict.fromkeys(head.class_product, "class-vector product"))
    return tuple(KeptFloat(name, reasons[name]) for name in names if name in reasons)


def _refuse_overflow(
    graph: Graph, half: list[onnx.NodeProto], batch: tuple[npt.NDArray[np.uint8], ...]
) -> float:
    """Return the largest value that will be stored as float16.

    Raises:
        RefusalError: an activation or a weight comes too near to float16's largest value.
    """
    makers = {
        name: node.name for node in half for name in node.output if graph.types.get(name) == TensorProto.FLOAT
    }
    seen = observe(graph.model, tuple(makers), batch, histograms=False).tensors
    peaks = {name: observed.peak for name, observed in seen.items()}
    for node in half:
        for name in node.input:
            value = graph.constant(name)
            if value is not None and value.dtype == np.float32 and value.size and node.op_type != "Clip":
                peaks[name] = float(np.abs(value).max())
                makers[name] = node.name
    limit = HALF_MAX / HEADROOM
    over = sorted({makers[name]: peak for name, peak in peaks.items() if peak > limit}.items())
    if over:
        listed = ", ".join(f"{node} ({peak:.3g})" for node, peak in over[:8])
        msg = (
            f"Expected values up to {limit:.0f} (float16's largest with a factor of {HEADROOM:g} to spare), "
            f"found more at {len(over)} nodes: {listed}. Pass them as keep_float or stay with float32."
        )
        raise RefusalError(msg)
    return max(peaks.values(), default=0.0)


class _Converter:
    """Rewrites a model in place: float16 inside the chosen nodes, a Cast wherever types meet."""

    def __init__(self, graph: Graph, half: set[str]) -> None:
        self._graph = graph
        self._half = half
        self._taken = tensor_names(graph.model) | {node.name for node in graph.model.graph.node}
        self._casts: dict[tuple[str, int], str] = {}
        self._constants: dict[str, str] = {}
        self._added: list[onnx.TensorProto] = []
        self._nodes: list[onnx.NodeProto] = []

    def convert(self) -> None:
        model = self._graph.model
        for original in model.graph.node:
            node = onnx.NodeProto()
            node.CopyFrom(original)
            half = node.name in self._half
            if half:
                _retype_attributes(node)
                if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                    self._scale(node)
            for index, name in enumerate(node.input):
                if self._graph.types.get(name) == TensorProto.FLOAT:
                    wanted = half and index not in FLOAT_ONLY.get(node.op_type, ())
                    node.input[index] = self._as(name, TensorProto.FLOAT16 if wanted else TensorProto.FLOAT)
            self._nodes.append(node)
            if half:
                self._float_outputs(node)
        replace_nodes(model, self._nodes)
        model.graph.initializer.extend(self._added)
        del model.graph.value_info[:]
        drop_unused_constants(model)

    def _as(self, name: str, wanted: int) -> str:
        """Return the name under which a float tensor has the wanted type, adding a Cast if need be."""
        if name in self._graph.constants:
            return self._half_constant(name) if wanted == TensorProto.FLOAT16 else name
        producer = self._graph.producers.get(name)
        is_half = producer is not None and producer.name in self._half
        if is_half == (wanted == TensorProto.FLOAT16):
            return name
        key = (name, wanted)
        if key not in self._casts:
            self._casts[key] = self._name(f"{name}/{'half' if wanted == TensorProto.FLOAT16 else 'float'}")
            self._cast(name, self._casts[key], wanted)
        return self._casts[key]

    def _half_constant(self, name: str) -> str:
        if name not in self._constants:
            value = self._graph.constant(name)
            assert value is not None
            # Clip's bounds may be float32's largest value; float16's largest means the same.
            bounded = np.clip(value, -HALF_MAX, HALF_MAX).astype(np.float16)
            self._constants[name] = self._add(f"{name}/half", bounded)
        return self._constants[name]

    def _scale(self, node: onnx.NodeProto) -> None:
        """Raise scales that float16 cannot hold, and move stored INT8 weights to the new scales."""
        scale = self._graph.constant(node.input[1])
        if scale is None or not np.any(scale < SMALLEST_SCALE):
            return
        raised = np.maximum(scale, np.float32(SMALLEST_SCALE))
        levels = self._graph.constant(node.input[0])
        if levels is not None:
            axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
            shape = [-1 if index == axis and raised.ndim else 1 for index in range(levels.ndim)]
            moved = np.rint(levels * (scale / raised).reshape(shape)).astype(np.int8)
            node.input[0] = self._add(f"{node.input[0]}/half", moved)
        node.input[1] = self._add(f"{node.input[1]}/half", raised.astype(np.float16))

    def _float_outputs(self, node: onnx.NodeProto) -> None:
        """Give graph outputs made by a float16 node their float32 type back."""
        for index, name in enumerate(node.output):
            if name in self._graph.outputs and self._graph.types.get(name) == TensorProto.FLOAT:
                node.output[index] = self._name(f"{name}/half")
                self._cast(node.output[index], name, TensorProto.FLOAT)
                self._half = self._half - {node.name}  # readers of this output now find float32

    def _cast(self, source: str, target: str, wanted: int) -> None:
        name = self._name(f"{target}/Cast")
        self._nodes.append(helper.make_node("Cast", [source], [target], name=name, to=wanted))

    def _add(self, name: str, value: np.ndarray) -> str:
        name = self._name(name)
        self._added.append(numpy_helper.from_array(value, name))
        return name

    def _name(self, wanted: str) -> str:
        name = unused(wanted, self._taken)
        self._taken.add(name)
        return name


def _retype_attributes(node: onnx.NodeProto) -> None:
    """Turn the float32 a node makes by its attributes (Cast, Constant, ConstantOfShape) into float16."""
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16
        elif attribute.name == "value" and attribute.t.data_type == TensorProto.FLOAT:
            value = numpy_helper.to_array(attribute.t).astype(np.float16)
            attribute.t.CopyFrom(numpy_helper.from_array(value, attribute.t.name))
