"""What can be done to a float graph in one step, as values: which numbers, which ranges, what stays float."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from vlkd_runtime.errors import ConfigError

from .calibrated import Calibration
from .half import HalfReport
from .qdq import FP8
from .quantize import QuantizationReport
from .ranges import METHODS, Method

Dialect = Literal["tensorrt", "cpu"]
Kind = Literal["int8", "dynamic", "weights8", "weights4", "fp16", "fp8"]

NAMES = (
    *(f"int8-{method}" for method in METHODS),
    *("int8-dynamic", "weights8", "weights4", "fp16", "fp8"),
)
# What somebody may look for here who has read that a build does it.
_BY_TRAINING = ("prune", "macs", "size", "latency", "sparse", "2:4", "2in4")
# Where each step makes sense; ranges taken at run time and blocks of few bits are ONNX Runtime's own.
_ONLY: dict[Kind, Dialect] = {
    "dynamic": "cpu",
    "weights8": "cpu",
    "weights4": "cpu",
    "fp16": "tensorrt",
    "fp8": "tensorrt",
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """One way to compress.

    Attributes:
        kind: the number format, and for the CPU whether ranges are fixed or taken at run time.
        dialect: for which engine the graph is written.
        method: how activation ranges are chosen, for ``int8``.
        keep_float: convolutions and linear layers that stay float.
        layers: how many there are to quantize, for the words.
    """

    kind: Kind
    dialect: Dialect
    method: Method = "percentile"
    keep_float: tuple[str, ...] = ()
    layers: int = 0

    @classmethod
    def named(cls, name: str, dialect: Dialect) -> Recipe:
        """The recipe of that name.

        Raises:
            ConfigError: no such recipe, or not in this dialect.
        """
        if name not in NAMES:
            msg = f"Expected a candidate of {', '.join(NAMES)}, found '{name}'."
            if name.startswith(_BY_TRAINING):
                msg += (
                    " Channels and weights are taken out of a student that can be trained again: set compress.prune in "
                    "vlkd.toml and run vlkd-edge build. A graph alone cannot be pruned and recovered."
                )
            raise ConfigError(msg)
        head, _, tail = name.partition("-")
        recipe = cls("dynamic", dialect) if tail == "dynamic" else cls(head, dialect)  # type: ignore[arg-type]
        if tail in METHODS:
            recipe = replace(recipe, method=tail)
        wanted = _ONLY.get(recipe.kind, dialect)
        if wanted != dialect:
            msg = f"The candidate '{name}' is written for {wanted} only, found dialect '{dialect}'."
            raise ConfigError(msg)
        return recipe

    def keeping(self, layers: Sequence[str], total: int) -> Recipe:
        """The same with these layers in float."""
        return replace(self, keep_float=tuple(sorted(layers)), layers=total)

    @property
    def name(self) -> str:
        """Short and unique among recipes for one model and one dialect."""
        plain = {"int8": f"int8-{self.method}", "dynamic": "int8-dynamic"}.get(self.kind, self.kind)
        if not self.keep_float:
            return plain
        # Two rungs may keep as many layers, but not the same ones.
        mark = hashlib.sha256("\0".join(self.keep_float).encode()).hexdigest()[:4]
        return f"{plain}-float{len(self.keep_float)}-{mark}"

    @property
    def steps(self) -> tuple[str, ...]:
        """What is done, in words."""
        engine = {"tensorrt": "TensorRT's dialect", "cpu": "ONNX Runtime's CPU dialect"}[self.dialect]
        words = {
            "int8": f"INT8 in {engine}, {self.method} ranges; projection and class-vector product in float32",
            "dynamic": f"INT8 linear layers in {engine}, ranges taken at run time",
            "weights8": "linear layers with INT8 weights in blocks, float activations",
            "weights4": "linear layers with INT4 weights in blocks, float activations",
            "fp16": "float16 weights and activations; embedding norm and class-vector product in float32",
            "fp8": f"FP8 (E4M3) in {engine}; projection and class-vector product in float32",
        }
        if not self.keep_float:
            return (words[self.kind],)
        return words[self.kind], f"{len(self.keep_float)} of {self.layers} layers kept in float"


def make(recipe: Recipe, calibration: Calibration, out: Path) -> QuantizationReport | HalfReport:
    """Write what a recipe makes of a graph.

    Raises:
        CalibrationError: activations that are not finite.
        DataError: a layer to keep in float does not exist.
        RefusalError: nothing is left to quantize, float16 would overflow, or a rule of the dialect is broken.
    """
    from .cpu import quantize_dynamic_for_cpu, quantize_for_cpu, quantize_weights_for_cpu
    from .half import to_float16
    from .quantize import quantize_for_tensorrt

    keep = recipe.keep_float
    if recipe.kind == "dynamic":
        return quantize_dynamic_for_cpu(calibration, out, keep_float=keep)
    if recipe.kind in ("weights8", "weights4"):
        return quantize_weights_for_cpu(
            calibration, out, bits=8 if recipe.kind == "weights8" else 4, keep_float=keep
        )
    if recipe.kind == "fp16":
        return to_float16(calibration.model, calibration.images, out, keep_float=keep)
    if recipe.kind == "fp8":
        # FP8's steps grow with the value, so that cutting outliers off gains nothing.
        return quantize_for_tensorrt(
            calibration.model, calibration, out, method="minmax", keep_float=keep, form=FP8
        )
    if recipe.dialect == "cpu":
        return quantize_for_cpu(calibration, out, method=recipe.method, keep_float=keep)
    return quantize_for_tensorrt(calibration.model, calibration, out, method=recipe.method, keep_float=keep)
