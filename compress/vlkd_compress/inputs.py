"""What each compression step asks of its model and of its calibration images before it starts.

Letters used in shapes: H and W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from vlkd_runtime.errors import CalibrationError, DataError

from .graph import Graph, Head

QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
INTEGER = ("QLinear", "MatMulInteger", "ConvInteger", "MatMulNBits", "QGemm", "DynamicQuantizeMatMul")


def require_float(model: onnx.ModelProto, where: Path) -> None:
    """Refuse a graph that was quantized before: its scales would be quantized a second time.

    Raises:
        DataError: names the first operator that gives it away.
    """
    for node in model.graph.node:
        if node.op_type in QUANTIZERS or node.op_type.startswith(INTEGER):
            msg = (
                f"Expected a float model in {where}, found {node.op_type} at {node.name!r}: it is quantized "
                "already. Give the float model it was made from."
            )
            raise DataError(msg)


def require_head(graph: Graph, where: Path) -> Head:
    """Return the graph's head.

    Raises:
        DataError: the graph lacks the outputs that mark it.
    """
    head = graph.head()
    if head is None:
        msg = (
            f"Expected the outputs 'embedding' and 'logits' in {where}, found {list(graph.outputs)}: "
            "export the student again."
        )
        raise DataError(msg)
    return head


def check_images(images: Iterable[npt.NDArray[np.uint8]], graph: Graph) -> tuple[npt.NDArray[np.uint8], ...]:
    """Return calibration images as ``(1, H, W, 3)`` arrays that fit the graph's input.

    Raises:
        CalibrationError: there is none, one has another dtype or shape, or all are one and the same colour.
        DataError: the graph's input is not a uint8 image of fixed size.
    """
    shape = graph.shapes.get(graph.inputs[0], ()) if len(graph.inputs) == 1 else ()
    if not shape or None in shape or graph.types.get(graph.inputs[0]) != onnx.TensorProto.UINT8:
        msg = (
            f"Expected one uint8 input of fixed shape (1, H, W, 3), found {list(graph.inputs)} of shape "
            f"{shape}: export the student again."
        )
        raise DataError(msg)
    batch: list[npt.NDArray[np.uint8]] = []
    for index, image in enumerate(images):
        one = image[np.newaxis] if image.ndim == 3 else image
        if one.dtype != np.uint8 or one.shape != shape:
            msg = (
                f"Expected calibration images of dtype uint8 and shape {shape}, found {one.dtype} "
                f"{one.shape} at index {index}: prepare them with the model's own PreprocessSpec."
            )
            raise CalibrationError(msg)
        batch.append(np.ascontiguousarray(one))
    if not batch:
        msg = "Expected calibration images, found none: activation ranges cannot be made up."
        raise CalibrationError(msg)
    if min(int(one.min()) for one in batch) == max(int(one.max()) for one in batch):
        msg = f"Expected calibration images with some variation, found {len(batch)} of one flat colour."
        raise CalibrationError(msg)
    return tuple(batch)
