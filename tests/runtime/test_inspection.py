"""TensorRT's own account of an engine."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vlkd_runtime.engines.base import Execution
from vlkd_runtime.engines.inspection import read_inspection


def layer(kind: str, dtype: str, **more: str) -> dict[str, Any]:
    return {"Name": kind, "LayerType": kind, "Inputs": [{"Format/Datatype": dtype}], **more}


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        pytest.param([], Execution("t", 0, note="the engine keeps the names of its layers only"), id="none"),
        pytest.param(
            ["conv1", "conv2"],
            Execution("t", 2, note="the engine keeps the names of its layers only"),
            id="names",
        ),
        pytest.param(
            [
                layer("CaskConvolution", "Thirty-two wide channel vectorized row major Int8 format"),
                layer("CaskConvolution", "Row major linear FP32"),
                layer("Reformat", "Row major Int8 format"),
                layer("CaskGemmMatrixMultiply", "Int8"),
                layer("CaskConvolution", "UInt8"),
            ],
            Execution("t", 5, 2, 0),
            id="int8",
        ),
        pytest.param(
            [layer("DLA", "Int8"), layer("Reformat", "Int8")],
            Execution(
                "t",
                2,
                None,
                1,
                "1 of its layers are regions compiled whole, and their operators are not listed",
            ),
            id="dla",
        ),
        pytest.param(
            [layer("Myelin", "Int8"), layer("CaskConvolution", "Int8")],
            Execution(
                "t", 2, 1, 0, "1 of its layers are regions compiled whole, and their operators are not listed"
            ),
            id="myelin",
        ),
    ],
)
def test_inspection(layers: list[Any], expected: Execution) -> None:
    assert read_inspection(json.dumps({"Layers": layers}), "t") == expected


@pytest.mark.parametrize("text", ["", "[]", "{", "null"])
def test_an_inspection_that_says_nothing(text: str) -> None:
    assert read_inspection(text, "t").note == "the engine inspector gave nothing that can be read"
