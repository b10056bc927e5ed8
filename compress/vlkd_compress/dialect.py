"""The rules a graph must keep to become a TensorRT engine on a Jetson, checked without TensorRT.

The preflight asks the real parser of one TensorRT version; these rules also cover what other versions refuse,
and what all of them accept but run slowly.

==================  ==============================================================================
rule                what it asks
==================  ==============================================================================
``opset``           standard operators only, of an opset each supported parser reads
``operator``        no control flow, no operator whose output size depends on values
``uint8-input``     the first reader of a uint8 input is a Cast
``static-shape``    each input, output and intermediate tensor has a fixed shape
``outputs``         the outputs ``embedding`` and ``logits`` exist
``symmetric``       Q/DQ have constant INT8 or FP8 zero points, all zero, and positive finite scales
``bias``            no bias is quantized
``per-channel``     weights have one scale per output channel
``placement``       each Q feeds DQ only, each DQ feeds convolutions, linear layers and shortcuts only
``pair``            a convolution or linear layer has both inputs quantized or none
``head``            projection, normalisation and class-vector product are float
==================  ==============================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from .fold import STANDARD_DOMAINS
from .graph import WEIGHTED, Graph, load
from .placement import takes_in, weight_axis

OPSETS = range(13, 21)
FORBIDDEN = frozenset(
    {
        "If",
        "Loop",
        "Scan",
        "NonZero",
        "Unique",
        "Compress",
        "SequenceConstruct",
        "SequenceAt",
        "SplitToSequence",
    }
    | {"StringNormalizer", "TfIdfVectorizer", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul"}
    | {"ConvInteger", "MatMulInteger"}
)
QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


@dataclass(frozen=True, slots=True)
class Finding:
    """One rule broken at one place.

    Attributes:
        rule: which rule of the table above.
        node: name of the node or tensor.
        message: what was expected, what was found, what to do.
    """

    rule: str
    node: str
    message: str


def check_dialect(model: Path) -> tuple[Finding, ...]:
    """Return each breach of the rules in an ONNX file; empty when there is none.

    Raises:
        DataError: the file is no valid ONNX model.
    """
    return check_dialect_model(load(model))


def check_dialect_model(model: onnx.ModelProto) -> tuple[Finding, ...]:
    """Return each breach of the rules in a model whose nodes all have names."""
    graph = Graph(model)
    found: list[Finding] = []
    for rule in (_opset, *CHECKS):
        found.extend(rule(graph))
    return tuple(found)


def _opset(graph: Graph) -> Iterator[Finding]:
    for item in graph.model.opset_import:
        if item.domain in STANDARD_DOMAINS and item.version not in OPSETS:
            message = (
                f"expected opset {OPSETS.start} to {OPSETS.stop - 1}, found {item.version}: export again"
            )
            yield Finding("opset", "model", message)
    for node in graph.model.graph.node:
        if node.domain not in STANDARD_DOMAINS:
            yield Finding(
                "opset", node.name, f"expected standard operators, found {node.domain}.{node.op_type}"
            )


def _operators(graph: Graph) -> Iterator[Finding]:
    for node in graph.model.graph.node:
        if node.domain in STANDARD_DOMAINS and node.op_type in FORBIDDEN:
            yield Finding(
                "operator", node.name, f"{node.op_type} has no place in a TensorRT engine: rewrite the model"
            )


def _inputs(graph: Graph) -> Iterator[Finding]:
    for name in graph.inputs:
        if graph.types.get(name) != onnx.TensorProto.UINT8:
            continue
        for node in graph.consumers.get(name, []):
            if node.op_type != "Cast":
                message = f"expected Cast as first reader of the uint8 input {name!r}, found {node.op_type}"
                yield Finding("uint8-input", node.name, message)


def _shapes(graph: Graph) -> Iterator[Finding]:
    for name in (*graph.inputs, *graph.outputs, *graph.producers):
        shape = graph.shapes.get(name)
        if name and (shape is None or None in shape):
            found = "no shape" if shape is None else tuple("?" if d is None else d for d in shape)
            message = f"expected a fixed shape, found {found}: export with a fixed batch and image size"
            yield Finding("static-shape", name, message)
            return  # the first one is the cause; all that follow from it are noise
    for name in ("embedding", "logits"):
        if name not in graph.outputs:
            yield Finding("outputs", name, f"expected an output {name!r}, found {list(graph.outputs)}")


def _parameters(graph: Graph) -> Iterator[Finding]:
    for node in graph.model.graph.node:
        if node.op_type not in (QUANTIZE, DEQUANTIZE):
            continue
        scale = graph.constant(node.input[1])
        zero = graph.constant(node.input[2]) if len(node.input) > 2 else None
        if scale is None or not np.all(np.isfinite(scale)) or not np.all(scale > 0):
            yield Finding("symmetric", node.name, "expected constant scales that are positive and finite")
        if zero is None or zero.shape != (() if scale is None else scale.shape):
            yield Finding("symmetric", node.name, "expected one constant zero point per scale")
        elif np.any(zero.astype(np.float32) != 0) or zero.dtype.name not in (
            "int8",
            "int32",
            "float8_e4m3fn",
        ):
            message = (
                f"expected INT8 with zero point 0, found {zero.dtype} with {np.unique(zero)[:4].tolist()}"
            )
            yield Finding("symmetric", node.name, f"{message}: quantize symmetrically")


def _weights(graph: Graph) -> Iterator[Finding]:
    for node in graph.model.graph.node:
        if node.op_type not in WEIGHTED:
            continue
        activation, weight = (_dequantizer(graph, node.input[index]) for index in (0, 1))
        if len(node.input) > 2 and _dequantizer(graph, node.input[2]) is not None:
            yield Finding(
                "bias", node.name, "expected a float bias, found a quantized one: TensorRT refuses it"
            )
        if (activation is None) != (weight is None):
            which = "activations" if weight is None else "weight"
            yield Finding(
                "pair",
                node.name,
                f"expected activations and weight in INT8 or neither, found only the {which}",
            )
        if weight is None:
            continue
        shape, axis = graph.shapes.get(node.input[1], ()), weight_axis(node)
        scale = graph.constant(weight.input[1])
        named = next((attribute.i for attribute in weight.attribute if attribute.name == "axis"), 1)
        channels = shape[axis] if axis < len(shape) else None
        if scale is None or scale.shape != (channels,) or named % max(len(shape), 1) != axis:
            found = "no constant scale" if scale is None else f"{scale.shape} on axis {named}"
            message = f"expected ({channels},) scales on axis {axis} of the weight, found {found}"
            yield Finding("per-channel", node.name, message)


def _placement(graph: Graph) -> Iterator[Finding]:
    for node in graph.model.graph.node:
        if node.op_type == QUANTIZE:
            allowed, wanted = frozenset({DEQUANTIZE}), "DequantizeLinear"
        elif node.op_type == DEQUANTIZE:
            allowed, wanted = WEIGHTED, "convolutions and linear layers"
        else:
            continue
        output = node.output[0]
        wrong = [
            reader
            for reader in graph.consumers.get(output, [])
            if reader.op_type not in allowed and not _is_shortcut(graph, output, reader)
        ]
        for reader in wrong:
            message = f"expected it to feed {wanted} only, found {reader.op_type} {reader.name!r}"
            yield Finding("placement", node.name, message)
        if output in graph.outputs:
            yield Finding("placement", node.name, f"expected float outputs, found it as output {output!r}")


def _is_shortcut(graph: Graph, tensor: str, reader: onnx.NodeProto) -> bool:
    """Tell whether a dequantized tensor is added to what a quantized convolution makes for this addition."""
    if reader.op_type != "Add" or tensor not in reader.input:
        return False
    other = next((name for name in reader.input if name != tensor), tensor)
    maker = graph.producers.get(other)
    return (
        maker is not None
        and takes_in(graph, maker, reader)
        and _dequantizer(graph, maker.input[0]) is not None
    )


def _head(graph: Graph) -> Iterator[Finding]:
    head = graph.head()
    if head is None:
        return
    protected = head.projection | head.after_projection
    for node in graph.model.graph.node:
        if node.name in protected and any(_dequantizer(graph, name) for name in node.input):
            yield Finding(
                "head", node.name, f"expected the head in float, found {node.op_type} with INT8 inputs"
            )


def _dequantizer(graph: Graph, tensor: str) -> onnx.NodeProto | None:
    """Return the DequantizeLinear that makes a tensor, or None."""
    node = graph.producers.get(tensor)
    return node if node is not None and node.op_type == DEQUANTIZE else None


# Everything but the opset, of which each target has a say.
CHECKS: tuple[Callable[[Graph], Iterator[Finding]], ...] = (
    _operators,
    _inputs,
    _shapes,
    _parameters,
    _weights,
    _placement,
    _head,
)
