from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from vlkd_compress.adopt import NORMALISATIONS, InputForm, adopt
from vlkd_compress.graph import Graph, load
from vlkd_runtime.errors import DataError

MEAN, STD = NORMALISATIONS["imagenet"]
FORM = InputForm(MEAN, STD)


def classifier(
    path: Path,
    *,
    layout: str = "nchw",
    batch: int | str = 1,
    side: int | str = 16,
    kind: int = TensorProto.FLOAT,
    tail: str = "",
    output: str = "scores",
    opset: int = 18,
    extra: bool = False,
) -> Path:
    """Write a foreign classifier: convolution, mean over the picture, one linear layer, maybe a softmax."""
    random = np.random.default_rng(5)
    dtype = np.float16 if kind == TensorProto.FLOAT16 else np.float32
    constants = {
        "w": random.normal(size=(8, 3, 3, 3)).astype(dtype),
        "v": random.normal(size=(4, 8)).astype(dtype),
        "b": random.normal(size=4).astype(dtype),
        "space": np.asarray([2, 3]),
    }
    nodes = []
    source = "input"
    if layout == "nhwc":
        nodes.append(helper.make_node("Transpose", ["input"], ["turned"], perm=[0, 3, 1, 2]))
        source = "turned"
    nodes += [
        helper.make_node("Conv", [source, "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("ReduceMean", ["r", "space"], ["features"], keepdims=0),
        helper.make_node("Gemm", ["features", "v", "b"], ["linear"], transB=1),
    ]
    last = "linear"
    if kind == TensorProto.FLOAT16:
        nodes.append(helper.make_node("Cast", [last], ["wide"], to=TensorProto.FLOAT))
        last = "wide"
    nodes.append(helper.make_node(tail or "Identity", [last], [output]))
    shape = [batch, 3, side, side] if layout == "nchw" else [batch, side, side, 3]
    outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, [batch, 4])]
    if extra:
        outputs.append(helper.make_tensor_value_info("features", kind, [batch, 8]))
    graph = helper.make_graph(
        nodes,
        "foreign",
        [helper.make_tensor_value_info("input", kind, shape)],
        outputs,
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


def picture(seed: int = 0, side: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (1, side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("options", "form"),
    [
        pytest.param({}, FORM, id="nchw"),
        pytest.param({"layout": "nhwc"}, FORM, id="nhwc"),
        pytest.param({"batch": "N"}, FORM, id="open batch"),
        pytest.param({"batch": 4}, FORM, id="fixed batch"),
        pytest.param({"side": "S"}, InputForm(MEAN, STD, size=(16, 16)), id="open size"),
        pytest.param({"output": "logits"}, FORM, id="a name of ours"),
        pytest.param({"tail": "Softmax"}, FORM, id="softmax"),
        pytest.param({"kind": TensorProto.FLOAT16}, FORM, id="float16"),
        pytest.param({}, InputForm(MEAN, STD, bgr=True), id="blue first"),
    ],
)
def test_pixels_in_give_the_classifiers_own_logits(
    options: dict[str, Any], form: InputForm, tmp_path: Path
) -> None:
    source = classifier(tmp_path / "foreign.onnx", **options)
    found = adopt(source, tmp_path / "ours.onnx", form)
    assert (found.height, found.width, found.classes, found.features) == (
        16,
        16,
        4,
        4 if options.get("kind") else 8,
    )
    image = picture()
    embedding, logits = ort.InferenceSession(tmp_path / "ours.onnx").run(
        ["embedding", "logits"], {"image": image}
    )
    assert np.linalg.norm(embedding) == pytest.approx(1.0, abs=1e-5)
    # The obvious way: normalise outside, run the foreign graph.
    values = ((image.astype(np.float64) - MEAN) / STD).astype(np.float32)
    values = values[..., ::-1] if form.bgr else values
    values = values if options.get("layout") == "nhwc" else values.transpose(0, 3, 1, 2)
    if options.get("kind") == TensorProto.FLOAT16:
        values = values.astype(np.float16)
    values = np.repeat(values, options["batch"], axis=0) if options.get("batch") == 4 else values
    session = ort.InferenceSession(source)
    (wanted,) = session.run([session.get_outputs()[0].name], {"input": np.ascontiguousarray(values)})
    if options.get("tail") == "Softmax":
        logits = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    tolerance = 0.05 if options.get("kind") else 1e-4
    assert np.abs(logits - wanted[:1]).max() < tolerance


def test_the_last_layer_stands_for_the_class_vectors(tmp_path: Path) -> None:
    adopt(classifier(tmp_path / "foreign.onnx"), tmp_path / "ours.onnx", FORM)
    graph = Graph(load(tmp_path / "ours.onnx"))
    head = graph.head()
    assert head is not None and not head.projection
    operators = {node.name: node.op_type for node in graph.model.graph.node}
    assert {operators[name] for name in head.class_product} == {"Gemm", "Identity"}
    assert {operators[name] for name in head.normalisation} == {"ReduceL2", "Max", "Div"}
    first = [node.op_type for node in graph.model.graph.node if "image" in node.input]
    assert first == ["Cast"]


def test_a_student_stays_as_it_is_and_same_inputs_give_the_same_bytes(
    float_model: Path, tmp_path: Path
) -> None:
    found = adopt(float_model, tmp_path / "a.onnx")
    assert found.changed == ("it has this project's form already",) and found.classes == 5
    adopt(float_model, tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    image = np.full((1, 32, 32, 3), 90, np.uint8)
    runs = [ort.InferenceSession(p).run(None, {"image": image}) for p in (float_model, tmp_path / "a.onnx")]
    assert all(np.array_equal(one, two) for one, two in zip(*runs, strict=True))


@pytest.mark.parametrize(
    ("options", "form", "output", "match"),
    [
        pytest.param({}, None, None, "say how its input is normalised", id="no normalisation"),
        pytest.param({"side": "S"}, FORM, None, "give the image size", id="open size"),
        pytest.param({"side": 3}, FORM, None, "Cannot tell the layout", id="ambiguous layout"),
        pytest.param({}, InputForm(MEAN, STD, size=(8, 8)), None, "fixed size \\[16, 16\\]", id="other size"),
        pytest.param({"extra": True}, FORM, None, "say which one holds the logits", id="two outputs"),
        pytest.param({}, FORM, "nose", "Expected the output 'nose'", id="unknown output"),
        pytest.param({"tail": "Sigmoid"}, FORM, None, "ends in a Sigmoid", id="sigmoid"),
    ],
)
def test_refusals(
    options: dict[str, Any], form: InputForm | None, output: str | None, match: str, tmp_path: Path
) -> None:
    source = classifier(tmp_path / "foreign.onnx", **options)
    with pytest.raises(DataError, match=match):
        adopt(source, tmp_path / "ours.onnx", form, output=output)
    assert not (tmp_path / "ours.onnx").exists()


@pytest.mark.parametrize(
    ("values", "match"),
    [
        pytest.param({"mean": (1.0,), "std": STD}, "three finite means", id="one mean"),
        pytest.param({"mean": MEAN, "std": (1.0, 0.0, 1.0)}, "positive standard deviations", id="zero"),
        pytest.param({"mean": MEAN, "std": STD, "layout": "chw"}, "layout auto, nchw or nhwc", id="layout"),
    ],
)
def test_forms_that_cannot_be(values: dict[str, Any], match: str) -> None:
    with pytest.raises(DataError, match=match):
        InputForm(**values)


def test_an_operator_nobody_knows_is_named(tmp_path: Path) -> None:
    model = onnx.load(classifier(tmp_path / "foreign.onnx"))
    model.graph.node[1].op_type, model.graph.node[1].domain = "Sharpen", "some.where"
    model.opset_import.append(helper.make_opsetid("some.where", 1))
    (tmp_path / "odd.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(DataError, match=r"found some\.where\.Sharpen at"):
        adopt(tmp_path / "odd.onnx", tmp_path / "ours.onnx", FORM)
