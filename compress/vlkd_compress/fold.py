"""Folds batch normalisation and constants away, so that scales are measured on the graph the device runs."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx
import onnxruntime as ort

from vlkd_runtime.errors import RefusalError, first_line

from .graph import name_nodes

STANDARD_DOMAINS = frozenset({"", "ai.onnx"})


def fold(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model after ONNX Runtime's hardware-independent rewrites.

    Only the basic level is asked for: higher levels introduce operators of ONNX Runtime's own.

    Raises:
        RefusalError: ONNX Runtime cannot load the model, or the result holds operators outside the ONNX standard, or
            changed its interface.
    """
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory(prefix="vlkd-fold-") as folder:
        target = Path(folder) / "folded.onnx"
        options.optimized_model_filepath = str(target)
        try:
            ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises a dozen types of its own, all plain exceptions
            msg = (
                f"Expected a graph that ONNX Runtime {ort.__version__} can run, found: "
                f"{first_line(error)[:300]}. Export the network with operators that it has."
            )
            raise RefusalError(msg) from error
        folded = onnx.load(target)
    foreign = sorted({node.domain for node in folded.graph.node} - STANDARD_DOMAINS)
    if foreign:
        msg = (
            f"Expected only standard ONNX operators after folding, found the domains {foreign}: TensorRT has "
            "no such operators. Export the network with standard operators or report this as a defect."
        )
        raise RefusalError(msg)
    _keep_interface(model, folded)
    return folded


def _keep_interface(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """Drop what ONNX Runtime added to the header, and see that inputs, outputs and opset stayed."""
    opset = [item for item in after.opset_import if item.domain in STANDARD_DOMAINS]
    del after.opset_import[:]
    after.opset_import.extend(opset)
    del after.metadata_props[:]
    for item in before.metadata_props:
        after.metadata_props.add(key=item.key, value=item.value)
    after.producer_name, after.producer_version = before.producer_name, before.producer_version
    del after.graph.value_info[:]
    name_nodes(after)
    for what in ("input", "output"):
        old, new = ([item.name for item in getattr(model.graph, what)] for model in (before, after))
        if old != new:
            msg = f"Expected the graph {what}s {old} after folding, found {new}: report this as a defect."
            raise RefusalError(msg)
