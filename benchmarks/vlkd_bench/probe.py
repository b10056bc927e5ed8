"""What runs in the processes that ``vlkd-edge bench`` starts: loads a bundle and times it.

A process of its own gives the cold start and the peak memory of an application that does nothing else, and
several of them show how much a number moves when nothing changed: memory layout, clocks, neighbours. They talk
JSON: the request is the only argument, the answer the last line on standard output. Two that take turns say so on a
line each time that it is the other's turn, and wait for a line on standard input.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vlkd_runtime import Classifier
from vlkd_runtime.preprocess import prepare

from .latency import measure_together

TURN = "turn"

# What an application does, and no more, up to its first answer; then this module takes over.
PROGRAM = """
import time
began = time.monotonic()
import json, sys
request = json.loads(sys.argv[1])
from vlkd_runtime import Classifier
classifier = Classifier.load(request["bundle"], engine=request["engine"], threads=request["threads"])
loaded = time.monotonic()
classifier.predict(request["image"])
answered = time.monotonic()
from vlkd_bench.probe import answer
answer(request, classifier, (began, loaded, answered))
"""


def answer(request: Mapping[str, Any], classifier: Classifier, times: tuple[float, float, float]) -> None:
    """Do what was asked for and print it."""
    actions = {"latency": latency, "throughput": throughput, "load": load}
    # Libraries may print; the answer must be the last line on standard output.
    with contextlib.redirect_stdout(sys.stderr), classifier:
        found = actions[request["action"]](request, classifier)
    began, loaded, answered = times
    found["load_ms"], found["first_call_ms"] = 1e3 * (loaded - began), 1e3 * (answered - loaded)
    found["answered_s"] = answered
    print(json.dumps(found))


def latency(request: Mapping[str, Any], classifier: Classifier) -> dict[str, Any]:
    """Time engine, call and file in turn."""
    image = Path(request["image"])
    prepared = prepare(image, classifier.preprocess)
    batch = prepared[None]
    after: Callable[[Mapping[str, list[int]]], None] | None = None
    if "ring" in request:
        from .observing import Ring

        ring = Ring(Path(request["ring"]))

        def after(samples: Mapping[str, list[int]]) -> None:
            # What the process before took is shown until there is something newer.
            if len(samples["call"]) == 1:
                ring.clear()
            ring.add(samples["call"][-1])

    calls: dict[str, Callable[[], object]] = {
        "engine": lambda: classifier.infer(batch),
        "call": lambda: classifier.predict(prepared),
        "end_to_end": lambda: classifier.predict(image),
    }

    def before(rounds: int) -> None:
        if rounds % request["turn_rounds"] == 0:
            print(TURN, file=sys.__stdout__, flush=True)
            sys.stdin.readline()
            # The caches hold what the other process left there; an application that goes on does not wait for that.
            for call in calls.values():
                call()

    series = measure_together(
        calls,
        min_samples=request["samples"],
        max_seconds=request["max_seconds"],
        before=before if "turn_rounds" in request else None,
        after=after,
    )
    return {
        "samples_ns": series.samples_ns,
        "interrupted": series.interrupted,
        "warmup_calls": series.warmup_calls,
        "settled": series.settled,
        "truncated": series.truncated,
        "peak_resident_bytes": peak_resident_bytes(),
    }


def throughput(request: Mapping[str, Any], classifier: Classifier) -> dict[str, Any]:
    """Hand over several prepared images per call, for a fixed time each."""
    prepared = prepare(Path(request["image"]), classifier.preprocess)
    rows = []
    for images in request["batches"]:
        stack = np.repeat(prepared[None], images, axis=0)
        calls, seconds = _repeat(lambda stack=stack: classifier.predict(stack), request["seconds"])  # type: ignore[misc]
        rows.append({"images": images, "images_per_s": images * calls / seconds, "calls": calls})
    return {"rows": rows}


def load(request: Mapping[str, Any], classifier: Classifier) -> dict[str, Any]:
    """Classify one prepared image again and again; say from when to when and how often."""
    prepared = prepare(Path(request["image"]), classifier.preprocess)
    _repeat(lambda: classifier.predict(prepared), 1.0)
    start = time.monotonic()
    calls, seconds = _repeat(lambda: classifier.predict(prepared), request["seconds"], warm_up=False)
    return {"start_s": start, "end_s": start + seconds, "images": calls}


def _repeat(call: Callable[[], object], seconds: float, *, warm_up: bool = True) -> tuple[int, float]:
    """Call for a time; return how often and how long it really was."""
    if warm_up:
        call()
    start, calls = time.monotonic(), 0
    while True:
        call()
        calls += 1
        spent = time.monotonic() - start
        if spent >= seconds:
            return calls, spent


def peak_resident_bytes() -> int:
    """Return the highest resident memory of this process."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    # Where /proc is missing. ru_maxrss survives exec, so a child may report its parent's peak.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
