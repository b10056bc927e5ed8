"""The checks that depend on the target: opset, types, precision, batch, memory.

Those on the shape of a quantized graph are in `vlkd_compress.dialect`, those of the accelerator in `.accelerator`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import onnx
from onnx import TensorProto

from vlkd_runtime.targets import GIB, Precision, Target

from ..dialect import QUANTIZE, Finding
from ..fold import STANDARD_DOMAINS
from ..graph import CONVOLUTIONS, Graph
from .memory import Forecast, folded_tensors

OLDEST_OPSET = 13  # per-channel Q/DQ
PROFILE_KEY = "vlkd.batch_profile"
# ONNX Runtime's own operators are as good as standard ones where ONNX Runtime runs the graph.
_DOMAINS = {"onnxruntime-cpu": STANDARD_DOMAINS | {"com.microsoft", "ai.onnx.ml"}}
_NO_TENSORRT_TYPE = frozenset(
    {TensorProto.DOUBLE, TensorProto.STRING, TensorProto.COMPLEX64, TensorProto.COMPLEX128, TensorProto.INT16}
    | {TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64}
)
_PRECISIONS: dict[str, Precision] = {
    "FLOAT16": "float16",
    "BFLOAT16": "bfloat16",
    "INT8": "int8",
    "FLOAT8E4M3FN": "float8",
    "FLOAT8E4M3FNUZ": "float8",
    "FLOAT8E5M2": "float8",
    "FLOAT8E5M2FNUZ": "float8",
    "FLOAT4E2M1": "float4",
}


@dataclass(frozen=True, slots=True)
class Profile:
    """The batch sizes an engine is built for.

    Attributes:
        smallest: that it takes.
        usual: that its kernels are chosen for.
        largest: that it takes.
    """

    smallest: int
    usual: int
    largest: int

    def text(self) -> str:
        """As it is written into a model's metadata and on the command line."""
        return f"{self.smallest}:{self.usual}:{self.largest}"


def read_profile(model: onnx.ModelProto) -> Profile | str | None:
    """Return a model's batch profile, what is wrong with it, or None where it states none."""
    stated = [item.value for item in model.metadata_props if item.key == PROFILE_KEY]
    return parse_profile(stated[0]) if stated else None


def parse_profile(text: str) -> Profile | str:
    """Read ``smallest:usual:largest``; return what is wrong with it where something is."""
    match = re.fullmatch(r"(\d{1,6}):(\d{1,6}):(\d{1,6})", text)
    sizes = [int(part) for part in match.groups()] if match else []
    if not sizes or not 1 <= sizes[0] <= sizes[1] <= sizes[2]:
        return (
            f"expected smallest:usual:largest, each at least 1 and none below the one before, found {text!r}"
        )
    return Profile(*sizes)


def open_batch(model: onnx.ModelProto) -> bool:
    """Tell whether the first size of an input is left open."""
    constants = {item.name for item in model.graph.initializer}
    shapes = [item.type.tensor_type.shape.dim for item in model.graph.input if item.name not in constants]
    return any(dims and not dims[0].dim_value > 0 for dims in shapes)


def with_batch(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """Return a copy whose open batch is this one, and whose other sizes are worked out anew."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    del fixed.graph.value_info[:]
    for value in (*fixed.graph.input, *fixed.graph.output):
        dims = value.type.tensor_type.shape.dim
        if dims and not dims[0].dim_value > 0:
            dims[0].dim_value = batch
    return fixed


def opset(graph: Graph, target: Target) -> Iterator[Finding]:
    """Rule ``opset``."""
    domains = _DOMAINS.get(target.engine, STANDARD_DOMAINS)
    for item in graph.model.opset_import:
        if item.domain in STANDARD_DOMAINS and not OLDEST_OPSET <= item.version <= target.newest_opset:
            message = (
                f"expected opset {OLDEST_OPSET} to {target.newest_opset} for {target.name}, found {item.version}: "
                f"vlkd-edge export --opset {target.opset}"
            )
            yield Finding("opset", "model", message)
    for node in graph.model.graph.node:
        if node.domain not in domains:
            message = (
                f"expected standard operators, found {node.domain}.{node.op_type}: export with standard ones"
            )
            yield Finding("opset", node.name, message)


def types(graph: Graph) -> Iterator[Finding]:
    """Rule ``types``."""
    seen: set[int] = set()
    for name, kind in graph.types.items():
        if kind in _NO_TENSORRT_TYPE and kind not in seen:
            seen.add(kind)  # the first of a kind is the cause
            message = f"expected no tensor of type {_type_name(kind)}, found {name!r}: export with float32 and int32"
            yield Finding("types", _maker(graph, name), message)


def typed(graph: Graph) -> Iterator[Finding]:
    """Rule ``typed``: what ONNX's own strict inference says."""
    try:
        onnx.shape_inference.infer_shapes(graph.model, check_type=True, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        text = " ".join(str(error).split())
        named = re.search(r"node name: ([^)]+)\)", text)
        yield Finding(
            "typed", named[1] if named else "model", f"expected types that go together, found: {text[:400]}"
        )


def computed_shapes(graph: Graph) -> Iterator[Finding]:
    """Rule ``computed-shapes``."""
    folded = folded_tensors(graph)
    integers = (TensorProto.INT64, TensorProto.INT32)
    for node in graph.model.graph.node:
        made = [
            n for n in node.output if graph.types.get(n) in integers and n not in folded | set(graph.outputs)
        ]
        if made and node.op_type != "ArgMax":
            message = (
                f"expected shapes to be constants, found {node.op_type} making {made[0]!r}: export it static"
            )
            yield Finding("computed-shapes", node.name, message)
            return  # what follows from it is noise


def batch_profile(model: onnx.ModelProto) -> Iterator[Finding]:
    """Rule ``batch-profile``, on the model as it was given."""
    profile = read_profile(model)
    name = model.graph.input[0].name if model.graph.input else "model"
    if isinstance(profile, str):
        yield Finding("batch-profile", name, f"{PROFILE_KEY}: {profile}")
    elif open_batch(model) and profile is None:
        message = (
            f"expected a profile for the open batch in the metadata {PROFILE_KEY}, found none: "
            "vlkd-edge export --batch 1:4:16, or a fixed --batch 1"
        )
        yield Finding("batch-profile", name, message)
    elif profile is not None and not open_batch(model):
        yield Finding("batch-profile", name, f"expected an open batch with {PROFILE_KEY}, found a fixed one")


def precision(graph: Graph, target: Target) -> Iterator[Finding]:
    """Rule ``precision``."""
    seen: set[str] = set()
    for name, kind in graph.types.items():
        found = _PRECISIONS.get(_type_name(kind))
        if found is None or found in target.precisions or found in seen:
            continue
        seen.add(found)
        message = (
            f"expected {', '.join(target.precisions)} on {target.name}, found the {found} tensor {name!r}: "
            "choose another candidate"
        )
        yield Finding("precision", _maker(graph, name), message)


def memory(found: Forecast | None, target: Target) -> Iterator[Finding]:
    """Rule ``memory``; nothing is said of a graph whose sizes are not known, which another rule refuses."""
    if found is None or found.total <= target.budget_bytes:
        return
    message = (
        f"expected at most {target.budget_bytes / GIB:.2f} GiB on {target.name}, found {found.total / GIB:.2f}: "
        f"weights {found.weights / GIB:.2f}, activations {found.activations / GIB:.2f}, builder "
        f"{found.builder / GIB:.2f}. Take a smaller image, batch or student"
    )
    yield Finding("memory", found.peak_node, message)


def int8_convolution(graph: Graph) -> Iterator[Finding]:
    """Rule ``int8-convolution``: the first convolution whose input is dequantized."""
    for node in graph.model.graph.node:
        maker = graph.producers.get(node.input[0]) if node.op_type in CONVOLUTIONS else None
        source = graph.producers.get(maker.input[0]) if maker is not None and maker.input else None
        if source is not None and source.op_type == QUANTIZE:
            message = "this convolution and those like it will run in float: put 'fp16' first in compress.candidates"
            yield Finding("int8-convolution", node.name, message)
            return


def _maker(graph: Graph, tensor: str) -> str:
    """Name the node a reader would look for: the one that makes a tensor, or reads a constant."""
    if tensor in graph.producers:
        return graph.producers[tensor].name
    readers = graph.consumers.get(tensor, [])
    return readers[0].name if readers else tensor


def _type_name(kind: int) -> str:
    return TensorProto.DataType.Name(kind) if kind in TensorProto.DataType.values() else str(kind)
