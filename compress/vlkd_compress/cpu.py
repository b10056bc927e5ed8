"""Eight-bit quantization for ONNX Runtime's CPU provider: asymmetric uint8 activations, or dynamic ones.

The provider fuses Q/DQ around an operator only if inputs and output are quantized, with scales it can fold
activations into; so here, unlike in TensorRT's dialect, the tensors between operators are quantized, too.
ONNX Runtime's own quantizer writes the graph, with the ranges that were measured for every dialect alike.

Letters used in shapes: H and W pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx

from vlkd_runtime.errors import DataError

from .calibrated import Calibration
from .graph import CONVOLUTIONS, LINEARS, WEIGHTED, Graph, Head, name_nodes, save
from .placement import KeptFloat
from .quantize import QuantizationReport, require_method
from .ranges import Method, RangeTable

Form = Literal["qdq", "qoperator"]

# Operators between layers that the provider runs on uint8 tensors as they are.
BETWEEN = frozenset(
    {"Add", "Concat", "MaxPool", "AveragePool", "GlobalAveragePool", "Relu", "Clip", "Reshape", "Flatten"}
)
WEIGHT_BITS = {8: "INT8", 4: "INT4"}
BLOCK = 32


def quantize_for_cpu(
    calibration: Calibration,
    out: Path,
    *,
    method: Method,
    keep_float: Collection[str] = (),
    form: Form = "qdq",
) -> QuantizationReport:
    """Write a static INT8 version for ONNX Runtime's CPU provider; same inputs, same bytes.

    Args:
        calibration: the float graph and what its activations do.
        out: where the INT8 graph is written.
        method: ``minmax``, ``entropy``, ``percentile`` or ``mse``.
        keep_float: names of convolutions or linear layers to leave in float.
        form: ``qdq`` writes Q/DQ pairs that the provider fuses when it loads the graph; ``qoperator`` writes
            its integer operators themselves.

    Raises:
        CalibrationError: activations that are not finite.
        DataError: ``keep_float`` names an unknown node.
        RefusalError: nothing is left to quantize.
    """
    require_method(method)
    folded = calibration.folded()
    graph = Graph(folded)
    planned, kept = place_for_cpu(graph, calibration.head, keep_float, dynamic=False)
    calibration.require_some(planned, ((item.node, item.reason) for item in kept))
    chosen = set(planned) | _between(graph, calibration.head, set(planned))
    activations = _activations(graph)
    table = calibration.table(activations)
    quantized = _write_static(folded, table, sorted(chosen), method, form)
    return _report(calibration, quantized, out, method, planned, kept)


def quantize_dynamic_for_cpu(
    calibration: Calibration, out: Path, *, keep_float: Collection[str] = ()
) -> QuantizationReport:
    """Write a version whose linear layers have INT8 weights and quantize their inputs as they come.

    Each activation gets the range of the image at hand, which suits transformers, whose ranges differ
    much from image to image.

    Raises:
        DataError: ``keep_float`` names an unknown node.
        RefusalError: the graph has no linear layer to quantize.
    """
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer
    from onnxruntime.quantization.quant_utils import QuantizationMode

    folded = calibration.folded()
    graph = Graph(folded)
    planned, kept = place_for_cpu(graph, calibration.head, keep_float, dynamic=True)
    calibration.require_some(planned, ((item.node, item.reason) for item in kept))
    quantizer = ONNXQuantizer(
        _inferred(folded),
        per_channel=True,
        reduce_range=False,
        mode=QuantizationMode.IntegerOps,
        static=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=None,
        nodes_to_quantize=sorted(planned),
        nodes_to_exclude=[],
        op_types_to_quantize=sorted(LINEARS),
        extra_options={"MatMulConstBOnly": True},
    )
    return _report(calibration, _run(quantizer), out, "dynamic", planned, kept)


def quantize_weights_for_cpu(
    calibration: Calibration, out: Path, *, bits: Literal[8, 4] = 8, keep_float: Collection[str] = ()
) -> QuantizationReport:
    """Write a version whose linear layers keep float activations and store their weights in blocks of few bits.

    Raises:
        DataError: ``keep_float`` names an unknown node.
        RefusalError: the graph has no linear layer to quantize.
    """
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    folded = calibration.folded()
    graph = Graph(folded)
    planned, kept = place_for_cpu(graph, calibration.head, keep_float, dynamic=True)
    calibration.require_some(planned, ((item.node, item.reason) for item in kept))
    _gemm_to_matmul(folded, set(planned))
    others = [node.name for node in folded.graph.node if node.name not in planned]
    quantizer = MatMulNBitsQuantizer(
        folded, bits=bits, block_size=BLOCK, is_symmetric=True, accuracy_level=4, nodes_to_exclude=others
    )
    with _quiet():
        quantizer.process()
    method = f"{WEIGHT_BITS[bits]} weights"
    return _report(calibration, quantizer.model.model, out, method, planned, kept)


def place_for_cpu(
    graph: Graph, head: Head, keep_float: Collection[str], *, dynamic: bool
) -> tuple[tuple[str, ...], tuple[KeptFloat, ...]]:
    """Sort the graph's convolutions and linear layers into quantized and kept, in graph order.

    Args:
        graph: the folded float graph.
        head: where class-vector product and projection are.
        keep_float: names of layers to leave in float.
        dynamic: whether ranges are taken at run time, which pays for linear layers only.

    Raises:
        DataError: ``keep_float`` names a node that is no convolution or linear layer of this graph.
    """
    nodes = [node for node in graph.model.graph.node if node.op_type in WEIGHTED]
    unknown = sorted(set(keep_float) - {node.name for node in nodes})
    if unknown:
        msg = f"Expected keep_float to name convolutions or linear layers of the graph, found {unknown}."
        raise DataError(msg)
    planned: list[str] = []
    kept: list[KeptFloat] = []
    for node in nodes:
        if node.name in keep_float:
            kept.append(KeptFloat(node.name, "asked to stay float"))
        elif node.name in head.class_product | head.projection:
            kept.append(KeptFloat(node.name, "projection or class-vector product"))
        elif graph.constant(node.input[1]) is None:
            kept.append(KeptFloat(node.name, "its weight is not a constant"))
        elif node.op_type == "ConvTranspose":
            kept.append(KeptFloat(node.name, "the provider has no INT8 kernel for it"))
        elif dynamic and node.op_type in CONVOLUTIONS:
            kept.append(
                KeptFloat(node.name, "a convolution: ranges taken at run time cost more than they save")
            )
        else:
            planned.append(node.name)
    return tuple(planned), tuple(kept)


def _is_transformer(graph: Graph) -> bool:
    return any(node.op_type == "LayerNormalization" for node in graph.model.graph.node)


def _between(graph: Graph, head: Head, planned: set[str]) -> set[str]:
    """Operators between quantized layers; none in transformers, whose residual stream must stay float.

    An operator is taken if some layer before it and some layer after it are quantized: beside layers that
    are kept in float it would be quantized for nobody's sake.
    """
    if _is_transformer(graph):
        return set()
    found: set[str] = set()
    for node in graph.model.graph.node:
        if node.op_type not in BETWEEN or node.name in head.after_projection:
            continue
        if _nearest(graph, node, planned, back=True) and _nearest(graph, node, planned, back=False):
            found.add(node.name)
    return found


def _nearest(graph: Graph, node: onnx.NodeProto, planned: set[str], *, back: bool) -> bool:
    """Tell whether a quantized layer is met first in one direction."""
    seen: set[str] = set()
    pending = [node]
    while pending:
        here = pending.pop()
        names = here.input if back else here.output
        for name in names:
            producer = graph.producers.get(name)
            near = graph.consumers.get(name, []) if not back else [producer] if producer is not None else []
            for other in near:
                if other.op_type in WEIGHTED:
                    if other.name in planned:
                        return True
                elif other.name not in seen:
                    seen.add(other.name)
                    pending.append(other)
    return False


def _activations(graph: Graph) -> tuple[str, ...]:
    """Each float tensor that is computed from the image."""
    return tuple(
        name
        for node in graph.model.graph.node
        for name in node.output
        if graph.types.get(name) == onnx.TensorProto.FLOAT and graph.constant(name) is None
    )


def _write_static(
    folded: onnx.ModelProto,
    table: RangeTable,
    nodes: list[str],
    method: Method,
    form: Form,
) -> onnx.ModelProto:
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
    from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.quant_utils import QuantizationMode

    ranges = {}
    for name in table.tensors:
        low, high = table.asymmetric(name, method)
        ranges[name] = TensorData(lowest=np.float32(low), highest=np.float32(high))
    data = TensorsData(CalibrationMethod.MinMax, ranges)
    options: dict[str, Any] = {
        "ActivationSymmetric": False,
        "WeightSymmetric": True,
        "MatMulConstBOnly": True,
        # A linear layer then hands on what it has added up, unrounded; a convolution has no such kernel.
        "OpTypesToExcludeOutputQuantization": sorted(LINEARS),
    }
    operators = sorted({node.op_type for node in folded.graph.node if node.name in set(nodes)})
    # Weights per output channel; seven bits only where a processor without VNNI would saturate.
    shared = (True, _needs_reduced_range())
    types: tuple[Any, ...] = (QuantType.QInt8, QuantType.QUInt8, data, nodes, [], operators, options)
    if form == "qdq":
        quantizer = QDQQuantizer(_inferred(folded), *shared, *types)
    else:
        quantizer = ONNXQuantizer(_inferred(folded), *shared, QuantizationMode.QLinearOps, True, *types)
    return _run(quantizer)


def _run(quantizer: Any) -> onnx.ModelProto:
    with _quiet():
        quantizer.quantize_model()
    quantizer.model.topological_sort()  # it appends what it makes at the end
    model: onnx.ModelProto = quantizer.model.model
    return model


def _needs_reduced_range() -> bool:
    """Tell whether this x86 processor adds pairs of 8-bit products in 16 bits, where they may saturate.

    References:
        https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html, "U8S8 can suffer from
        saturation issues".
    """
    try:
        flags = Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0]
    except OSError:
        return False
    return "avx2" in flags and "vnni" not in flags


def _gemm_to_matmul(model: onnx.ModelProto, names: set[str]) -> None:
    """Split Gemm into MatMul and Add, in place: only MatMul has a version with weights of few bits."""
    graph = Graph(model)
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.op_type != "Gemm" or node.name not in names:
            nodes.append(node)
            continue
        attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        weight = graph.constant(node.input[1])
        assert weight is not None
        weight = weight.T if attributes.get("transB") else weight
        turned = f"{node.input[1]}/{node.name}/turned"
        model.graph.initializer.append(
            onnx.numpy_helper.from_array(
                np.ascontiguousarray(weight * np.float32(attributes.get("alpha", 1.0))), turned
            )
        )
        biased = len(node.input) > 2 and bool(node.input[2])
        product = f"{node.output[0]}/product" if biased else node.output[0]
        nodes.append(onnx.helper.make_node("MatMul", [node.input[0], turned], [product], name=node.name))
        if biased:
            nodes.append(
                onnx.helper.make_node("Add", [product, node.input[2]], node.output, name=f"{node.name}/bias")
            )
    copies = onnx.GraphProto(node=nodes)
    del model.graph.node[:]
    model.graph.node.extend(copies.node)


def _inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the types and shapes that ONNX Runtime's quantizer looks up."""
    return onnx.shape_inference.infer_shapes(model)


def _report(
    calibration: Calibration,
    quantized: onnx.ModelProto,
    out: Path,
    method: str,
    planned: tuple[str, ...],
    kept: tuple[KeptFloat, ...],
) -> QuantizationReport:
    operators = {node.name: node.op_type for node in calibration.folded().graph.node}
    convolutions = sum(operators[name] in CONVOLUTIONS for name in planned)
    name_nodes(quantized)
    del quantized.graph.value_info[:]
    quantized.producer_name, quantized.producer_version = "vlkd-edge", ""
    return QuantizationReport(
        method=method,
        images=len(calibration.images),
        convolutions=convolutions,
        linears=len(planned) - convolutions,
        quantized=planned,
        kept_float=kept,
        float_bytes=calibration.model.stat().st_size,
        int8_bytes=save(quantized, out),
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep ONNX Runtime's quantizer from writing advice to the root logger."""
    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
