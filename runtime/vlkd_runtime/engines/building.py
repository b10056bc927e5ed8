"""Gets a TensorRT engine: the cached one if it was made for exactly this, otherwise a new one.

An engine fits one model, one TensorRT, one GPU and one driver. Everything it depends on is its key in the
cache; an engine under another key is not looked at.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BundleError, UnavailableError
from ..onnxfile import stored_types
from ..strictjson import JsonValue
from .base import EngineOptions
from .cuda import Gpu
from .enginecache import Entry
from .tensorrt_build import read_block, write_block

ENGINE, TIMING = "engine.plan", "timing.bin"
_CHILD = Path(__file__).with_name("tensorrt_build.py")
_TIMEOUT_S = 3600.0
_LAST_WORDS = 600


@dataclass(frozen=True, slots=True)
class Built:
    """An engine and how it came about.

    Attributes:
        plan: The serialised engine.
        sha256: Its hash.
        folder: Its folder in the cache, if it is in one.
        how: One line: found in the cache, or built and why.
        answer: What the build said; empty for a cached engine.
    """

    plan: bytes
    sha256: str
    folder: Path | None
    how: str
    answer: Mapping[str, Any]


def engine_identity(
    model: bytes, module: str, version: str, gpu: Gpu, options: EngineOptions
) -> dict[str, str]:
    """Give everything that an engine depends on."""
    return {
        "model": hashlib.sha256(model).hexdigest(),
        "module": module,
        "tensorrt": version,
        "gpu": gpu.name,
        "compute capability": gpu.compute_capability,
        "driver": gpu.driver,
        "dla core": "none" if options.dla_core is None else str(options.dla_core),
        "workspace": "default" if options.workspace_bytes is None else str(options.workspace_bytes),
        "cpu": os.uname().machine,
        # Only where it is asked for, so that engines built before stay known.
        **({"weights": "sparse"} if options.sparse_weights else {}),
    }


def get_engine(model: bytes, identity: Mapping[str, str], options: EngineOptions, *, fresh: bool) -> Built:
    """Take the engine from the cache, or build it and keep it there.

    A cache that cannot be written costs the next start a build, and nothing else.

    Args:
        model: The ONNX model.
        identity: What `engine_identity` gave.
        options: How to build.
        fresh: Build even if there is one, because it did not work.

    Raises:
        BundleError: TensorRT refuses the model.
        UnavailableError: The build crashed, ran out of time or of memory.
    """
    if options.cache is None:
        return _built_for_once(model, identity, options, "there is no cache folder")
    entry = Entry.of(options.cache, identity)
    # What was timed belongs to the GPU and to TensorRT, whichever the model.
    shared = {key: value for key, value in identity.items() if key != "model"}
    timings = Entry.of(options.cache, shared)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(entry.lock())
        except OSError as error:
            return _built_for_once(model, identity, options, f"the cache cannot be written: {error.strerror}")
        found, why = (None, "the cached one did not work") if fresh else entry.read(ENGINE)
        if found is not None:
            return Built(found, _sha256(found), entry.folder, "found in the cache", {})
        timing, _ = timings.read(TIMING)
        plan, timed, answer = run_build(model, timing or b"", identity["module"], options)
        note: dict[str, JsonValue] = {
            "seconds": float(answer.get("seconds", 0)),
            "layers": int(answer.get("layers", 0)),
            "timing": str(answer.get("timing")),
        }
        try:
            entry.write(ENGINE, plan, note)
            if timed:
                timings.write(TIMING, timed)
        except OSError as error:
            why += f", and not kept: {error.strerror}"
    return Built(plan, _sha256(plan), entry.folder, f"built, because {why}", answer)


def _built_for_once(model: bytes, identity: Mapping[str, str], options: EngineOptions, why: str) -> Built:
    plan, _, answer = run_build(model, b"", identity["module"], options)
    return Built(plan, _sha256(plan), None, f"built, because {why}", answer)


def weak_types(model: bytes, options: EngineOptions) -> list[str]:
    """Give the types that a build may use where it does not take them from the graph: those that the graph holds.

    An accelerator computes in nothing wider than float16.
    """
    try:
        stored = stored_types(model, where="the model")
    except BundleError:
        return []  # TensorRT's parser says what is wrong with it
    half = "float16" in stored or options.dla_core is not None
    return ["FP16"] * half + ["INT8"] * ("int8" in stored)


def run_build(
    model: bytes,
    timing: bytes,
    module: str,
    options: EngineOptions,
    *,
    environment: Mapping[str, str] | None = None,
    timeout_s: float = _TIMEOUT_S,
) -> tuple[bytes, bytes, dict[str, Any]]:
    """Build in a child process.

    Args:
        model: The ONNX model.
        timing: An earlier timing cache, or nothing.
        module: The name of TensorRT's Python module.
        options: How to build.
        environment: Variables to set for the child.
        timeout_s: After this long it is killed.

    Returns:
        The engine, the timing cache, and what the build said.

    Raises:
        BundleError: TensorRT refuses the model.
        UnavailableError: The child crashed or ran out of time.
    """
    request = {
        "module": module,
        "dla_core": options.dla_core,
        "workspace_bytes": options.workspace_bytes,
        "weak_types": weak_types(model, options),
        "sparse_weights": options.sparse_weights,
    }
    stream = io.BytesIO()
    for block in (json.dumps(request).encode(), model, timing):
        write_block(stream, block)
    try:
        done = subprocess.run(
            [sys.executable, str(_CHILD)],
            input=stream.getvalue(),
            capture_output=True,
            timeout=timeout_s,
            env={**os.environ, **(environment or {})},
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        msg = f"TensorRT: the build did not end within {timeout_s:g} s; give it more time or a smaller model"
        raise UnavailableError(msg) from error
    answer, plan, timed = _answer(done)
    if not plan:
        errors = "; ".join(map(str, answer.get("errors", ()))) or "it gave no reason"
        msg = f"TensorRT {answer.get('version')}: it builds no engine of the model: {errors}; use another variant"
        raise BundleError(msg)
    return plan, timed, answer


def _answer(done: subprocess.CompletedProcess[bytes]) -> tuple[dict[str, Any], bytes, bytes]:
    with contextlib.suppress(ValueError):
        stream = io.BytesIO(done.stdout)
        answer = json.loads(read_block(stream))
        if done.returncode == 0 and isinstance(answer, dict):
            return answer, read_block(stream), read_block(stream)
    words = done.stderr.decode("utf-8", "replace").strip()[-_LAST_WORDS:] or "it said nothing"
    ended = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
    msg = f"TensorRT: the build ended with {ended}: {words}; check the free memory and the installation"
    raise UnavailableError(msg)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
