"""Inference engines, and the one function that opens them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ..errors import ConfigError, UnavailableError
from .base import (
    Considered,
    Engine,
    EngineInfo,
    EngineOptions,
    EngineOutput,
    Execution,
    OpenedEngine,
    Prebuilt,
    Selection,
)

__all__ = [
    "ENGINE_NAMES",
    "Considered",
    "Engine",
    "EngineInfo",
    "EngineOptions",
    "EngineOutput",
    "Execution",
    "OpenedEngine",
    "Prebuilt",
    "Selection",
    "engines_to_try",
    "open_engine",
]

# The fastest first, as far as one can know without measuring.
ENGINE_NAMES = ("tensorrt", "tensorrt-rtx", "ort-tensorrt", "ort-tensorrt-rtx", "ort-cuda", "ort-cpu")


def engines_to_try(engine: str) -> tuple[str, ...]:
    """Give the engines that a name stands for: all of them for ``auto``.

    Raises:
        ConfigError: An engine nobody knows.
    """
    if engine == "auto":
        return ENGINE_NAMES
    if engine not in ENGINE_NAMES:
        msg = f"engine: expected one of auto, {', '.join(ENGINE_NAMES)}, found {engine!r}; choose one of them"
        raise ConfigError(msg)
    return (engine,)


def open_engine(
    model: bytes | Path,
    *,
    engine: str = "auto",
    threads: int | None = None,
    options: EngineOptions | None = None,
    prebuilt: Prebuilt | None = None,
) -> OpenedEngine:
    """Load a model into an engine.

    Args:
        model: The ONNX model's bytes, or the file that has them.
        engine: A name of `ENGINE_NAMES`, or ``auto`` for the first of them that this machine has.
        threads: How many threads to use; None leaves it to the engine.
        options: Everything else; ``threads`` goes before what is said here.
        prebuilt: An engine built ahead of time from this model, for engines that can use one.

    Raises:
        ConfigError: An engine nobody knows, or an impossible number of threads.
        UnavailableError: The engine's package, its driver or its device is not there.
        BundleError: Bytes that are not a model as bundles hold it.
        DataError: The same for a file.
    """
    chosen = options or EngineOptions()
    if threads is not None:
        chosen = dataclasses.replace(chosen, threads=threads)
    names = engines_to_try(engine)
    for name in names[:-1]:
        try:
            return _open(name, model, chosen, prebuilt)
        except UnavailableError:
            continue
    return _open(names[-1], model, chosen, prebuilt)


def _open(name: str, model: bytes | Path, options: EngineOptions, prebuilt: Prebuilt | None) -> OpenedEngine:
    match name:
        case "tensorrt" | "tensorrt-rtx":
            from .tensorrt import TensorRtEngine

            return TensorRtEngine(name, model, options, prebuilt=prebuilt)
        case _:
            from .ort import OrtEngine

            return OrtEngine(name, model, options)
