"""ONNX Runtime without its rewrites for the CPU: runs what is meant for other engines as it is written.

Seen in 1.32: with all rewrites on, the CPU provider answers wrongly on graphs with FP8 Q/DQ, while its plain
operators agree with the ONNX reference. Accuracy of such candidates is therefore taken from the plain ones.

Letters used in shapes: N images, H and W pixels, C classes, D embedding size.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from vlkd_runtime.engines import open_engine
from vlkd_runtime.engines.base import Engine, EngineInfo, EngineOutput


class PlainEngine:
    """An `Engine` of one image a run, for measuring accuracy at the desk."""

    def __init__(self, model: Path, threads: int | None = None) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads or 0
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._threads = threads

    @property
    def info(self) -> EngineInfo:
        """Say which engine this is."""
        return EngineInfo("ort-cpu-plain", "CPUExecutionProvider", ort.__version__, self._threads)

    def run(self, images: npt.NDArray[np.uint8]) -> EngineOutput:
        """Run one image, ``(1, H, W, 3)`` uint8."""
        embedding, logits = self._session.run(["embedding", "logits"], {"image": images})
        return EngineOutput(embedding, logits)

    def close(self) -> None:
        """Nothing to let go of before the object itself goes."""


def open_for_accuracy(model: Path, threads: int | None = None) -> Engine:
    """Open a candidate with the runtime's engine, or plainly where that one would answer wrongly."""
    graph = onnx.load(model).graph
    if any(item.data_type == onnx.TensorProto.FLOAT8E4M3FN for item in graph.initializer):
        return PlainEngine(model, threads)
    return open_engine(model, engine="ort-cpu", threads=threads)
