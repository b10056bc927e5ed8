"""The torch student compiled with Torch-TensorRT, behind the interface of the device library's engines.

Torch-TensorRT needs an NVIDIA GPU and a torch of its own version; it is imported when it is used. What ships is
always the ONNX graph: this is for those who serve from Python with torch anyway, and for comparing latencies.

Letters used in shapes: N images (fixed), H and W pixels, D embedding size, C classes.

References:
    https://docs.pytorch.org/TensorRT/dynamo/dynamo_export.html
"""

from __future__ import annotations

import copy
import threading
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from vlkd_runtime.engines.base import EngineInfo, EngineOutput
from vlkd_runtime.errors import RefusalError, SelfTestError, UnavailableError, UsageError

from .students import Deployable

NAME = "torch-tensorrt"
INSTALL = "pip install 'vlkd-edge[torch-tensorrt]'"


class HalfBody(torch.nn.Module):
    """A deployable network whose backbone and projection compute in float16, its head in float32.

    TensorRT computes in the types the network states; the unit norm and the class-vector product decide between
    near classes and stay float32, as in the ONNX graphs.
    """

    def __init__(self, network: Deployable) -> None:
        super().__init__()
        self.network = copy.deepcopy(network)
        self.network.student.backbone.half()
        self.network.student.head.half()

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Unit embedding ``(N, D)`` and logits ``(N, C)`` of uint8 images ``(N, H, W, 3)``."""
        student = self.network.student
        views = image.float().permute(0, 3, 1, 2) / 255.0
        normalised = ((views - student.mean) / student.std).contiguous()
        outputs = student.head(student.backbone(normalised.half())).float()
        if self.network.fused is None:
            msg = "Expected a student that predicts by class vectors, found a plain classifier: export another method."
            raise RefusalError(msg)
        embedding, logits = self.network.fused(outputs)
        return embedding, logits


class TorchTensorRtEngine:
    """A compiled student; one stream, so that several threads take turns."""

    def __init__(self, module: Any, batch: int, size: int, version: str) -> None:
        self._module: Any = module
        self._shape = (batch, size, size, 3)
        self._lock = threading.Lock()
        self._info = EngineInfo(NAME, "TensorRT through torch_tensorrt.dynamo", version, None, batch)

    @classmethod
    def compile(
        cls,
        network: Deployable,
        size: int,
        *,
        batch: int = 1,
        precision: Literal["float32", "float16"] = "float16",
    ) -> TorchTensorRtEngine:
        """Compile a network for the GPU of this machine.

        Args:
            network: the torch module.
            size: H and W.
            batch: N.
            precision: of backbone and projection.

        Raises:
            UnavailableError: torch_tensorrt or a GPU is missing.
            RefusalError: a part of the network has no form in TensorRT.
        """
        # Before the import: torch_tensorrt asks the driver for a GPU as soon as it is imported.
        if not torch.cuda.is_available():
            msg = "Expected an NVIDIA GPU that torch can use, found none: compile on the machine that serves."
            raise UnavailableError(msg)
        tensorrt = _import()
        example = torch.zeros(batch, size, size, 3, dtype=torch.uint8, device="cuda")
        module = HalfBody(network) if precision == "float16" else copy.deepcopy(network)
        program = torch.export.export(module.eval().cuda(), (example,))
        try:
            # All of it in one engine: a part that stayed in torch would be a silent fallback.
            compiled = tensorrt.dynamo.compile(
                program,
                inputs=[example],
                require_full_compilation=True,
                min_block_size=1,
                immutable_weights=True,
            )
        except Exception as error:  # torch_tensorrt raises types of its own, all plain exceptions
            reason = " ".join(str(error).split())[:400]
            msg = (
                f"torch_tensorrt {tensorrt.__version__} cannot compile the student: {reason}. "
                "Use the ONNX graph with the engine 'tensorrt' instead."
            )
            raise RefusalError(msg) from error
        return cls(compiled, batch, size, str(tensorrt.__version__))

    @property
    def info(self) -> EngineInfo:
        """Say which engine this is."""
        return self._info

    def run(self, images: npt.NDArray[np.uint8]) -> EngineOutput:
        """Run one batch, ``(N, H, W, 3)`` uint8 RGB.

        Raises:
            UsageError: another shape or dtype, or the engine was closed.
            SelfTestError: the engine failed.
        """
        module = self._module
        if module is None:
            msg = "the engine was closed; open it again"
            raise UsageError(msg)
        if images.dtype != np.uint8 or images.shape != self._shape:
            msg = f"engine {NAME}: expected uint8 {self._shape}, found {images.dtype} {images.shape}; use prepare()"
            raise UsageError(msg)
        try:
            with self._lock, torch.inference_mode():
                device = "cuda" if torch.cuda.is_available() else "cpu"
                given = torch.from_numpy(np.ascontiguousarray(images)).to(device)
                embedding, logits = (output.float().cpu().numpy() for output in module(given))
        except RuntimeError as error:
            msg = f"engine {NAME} ({self._info.version}): running the model failed: {error}; check the GPU"
            raise SelfTestError(msg) from error
        return EngineOutput(embedding, logits)

    def close(self) -> None:
        """Let go of the engine."""
        self._module = None

    def save(self, path: Path) -> None:
        """Write it as torch's exported program with the engine inside; it holds for this GPU and these versions.

        ``torch_tensorrt.load(path).module()`` gives a module that takes uint8 images ``(N, H, W, 3)``, as `run` does.
        Nothing here reads the file again: torch unpickles what is in it.
        """
        tensorrt = _import()
        example = torch.zeros(
            self._shape, dtype=torch.uint8, device="cuda" if torch.cuda.is_available() else "cpu"
        )
        tensorrt.save(self._module, str(path), arg_inputs=[example], retrace=False)


def _import() -> Any:
    try:
        import torch_tensorrt
    except (
        ImportError,
        OSError,
        RuntimeError,
    ) as error:  # a library of CUDA or TensorRT, or the driver, is missing
        msg = (
            f"engine {NAME}: expected the package torch_tensorrt, found none that can be imported ({error}): "
        )
        msg += INSTALL
        raise UnavailableError(msg) from error
    return torch_tensorrt
