"""Builds one TensorRT engine, in a process of its own.

Run as a script and never imported by the runtime's own process: a builder takes one or two gigabytes, which a
small board has back only when the process ends, and a native crash must not take the application along.
Nothing of the project is imported here, so that it starts fast, and no file is written: model and timing cache
come on standard input, the answer, engine and timing cache go to standard output, each block with its length
in front (8 bytes, little endian).

References:
    https://docs.nvidia.com/deeplearning/tensorrt/latest/api/migration-guide.html (what TensorRT 11 removed).
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from typing import Any, BinaryIO

MOST_ERRORS, LONGEST_ERROR = 20, 2000
# Said along with any error on a machine without a driver, where it means nothing.
NO_DRIVER = "catchCudaError"


def build(
    trt: Any, model: bytes, timing: bytes, request: dict[str, Any]
) -> tuple[dict[str, Any], bytes, bytes]:
    """Parse and build a model.

    Args:
        trt: TensorRT's module.
        model: The ONNX file.
        timing: An earlier timing cache of the same TensorRT and GPU, or nothing.
        request: ``dla_core``, ``workspace_bytes``, ``weak_types`` (the types that a weakly typed build may use),
            ``sparse_weights``.

    Returns:
        What was found, the engine and the new timing cache; the engine is empty where there is none.
    """
    logger = make_logger(trt)
    builder = trt.Builder(logger)
    config = builder.create_builder_config()
    answer: dict[str, Any] = {"version": str(trt.__version__), "errors": [], "layers": 0, "timing": "none"}
    problem = configure(trt, builder, config, request)
    if problem:
        return {**answer, "errors": [problem]}, b"", b""
    answer["timing"] = give_timing(config, timing)
    network = builder.create_network(network_flags(trt, typed=is_typed(trt, request)))
    parser = trt.OnnxParser(network, logger)
    started = time.perf_counter()
    parsed = parser.parse(model)
    engine = builder.build_serialized_network(network, config) if parsed else None
    answer["seconds"] = time.perf_counter() - started
    answer["layers"] = int(network.num_layers)
    errors = [describe(parser.get_error(index)) for index in range(parser.num_errors)]
    errors = errors or [cause(message) for message in logger.errors]
    answer["errors"] = [error[:LONGEST_ERROR] for error in dict.fromkeys(errors)][:MOST_ERRORS]
    if engine is None:
        return answer, b"", b""
    return answer, bytes(engine), take_timing(config)


def is_typed(trt: Any, request: dict[str, Any]) -> bool:
    """Tell whether types come from the graph: since TensorRT 10, and on accelerators since 11.

    TensorRT for RTX counts its versions from 1 and takes them from nowhere else.
    """
    first_typed = 10 if request.get("dla_core") is None else 11
    return not 7 <= major(trt) < first_typed


def network_flags(trt: Any, *, typed: bool) -> int:
    """Give the flags of a network whose batch is explicit, as the versions name them."""
    kinds = trt.NetworkDefinitionCreationFlag
    flags = 0
    if major(trt) < 10:
        flags |= 1 << int(kinds.EXPLICIT_BATCH)
    if typed and hasattr(kinds, "STRONGLY_TYPED"):
        flags |= 1 << int(kinds.STRONGLY_TYPED)
    return flags


def configure(trt: Any, builder: Any, config: Any, request: dict[str, Any]) -> str:
    """Set what the request asks for; what cannot be set comes back as a sentence."""
    # Layer by layer, so that what was fused can be read back from the engine.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if request.get("workspace_bytes") is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(request["workspace_bytes"]))
    if request.get("sparse_weights"):
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    if not is_typed(trt, request):
        for name in request.get("weak_types", ()):
            config.set_flag(getattr(trt.BuilderFlag, name))
    core = request.get("dla_core")
    if core is None:
        return ""
    cores = int(getattr(builder, "num_DLA_cores", 0))
    if core >= cores:
        return f"expected a deep learning accelerator with number {core}, found {cores} of them"
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = core
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    return ""


def give_timing(config: Any, timing: bytes) -> str:
    """Start from an earlier timing cache; one that TensorRT does not take is left out."""
    if not hasattr(config, "create_timing_cache"):
        return "not known to this version"
    try:
        cache = config.create_timing_cache(timing)
        taken = cache is not None and config.set_timing_cache(cache, False)
    except Exception as error:  # A cache of another version is refused by an exception or by None.
        cache, taken, timing = None, False, b""
        reason = f"refused: {error}"
    else:
        reason = "refused"
    if taken:
        return "reused" if timing else "new"
    fresh = config.create_timing_cache(b"")
    if fresh is not None:
        config.set_timing_cache(fresh, False)
    return reason


def take_timing(config: Any) -> bytes:
    """Serialise the timing cache after a build; nothing where the version keeps none."""
    cache = config.get_timing_cache() if hasattr(config, "get_timing_cache") else None
    return b"" if cache is None else bytes(cache.serialize())


def major(trt: Any) -> int:
    """Give the first number of TensorRT's version."""
    return int(str(trt.__version__).partition(".")[0])


def make_logger(trt: Any) -> Any:
    """Make a logger that keeps errors in ``errors`` and prints nothing."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        """Native code calls it from several threads; appending to a list is safe."""

        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)

    return Logger()


def describe(error: Any) -> str:
    """Put the node first: that is what a reader looks for in the model."""
    node = f"{error.node_name() or 'graph'} ({error.node_operator()})" if error.node_operator() else "graph"
    return f"{node}: {cause(error.desc())}"


def cause(message: str) -> str:
    """Leave out the lines about a missing driver, unless there is nothing else."""
    lines = [line.strip() for line in message.splitlines()]
    return "; ".join([line for line in lines if line and NO_DRIVER not in line] or lines)


def read_block(stream: BinaryIO) -> bytes:
    """Read one block; what is missing shows as fewer bytes."""
    return stream.read(int.from_bytes(stream.read(8), "little"))


def write_block(stream: BinaryIO, data: bytes) -> None:
    """Write one block with its length in front."""
    stream.write(len(data).to_bytes(8, "little"))
    stream.write(data)


def main() -> None:
    """Serve one request."""
    # Native code writes to standard output too; the answer gets a channel of its own.
    channel = os.dup(1)
    os.dup2(2, 1)
    request = json.loads(read_block(sys.stdin.buffer))
    model, timing = read_block(sys.stdin.buffer), read_block(sys.stdin.buffer)
    trt = importlib.import_module(request["module"])
    answer, engine, timing = build(trt, model, timing, request)
    with os.fdopen(channel, "wb") as stream:
        write_block(stream, json.dumps(answer).encode())
        write_block(stream, engine)
        write_block(stream, timing)


if __name__ == "__main__":
    main()
