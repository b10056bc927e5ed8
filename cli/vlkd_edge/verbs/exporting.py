"""The verb that hands a bundle's network to other tools."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ..options import Json, stdout


class Form(str, Enum):
    """For which tool."""

    ONNX = "onnx"
    OPTIMUM = "optimum"
    TORCH_TENSORRT = "torch-tensorrt"


class Layout(str, Enum):
    """Order of the input's axes."""

    NHWC = "nhwc"
    NCHW = "nchw"


class Precision(str, Enum):
    """What a torch-tensorrt engine computes in."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"


def export(
    source: Annotated[
        Path,
        typer.Argument(metavar="SOURCE", help="Bundle folder, .vlkd archive, or a build's output folder."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write; a folder for optimum.")],
    form: Annotated[
        Form,
        typer.Option(
            "--format",
            help="onnx: one graph. optimum: a folder for optimum.onnxruntime and transformers pipelines. "
            "torch-tensorrt: the torch student compiled with torch_tensorrt.dynamo, from a build's folder.",
        ),
    ] = Form.ONNX,
    opset: Annotated[
        int | None, typer.Option(min=13, max=20, help="ONNX opset; the bundle's own if absent.")
    ] = None,
    batch: Annotated[str, typer.Option(help="Images a run: N, or smallest:usual:largest.")] = "1",
    layout: Annotated[Layout, typer.Option(help="Order of the input's axes.")] = Layout.NHWC,
    precision: Annotated[Precision, typer.Option(help="Of a torch-tensorrt engine.")] = Precision.FLOAT16,
    as_json: Json = False,
) -> None:
    """Write a bundle's network for other tools, checked on the bundle's golden images."""
    from .. import exporting

    request = exporting.Request(source, out, form.value, opset, batch, layout.value, precision.value)
    raise typer.Exit(exporting.export(request, as_json, stdout()))
