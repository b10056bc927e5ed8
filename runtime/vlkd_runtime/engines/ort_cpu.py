"""ONNX Runtime on the CPU: runs everywhere, and is what the desk measures accuracy with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from ..errors import BundleError, DataError, SelfTestError, UnavailableError, UsageError
from ..onnxfile import keeps_weights_outside
from .base import EngineInfo, EngineOutput

_PROVIDER = "CPUExecutionProvider"
_INPUT = ("image", "tensor(uint8)", 4)
_OUTPUTS = (("embedding", "tensor(float)", 2), ("logits", "tensor(float)", 2))
_OUTPUT_NAMES = [name for name, _, _ in _OUTPUTS]


class OrtCpuEngine:
    """One inference session on the CPU; sessions may be run from several threads at once."""

    def __init__(self, model: bytes | Path, *, threads: int | None = None) -> None:
        ort = _import_onnxruntime()
        self._refusal = BundleError if isinstance(model, bytes) else DataError
        self._where = "the model" if isinstance(model, bytes) else str(model)
        data = model if isinstance(model, bytes) else _read(model)
        # From bytes, ONNX Runtime would look for other files in the current folder.
        try:
            outside = keeps_weights_outside(data, where=self._where)
        except BundleError as error:
            raise self._refusal(str(error)) from error
        if outside:
            self._refuse("it keeps weights in other files; save it as one file")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        try:
            session = ort.InferenceSession(
                data,
                sess_options=options,
                providers=[_PROVIDER],
                # ONNX Runtime 1.31's rewrite of biases gives wrong answers where INT8 meets float16.
                disabled_optimizers=["WeightBiasQuantization"],
            )
        except Exception as error:  # ONNX Runtime raises a dozen types of its own, all plain exceptions.
            msg = f"{self._where}: ONNX Runtime {ort.__version__} cannot load it: {error}; export it again"
            raise self._refusal(msg) from error
        if session.get_providers() != [_PROVIDER]:
            msg = (
                f"ONNX Runtime: expected to run on {_PROVIDER}, found {session.get_providers()}; "
                "check the installation"
            )
            raise UnavailableError(msg)
        self._shape = self._check_tensors(session.get_inputs(), session.get_outputs())
        self._session: Any = session
        self._info = EngineInfo("ort-cpu", _PROVIDER, ort.__version__, threads, self._shape[0])

    @property
    def info(self) -> EngineInfo:
        """Say which engine this is."""
        return self._info

    def run(self, images: npt.NDArray[np.uint8]) -> EngineOutput:
        """Run one batch of exactly the model's shape.

        Args:
            images: (batch, H, W, 3) uint8.

        Raises:
            UsageError: Another shape or dtype, or the engine was closed.
        """
        # Taken once: close() in another thread must not pull it away from under a run.
        session = self._session
        if session is None:
            msg = "the engine was closed; open it again"
            raise UsageError(msg)
        if images.dtype != np.uint8 or images.shape != self._shape:
            msg = (
                f"engine ort-cpu: expected uint8 {self._shape}, found {images.dtype} {images.shape}; "
                "use prepare()"
            )
            raise UsageError(msg)
        try:
            embedding, logits = session.run(_OUTPUT_NAMES, {"image": np.ascontiguousarray(images)})
        except Exception as error:  # As above: types of its own, all plain exceptions.
            msg = f"engine ort-cpu ({self._info.version}): running the model failed: {error}; check the model"
            raise SelfTestError(msg) from error
        return EngineOutput(embedding, logits)

    def close(self) -> None:
        """Let go of the session."""
        self._session = None

    def _check_tensors(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> tuple[int, ...]:
        found = [(tensor.name, tensor.type, len(tensor.shape)) for tensor in [*inputs, *outputs]]
        if sorted(found) != sorted([_INPUT, *_OUTPUTS]) or len(inputs) != 1:
            self._refuse(f"expected {_show([_INPUT])} to give {_show(_OUTPUTS)}, found {_show(found)}")
        shapes = {tensor.name: tuple(tensor.shape) for tensor in [*inputs, *outputs]}
        fixed = all(type(size) is int and size > 0 for shape in shapes.values() for size in shape)
        batches = {shape[0] for shape in shapes.values()}
        if not fixed or len(batches) != 1 or shapes["image"][3] != 3:
            self._refuse(f"expected fixed shapes (N, H, W, 3), (N, D), (N, C), found {list(shapes.values())}")
        return shapes["image"]

    def _refuse(self, problem: str) -> NoReturn:
        msg = f"{self._where}: {problem}; export it again"
        raise self._refusal(msg)


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        msg = (
            "engine ort-cpu: expected the package onnxruntime, found none that can be imported "
            f"({error}); run: pip install 'vlkd-edge[ort]'"
        )
        raise UnavailableError(msg) from error
    return onnxruntime


def _read(path: Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        msg = f"{path}: cannot read the model: {error.strerror}; check the path"
        raise DataError(msg) from error


def _show(tensors: Sequence[tuple[str, str, int]]) -> str:
    return ", ".join(f"{name} {kind} of rank {rank}" for name, kind, rank in tensors) or "nothing"
