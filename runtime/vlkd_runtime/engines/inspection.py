"""Reads TensorRT's own account of an engine: which layers compute in INT8, which run on an accelerator.

Asking for a precision proves nothing; what the engine inspector lists is what runs. Its JSON differs between
versions, so that only what all of them have is read: a list of layers, with a type and the tensors going in.

References:
    https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/advanced.html (engine inspector).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .base import Execution

_WEIGHTED = ("conv", "gemm", "matmul", "matrixmultiply", "fullyconnected", "fully_connected")
# Regions that TensorRT's second compiler makes of many operators, whose inside is not listed.
_WHOLE = ("myelin", "foreignnode", "kgen")


def read_inspection(text: str, provider: str) -> Execution:
    """Count layers in the inspector's JSON."""
    try:
        layers = json.loads(text).get("Layers", [])
    except (ValueError, AttributeError):
        return Execution(provider, note="the engine inspector gave nothing that can be read")
    detailed = [layer for layer in layers if isinstance(layer, Mapping)]
    if not detailed:
        return Execution(provider, layers=len(layers), note="the engine keeps the names of its layers only")
    on_dla = sum(_is_dla(layer) for layer in detailed)
    int8 = sum(_is_weighted(layer) and _reads_int8(layer) for layer in detailed)
    whole = sum(_is_whole(layer) for layer in detailed)
    if whole or on_dla:
        what = (
            f"{whole + on_dla} of its layers are regions compiled whole, and their operators are not listed"
        )
        return Execution(provider, len(layers), int8 or None, on_dla, what)
    return Execution(provider, len(layers), int8, on_dla)


def _kind(layer: Mapping[str, Any]) -> str:
    return " ".join(str(layer.get(key, "")) for key in ("LayerType", "ParameterType")).lower()


def _is_dla(layer: Mapping[str, Any]) -> bool:
    return "dla" in _kind(layer).split() or str(layer.get("DeviceType", "")).upper() == "DLA"


def _is_whole(layer: Mapping[str, Any]) -> bool:
    return not _is_dla(layer) and any(word in _kind(layer) for word in _WHOLE)


def _is_weighted(layer: Mapping[str, Any]) -> bool:
    return any(word in _kind(layer) for word in _WEIGHTED)


def _reads_int8(layer: Mapping[str, Any]) -> bool:
    inputs = layer.get("Inputs", [])
    return any(
        "int8" in str(tensor.get(key, "")).lower().replace("uint8", "")
        for tensor in inputs
        if isinstance(tensor, Mapping)
        for key in ("Format/Datatype", "Datatype", "Format")
    )
