"""Inference engines, and the one function that opens them."""

from __future__ import annotations

from pathlib import Path

from ..errors import ConfigError
from .base import Engine, EngineInfo, EngineOutput

__all__ = ["ENGINE_NAMES", "Engine", "EngineInfo", "EngineOutput", "open_engine"]

ENGINE_NAMES = ("ort-cpu",)


def open_engine(model: bytes | Path, *, engine: str = "auto", threads: int | None = None) -> Engine:
    """Load a model into an engine.

    Args:
        model: The ONNX model's bytes, or the file that has them.
        engine: A name of `ENGINE_NAMES`, or ``auto`` for the best one on this machine.
        threads: How many threads to use; None leaves it to the engine.

    Raises:
        ConfigError: An engine nobody knows, or an impossible number of threads.
        UnavailableError: The engine's package is not installed.
        BundleError: Bytes that are not a model as bundles hold it.
        DataError: The same for a file.
    """
    if threads is not None and (type(threads) is not int or not 1 <= threads <= 1024):
        msg = (
            f"threads: expected an integer from 1 to 1024, found {threads!r}; "
            "leave it out to let the engine choose"
        )
        raise ConfigError(msg)
    match engine:
        case "auto" | "ort-cpu":
            from .ort_cpu import OrtCpuEngine

            return OrtCpuEngine(model, threads=threads)
        case _:
            msg = (
                f"engine: expected one of auto, {', '.join(ENGINE_NAMES)}, found {engine!r}; "
                "choose one of them"
            )
            raise ConfigError(msg)
