"""Counts what an engine made of a quantized graph: a layer planned in INT8 may still run in float."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnxruntime as ort

from vlkd_runtime.errors import DataError

_INTEGER = frozenset(
    {"QLinearConv", "QLinearMatMul", "QGemm", "QAttention", "ConvInteger", "MatMulInteger"}
    | {"MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulNBits"}
)
_FLOAT = frozenset(
    {"Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"}
)
_CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})


@dataclass(frozen=True, slots=True)
class FusedCount:
    """What runs in integers, by the engine's own optimised graph.

    Attributes:
        engine: whose graph it is, with its version.
        planned: convolutions and linear layers that were to be quantized.
        integer: convolutions and linear layers that run in integers.
        floating: those that run in float; the planned ones among them were not fused.
        conversions: quantizing and dequantizing operators that are left.
        operators: how often each operator occurs.
    """

    engine: str
    planned: int
    integer: int
    floating: int
    conversions: int
    operators: Mapping[str, int]

    @property
    def whole(self) -> bool:
        """Whether every planned layer runs in integers."""
        return self.integer >= self.planned

    def describe(self) -> str:
        """The counts in words."""
        return f"{self.integer} of {self.planned} planned layers in INT8, {self.floating} in float"


def count_fused(model: Path, planned: int) -> FusedCount:
    """Let ONNX Runtime's CPU provider optimise a graph as it does when it loads it, and count the result.

    Raises:
        DataError: ONNX Runtime cannot load the graph.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory(prefix="vlkd-fused-") as folder:
        optimised = Path(folder) / "optimised.onnx"
        options.optimized_model_filepath = str(optimised)
        try:
            # As the runtime's engine opens it.
            ort.InferenceSession(
                model.read_bytes(),
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=["WeightBiasQuantization"],
            )
        except Exception as error:  # ONNX Runtime raises a dozen types of its own, all plain exceptions.
            msg = f"{model}: ONNX Runtime {ort.__version__} cannot load it: {error}"
            raise DataError(msg) from error
        operators = Counter(node.op_type for node in onnx.load(optimised).graph.node)
    return FusedCount(
        engine=f"ONNX Runtime {ort.__version__}, CPU",
        planned=planned,
        integer=sum(operators[name] for name in _INTEGER),
        floating=sum(operators[name] for name in _FLOAT),
        conversions=sum(operators[name] for name in _CONVERSIONS),
        operators=dict(sorted(operators.items())),
    )
