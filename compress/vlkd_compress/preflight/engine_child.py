"""Parses and builds one ONNX file with TensorRT, in a process of its own, and prints the result as JSON.

Run as a script, never imported by the project: TensorRT may crash natively, and the loader's path is read
only when a process starts. Nothing of the project is imported here, so that the process starts fast.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

MOST_ERRORS = 50
# Said along with any error on a machine without a driver, where it means nothing.
NO_DRIVER = "catchCudaError"
LONGEST_ERROR = 2000


def main(path: str) -> dict[str, Any]:
    """Return what parser and builder said about one file."""
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
        engine = builder.build_serialized_network(network, builder.create_builder_config())
        answer["engine_bytes"] = None if engine is None else int(engine.nbytes)
    errors = [_describe(parser.get_error(index)) for index in range(parser.num_errors)]
    errors = errors or [_cause(message) for message in logger.errors]
    answer["seconds"] = time.perf_counter() - started
    answer["errors"] = [error[:LONGEST_ERROR] for error in dict.fromkeys(errors)][:MOST_ERRORS]
    return answer


def _describe(error: Any) -> str:
    """Put the node first: that is what a reader looks for in the model."""
    node = f"{error.node_name() or 'graph'} ({error.node_operator()})" if error.node_operator() else "graph"
    return f"{node}: {_cause(error.desc())}"


def _cause(message: str) -> str:
    """Leave out the lines about a missing driver, unless there is nothing else."""
    lines = [line.strip() for line in message.splitlines()]
    return "; ".join([line for line in lines if line and NO_DRIVER not in line] or lines)


if __name__ == "__main__":
    # Native code writes to standard output too; the answer gets a channel of its own.
    channel = os.dup(1)
    os.dup2(2, 1)
    answer = main(sys.argv[1])
    with os.fdopen(channel, "w", encoding="utf-8") as stream:
        json.dump(answer, stream)
