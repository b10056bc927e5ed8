"""Which of a bundle's graphs suits an engine, and why.

One graph cannot serve all: what TensorRT fuses, ONNX Runtime's CPU provider runs slowly, and what that one
fuses, TensorRT refuses.

References:
    https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-quantized-types.html;
    https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .engines.base import Execution
from .errors import ConfigError, FallbackError, UnavailableError
from .manifest import Variant

_TENSORRT_INT8, _CPU_INT8 = "INT8 for TensorRT", "INT8 for the CPU"
_FP8, _FP16, _FP32 = "FP8 for TensorRT", "float16", "float32"

# For each engine, best first. What is not there is refused by the engine.
_ORDER: dict[str, tuple[tuple[str, str], ...]] = {
    "ort-cpu": (
        (_CPU_INT8, "the CPU provider fuses it whole"),
        (_FP32, "what the CPU provider is fastest at without INT8 of its own"),
        (_TENSORRT_INT8, "the CPU provider runs it, but fuses only part of it and is slower than in float32"),
        (_FP16, "the CPU provider runs it, with conversions around each operator"),
        (_FP8, "the CPU provider computes it in float between the conversions, for checking only"),
    ),
    "ort-cuda": (
        (_FP16, "half the memory traffic of float32"),
        (_FP32, "exact, and slower than float16"),
        (_TENSORRT_INT8, "the CUDA provider computes it in float between the conversions"),
        (_CPU_INT8, "the CUDA provider computes it in float between the conversions"),
        (_FP8, "the CUDA provider computes it in float between the conversions"),
    ),
    "ort-tensorrt-rtx": (
        (_FP16, "TensorRT for RTX has no INT8 convolutions"),
        (_FP32, "exact, and slower than float16"),
        (_FP8, "TensorRT for RTX takes it where the GPU has it, and nobody timed that"),
        (_TENSORRT_INT8, "TensorRT for RTX has no INT8 convolutions and computes it in float"),
    ),
    "ort-tensorrt": (
        (_TENSORRT_INT8, "TensorRT fuses it whole"),
        (_FP8, "TensorRT runs it on tensor cores that have FP8"),
        (_FP16, "TensorRT runs it on tensor cores"),
        (_FP32, "exact, and the slowest here"),
    ),
}
_ORDER["tensorrt"] = _ORDER["ort-tensorrt"]
_ORDER["tensorrt-rtx"] = _ORDER["ort-tensorrt-rtx"]

# TensorRT may merge convolutions that read the same tensor into one layer.
_MERGED_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class Suited:
    """A variant as one engine sees it.

    Attributes:
        variant: The variant.
        reason: What the engine makes of it.
        whole: Whether the engine is meant to run the plan in full.
    """

    variant: Variant
    reason: str
    whole: bool


def rank_variants(variants: Sequence[Variant], engine: str, wanted: str | None = None) -> tuple[Suited, ...]:
    """Sort a bundle's variants for an engine, best first; those it refuses are left out.

    Args:
        variants: All of the bundle's.
        engine: A name of `vlkd_runtime.engines.ENGINE_NAMES`.
        wanted: The name of the only one to look at.

    Raises:
        ConfigError: The bundle has no variant of that name.
        UnavailableError: The engine can run none of them.
    """
    names = [variant.name for variant in variants]
    if wanted is not None and wanted not in names:
        msg = f"variant: expected one of {', '.join(names)}, found {wanted!r}; choose one of them"
        raise ConfigError(msg)
    order = _ORDER[engine]
    found = []
    for variant in variants:
        place = next((place for place, (kind, _) in enumerate(order) if kind == kind_of(variant)), None)
        if place is not None and wanted in (None, variant.name):
            found.append((place, Suited(variant, order[place][1], order[place][0] == _ORDER[engine][0][0])))
    if not found:
        what = ", ".join(f"{v.name} ({kind_of(v)})" for v in variants if wanted in (None, v.name))
        msg = f"engine {engine}: it takes none of the bundle's variants, which are {what}; build one for it"
        raise UnavailableError(msg)
    return tuple(suited for _, suited in sorted(found, key=lambda pair: pair[0]))


def kind_of(variant: Variant) -> str:
    """Put a variant into one of the kinds that engines are ranked for."""
    precision = variant.model.precision
    if precision.startswith("int8"):
        return _TENSORRT_INT8 if variant.model.dialect.startswith("tensorrt") else _CPU_INT8
    if precision.startswith(("float8", "fp8")):
        return _FP8
    return _FP16 if precision in ("float16", "fp16") else _FP32


def check_plan(suited: Suited, execution: Execution, engine: str, *, on_accelerator: bool = False) -> None:
    """Hold what an engine says it runs to what the bundle planned, and the caller asked for.

    Where the variant is only the best of a poor choice, such as TensorRT's INT8 on a CPU, no plan holds; that
    is said in the reason for taking it.

    Raises:
        FallbackError: Fewer INT8 operators were fused, or fewer layers run on the accelerator.
    """
    plan = suited.variant.model.plan
    where = f"engine {engine} ({execution.provider}), variant {suited.variant.name}"
    if suited.whole and plan.int8_ops and execution.int8_ops is not None:
        least = plan.int8_ops if engine.startswith("ort") else int(plan.int8_ops * _MERGED_SHARE)
        if execution.int8_ops < least:
            msg = (
                f"{where}: expected {plan.int8_ops} convolutions and linear layers in INT8, found "
                f"{execution.int8_ops}; the others fell back to float. Use another engine or build for this one"
            )
            raise FallbackError(msg)
    if on_accelerator and execution.dla_layers == 0:
        msg = (
            f"{where}: expected layers on the accelerator that dla_core asks for, found none; all "
            f"{execution.layers} fell back to the GPU. Leave dla_core out, or build for the accelerator"
        )
        raise FallbackError(msg)
    if plan.dla_share and engine == "tensorrt":
        share = (execution.dla_layers or 0) / max(execution.layers or 1, 1)
        if share < plan.dla_share:
            msg = (
                f"{where}: expected at least {plan.dla_share:.0%} of the layers on the accelerator, found "
                f"{share:.0%}; the others fell back to the GPU. Use another engine or build for this one"
            )
            raise FallbackError(msg)
