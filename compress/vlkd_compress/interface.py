"""Changes what a graph takes (opset, batch, layout, input type) without changing what it answers.

Every change is checked: the new graph is run beside the old one, image by image, and a difference is an error.

Letters used in shapes: N images, H and W pixels, C classes, D embedding size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper, version_converter

from vlkd_runtime.errors import DataError, ParityError, RefusalError

from .graph import Graph, drop_unused_constants, name_nodes, replace_nodes, tensor_names, unused
from .preflight.checks import PROFILE_KEY, Profile, with_batch

Layout = Literal["nhwc", "nchw"]
TO_CHANNELS_FIRST, TO_CHANNELS_LAST = [0, 3, 1, 2], [0, 2, 3, 1]


@dataclass(frozen=True, slots=True)
class Interface:
    """What a graph is to take.

    Attributes:
        opset: ONNX opset; as it is when None.
        batch: images a run, or the range of them.
        layout: order of the input's axes.
        float_input: float32 pixels from 0 to 255 instead of uint8, for libraries that know no uint8.
        input_name: name of the input.
    """

    opset: int | None = None
    batch: int | Profile = 1
    layout: Layout = "nhwc"
    float_input: bool = False
    input_name: str = "image"


def change(model: onnx.ModelProto, wanted: Interface) -> onnx.ModelProto:
    """Return the graph with another interface; the given one is not touched.

    Args:
        model: uint8 ``(1, H, W, 3)`` named ``image`` in, ``embedding`` and ``logits`` out.
        wanted: what it is to take.

    Raises:
        RefusalError: the graph cannot be brought to this opset or batch; names the node.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    name_nodes(changed)
    if wanted.opset is not None:
        changed = to_opset(changed, wanted.opset)
    del changed.graph.value_info[:]  # what it says of shapes will no longer hold
    if wanted.layout == "nchw":
        _channels_first(changed)
    if wanted.float_input:
        _float_input(changed)
    _rename_input(changed, wanted.input_name)
    if wanted.batch != 1:
        _batch(changed, wanted.batch)
    drop_unused_constants(changed)
    try:
        onnx.checker.check_model(changed, full_check=True)
    except Exception as error:  # onnx raises types of its own, all plain exceptions
        msg = f"The graph with {wanted} is no valid model: {str(error)[:300]}. Export it from the network instead."
        raise RefusalError(msg) from error
    return changed


def to_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Return the model in another opset.

    Raises:
        RefusalError: an operator has no form in that opset.
    """
    now = next(item.version for item in model.opset_import if item.domain in ("", "ai.onnx"))
    if now == opset:
        return model
    if opset < 20:
        _spell_out_gelu(model)
    _drop_defaults(model)
    kept = {(item.key, item.value) for item in model.metadata_props}
    try:
        converted = version_converter.convert_version(model, opset)
        onnx.checker.check_model(converted, full_check=True)
    except Exception as error:  # the converter raises RuntimeError, the checker its own
        reason = " ".join(str(error).split())[-300:]
        msg = f"Expected a graph that opset {opset} can hold, found opset {now} and: {reason}. Ask for another opset."
        raise RefusalError(msg) from error
    del converted.metadata_props[:]
    for key, value in sorted(kept):
        converted.metadata_props.add(key=key, value=value)
    converted.producer_name, converted.producer_version = model.producer_name, model.producer_version
    name_nodes(converted)
    return converted


def check_same(
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    wanted: Interface,
    images: npt.NDArray[np.uint8],
    *,
    max_logit_gap: float,
) -> float:
    """Run both graphs on the same images and return the largest difference of a logit or an embedding.

    Args:
        before: uint8 ``(1, H, W, 3)`` in.
        after: what `change` made of it.
        wanted: what it was asked for.
        images: ``(K, H, W, 3)`` uint8.
        max_logit_gap: tolerated difference.

    Raises:
        ParityError: they differ by more.
    """
    old, new = _session(before), _session(after)
    names = ["embedding", "logits"]
    reference = [
        np.concatenate(parts)
        for parts in zip(*(old.run(names, {"image": i[None]}) for i in images), strict=True)
    ]
    sizes = (1, wanted.batch.largest) if isinstance(wanted.batch, Profile) else (wanted.batch,)
    gap = 0.0
    for size in dict.fromkeys(sizes):
        rows = np.resize(np.arange(len(images)), math.ceil(len(images) / size) * size)
        for start in range(0, len(rows), size):
            chosen = rows[start : start + size]
            fed = images[chosen]
            fed = fed.transpose(*TO_CHANNELS_FIRST) if wanted.layout == "nchw" else fed
            fed = np.ascontiguousarray(fed, np.float32 if wanted.float_input else np.uint8)
            for answer, expected in zip(new.run(names, {wanted.input_name: fed}), reference, strict=True):
                gap = max(gap, float(np.abs(answer - expected[chosen]).max()))
    if not gap <= max_logit_gap:
        msg = (
            f"The graph with {wanted} answers otherwise than the one it was made of: largest difference {gap:.4g}, "
            f"tolerated {max_logit_gap:g}. A batch may be fixed inside the graph: ask for --batch 1."
        )
        raise ParityError(msg)
    return gap


def _session(model: onnx.ModelProto) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(
        model.SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["WeightBiasQuantization"],  # as vlkd_runtime opens it
    )


def _channels_first(model: onnx.ModelProto) -> None:
    """Take the image as ``(N, 3, H, W)``: drop the Transpose behind the Cast, or put its inverse there."""
    graph = Graph(model)
    cast = _cast(graph)
    image = model.graph.input[0].type.tensor_type.shape
    sizes = [image.dim[index].dim_value for index in (0, 3, 1, 2)]
    for dim, size in zip(image.dim, sizes, strict=True):
        dim.dim_value = size
    readers = graph.consumers.get(cast.output[0], [])
    if readers and all(_permutes(node, TO_CHANNELS_FIRST) for node in readers):
        for reader in readers:
            for node in graph.consumers.get(reader.output[0], []):
                for index, name in enumerate(node.input):
                    if name == reader.output[0]:
                        node.input[index] = cast.output[0]
        gone = {reader.name for reader in readers}
        replace_nodes(model, [node for node in model.graph.node if node.name not in gone])
        return
    taken = tensor_names(model) | {node.name for node in model.graph.node}
    name = unused("channels_last", taken)
    for node in readers:
        for index, read in enumerate(node.input):
            if read == cast.output[0]:
                node.input[index] = name
    back = helper.make_node("Transpose", [cast.output[0]], [name], name=name, perm=TO_CHANNELS_LAST)
    position = [node.name for node in model.graph.node].index(cast.name) + 1
    replace_nodes(model, [*model.graph.node[:position], back, *model.graph.node[position:]])


def _permutes(node: onnx.NodeProto, order: list[int]) -> bool:
    return node.op_type == "Transpose" and any(list(item.ints) == order for item in node.attribute)


def _cast(graph: Graph) -> onnx.NodeProto:
    readers = graph.consumers.get("image", [])
    if len(readers) != 1 or readers[0].op_type != "Cast":
        found = ", ".join(node.op_type for node in readers) or "nothing"
        msg = (
            f"Expected one Cast to read the input 'image', found {found}: give a graph that vlkd-edge built."
        )
        raise DataError(msg)
    return readers[0]


def _float_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT


def _rename_input(model: onnx.ModelProto, name: str) -> None:
    old = model.graph.input[0].name
    if name in tensor_names(model) - {old}:
        msg = f"Expected a new name for the input, found {name!r} in use: choose another."
        raise DataError(msg)
    model.graph.input[0].name = name
    for node in model.graph.node:
        for index, read in enumerate(node.input):
            if read == old:
                node.input[index] = name


def _batch(model: onnx.ModelProto, batch: int | Profile) -> None:
    """Set the batch, and make the nodes that state it follow."""
    graph = Graph(model)
    nodes: list[onnx.NodeProto] = []
    fixed: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type == "Reshape" and graph.constant(node.input[0]) is None:
            _follow(model, graph, node, fixed)
        elif node.op_type == "Concat":
            nodes += _repeat(model, graph, node, batch)
        nodes.append(node)
    replace_nodes(model, nodes)
    size = batch if isinstance(batch, int) else None
    for value in (*model.graph.input, *model.graph.output):
        dim = value.type.tensor_type.shape.dim[0]
        if size is None:
            dim.Clear()
            dim.dim_param = "batch"
        else:
            dim.dim_value = size
    if isinstance(batch, Profile):
        kept = [item for item in model.metadata_props if item.key != PROFILE_KEY]
        del model.metadata_props[:]
        for item in kept:
            model.metadata_props.add(key=item.key, value=item.value)
        model.metadata_props.add(key=PROFILE_KEY, value=batch.text())
    _check_shapes(model, batch)


def _follow(model: onnx.ModelProto, graph: Graph, node: onnx.NodeProto, fixed: dict[str, str]) -> None:
    """Let a Reshape that states a batch of 1 work its first size out from the others."""
    shape = graph.constant(node.input[1])
    if shape is None or not len(shape) or shape[0] != 1:
        return
    if node.input[1] not in fixed:
        follows = shape.copy()
        follows[0] = 0 if -1 in shape else -1
        name = unused(f"{node.input[1]}/any_batch", tensor_names(model))
        model.graph.initializer.append(numpy_helper.from_array(follows, name))
        fixed[node.input[1]] = name
    node.input[1] = fixed[node.input[1]]


def _repeat(
    model: onnx.ModelProto, graph: Graph, node: onnx.NodeProto, batch: int | Profile
) -> list[onnx.NodeProto]:
    """Repeat a constant that is put beside activations, a class token for one, for each image."""
    axis = next((item.i for item in node.attribute if item.name == "axis"), 0)
    values = {name: graph.constant(name) for name in node.input}
    if axis == 0 or all(value is not None for value in values.values()):
        return []
    added: list[onnx.NodeProto] = []
    for index, (name, value) in enumerate(values.items()):
        if value is None or not value.ndim or value.shape[0] != 1:
            continue
        taken = tensor_names(model) | {item.name for item in model.graph.node}
        if isinstance(batch, int):
            node.input[index] = unused(f"{name}/each", taken)
            repeated = np.repeat(value, batch, axis=0)
            model.graph.initializer.append(numpy_helper.from_array(repeated, node.input[index]))
            continue
        count, rest, shape, each = (
            unused(f"{node.name}/{part}", taken) for part in ("count", "rest", "shape", "each")
        )
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value.shape[1:], np.int64), rest))
        source = model.graph.input[0].name
        added.append(helper.make_node("Shape", [source], [count], name=count, start=0, end=1))
        added.append(helper.make_node("Concat", [count, rest], [shape], name=shape, axis=0))
        added.append(helper.make_node("Expand", [name, shape], [each], name=each))
        node.input[index] = each
    return added


def _check_shapes(model: onnx.ModelProto, batch: int | Profile) -> None:
    """See that the batch arrives at both outputs."""
    size = batch if isinstance(batch, int) else batch.largest
    stated = onnx.ModelProto()
    stated.CopyFrom(model)
    for value in stated.graph.output:
        value.type.tensor_type.shape.dim[0].Clear()  # or inference would believe what is stated
    for value in stated.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = size
    try:
        found = onnx.shape_inference.infer_shapes(stated, strict_mode=True, data_prop=True).graph.output
    except onnx.shape_inference.InferenceError as error:
        msg = (
            f"Expected a graph that takes {size} images at a time, found one that does not: "
            f"{' '.join(str(error).split())[:300]}. Ask for --batch 1."
        )
        raise RefusalError(msg) from error
    for value in found:
        dims = value.type.tensor_type.shape.dim
        arrived = dims[0].dim_value if dims and dims[0].HasField("dim_value") else size
        if arrived != size:
            msg = f"Expected {size} rows in {value.name}, found {arrived}: a batch is fixed inside. Ask for --batch 1."
            raise RefusalError(msg)


def _drop_defaults(model: onnx.ModelProto) -> None:
    """Leave out attributes that say what holds anyway, and that older opsets do not know."""
    for node in model.graph.node:
        for attribute in list(node.attribute):
            if attribute.name in ("noop_with_empty_axes", "allowzero") and attribute.i == 0:
                node.attribute.remove(attribute)


def _spell_out_gelu(model: onnx.ModelProto) -> None:
    """Replace Gelu, which opset 20 brought, by what it stands for.

    References:
        https://onnx.ai/onnx/operators/onnx__Gelu.html
    """
    graph = Graph(model)
    taken = tensor_names(model) | {node.name for node in model.graph.node}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.op_type != "Gelu":
            nodes.append(node)
            continue
        if any(item.name == "approximate" and item.s != b"none" for item in node.attribute):
            msg = f"Expected exact Gelu below opset 20, found the tanh form at {node.name}: ask for opset 20."
            raise RefusalError(msg)
        x, kind = node.input[0], helper.tensor_dtype_to_np_dtype(graph.types[node.input[0]])
        names = {
            part: unused(f"{node.name}/{part}", taken) for part in ("root", "erf", "sum", "half", "scaled")
        }
        for part, number in (("root2", math.sqrt(2)), ("one", 1.0), ("point5", 0.5)):
            names[part] = unused(f"{node.name}/{part}", taken)
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(number, kind), names[part]))
        for operator, inputs, output in (
            ("Div", [x, names["root2"]], names["root"]),
            ("Erf", [names["root"]], names["erf"]),
            ("Add", [names["erf"], names["one"]], names["sum"]),
            ("Mul", [x, names["sum"]], names["scaled"]),
            ("Mul", [names["scaled"], names["point5"]], node.output[0]),
        ):
            nodes.append(
                helper.make_node(operator, inputs, [output], name=unused(f"{output}/{operator}", taken))
            )
    replace_nodes(model, nodes)


__all__ = ["Interface", "Layout", "Profile", "change", "check_same", "to_opset", "with_batch"]
