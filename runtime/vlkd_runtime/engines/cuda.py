"""The few calls of the CUDA driver that an engine needs, through ctypes: no package, only the driver's library.

References:
    CUDA driver API, https://docs.nvidia.com/cuda/cuda-driver-api/ (memory, streams, graphs);
    CUDA for Tegra, https://docs.nvidia.com/cuda/cuda-for-tegra-appnote/ (which memory suits an integrated GPU).
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

from ..errors import SelfTestError, UnavailableError

_LIBRARY = "libcuda.so.1"
_MAJOR, _MINOR, _INTEGRATED, _CAN_MAP = 75, 76, 18, 19
_HOST_PORTABLE, _HOST_MAPPED = 1, 2
NON_BLOCKING = 1
# Only this thread's calls are held to the rules of a recording; other threads may go on allocating.
CAPTURE_THREAD_LOCAL = 1

_P, _SIZE, _INT, _UINT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_uint
_POINTER, _DEVICE = ctypes.POINTER, ctypes.c_uint64
_CALLS: dict[str, tuple[Any, ...]] = {
    "cuInit": (_UINT,),
    "cuDriverGetVersion": (_POINTER(_INT),),
    "cuDeviceGetCount": (_POINTER(_INT),),
    "cuDeviceGet": (_POINTER(_INT), _INT),
    "cuDeviceGetName": (ctypes.c_char_p, _INT, _INT),
    "cuDeviceGetAttribute": (_POINTER(_INT), _INT, _INT),
    "cuDevicePrimaryCtxRetain": (_POINTER(_P), _INT),
    "cuDevicePrimaryCtxRelease_v2": (_INT,),
    "cuCtxSetCurrent": (_P,),
    "cuMemAlloc_v2": (_POINTER(_DEVICE), _SIZE),
    "cuMemFree_v2": (_DEVICE,),
    "cuMemHostAlloc": (_POINTER(_P), _SIZE, _UINT),
    "cuMemFreeHost": (_P,),
    "cuMemHostGetDevicePointer_v2": (_POINTER(_DEVICE), _P, _UINT),
    "cuMemcpyHtoDAsync_v2": (_DEVICE, _P, _SIZE, _P),
    "cuMemcpyDtoHAsync_v2": (_P, _DEVICE, _SIZE, _P),
    "cuStreamCreate": (_POINTER(_P), _UINT),
    "cuStreamSynchronize": (_P,),
    "cuStreamDestroy_v2": (_P,),
    "cuStreamBeginCapture_v2": (_P, _INT),
    "cuStreamEndCapture": (_P, _POINTER(_P)),
    "cuGraphInstantiateWithFlags": (_POINTER(_P), _P, ctypes.c_ulonglong),
    "cuGraphLaunch": (_P, _P),
    "cuGraphDestroy": (_P,),
    "cuGraphExecDestroy": (_P,),
    "cuGetErrorString": (_INT, _POINTER(ctypes.c_char_p)),
}


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as the driver tells.

    Attributes:
        name: Its product name.
        compute_capability: Major and minor, as ``8.7``.
        integrated: Whether it shares memory with the CPU, as on a Jetson.
        can_map: Whether it can read the CPU's memory in place.
        driver: The CUDA version of the driver, as ``12.6``.
    """

    name: str
    compute_capability: str
    integrated: bool
    can_map: bool
    driver: str

    def describe(self) -> str:
        """Give name, capability and driver on one line."""
        return f"{self.name} (compute capability {self.compute_capability}, driver for CUDA {self.driver})"


class Cuda:
    """One GPU's primary context, which TensorRT uses too."""

    def __init__(self, device: int = 0, *, library: Any = None) -> None:
        self._library = _load() if library is None else library
        self._functions = {name: _function(self._library, name, kinds) for name, kinds in _CALLS.items()}
        try:
            self.call("cuInit", 0)
            count = _INT()
            self.call("cuDeviceGetCount", ctypes.byref(count))
        except SelfTestError as error:
            msg = f"NVIDIA driver: it does not start ({error}); check it with nvidia-smi or tegrastats"
            raise UnavailableError(msg) from error
        if not 0 <= device < count.value:
            msg = f"device: expected one of {count.value} GPUs, found number {device}; count from 0"
            raise UnavailableError(msg)
        handle = _INT()
        self.call("cuDeviceGet", ctypes.byref(handle), device)
        self._handle = handle.value
        self.gpu = self._describe()
        context = _P()
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._handle)
        self._context: Any = context

    def call(self, name: str, *arguments: Any) -> None:
        """Call the driver and turn an error code into an exception.

        Raises:
            SelfTestError: The driver refused.
        """
        code = self._functions[name](*arguments)
        if code != 0:
            text = ctypes.c_char_p()
            self._functions["cuGetErrorString"](code, ctypes.byref(text))
            words = (text.value or b"no text").decode("ascii", "replace")
            msg = f"CUDA: {name} failed with error {code} ({words}); check the driver and the free memory"
            raise SelfTestError(msg)

    def make_current(self) -> None:
        """Bind the context to the calling thread; each thread needs it before anything else."""
        self.call("cuCtxSetCurrent", self._context)

    def close(self) -> None:
        """Let go of the context."""
        if self._context is not None:
            self._context = None
            self.call("cuDevicePrimaryCtxRelease_v2", self._handle)

    def _describe(self) -> Gpu:
        name = ctypes.create_string_buffer(256)
        self.call("cuDeviceGetName", name, len(name), self._handle)
        version = _INT()
        self.call("cuDriverGetVersion", ctypes.byref(version))
        return Gpu(
            name.value.decode("ascii", "replace"),
            f"{self._attribute(_MAJOR)}.{self._attribute(_MINOR)}",
            bool(self._attribute(_INTEGRATED)),
            bool(self._attribute(_CAN_MAP)),
            f"{version.value // 1000}.{version.value % 1000 // 10}",
        )

    def _attribute(self, which: int) -> int:
        value = _INT()
        self.call("cuDeviceGetAttribute", ctypes.byref(value), which, self._handle)
        return value.value


class Buffer:
    """Memory that the CPU fills or reads and the GPU works on.

    An integrated GPU reads the CPU's memory in place, so there is nothing to copy. A discrete one gets memory
    of its own, and the CPU's side is pinned so that copies run beside other work.

    Attributes:
        size: Length in bytes.
        host: Address for the CPU.
        device: Address for the GPU.
        mapped: Whether both are the same memory.
    """

    def __init__(self, cuda: Cuda, size: int) -> None:
        self._cuda = cuda
        self.size = size
        self.mapped = cuda.gpu.integrated and cuda.gpu.can_map
        host, device = _P(), _DEVICE()
        cuda.call("cuMemHostAlloc", ctypes.byref(host), size, _HOST_PORTABLE | _HOST_MAPPED * self.mapped)
        self.host = host.value or 0
        if self.mapped:
            cuda.call("cuMemHostGetDevicePointer_v2", ctypes.byref(device), host, 0)
        else:
            try:
                cuda.call("cuMemAlloc_v2", ctypes.byref(device), size)
            except SelfTestError:
                cuda.call("cuMemFreeHost", host)
                raise
        self.device = device.value

    def upload(self, stream: Any) -> None:
        """Start to bring the CPU's side to the GPU."""
        if not self.mapped:
            self._cuda.call("cuMemcpyHtoDAsync_v2", self.device, self.host, self.size, stream)

    def download(self, stream: Any) -> None:
        """Start to bring the GPU's side to the CPU."""
        if not self.mapped:
            self._cuda.call("cuMemcpyDtoHAsync_v2", self.host, self.device, self.size, stream)

    def close(self) -> None:
        """Give the memory back."""
        if self.host:
            if not self.mapped:
                self._cuda.call("cuMemFree_v2", self.device)
            self._cuda.call("cuMemFreeHost", self.host)
            self.host = self.device = 0


def _load() -> Any:
    try:
        return ctypes.CDLL(_LIBRARY)
    except OSError as error:
        msg = f"NVIDIA driver: expected {_LIBRARY}, found none ({error}); install the driver of this machine's GPU"
        raise UnavailableError(msg) from error


def _function(library: Any, name: str, kinds: tuple[Any, ...]) -> Any:
    try:
        function = getattr(library, name)
    except AttributeError as error:
        msg = f"NVIDIA driver: expected the call {name}, found none; CUDA 11.4 or later is needed"
        raise UnavailableError(msg) from error
    function.argtypes, function.restype = kinds, _INT
    return function
