"""Takes in any ONNX image classifier and gives it the form of this project's students.

The result reads a uint8 image and holds its own normalisation, so that the device cannot get it wrong; its
outputs are ``logits`` and ``embedding``, the unit features that the last layer reads. Everything downstream
(the runtime's engines, quantization, guard, preflight) then works on it as on a student.

Letters used in shapes: N images, H and W pixels, F features, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vlkd_runtime.errors import DataError, first_line

from .fold import STANDARD_DOMAINS
from .graph import EMBEDDING, LINEARS, LOGITS, Graph, load, name_nodes, save, unused
from .inputs import require_float

Layout = Literal["auto", "nchw", "nhwc"]

OPSET_RANGE = range(17, 21)
OPSET = 20
EPSILON = 1e-6
_FLOATS = {TensorProto.FLOAT: np.float32, TensorProto.FLOAT16: np.float16}

# Mean and standard deviation by which pixel values, from 0 to 255, are normalised.
_IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
_CLIP = ((122.7709, 116.7460, 104.0937), (68.5005, 66.6322, 70.3232))
NORMALISATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": _IMAGENET,
    "half": ((127.5,) * 3, (127.5,) * 3),
    "unit": ((0.0,) * 3, (255.0,) * 3),
    "clip": _CLIP,
    "raw": ((0.0,) * 3, (1.0,) * 3),
}


@dataclass(frozen=True, slots=True)
class InputForm:
    """What a classifier expects of its input.

    Attributes:
        mean: what is taken off each channel's pixel values, which go from 0 to 255, RGB.
        std: what they are then divided by.
        layout: order of the axes; ``auto`` goes by where the 3 channels are.
        bgr: whether it wants blue first.
        size: height and width, where the graph leaves them open.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    layout: Layout = "auto"
    bgr: bool = False
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.layout not in ("auto", "nchw", "nhwc"):
            msg = f"Expected the layout auto, nchw or nhwc, found '{self.layout}'."
            raise DataError(msg)
        numbers = np.asarray([*self.mean, *self.std], dtype=np.float64)
        if len(self.mean) != 3 or len(self.std) != 3 or not np.isfinite(numbers).all() or min(self.std) <= 0:
            msg = (
                "Expected three finite means and three positive standard deviations in pixel values from 0 to "
                f"255, found {self.mean} and {self.std}."
            )
            raise DataError(msg)


@dataclass(frozen=True, slots=True)
class Adopted:
    """What was made of a classifier.

    Attributes:
        height: rows of its input, in pixels.
        width: columns.
        classes: number of logits.
        features: size of the embedding.
        changed: what was done to it, a sentence each.
    """

    height: int
    width: int
    classes: int
    features: int
    changed: tuple[str, ...]


def is_student(model: onnx.ModelProto) -> bool:
    """Tell whether a graph has this project's form already."""
    graph = Graph(model)
    return (
        graph.inputs == ("image",)
        and graph.types.get("image") == TensorProto.UINT8
        and {EMBEDDING, LOGITS} <= set(graph.outputs)
    )


def adopt(source: Path, out: Path, form: InputForm | None = None, *, output: str | None = None) -> Adopted:
    """Write a classifier in this project's form; same inputs, same bytes.

    Args:
        source: the ONNX classifier: one image in, one row of logits or probabilities a class out.
        out: where the result is written.
        form: how its input is normalised and laid out; not needed for a graph that has this form already.
        output: name of the output with the logits, where there are several.

    Raises:
        DataError: the graph is no image classifier, is quantized already, or ``form`` is needed and missing.
    """
    model = load(source)
    require_float(model, source)
    _refuse_unknown(model, source)
    changed: list[str] = []
    if is_student(model):
        changed.append("it has this project's form already")
    else:
        if form is None:
            msg = f"{source} takes float images: say how its input is normalised (mean and std)."
            raise DataError(msg)
        model = _modern(model, source, changed)
        layout = _fix_input(model, source, form, changed)
        _take_logits(model, source, output, changed)
        _add_embedding(model)
        _prepend(model, form, layout, changed)
    _strip(model)
    graph = Graph(model)
    height, width = _image_size(graph, source)
    classes, features = (_width(graph, name, source) for name in (LOGITS, EMBEDDING))
    save(model, out)
    return Adopted(height, width, classes, features, tuple(changed))


def _refuse_unknown(model: onnx.ModelProto, where: Path) -> None:
    """Refuse operators that no engine here has."""
    for node in model.graph.node:
        if node.domain not in STANDARD_DOMAINS | {"com.microsoft", "ai.onnx.ml"}:
            msg = (
                f"Expected ONNX operators in {where}, found {node.domain}.{node.op_type} at {node.name!r}: no engine "
                "here has it. Export the classifier without operators of one's own."
            )
            raise DataError(msg)


def _modern(model: onnx.ModelProto, where: Path, changed: list[str]) -> onnx.ModelProto:
    """Bring the opset into the range that every part downstream reads."""
    version = next((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), 0)
    if version in OPSET_RANGE:
        return model
    try:
        converted: onnx.ModelProto = onnx.version_converter.convert_version(model, OPSET)
    except Exception as error:  # the converter raises plain runtime errors of its own
        msg = (
            f"{where} has opset {version}; expected {OPSET_RANGE.start} to {OPSET_RANGE.stop - 1}, and onnx cannot "
            f"convert it: {first_line(error)}. Export it with opset {OPSET}."
        )
        raise DataError(msg) from error
    name_nodes(converted)
    changed.append(f"opset {version} to {OPSET}")
    return converted


def _fix_input(model: onnx.ModelProto, where: Path, form: InputForm, changed: list[str]) -> Layout:
    """Give the one image input a fixed shape with one image; return the order of its axes."""
    graph = Graph(model)
    images = [name for name in graph.inputs if len(graph.shapes.get(name, ())) == 4]
    if len(graph.inputs) != 1 or not images or graph.types[images[0]] not in (*_FLOATS, TensorProto.UINT8):
        found = {name: graph.shapes.get(name) for name in graph.inputs}
        msg = (
            f"Expected one image input of rank 4 (float32, float16 or uint8) in {where}, found {found}: export "
            "the classifier alone."
        )
        raise DataError(msg)
    shape = list(graph.shapes[images[0]])
    layout = form.layout
    if layout == "auto":
        candidates = [name for name, axis in (("nchw", 1), ("nhwc", 3)) if shape[axis] == 3]
        if len(candidates) != 1:
            msg = f"Cannot tell the layout of the input {images[0]!r} of shape {shape} in {where}: say nchw or nhwc."
            raise DataError(msg)
        layout = "nchw" if candidates[0] == "nchw" else "nhwc"
    rows = 2 if layout == "nchw" else 1
    if shape[0] not in (None, 1):
        changed.append(f"batch of {shape[0]} to 1")
    shape[0] = 1
    for axis, size in zip((rows, rows + 1), form.size or (None, None), strict=True):
        if shape[axis] is None:
            shape[axis] = size
        elif size is not None and shape[axis] != size:
            msg = f"{where} has images of fixed size {shape[rows : rows + 2]}, which is not {form.size}: leave it out."
            raise DataError(msg)
    if None in shape:
        msg = f"The input of {where} has the open shape {shape}: give the image size."
        raise DataError(msg)
    value = next(item for item in model.graph.input if item.name == images[0])
    value.type.tensor_type.ClearField("shape")
    for dim in shape:
        value.type.tensor_type.shape.dim.add().dim_value = dim or 0
    del model.graph.value_info[:]
    for item in model.graph.output:
        item.type.tensor_type.ClearField("shape")
    return layout


def _take_logits(model: onnx.ModelProto, where: Path, output: str | None, changed: list[str]) -> None:
    """Leave one output, called ``logits``, and no softmax before it."""
    graph = Graph(model)
    name = output or (graph.outputs[0] if len(graph.outputs) == 1 else "")
    if name not in graph.outputs:
        msg = (
            f"Expected {'the output ' + repr(output) if output else 'one output'} in {where}, found "
            f"{list(graph.outputs)}: say which one holds the logits."
        )
        raise DataError(msg)
    maker = graph.producers.get(name)
    if maker is not None and maker.op_type in ("Softmax", "LogSoftmax"):
        name = maker.input[0]
        changed.append(f"{maker.op_type} taken off the end")
    elif maker is not None and maker.op_type == "Sigmoid":
        msg = f"{where} ends in a Sigmoid: it marks classes independently, and the guard needs one class an image."
        raise DataError(msg)
    _rename(model, name)
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, None))
    _drop_dead(model)


def _rename(model: onnx.ModelProto, name: str) -> None:
    """Call a tensor ``logits``, and whatever had that name something else."""
    graph = Graph(model)
    if name == LOGITS:
        return
    names = {*graph.producers, *graph.constants, *graph.inputs}
    swap = {name: LOGITS, LOGITS: unused(f"{LOGITS}/inner", names)}
    for node in model.graph.node:
        for names_of in (node.input, node.output):
            for index, tensor in enumerate(names_of):
                names_of[index] = swap.get(tensor, tensor)
    for item in model.graph.initializer:
        item.name = swap.get(item.name, item.name)


def _drop_dead(model: onnx.ModelProto) -> None:
    graph = Graph(model)
    alive = graph.ancestors(LOGITS)
    kept = onnx.GraphProto(node=[node for node in model.graph.node if node.name in alive])
    del model.graph.node[:]
    model.graph.node.extend(kept.node)


def _add_embedding(model: onnx.ModelProto) -> None:
    """Append ``embedding``: unit rows of what the last layer reads, or of the logits where that is no row."""
    graph = Graph(model)
    node = graph.producers[LOGITS]
    while node.op_type not in LINEARS and (maker := graph.producers.get(node.input[0])) is not None:
        node = maker
    features = node.input[0] if node.op_type in LINEARS else LOGITS
    if len(graph.shapes.get(features, ())) != 2 or graph.types.get(features) != TensorProto.FLOAT:
        features = LOGITS
    taken = {*graph.producers, *graph.constants, *graph.inputs, *(item.name for item in model.graph.node)}
    norm, safe, epsilon, axes = (
        unused(f"vlkd/{part}", taken) for part in ("norm", "safe_norm", "epsilon", "axes")
    )
    model.graph.initializer.extend(
        [
            numpy_helper.from_array(np.asarray([1], dtype=np.int64), axes),
            numpy_helper.from_array(np.asarray(EPSILON, dtype=np.float32), epsilon),
        ]
    )
    reduce = helper.make_node("ReduceL2", [features, axes], [norm], name=norm, keepdims=1)
    version = next(item.version for item in model.opset_import if item.domain in ("", "ai.onnx"))
    if version < 18:
        del reduce.input[1]
        reduce.attribute.append(helper.make_attribute("axes", [1]))
    model.graph.node.extend(
        [
            reduce,
            helper.make_node("Max", [norm, epsilon], [safe], name=safe),
            helper.make_node("Div", [features, safe], [EMBEDDING], name=unused("vlkd/unit", taken)),
        ]
    )
    model.graph.output.insert(0, helper.make_tensor_value_info(EMBEDDING, TensorProto.FLOAT, None))


def _prepend(model: onnx.ModelProto, form: InputForm, layout: Layout, changed: list[str]) -> None:
    """Put uint8 pixels, normalisation and layout before the graph's own input."""
    graph = Graph(model)
    inner = graph.inputs[0]
    wanted, shape = graph.types[inner], graph.shapes[inner]
    taken = {*graph.producers, *graph.constants, *graph.inputs}
    if inner == "image":
        inner = unused("image/inner", taken)
        for node in model.graph.node:
            for index, name in enumerate(node.input):
                node.input[index] = inner if name == "image" else name
    names = {
        part: unused(f"vlkd/{part}", taken) for part in ("float", "centred", "scaled", "order", "turned")
    }
    constants = {
        "vlkd/mean": np.asarray(form.mean, dtype=np.float32).reshape(1, 1, 1, 3),
        "vlkd/std": 1.0 / np.asarray(form.std, dtype=np.float32).reshape(1, 1, 1, 3),
    }
    nodes: list[onnx.NodeProto] = []

    def step(operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    # TensorRT wants Cast to be the first reader of a uint8 input.
    at = step("Cast", ["image"], names["float"], to=TensorProto.FLOAT)
    if wanted != TensorProto.UINT8:
        at = step("Sub", [at, "vlkd/mean"], names["centred"])
        at = step("Mul", [at, "vlkd/std"], names["scaled"])
        changed.append(f"pixels - {list(form.mean)} / {list(form.std)} inside the graph")
    if form.bgr:
        constants["vlkd/bgr"] = np.asarray([2, 1, 0], dtype=np.int64)
        at = step("Gather", [at, "vlkd/bgr"], names["order"], axis=3)
    if layout == "nchw":
        at = step("Transpose", [at], names["turned"], perm=[0, 3, 1, 2])
    if wanted != TensorProto.FLOAT:
        at = step("Cast", [at], inner, to=wanted)
    else:
        nodes[-1].output[0] = inner
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    rows = 2 if layout == "nchw" else 1
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, [1, *shape[rows : rows + 2], 3])
    fresh = onnx.GraphProto(node=[*nodes, *model.graph.node])
    del model.graph.node[:], model.graph.input[:]
    model.graph.node.extend(fresh.node)
    model.graph.input.append(image)
    del model.graph.value_info[:]


def _image_size(graph: Graph, where: Path) -> tuple[int, int]:
    shape = graph.shapes.get("image", ())
    if len(shape) != 4 or None in shape or shape[0] != 1 or shape[3] != 3:
        msg = f"Expected the input image (1, H, W, 3) in {where}, found {shape}."
        raise DataError(msg)
    return int(shape[1] or 0), int(shape[2] or 0)


def _width(graph: Graph, name: str, where: Path) -> int:
    shape = graph.shapes.get(name, ())
    if len(shape) != 2 or shape[1] is None or graph.types.get(name) != TensorProto.FLOAT:
        msg = (
            f"Expected {name} as one float32 row of fixed length in {where}, found shape {shape or 'unknown'} of "
            f"type {graph.types.get(name)}: export the classifier with a fixed number of classes."
        )
        raise DataError(msg)
    return int(shape[1])


def _strip(model: onnx.ModelProto) -> None:
    """Write the shapes of the outputs down and drop what names this machine's files."""
    shapes = Graph(model).shapes
    for item in model.graph.output:
        shape = shapes.get(item.name)
        if shape is not None:
            kind = helper.make_tensor_type_proto(
                TensorProto.FLOAT, [1 if dim is None else dim for dim in shape]
            )
            item.type.CopyFrom(kind)
    del model.metadata_props[:]
    model.doc_string = ""
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
