"""A small graph and what can be wrong with it, for the rules of the preflight."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vlkd_compress.preflight.checks import PROFILE_KEY

WIDTH = 16


def tiny(*, int8: bool = False, half: bool = False, batch: int | str = 1, opset: int = 20) -> onnx.ModelProto:
    """Two convolutions, a projection, a head; with Q/DQ on the second convolution, or in float16."""
    kind = np.float16 if half else np.float32
    random = np.random.default_rng(0)
    axes = {} if opset >= 18 else {"axes": [1]}
    constants = {
        "w1": random.normal(size=(WIDTH, 3, 3, 3)).astype(kind),
        "w2": random.normal(size=(WIDTH, WIDTH, 3, 3)).astype(kind),
        "b2": np.zeros(WIDTH, kind),
        "p": random.normal(size=(WIDTH, 8)).astype(np.float32),
        "axes": np.asarray([1], np.int64),
        "epsilon": np.asarray(1e-6, np.float32),
        "vectors": np.eye(8, 3, dtype=np.float32),
    }
    rows = [
        ("Cast", "cast", ["image"], {"to": TensorProto.FLOAT16 if half else TensorProto.FLOAT}),
        ("Transpose", "nchw", ["cast"], {"perm": [0, 3, 1, 2]}),
        ("Conv", "conv1", ["nchw", "w1"], {"pads": [1] * 4}),
        ("Relu", "relu", ["conv1"], {}),
    ]
    second = ["relu", "w2", "b2"]
    if int8:
        constants |= {
            "w2/int8": np.ones((WIDTH, WIDTH, 3, 3), np.int8),
            "w2/scale": np.full(WIDTH, 0.01, kind),
            "w2/zero": np.zeros(WIDTH, np.int8),
            "a/scale": np.asarray(0.1, kind),
            "a/zero": np.asarray(0, np.int8),
        }
        rows += [
            ("QuantizeLinear", "quantize", ["relu", "a/scale", "a/zero"], {}),
            ("DequantizeLinear", "dequantize", ["quantize", "a/scale", "a/zero"], {}),
            ("DequantizeLinear", "weight", ["w2/int8", "w2/scale", "w2/zero"], {"axis": 0}),
        ]
        second = ["dequantize", "weight", "b2"]
    rows += [
        ("Conv", "conv2", second, {"pads": [1] * 4}),
        ("GlobalAveragePool", "pool", ["conv2"], {}),
        ("Flatten", "flat", ["pool"], {}),
        *([("Cast", "float", ["flat"], {"to": TensorProto.FLOAT})] if half else []),
        ("MatMul", "projection", ["float" if half else "flat", "p"], {}),
        ("ReduceL2", "norm", ["projection", "axes"][: 1 + (opset >= 18)], {"keepdims": 1} | axes),
        ("Max", "safe", ["norm", "epsilon"], {}),
        ("Div", "embedding", ["projection", "safe"], {}),
        ("MatMul", "logits", ["embedding", "vectors"], {}),
    ]
    nodes = [
        helper.make_node(op, inputs, [name], name=name, **attributes) for op, name, inputs, attributes in rows
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, [batch, 8, 8, 3])],
        [
            helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [batch, 8]),
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 3]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    found: list[onnx.NodeProto] = [item for item in model.graph.node if item.name == name]
    return found[0]


def constant(model: onnx.ModelProto, name: str, value: np.ndarray) -> None:
    old = [item for item in model.graph.initializer if item.name == name]
    for item in old:
        model.graph.initializer.remove(item)
    model.graph.initializer.append(numpy_helper.from_array(value, name))


def insert(
    model: onnx.ModelProto, reader: str, slot: int, operator: str, *more: str, **attributes: object
) -> None:
    """Put a node named ``extra`` in front of one input of a node."""
    target = node(model, reader)
    fresh = helper.make_node(operator, [target.input[slot], *more], ["extra"], name="extra", **attributes)
    target.input[slot] = "extra"
    model.graph.node.insert([item.name for item in model.graph.node].index(reader), fresh)


def changed(change: Callable[[onnx.ModelProto], None], **options: object) -> onnx.ModelProto:
    model = tiny(**options)  # type: ignore[arg-type]
    change(model)
    return model


def attribute(name: str, key: str, value: object) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        target = node(model, name)
        for item in [item for item in target.attribute if item.name == key]:
            target.attribute.remove(item)
        target.attribute.append(helper.make_attribute(key, value))

    return change


def profile(text: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        helper.set_model_props(model, {PROFILE_KEY: text})

    return change


def open_sides(model: onnx.ModelProto) -> None:
    for axis, letter in ((1, "H"), (2, "W")):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = letter


def uint8_transpose(model: onnx.ModelProto) -> None:
    first, second = node(model, "cast"), node(model, "nchw")
    first.op_type, second.op_type = "Transpose", "Cast"
    moved = list(first.attribute)
    del first.attribute[:]
    first.attribute.extend(second.attribute)
    del second.attribute[:]
    second.attribute.extend(moved)


def asymmetric(model: onnx.ModelProto) -> None:
    constant(model, "a/zero", np.asarray(3, np.int8))


def hard_swish(model: onnx.ModelProto) -> None:
    insert(model, "conv2", 0, "HardSwish")


def quantized_bias(model: onnx.ModelProto) -> None:
    constant(model, "b2", np.zeros(WIDTH, np.int32))
    constant(model, "b2/scale", np.full(WIDTH, 0.001, np.float32))
    insert(model, "conv2", 2, "DequantizeLinear", "b2/scale", axis=0)


def one_weight_scale(model: onnx.ModelProto) -> None:
    constant(model, "w2/scale", np.asarray(0.01, np.float32))
    constant(model, "w2/zero", np.asarray(0, np.int8))
    del node(model, "weight").attribute[:]


def dequantize_at(reader: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        insert(model, reader, 0, "QuantizeLinear", "a/scale", "a/zero")
        node(model, "extra").output[0] = "extra/int8"
        back = helper.make_node(
            "DequantizeLinear", ["extra/int8", "a/scale", "a/zero"], ["extra"], name="back"
        )
        model.graph.node.insert([item.name for item in model.graph.node].index(reader), back)

    return change


def float_weight(model: onnx.ModelProto) -> None:
    node(model, "conv2").input[1] = "w2"


def mixed_types(model: onnx.ModelProto) -> None:
    constant(model, "epsilon", np.asarray(1e-6, np.float16))


def double(model: onnx.ModelProto) -> None:
    insert(model, "relu", 0, "Cast", to=TensorProto.DOUBLE)


def brain_float(model: onnx.ModelProto) -> None:
    insert(model, "pool", 0, "Cast", to=TensorProto.BFLOAT16)


def computed_shape(model: onnx.ModelProto) -> None:
    insert(model, "flat", 0, "Identity")
    node(model, "extra").op_type = "Reshape"
    node(model, "extra").input.append("shape")
    model.graph.node.insert(0, helper.make_node("Shape", ["image"], ["shape"], name="shape_of"))


def wide(model: onnx.ModelProto) -> None:
    for dim, size in zip(model.graph.input[0].type.tensor_type.shape.dim, (1, 16384, 16384, 3), strict=True):
        dim.dim_value = size


def long_row(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 8200


def pooled(window: int) -> Callable[[onnx.ModelProto], None]:
    return lambda model: insert(
        model, "conv2", 0, "MaxPool", kernel_shape=[window] * 2, pads=[window // 2] * 4, strides=[1, 1]
    )


def deconvolution(
    kernel: tuple[int, int], strides: list[int], **more: object
) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        constant(model, "w3", np.zeros((WIDTH, WIDTH, *kernel), np.float16))
        insert(model, "conv2", 0, "ConvTranspose", "w3", strides=strides, **more)

    return change


def huge_layer(model: onnx.ModelProto) -> None:
    """A dilated convolution over a wide image, whose rows fill the accelerator's buffer."""
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 1024
    attribute("conv2", "dilations", [8, 8])(model)


def big_kernel(model: onnx.ModelProto) -> None:
    constant(model, "w2", np.zeros((WIDTH, WIDTH, 33, 33), np.float16))
    attribute("conv2", "pads", [16] * 4)(model)
