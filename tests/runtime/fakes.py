"""A driver and a TensorRT that are not there: the same calls, on the CPU's memory.

The driver's library is stood in for call by call, with buffers as the GPU's memory, so that everything above it
runs as it does on a device. TensorRT's engine is a network in numpy.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from vlkd_runtime.engines.base import EngineOptions
from vlkd_runtime.engines.cuda import Cuda
from vlkd_runtime.engines.tensorrt import TensorRtEngine

SHAPES = {"image": (1, 8, 8, 3), "embedding": (1, 4), "logits": (1, 3)}


class FakeDriver:
    """``libcuda.so.1`` on the CPU. Every allocation must be given back, which `live` shows."""

    def __init__(self, *, integrated: bool = False, devices: int = 1, failing: str = "") -> None:
        self.integrated, self.devices, self.failing = integrated, devices, failing
        self.memory: dict[int, Any] = {}
        self.handles = itertools.count(1)
        self.live: set[tuple[str, int]] = set()
        self.calls: list[str] = []
        self.recording: list[Callable[[], None]] | None = None
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.errors_in_graph = False

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cu"):
            raise AttributeError(name)
        inner = getattr(self, "_" + name, None)

        class Function:
            """What ctypes would give: it can be called and told its types."""

            argtypes: Any = None
            restype: Any = None

            def __call__(this, *arguments: Any) -> int:
                self.calls.append(name)
                if name == self.failing:
                    return 2
                return int((inner(*arguments) if inner else 0) or 0)

        return Function()

    def _new(self, kind: str, out: Any) -> None:
        handle = next(self.handles)
        self.live.add((kind, handle))
        out._obj.value = handle

    def _gone(self, kind: str, handle: Any) -> None:
        self.live.remove((kind, handle if isinstance(handle, int) else handle.value))

    def _do(self, work: Callable[[], None]) -> None:
        if self.recording is None:
            work()
        else:
            self.recording.append(work)

    def _cuGetErrorString(self, code: int, out: Any) -> None:
        out._obj.value = b"out of memory"

    def _cuDriverGetVersion(self, out: Any) -> None:
        out._obj.value = 12060

    def _cuDeviceGetCount(self, out: Any) -> None:
        out._obj.value = self.devices

    def _cuDeviceGet(self, out: Any, device: int) -> None:
        out._obj.value = device

    def _cuDeviceGetName(self, out: Any, size: int, device: int) -> None:
        out.value = b"Fake Orin"

    def _cuDeviceGetAttribute(self, out: Any, which: int, device: int) -> None:
        out._obj.value = {75: 8, 76: 7, 18: int(self.integrated), 19: 1}[which]

    def _cuDevicePrimaryCtxRetain(self, out: Any, device: int) -> None:
        self._new("context", out)
        self.context = out._obj.value

    def _cuDevicePrimaryCtxRelease_v2(self, device: int) -> None:
        self._gone("context", self.context)

    def _allocate(self, kind: str, out: Any, size: int) -> None:
        block = ctypes.create_string_buffer(size)
        address = ctypes.addressof(block)
        self.memory[address] = block
        self.live.add((kind, address))
        out._obj.value = address

    def _cuMemAlloc_v2(self, out: Any, size: int) -> None:
        self._allocate("device", out, size)

    def _cuMemHostAlloc(self, out: Any, size: int, flags: int) -> None:
        self._allocate("host", out, size)

    def _cuMemHostGetDevicePointer_v2(self, out: Any, host: Any, flags: int) -> None:
        out._obj.value = host.value

    def _cuMemFree_v2(self, address: int) -> None:
        self._gone("device", address)
        del self.memory[address]

    def _cuMemFreeHost(self, address: Any) -> None:
        value = address if isinstance(address, int) else address.value
        self._gone("host", value)
        del self.memory[value]

    def _cuMemcpyHtoDAsync_v2(self, to: int, source: int, size: int, stream: Any) -> None:
        self._do(lambda: ctypes.memmove(to, source, size))

    _cuMemcpyDtoHAsync_v2 = _cuMemcpyHtoDAsync_v2

    def _cuStreamCreate(self, out: Any, flags: int) -> None:
        self._new("stream", out)

    def _cuStreamDestroy_v2(self, stream: Any) -> None:
        self._gone("stream", stream)

    def _cuStreamBeginCapture_v2(self, stream: Any, mode: int) -> None:
        self.recording = []

    def _cuStreamEndCapture(self, stream: Any, out: Any) -> int:
        work, self.recording = self.recording, None
        if self.errors_in_graph:
            return 900
        self._new("graph", out)
        self.graphs[out._obj.value] = work or []
        return 0

    def _cuGraphInstantiateWithFlags(self, out: Any, graph: Any, flags: int) -> None:
        self._new("executable", out)
        self.graphs[out._obj.value] = self.graphs[graph.value]

    def _cuGraphDestroy(self, graph: Any) -> None:
        self._gone("graph", graph)

    def _cuGraphExecDestroy(self, executable: Any) -> None:
        self._gone("executable", executable)

    def _cuGraphLaunch(self, executable: Any, stream: Any) -> None:
        for work in self.graphs[executable.value]:
            work()


class FakeTensorRt:
    """TensorRT's module as far as the engine uses it; engines are the bytes ``plan:`` and a number."""

    __name__ = "tensorrt_fake"

    def __init__(
        self, driver: FakeDriver, network: Callable[[np.ndarray], Any], shapes: dict[str, Any]
    ) -> None:
        self.driver, self.network, self.shapes = driver, network, shapes
        self.__version__ = "10.3.0"
        self.dtypes: dict[str, Any] = {"image": np.uint8, "embedding": np.float32, "logits": np.float32}
        self.refused: set[bytes] = set()
        self.inspection = '{"Layers": []}'
        self.contexts = 0

        class ILogger:
            """Base of loggers."""

            ERROR, INTERNAL_ERROR = 1, 0

        class LayerInformationFormat:
            """Formats of the inspector."""

            JSON = 1

        self.ILogger, self.LayerInformationFormat = ILogger, LayerInformationFormat

    def nptype(self, dtype: Any) -> Any:
        return dtype

    def Runtime(self, logger: Any) -> Any:
        outer = self

        class Runtime:
            def deserialize_cuda_engine(self, plan: bytes) -> Any:
                if plan in outer.refused or not plan.startswith(b"plan:"):
                    logger.log(1, "the engine is of another version")
                    return None
                return FakeEngine(outer)

        return Runtime()


class FakeEngine:
    """A deserialised engine."""

    def __init__(self, trt: FakeTensorRt) -> None:
        self.trt = trt
        self.num_io_tensors = len(trt.shapes)

    def get_tensor_name(self, index: int) -> str:
        return list(self.trt.shapes)[index]

    def get_tensor_shape(self, name: str) -> Any:
        return self.trt.shapes[name]

    def get_tensor_dtype(self, name: str) -> Any:
        return self.trt.dtypes[name]

    def create_engine_inspector(self) -> Any:
        text = self.trt.inspection

        class Inspector:
            def get_engine_information(self, kind: int) -> str:
                return text

        return Inspector()

    def create_execution_context(self) -> Any:
        self.trt.contexts += 1
        return FakeContext(self.trt)


class FakeContext:
    """An execution context that reads and writes the addresses it was given."""

    def __init__(self, trt: FakeTensorRt) -> None:
        self.trt = trt
        self.addresses: dict[str, int] = {}
        self.running = False

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def _view(self, name: str) -> np.ndarray:
        shape, dtype = self.trt.shapes[name], np.dtype(self.trt.dtypes[name])
        size = int(np.prod(shape)) * dtype.itemsize
        return np.frombuffer((ctypes.c_uint8 * size).from_address(self.addresses[name]), dtype).reshape(shape)

    def execute_async_v3(self, stream: int) -> bool:
        def work() -> None:
            assert not self.running, "two threads in one context"
            self.running = True
            embedding, logits = self.trt.network(self._view("image"))
            self._view("embedding")[:] = embedding
            self._view("logits")[:] = logits
            self.running = False

        self.trt.driver._do(work)
        return True


def open_fake(tiny: Any, options: EngineOptions, driver: FakeDriver | None = None, **change: Any) -> Any:
    driver = driver or FakeDriver()
    trt = FakeTensorRt(driver, lambda image: tiny.reference(image), SHAPES)
    for name, value in change.items():
        setattr(trt, name, value)
    engine = TensorRtEngine(
        "tensorrt", tiny.files["model.onnx"], options, cuda=Cuda(0, library=driver), module=trt
    )
    return engine, driver, trt
