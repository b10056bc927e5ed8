"""ONNX Runtime with one of its providers: the CPU everywhere, and NVIDIA's GPUs where a build has them.

ONNX Runtime falls back to the CPU without a word where a provider does not load or does not take an operator.
Here both are errors.

References:
    https://onnxruntime.ai/docs/execution-providers/ (options of each provider);
    https://onnxruntime.ai/docs/api/python/ (``register_execution_provider_library``, ``get_ep_devices``).
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from ..errors import BundleError, DataError, SelfTestError, UnavailableError, UsageError
from ..onnxfile import count_operators, keeps_weights_outside, stored_types
from ..ortimport import import_onnxruntime
from .base import EngineInfo, EngineOptions, EngineOutput, Execution
from .cuda import Cuda
from .enginecache import cpu_identity

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
TENSORRT_RTX = "NvTensorRTRTXExecutionProvider"
_RTX_PACKAGE = "onnxruntime_ep_nv_tensorrt_rtx"
_INPUT = ("image", "tensor(uint8)", 4)
_OUTPUTS = (("embedding", "tensor(float)", 2), ("logits", "tensor(float)", 2))
_OUTPUT_NAMES = [name for name, _, _ in _OUTPUTS]
# What ONNX Runtime calls a convolution or linear layer that it runs in INT8.
_INT8_OPERATORS = frozenset(
    {"QLinearConv", "QGemm", "QLinearMatMul", "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat"}
    | {"DynamicQuantizeMatMul", "QLinearConvTranspose"}
)


@dataclass(frozen=True, slots=True)
class Flavour:
    """One way to use ONNX Runtime.

    Attributes:
        name: As `open_engine` knows it.
        provider: ONNX Runtime's name for what executes the graph.
        install: What brings it.
    """

    name: str
    provider: str
    install: str


FLAVOURS = {
    flavour.name: flavour
    for flavour in (
        Flavour("ort-cpu", CPU, "pip install 'vlkd-edge[ort]'"),
        Flavour("ort-cuda", CUDA, "pip install onnxruntime-gpu, on a Jetson the wheel made for its JetPack"),
        Flavour(
            "ort-tensorrt",
            TENSORRT,
            "pip install onnxruntime-gpu tensorrt, on a Jetson the wheel made for its JetPack",
        ),
        Flavour("ort-tensorrt-rtx", TENSORRT_RTX, "pip install onnxruntime-ep-nv-tensorrt-rtx-cu13"),
    )
}


class OrtEngine:
    """One inference session; sessions may be run from several threads at once."""

    def __init__(self, name: str, model: bytes | Path, options: EngineOptions) -> None:
        self._flavour = FLAVOURS[name]
        ort = _import_onnxruntime(self._flavour)
        self._refusal = BundleError if isinstance(model, bytes) else DataError
        self._where = "the model" if isinstance(model, bytes) else str(model)
        self._device = "" if name == "ort-cpu" else _gpu(ort, self._flavour, options)
        data = model if isinstance(model, bytes) else _read(model)
        # From bytes, ONNX Runtime would look for other files in the current folder.
        try:
            outside = keeps_weights_outside(data, where=self._where)
            self._float8 = "float8" in stored_types(data, where=self._where)
        except BundleError as error:
            raise self._refusal(str(error)) from error
        if outside:
            self._refuse("it keeps weights in other files; save it as one file")
        if options.dla_core is not None:
            msg = f"engine {name}: dla_core asks for an accelerator, which tensorrt alone can run on; leave it out"
            raise UnavailableError(msg)
        self.folder: Path | None = None
        self._data: bytes | None = data
        self._options = options
        self._session: Any = self._open(ort, None)
        self._shape = self._check_tensors(self._session.get_inputs(), self._session.get_outputs())
        self._info = EngineInfo(
            name, self._flavour.provider, ort.__version__, options.threads, self._shape[0], self._device
        )

    @property
    def info(self) -> EngineInfo:
        """Say which engine this is."""
        return self._info

    @property
    def origin(self) -> str:
        """Say how it came about."""
        return "made of the model at each start"

    @property
    def identity(self) -> dict[str, str]:
        """Give all that its answers depend on beside the bundle."""
        return {
            "engine": self._info.name,
            "version": self._info.version,
            "device": self._device or cpu_identity(),
        }

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
                f"engine {self._info.name}: expected uint8 {self._shape}, found {images.dtype} {images.shape}; "
                "use prepare()"
            )
            raise UsageError(msg)
        try:
            embedding, logits = session.run(_OUTPUT_NAMES, {"image": np.ascontiguousarray(images)})
        except Exception as error:  # As above: types of its own, all plain exceptions.
            msg = (
                f"engine {self._info.name} ({self._info.version}): running the model failed: {error}; "
                "check the model"
            )
            raise SelfTestError(msg) from error
        return EngineOutput(embedding, logits)

    def execution(self) -> Execution:
        """Count the operators of the graph as ONNX Runtime rewrote it."""
        provider = self._flavour.provider
        if provider in (TENSORRT, TENSORRT_RTX):
            return Execution(provider, note="this provider compiles the graph whole and tells no layers")
        try:
            with _scratch() as path:
                self._open(_import_onnxruntime(self._flavour), path)
                counts = count_operators(path.read_bytes(), where="the rewritten graph")
        except OSError as error:
            return Execution(
                provider, note=f"the rewritten graph cannot be written: {error.strerror or error}"
            )
        return Execution(
            provider,
            layers=sum(counts.values()),
            int8_ops=sum(count for kind, count in counts.items() if kind in _INT8_OPERATORS),
        )

    def close(self) -> None:
        """Let go of the session."""
        self._session = self._data = None

    def _open(self, ort: Any, rewritten: Path | None) -> Any:
        """Make a session that runs on the one provider or not at all."""
        session_options = ort.SessionOptions()
        session_options.intra_op_num_threads = self._options.threads or 0
        session_options.inter_op_num_threads = 1
        # Threads that spin until the next run take the processor from what decodes the next image, and power.
        session_options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session_options.log_severity_level = 4
        if self._float8:
            # Seen in 1.32: the further rewrites refuse a Clip before FP8, and answer wrongly where they do not.
            session_options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        if rewritten is not None:
            session_options.optimized_model_filepath = str(rewritten)
        provider, arguments = self._flavour.provider, _provider_options(self._flavour.provider, self._options)
        more: dict[str, Any] = {"providers": [(provider, arguments)] if arguments else [provider]}
        if provider == TENSORRT_RTX:
            session_options.add_provider_for_devices(
                [_rtx_devices(ort, self._flavour)[self._options.device]], arguments
            )
            more = {}
        if provider != CPU:
            session_options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        try:
            session = ort.InferenceSession(
                self._data,
                sess_options=session_options,
                # ONNX Runtime 1.31's rewrite of biases gives wrong answers where INT8 meets float16.
                disabled_optimizers=["WeightBiasQuantization"],
                **more,
            )
        except Exception as error:  # ONNX Runtime raises a dozen types of its own, all plain exceptions.
            if "fallback" in str(error).lower():
                msg = (
                    f"{self._where}: ONNX Runtime {ort.__version__} would leave part of it to the CPU: {error}; "
                    "use another engine"
                )
                raise UnavailableError(msg) from error
            msg = f"{self._where}: ONNX Runtime {ort.__version__} cannot load it: {error}; export it again"
            raise self._refusal(msg) from error
        found = session.get_providers()
        # The CPU is always listed last, even where it may run nothing.
        if found != [provider] and found != [provider, CPU]:
            msg = (
                f"ONNX Runtime: expected to run on {provider}, found {found}; "
                f"its libraries do not load here; {self._flavour.install}"
            )
            raise UnavailableError(msg)
        return session

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


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """Give a path to write to that is in memory where the system has such files, and gone afterwards everywhere."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("vlkd-graph")
        try:
            yield Path(f"/proc/self/fd/{descriptor}")
        finally:
            os.close(descriptor)
        return
    with tempfile.TemporaryDirectory(prefix="vlkd-graph-") as folder:
        yield Path(folder) / "graph.onnx"


def _provider_options(provider: str, options: EngineOptions) -> dict[str, str]:
    if provider == CPU:
        return {}
    chosen = {"device_id": str(options.device)} if provider != TENSORRT_RTX else {}
    if provider == TENSORRT:
        # Precision is what the graph says; these two only allow it. No cache of the provider's own: it would
        # load engine files that nothing has checked.
        chosen |= {"trt_fp16_enable": "1", "trt_int8_enable": "1", "trt_engine_cache_enable": "0"}
        if options.sparse_weights:
            chosen["trt_sparsity_enable"] = "1"
        if options.workspace_bytes is not None:
            chosen["trt_max_workspace_size"] = str(options.workspace_bytes)
    return chosen


def _gpu(ort: Any, flavour: Flavour, options: EngineOptions) -> str:
    """Say which GPU it will be, after seeing that driver and provider are there.

    The driver first: importing the plugin's package changes the process, and without a GPU there is no use.
    """
    cuda = Cuda(options.device)
    gpu = cuda.gpu.describe()
    cuda.close()
    if flavour.provider == TENSORRT_RTX:
        _rtx_library(ort, flavour)
    elif flavour.provider not in ort.get_available_providers():
        msg = (
            f"engine {flavour.name}: expected an onnxruntime with {flavour.provider}, found {ort.__version__} with "
            f"{', '.join(ort.get_available_providers())}; {flavour.install}"
        )
        raise UnavailableError(msg)
    return gpu


def _rtx_library(ort: Any, flavour: Flavour) -> str:
    try:
        import onnxruntime_ep_nv_tensorrt_rtx as package
    except ImportError as error:
        msg = (
            f"engine {flavour.name}: expected the package {_RTX_PACKAGE}, found none that can be imported "
            f"({error}); run: {flavour.install}"
        )
        raise UnavailableError(msg) from error
    if not hasattr(ort, "register_execution_provider_library"):
        msg = f"engine {flavour.name}: expected onnxruntime 1.22 or later, found {ort.__version__}; update it"
        raise UnavailableError(msg)
    return str(package.get_library_path())


def _rtx_devices(ort: Any, flavour: Flavour) -> list[Any]:
    """Register the plugin, which a process does once, and give the GPUs it found."""
    devices = [device for device in ort.get_ep_devices() if device.ep_name == TENSORRT_RTX]
    if not devices:
        try:
            ort.register_execution_provider_library(TENSORRT_RTX, _rtx_library(ort, flavour))
        except Exception as error:  # Types of ONNX Runtime's own.
            msg = f"engine {flavour.name}: the plugin does not load: {error}; check the NVIDIA driver"
            raise UnavailableError(msg) from error
        devices = [device for device in ort.get_ep_devices() if device.ep_name == TENSORRT_RTX]
    if not devices:
        msg = f"engine {flavour.name}: the plugin found no GPU it can use; it needs compute capability 8.0 or later"
        raise UnavailableError(msg)
    return devices


def _import_onnxruntime(flavour: Flavour) -> Any:
    try:
        return import_onnxruntime()
    except ImportError as error:
        msg = (
            f"engine {flavour.name}: expected the package onnxruntime, found none that can be imported "
            f"({error}); run: pip install 'vlkd-edge[ort]'"
        )
        raise UnavailableError(msg) from error


def _read(path: Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        msg = f"{path}: cannot read the model: {error.strerror}; check the path"
        raise DataError(msg) from error


def _show(tensors: Sequence[tuple[str, str, int]]) -> str:
    return ", ".join(f"{name} {kind} of rank {rank}" for name, kind, rank in tensors) or "nothing"
