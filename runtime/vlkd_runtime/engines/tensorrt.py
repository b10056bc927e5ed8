"""TensorRT without torch: the engine is built on this machine, cached under its key, and run on the bare driver.

Letters: N images, H rows, W columns, D sizes of the joint space, C classes.
"""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import importlib
import threading
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import BundleError, DataError, SelfTestError, UnavailableError, UsageError
from .base import EngineInfo, EngineOptions, EngineOutput, Execution, Prebuilt
from .building import Built, engine_identity, get_engine
from .cuda import CAPTURE_THREAD_LOCAL, NON_BLOCKING, Buffer, Cuda
from .inspection import read_inspection
from .tensorrt_build import make_logger

# A Jetson and `pip install tensorrt` bring the first name; the second is what the first wraps.
MODULES = {"tensorrt": ("tensorrt", "tensorrt_bindings"), "tensorrt-rtx": ("tensorrt_rtx",)}
_INSTALL = {
    "tensorrt": "on a Jetson it comes with JetPack (apt install python3-libnvinfer), elsewhere: pip install tensorrt",
    "tensorrt-rtx": "pip install tensorrt_rtx",
}
_WARM_RUNS = 2
_DTYPES = {"image": np.uint8, "embedding": np.float32, "logits": np.float32}


class TensorRtEngine:
    """A TensorRT engine; each thread that runs it has an execution context of its own for that time.

    Contexts are lent to a run and given back, and never tied to a thread: no two runs are ever in one context, there
    are as many as runs have overlapped, and a thread that ends leaves none behind. A thread's own context would
    keep its buffers for as long as the thread lives, in a pool of threads that each predict once in a while.
    """

    def __init__(
        self,
        name: str,
        model: bytes | Path,
        options: EngineOptions,
        *,
        prebuilt: Prebuilt | None = None,
        cuda: Cuda | None = None,
        module: Any = None,
    ) -> None:
        self._name, self._options = name, options
        # The driver first: without one there is no use in looking further.
        self._cuda = Cuda(options.device) if cuda is None else cuda
        self._closed = False
        self._lock = threading.Lock()
        self._idle: list[_Context] = []
        self._busy = 0
        self._engine: Any = None
        self._runtime: Any = None
        try:
            trt = _import_tensorrt(name) if module is None else module
            self._cuda.make_current()
            data = model if isinstance(model, bytes) else _read(model)
            self._trt, self._logger = trt, make_logger(trt)
            self._runtime = trt.Runtime(self._logger)
            self._identity = engine_identity(
                data, trt.__name__, str(trt.__version__), self._cuda.gpu, options
            )
            self.built = self._load(data, prebuilt)
            self._shapes = self._read_shapes()
        except BaseException:
            self.close()
            raise
        self._info = EngineInfo(
            name,
            "TensorRT" if name == "tensorrt" else "TensorRT for RTX",
            str(trt.__version__),
            options.threads,
            self._shapes["image"][0],
            self._cuda.gpu.describe(),
        )

    @property
    def info(self) -> EngineInfo:
        """Say which engine this is."""
        return self._info

    @property
    def folder(self) -> Path | None:
        """Give the cache folder that holds the engine."""
        return self.built.folder

    @property
    def origin(self) -> str:
        """Say how it came about."""
        return self.built.how

    @property
    def identity(self) -> dict[str, str]:
        """Give all that its answers depend on: the key of the engine, and which build of it this is."""
        return {**self._identity, "engine": self._name, "plan": self.built.sha256}

    def run(self, images: npt.NDArray[np.uint8]) -> EngineOutput:
        """Run one batch of exactly the model's shape.

        Args:
            images: (batch, H, W, 3) uint8.

        Raises:
            UsageError: Another shape or dtype, or the engine was closed.
            SelfTestError: TensorRT or the driver failed.
        """
        if images.dtype != np.uint8 or images.shape != self._shapes["image"]:
            msg = (
                f"engine {self._name}: expected uint8 {self._shapes['image']}, found {images.dtype} "
                f"{images.shape}; use prepare()"
            )
            raise UsageError(msg)
        context = self._borrow()
        whole = False
        try:
            output = context.run(images)
            whole = True
        finally:
            self._give_back(context, whole=whole)
        return output

    def execution(self) -> Execution:
        """Ask TensorRT's engine inspector."""
        inspector = self._engine.create_engine_inspector()
        text = inspector.get_engine_information(self._trt.LayerInformationFormat.JSON)
        return read_inspection(str(text), self._info.provider)

    def close(self) -> None:
        """Let go of the engine; contexts in use are let go when their run ends."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            idle, self._idle = self._idle, []
        if idle:
            self._cuda.make_current()
        for context in idle:
            context.close()
        self._let_go()

    def _load(self, model: bytes, prebuilt: Prebuilt | None) -> Built:
        """Deserialise the engine, whose hash was checked; one that does not load is built again, once."""
        passed_over = ""
        if prebuilt is not None:
            found = str(self._trt.__version__)
            if _release(found) != _release(prebuilt.version):
                passed_over = f"the bundle's is for version {prebuilt.version} and this is {found}"
            else:
                digest = hashlib.sha256(prebuilt.plan).hexdigest()
                built = Built(prebuilt.plan, digest, None, "taken from the bundle", {})
                if self._deserialise(built):
                    return built
                errors = "; ".join(self._logger.errors[-3:]) or "it gave no reason"
                passed_over = f"TensorRT does not load the bundle's: {errors}"
        built = get_engine(model, self._identity, self._options, fresh=False)
        if not self._deserialise(built) and not built.answer:
            built = get_engine(model, self._identity, self._options, fresh=True)
            self._deserialise(built)
        if self._engine is None:
            errors = "; ".join(self._logger.errors[-3:]) or "it gave no reason"
            msg = f"engine {self._name}: TensorRT does not load the engine it built: {errors}; use another engine"
            raise UnavailableError(msg)
        return dataclasses.replace(built, how=f"{built.how}; {passed_over}") if passed_over else built

    def _deserialise(self, built: Built) -> bool:
        self._engine = self._runtime.deserialize_cuda_engine(built.plan)
        return self._engine is not None

    def _read_shapes(self) -> dict[str, tuple[int, ...]]:
        """Hold the engine's tensors to what every model of a bundle has."""
        engine, trt = self._engine, self._trt
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        shapes = {name: tuple(int(size) for size in engine.get_tensor_shape(name)) for name in names}
        dtypes = {name: np.dtype(trt.nptype(engine.get_tensor_dtype(name))) for name in names}
        if dtypes != {name: np.dtype(kind) for name, kind in _DTYPES.items()}:
            msg = (
                f"engine {self._name}: expected the tensors image uint8, embedding and logits float32, found "
                f"{', '.join(f'{name} {dtype}' for name, dtype in sorted(dtypes.items()))}; export the model again"
            )
            raise BundleError(msg)
        batches = {shape[0] for shape in shapes.values()}
        if len(batches) != 1 or min(size for shape in shapes.values() for size in shape) < 1:
            msg = f"engine {self._name}: expected fixed shapes of one batch, found {shapes}; export the model again"
            raise BundleError(msg)
        return shapes

    def _borrow(self) -> _Context:
        self._cuda.make_current()
        with self._lock:
            if self._closed:
                msg = "the engine was closed; open it again"
                raise UsageError(msg)
            # The one used last: its memory is the warmest.
            context = self._idle.pop() if self._idle else self._make_context()
            self._busy += 1
            return context

    def _make_context(self) -> _Context:
        context = self._engine.create_execution_context()
        if context is None:
            errors = "; ".join(self._logger.errors[-3:])
            msg = f"engine {self._name}: no memory for a context: {errors}; run it from fewer threads"
            raise SelfTestError(msg)
        return _Context(self._cuda, context, self._shapes, graph=self._options.cuda_graph)

    def _give_back(self, context: _Context, *, whole: bool) -> None:
        """Keep a context for the next run, unless a run failed in it or the engine was closed meanwhile."""
        with self._lock:
            self._busy -= 1
            if whole and not self._closed:
                self._idle.append(context)
                return
        context.close()
        self._let_go()

    def _let_go(self) -> None:
        """Let go of engine and driver when the last run after closing has ended."""
        with self._lock:
            if not self._closed or self._busy:
                return
        self._engine = self._runtime = None
        self._cuda.close()


class _Context:
    """What one run needs for itself: an execution context, a stream and buffers at fixed addresses."""

    def __init__(self, cuda: Cuda, context: Any, shapes: dict[str, tuple[int, ...]], *, graph: bool) -> None:
        self._cuda, self._context = cuda, context
        self._stream = ctypes.c_void_p()
        self._graph: ctypes.c_void_p | None = None
        self._runs = 0
        self._wants_graph = graph
        self._buffers: dict[str, Buffer] = {}
        self._views: dict[str, npt.NDArray[Any]] = {}
        try:
            cuda.call("cuStreamCreate", ctypes.byref(self._stream), NON_BLOCKING)
            for name, shape in shapes.items():
                dtype = np.dtype(_DTYPES[name])
                buffer = Buffer(cuda, int(np.prod(shape)) * dtype.itemsize)
                self._buffers[name] = buffer
                memory = (ctypes.c_uint8 * buffer.size).from_address(buffer.host)
                self._views[name] = np.frombuffer(memoryview(memory), dtype).reshape(shape)
                context.set_tensor_address(name, buffer.device)
        except BaseException:
            self.close()
            raise

    def run(self, images: npt.NDArray[np.uint8]) -> EngineOutput:
        """Run one batch; the output is the caller's own."""
        np.copyto(self._views["image"], images)
        if self._graph is None and self._wants_graph and self._runs >= _WARM_RUNS:
            self._record()
        if self._graph is not None:
            self._cuda.call("cuGraphLaunch", self._graph, self._stream)
        else:
            self._enqueue()
        self._cuda.call("cuStreamSynchronize", self._stream)
        self._runs += 1
        return EngineOutput(self._views["embedding"].copy(), self._views["logits"].copy())

    def close(self) -> None:
        """Give everything back, the context before what it works on."""
        self._context = None
        self._views = {}
        if self._graph is not None:
            self._cuda.call("cuGraphExecDestroy", self._graph)
            self._graph = None
        for buffer in self._buffers.values():
            buffer.close()
        self._buffers = {}
        if self._stream.value:
            self._cuda.call("cuStreamDestroy_v2", self._stream)
            self._stream = ctypes.c_void_p()

    def _enqueue(self) -> None:
        self._buffers["image"].upload(self._stream)
        if not self._context.execute_async_v3(self._stream.value or 0):
            msg = "engine tensorrt: TensorRT did not start the run; check the free memory of the device"
            raise SelfTestError(msg)
        for name in ("embedding", "logits"):
            self._buffers[name].download(self._stream)

    def _record(self) -> None:
        """Record one run as a graph; a network that cannot be recorded is run call by call."""
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        self._wants_graph = False
        try:
            self._cuda.call("cuStreamBeginCapture_v2", self._stream, CAPTURE_THREAD_LOCAL)
            try:
                self._enqueue()
            finally:
                self._cuda.call("cuStreamEndCapture", self._stream, ctypes.byref(graph))
            self._cuda.call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, 0)
            self._graph = executable
        except SelfTestError:
            self._graph = None
        finally:
            if graph.value:
                self._cuda.call("cuGraphDestroy", graph)


def _release(version: str) -> tuple[str, ...]:
    """Give what decides whether an engine can be read: the first three numbers, without the build's."""
    return tuple(version.split(".")[:3])


def _import_tensorrt(name: str) -> Any:
    problems = []
    for module in MODULES[name]:
        try:
            return importlib.import_module(module)
        except (ImportError, OSError) as error:
            problems.append(f"{module}: {error}")
    msg = (
        f"engine {name}: expected the Python module of {name}, found none that can be imported "
        f"({'; '.join(problems)}); {_INSTALL[name]}"
    )
    raise UnavailableError(msg)


def _read(path: Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        msg = f"{path}: cannot read the model: {error.strerror}; check the path"
        raise DataError(msg) from error
