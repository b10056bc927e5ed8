"""Other opsets, batches and layouts of a graph answer what the graph answers, or are refused with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from vlkd_compress.graph import name_nodes
from vlkd_compress.interface import Interface, Profile, change, check_same
from vlkd_compress.preflight.checks import read_profile
from vlkd_runtime.errors import DataError, ParityError, RefusalError

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def model(float_model: Path) -> onnx.ModelProto:
    """The student with what makes batches and opsets hard: a class token beside activations, and a Gelu."""
    found = onnx.load(float_model)
    name_nodes(found)
    token = np.random.default_rng(1).normal(size=(1, 2, 24)).astype(np.float32)
    found.graph.initializer.append(numpy_helper.from_array(token, "token"))
    at = next(index for index, node in enumerate(found.graph.node) if node.name == "linear")
    found.graph.node[at].input[0] = "gelu"
    found.graph.node.insert(
        at, helper.make_node("Concat", ["token", "rows"], ["with_token"], name="cat", axis=1)
    )
    found.graph.node.insert(at + 1, helper.make_node("Gelu", ["with_token"], ["gelu"], name="gelu"))
    for node in found.graph.node:
        if node.name == "mixed":
            node.input[1] = "with_token"
    found.metadata_props.add(key="vlkd.teacher", value="test")
    return found


WANTED = [
    Interface(),
    Interface(opset=19),
    Interface(opset=17),
    Interface(batch=4),
    Interface(batch=Profile(1, 2, 5)),
    Interface(layout="nchw"),
    Interface(opset=19, batch=Profile(1, 4, 4), layout="nchw", float_input=True, input_name="pixel_values"),
]


@pytest.mark.parametrize("wanted", WANTED, ids=str)
def test_another_interface_gives_the_same_answers(model: onnx.ModelProto, wanted: Interface) -> None:
    before = model.SerializeToString()
    changed = change(model, wanted)
    assert model.SerializeToString() == before
    assert check_same(model, changed, wanted, IMAGES, max_logit_gap=1e-4) <= 1e-4
    assert changed.opset_import[0].version == (wanted.opset or 20)
    image = changed.graph.input[0]
    dims = [dim.dim_value or dim.dim_param for dim in image.type.tensor_type.shape.dim]
    batch = wanted.batch if isinstance(wanted.batch, int) else "batch"
    assert dims == ([batch, 3, 32, 32] if wanted.layout == "nchw" else [batch, 32, 32, 3])
    assert (image.name, image.type.tensor_type.elem_type) == (
        wanted.input_name,
        1 if wanted.float_input else 2,
    )
    assert {item.key: item.value for item in changed.metadata_props}["vlkd.teacher"] == "test"
    assert read_profile(changed) == (wanted.batch if isinstance(wanted.batch, Profile) else None)
    operators = {node.op_type for node in changed.graph.node}
    assert ("Gelu" in operators) == ((wanted.opset or 20) >= 20)


def test_channels_first_drops_the_transpose_or_undoes_it(model: onnx.ModelProto) -> None:
    changed = change(model, Interface(layout="nchw"))
    assert "nchw" not in {node.name for node in changed.graph.node}
    other = onnx.ModelProto()
    other.CopyFrom(model)
    at = next(index for index, node in enumerate(other.graph.node) if node.name == "nchw")
    # Someone else's graph scales before it transposes.
    other.graph.initializer.append(numpy_helper.from_array(np.float32(1.0), "one"))
    other.graph.node.insert(at, helper.make_node("Mul", ["cast", "one"], ["scaled"], name="scaled"))
    other.graph.node[at + 1].input[0] = "scaled"
    wanted = Interface(layout="nchw")
    changed = change(other, wanted)
    assert [list(node.attribute[0].ints) for node in changed.graph.node if node.op_type == "Transpose"][
        :2
    ] == [
        [0, 2, 3, 1],
        [0, 3, 1, 2],
    ]
    assert check_same(other, changed, wanted, IMAGES, max_logit_gap=0.0) == 0.0


def set_shape(model: onnx.ModelProto, name: str, value: Any) -> None:
    for item in model.graph.initializer:
        if item.name == name:
            item.CopyFrom(numpy_helper.from_array(np.asarray(value, np.int64), name))


def test_a_batch_that_is_fixed_inside_is_refused(model: onnx.ModelProto) -> None:
    stubborn = onnx.ModelProto()
    stubborn.CopyFrom(model)
    set_shape(stubborn, "token_shape", [24, 1, 16])  # the batch is no longer the first size
    for node in stubborn.graph.node:
        if node.name == "rows":
            node.attribute[0].CopyFrom(helper.make_attribute("perm", [1, 2, 0]))
    with pytest.raises(RefusalError, match=r"(?s)batch=4.*|takes 4 images.*--batch 1"):
        change(stubborn, Interface(batch=4))


def test_tanh_gelu_and_missing_casts_are_named(model: onnx.ModelProto) -> None:
    other = onnx.ModelProto()
    other.CopyFrom(model)
    gelu = next(node for node in other.graph.node if node.op_type == "Gelu")
    gelu.attribute.append(helper.make_attribute("approximate", "tanh"))
    with pytest.raises(RefusalError, match="found the tanh form at gelu"):
        change(other, Interface(opset=19))
    other.graph.input[0].name = other.graph.node[0].input[0] = "picture"
    with pytest.raises(DataError, match="Expected one Cast to read the input 'image', found nothing"):
        change(other, Interface(layout="nchw"))
    with pytest.raises(DataError, match="found 'rows' in use"):
        change(model, Interface(input_name="rows"))


def test_a_graph_that_answers_otherwise_is_an_error(model: onnx.ModelProto) -> None:
    wanted = Interface()
    changed = change(model, wanted)
    for item in changed.graph.initializer:
        if item.name == "logit_scale":
            item.CopyFrom(numpy_helper.from_array(np.float32(31.0), "logit_scale"))
    with pytest.raises(ParityError, match=r"answers otherwise .* tolerated 0\.001"):
        check_same(model, changed, wanted, IMAGES, max_logit_gap=1e-3)
