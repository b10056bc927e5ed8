"""Parses and builds one ONNX file with TensorRT, in a process of its own, and prints the result as JSON.

Run as a script, never imported by the project: TensorRT may crash natively, and the loader's path is read
only when a process starts. Nothing of the project is imported here, so that the process starts fast.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

MOST_ERRORS = 50
# Said along with any error on a machine without a driver, where it means nothing.
NO_DRIVER = "catchCudaError"
LONGEST_ERROR = 2000


def main(path: str, profile: str = "", keep: str = "") -> dict[str, Any]:
    """Return what parser and builder said about one file.

    Args:
        path: the ONNX file.
        profile: ``smallest:usual:largest`` batch, empty for a fixed one.
        keep: where to write the engine; empty to throw it away.
    """
    import tensorrt_bindings as trt

    class Logger(trt.ILogger):  # type: ignore[misc]
        """Keeps warnings and errors; native code calls it from several threads."""

        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)

    logger = Logger()
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    started = time.perf_counter()
    # Given as a path, so that weights stored beside the file are found.
    parsed = parser.parse_from_file(path)
    answer: dict[str, Any] = {
        "bindings_version": str(trt.__version__),
        "parsed": bool(parsed),
        "layers": int(network.num_layers),
        "engine_bytes": None,
    }
    if parsed:
        config = builder.create_builder_config()
        if profile:
            config.add_optimization_profile(_profile(builder, network, profile))
        engine = builder.build_serialized_network(network, config)
        answer["engine_bytes"] = None if engine is None else int(engine.nbytes)
        if keep and engine is not None:
            Path(keep).write_bytes(memoryview(engine))
    errors = [_describe(parser.get_error(index)) for index in range(parser.num_errors)]
    errors = errors or [_cause(message) for message in logger.errors]
    answer["peak_bytes"] = _peak_bytes()
    answer["seconds"] = time.perf_counter() - started
    answer["errors"] = [error[:LONGEST_ERROR] for error in dict.fromkeys(errors)][:MOST_ERRORS]
    return answer


def _profile(builder: Any, network: Any, batches: str) -> Any:
    """Make one profile for every input whose batch is open."""
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        batch, *others = tuple(tensor.shape)
        if batch == -1:
            profile.set_shape(tensor.name, *((int(size), *others) for size in batches.split(":")))
    return profile


def _describe(error: Any) -> str:
    """Put the node first: that is what a reader looks for in the model."""
    node = f"{error.node_name() or 'graph'} ({error.node_operator()})" if error.node_operator() else "graph"
    return f"{node}: {_cause(error.desc())}"


def _cause(message: str) -> str:
    """Leave out the lines about a missing driver, unless there is nothing else."""
    lines = [line.strip() for line in message.splitlines()]
    return "; ".join([line for line in lines if line and NO_DRIVER not in line] or lines)


def _peak_bytes() -> int | None:
    """Read the most memory this process held; getrusage would count the parent's, as it was when it forked."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), None)


if __name__ == "__main__":
    # Native code writes to standard output too; the answer gets a channel of its own.
    channel = os.dup(1)
    os.dup2(2, 1)
    answer = main(*sys.argv[1:])
    with os.fdopen(channel, "w", encoding="utf-8") as stream:
        json.dump(answer, stream)
