"""The limits of the deep learning accelerator (DLA) on Jetsons.

Image conversion and normalisation before the first convolution, and pooling, projection and class-vector product
after the last one, run on the GPU in any case; what lies between them is the body that should not leave the
accelerator.

References:
    https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/dla-layer-restrictions.html: layers, batch,
    sizes, elementwise operations, resizing. ``NvInfer.h`` of TensorRT 10, at the setters of ``IConvolutionLayer``,
    ``IDeconvolutionLayer``, ``IPoolingLayer``, ``ILRNLayer`` and ``IConcatenationLayer``: the same numbers, and padding
    below the kernel. NVIDIA TensorRT Developer Guide 8.5, 12.2: the convolution buffer, and which deconvolutions are
    disabled.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import onnx
from onnx import TensorProto

from vlkd_runtime.targets import Target

from ..dialect import DEQUANTIZE, QUANTIZE, Finding
from ..graph import CONVOLUTIONS, Graph
from .memory import folded_tensors

_POOLS = frozenset({"MaxPool", "AveragePool"})
_PLAIN = frozenset(
    {"Conv", "ConvTranspose", "BatchNormalization", "Relu", "Sigmoid", "Tanh", "LeakyRelu", "Abs", "Identity"}
    | {"Add", "Sub", "Mul", "Div", "Max", "Min", "Pow"}
    | _POOLS
    | {QUANTIZE, DEQUANTIZE}
)
_MOST_CHANNELS, _MOST_BATCH, _MOST_SIZE = 8192, 4096, 8192
# Deconvolutions: long thin kernels are taken, large square ones would take too long to compile.
_LONG_SIZES, _LARGEST_SQUARE = (64, 96, 128), 22
# The convolution buffer: 16 banks of 256 entries; a kernel begins at a multiple of 128 bytes.
_BANKS, _BANK_BYTES, _BANK_ENTRIES, _BUFFER_LINE = 16, 32768, 256, 128
_FIRST_WITH_QDQ = (10, 11)
_FLOAT_TYPES = (TensorProto.FLOAT, TensorProto.BFLOAT16)


def check(graph: Graph, target: Target, *, batch_is_open: bool) -> Iterator[Finding]:
    """Yield every breach of the accelerator's rules."""
    if not target.dla_cores:
        message = (
            f"expected a target with an accelerator, found {target.name}, which has none: leave out --dla"
        )
        yield Finding("dla-cores", "model", message)
        return
    inside = body(graph)
    for node in inside:
        yield from _operator(node, graph)
        if node.op_type in CONVOLUTIONS:
            yield from _convolution(node, graph)
        elif node.op_type in _POOLS:
            yield from _pooling(node)
    yield from _size(inside, graph, batch_is_open)
    yield from _precision(inside, graph)
    yield from _quantization(inside, target)


def body(graph: Graph) -> tuple[onnx.NodeProto, ...]:
    """Return the nodes from the first convolution to the last: on a way from one convolution to another, or one."""
    nodes = graph.model.graph.node
    below = {node.name for node in nodes if node.op_type in CONVOLUTIONS}
    above = set(below)
    for node in nodes:
        makers = (graph.producers.get(name) for name in node.input)
        if any(maker is not None and maker.name in below for maker in makers):
            below.add(node.name)
    for node in reversed(nodes):
        if any(reader.name in above for name in node.output for reader in graph.consumers.get(name, [])):
            above.add(node.name)
    folded = folded_tensors(graph)
    return tuple(n for n in nodes if n.name in below & above and not set(n.output) <= folded)


def _operator(node: onnx.NodeProto, graph: Graph) -> Iterator[Finding]:
    problem = ""
    if node.op_type == "Clip":
        bounds = [graph.constant(name) for name in node.input[1:3]]
        values = [None if bound is None else float(bound) for bound in bounds]
        if len(values) != 2 or values[0] != 0 or values[1] is None or not 1 <= values[1] <= 127:
            problem = f"expected Clip from 0 to 1 through 127, found {values}"
    elif node.op_type == "Concat":
        if _one(node, "axis", 1) not in (1, -3) or len(node.input) < 2:
            axis, count = _one(node, "axis", 1), len(node.input)
            problem = f"expected Concat of two or more along channels, found {count} along axis {axis}"
    elif node.op_type == "PRelu":
        if graph.constant(node.input[1]) is None:
            problem = "expected a constant slope, found one that is computed"
    elif node.op_type == "LRN":
        if _one(node, "size", 0) not in (3, 5, 7, 9):
            problem = f"expected a window of 3, 5, 7 or 9, found {_one(node, 'size', 0)}"
    elif node.op_type == "Resize":
        problem = _resize_problem(node, graph)
    elif node.op_type not in _PLAIN:
        problem = f"the accelerator has no {node.op_type}: this layer would run on the GPU, take it out of the student"
    if problem:
        yield Finding("dla-operator", node.name, problem)


def _resize_problem(node: onnx.NodeProto, graph: Graph) -> str:
    scales = graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    mode = next((a.s.decode() for a in node.attribute if a.name == "mode"), "nearest")
    most = {"nearest": 32, "linear": 4}.get(mode, 0)
    whole = scales is not None and len(scales) == 4 and all(scales[:2] == 1) and all(scales % 1 == 0)
    if whole and scales is not None and all(1 <= scale <= most for scale in scales[2:]):
        return ""
    return f"expected nearest by 1 to 32 or linear by 1 to 4, in whole factors, found {mode} by {scales}"


def _convolution(node: onnx.NodeProto, graph: Graph) -> Iterator[Finding]:
    shape = graph.shapes.get(node.input[1], ())
    kernel = [size for size in shape[2:] if size is not None]
    if len(kernel) != 2:
        yield Finding("dla-convolution", node.name, f"expected two spatial sizes, found {len(kernel)}")
        return
    groups = _one(node, "group", 1)
    strides = _many(node, "strides", [1, 1])
    pads, dilations = _many(node, "pads", [0] * 4), _many(node, "dilations", [1, 1])
    channels = [shape[0], (shape[1] or 0) * (1 if node.op_type == "ConvTranspose" else groups)]
    limits: tuple[tuple[str, Sequence[int | None], int, int], ...]
    if node.op_type == "ConvTranspose":
        yield from _deconvolution(node, kernel, strides)
        limits = (
            ("padding", pads, 0, 0),
            ("dilation", dilations, 1, 1),
            ("group", [groups], 1, 1),
            ("channels", [shape[0], shape[1]], 1, _MOST_CHANNELS),
        )
    else:
        limits = (
            ("kernel", kernel, 1, 32),
            ("stride", strides, 1, 8),
            # Padding comes as top, left, bottom, right, and each is smaller than the kernel there.
            *(("padding", [pads[place]], 0, min(31, kernel[place % 2] - 1)) for place in range(len(pads))),
            ("dilation", dilations, 1, 32),
            ("group", [groups], 1, _MOST_CHANNELS),
            ("channels", channels, 1, _MOST_CHANNELS),
        )
        yield from _buffer(node, graph, kernel, dilations[0])
    yield from _outside("dla-convolution", node, limits)


def _deconvolution(node: onnx.NodeProto, kernel: Sequence[int], strides: Sequence[int]) -> Iterator[Finding]:
    for what, (rows, columns) in (("kernel", kernel), ("stride", strides)):
        long = sorted((rows, columns))
        slow = rows == columns and rows > _LARGEST_SQUARE
        if (max(long) > 32 and (long[0] != 1 or long[1] not in _LONG_SIZES)) or slow:
            message = (
                f"expected a {what} of a deconvolution up to 32, up to {_LARGEST_SQUARE} if square, or 1 by 64, 96 or "
                f"128, found {[rows, columns]}: change the student's {what}"
            )
            yield Finding("dla-convolution", node.name, message)


def _buffer(node: onnx.NodeProto, graph: Graph, kernel: Sequence[int], dilation: int) -> Iterator[Finding]:
    """Hold the least that a convolution needs at once to the accelerator's buffer.

    Only where all channels belong to one group: what of a grouped one is held at once is not documented.
    """
    inside = graph.shapes.get(node.input[0], ())
    channels, width = (inside[1], inside[3]) if len(inside) == 4 else (None, None)
    if channels is None or width is None or _one(node, "group", 1) != 1:
        return
    maker = graph.producers.get(node.input[0])
    element = 1 if maker is not None and maker.op_type == DEQUANTIZE else 2
    one_kernel = _round_up(channels * kernel[0] * kernel[1] * element, _BUFFER_LINE)
    slice_entries = math.ceil(math.ceil(channels * element / 32) * width / 4)
    rows = (kernel[0] - 1) * dilation + 1
    banks = math.ceil(one_kernel / _BANK_BYTES) + math.ceil(slice_entries * rows / _BANK_ENTRIES)
    if banks > _BANKS:
        message = (
            f"expected a kernel and the rows under it to fit into {_BANKS} banks of the convolution buffer, found "
            f"{banks}: take fewer channels, a smaller kernel or a narrower image"
        )
        yield Finding("dla-buffer", node.name, message)


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step


def _pooling(node: onnx.NodeProto) -> Iterator[Finding]:
    window = _many(node, "kernel_shape", [1, 1])
    if len(window) != 2:
        yield Finding("dla-pooling", node.name, f"expected two spatial sizes, found {len(window)}")
        return
    limits = (
        ("window", window, 1, 8),
        ("stride", _many(node, "strides", [1, 1]), 1, 16),
        ("padding", _many(node, "pads", [0] * 4), 0, 7),
    )
    yield from _outside("dla-pooling", node, limits)


def _outside(
    rule: str, node: onnx.NodeProto, limits: Sequence[tuple[str, Sequence[int | None], int, int]]
) -> Iterator[Finding]:
    for what, values, low, high in limits:
        if any(value is None or not low <= value <= high for value in values):
            message = (
                f"expected a {what} from {low} to {high}, found {list(values)}: change the student's {what}"
            )
            yield Finding(rule, node.name, message)


def _size(inside: Sequence[onnx.NodeProto], graph: Graph, batch_is_open: bool) -> Iterator[Finding]:
    if batch_is_open:
        yield Finding(
            "dla-size", "model", "expected a fixed batch, found an open one: vlkd-edge export --batch 1"
        )
    for node in inside:
        for name in node.output:
            shape = [size or 0 for size in graph.shapes.get(name, ())]
            if shape and (shape[0] > _MOST_BATCH or max(shape[1:], default=0) > _MOST_SIZE):
                message = (
                    f"expected a batch up to {_MOST_BATCH} and sizes up to {_MOST_SIZE}, found {tuple(shape)}"
                )
                yield Finding("dla-size", node.name, message)
                return


def _precision(inside: Sequence[onnx.NodeProto], graph: Graph) -> Iterator[Finding]:
    quantized = any(node.op_type == QUANTIZE for node in inside)
    for node in inside:
        # Between Q/DQ the graph's float is the engine's INT8 scale; only a graph without them says float32 by it.
        if any(graph.types.get(name) in _FLOAT_TYPES for name in node.output) and not quantized:
            message = 'expected float16, found float32: convert it, compress.candidates = ["fp16"]'
            yield Finding("dla-precision", node.name, message)
            return


def _quantization(inside: Sequence[onnx.NodeProto], target: Target) -> Iterator[Finding]:
    version = next(iter(target.tensorrt), "")
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if not numbers or numbers >= _FIRST_WITH_QDQ:
        return
    for node in inside:
        if node.op_type == QUANTIZE:
            message = f"expected no Q/DQ for the accelerator under TensorRT {version}, found one: ship float16 for it"
            yield Finding("dla-quantization", node.name, message)
            return


def _one(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), default)


def _many(node: onnx.NodeProto, name: str, default: list[int]) -> list[Any]:
    return next((list(attribute.ints) for attribute in node.attribute if attribute.name == name), default)
