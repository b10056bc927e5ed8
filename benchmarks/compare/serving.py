"""What every peer's process does: answer a line of JSON with a line of JSON, and time nothing but the peer's own call.

Needs numpy and Pillow only, and nothing of this project, so that it runs in any peer's virtual environment. The first
argument is the set-up as JSON, answers go to the file descriptor that it names. A request is one of::

    {"do": "answers"}                                          the class of every image
    {"do": "time", "what": "array", "first": 7, "calls": 10}   nanoseconds of calls on prepared images; or "file"
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# Untimed calls before each block: another process has had the caches in the meantime.
REWARM = 3
KEPT = 64


@dataclass(frozen=True)
class Peer:
    """One way to run the student.

    Attributes:
        packages: the distributions whose versions count.
        prepare: brings one uint8 image (H, W, 3) into the form that `call` takes; not timed.
        call: classifies one prepared image; gives logits, or the class itself.
        file: classifies one image file from disk, as one would in this peer's world.
        note: what a reader should know.
    """

    packages: tuple[str, ...]
    prepare: Callable[[np.ndarray], Any]
    call: Callable[[Any], Any]
    file: Callable[[Path], Any]
    note: str = ""


def serve(load: Callable[[dict[str, Any]], Peer]) -> None:
    """Load the peer, say which versions it has, and answer until standard input ends."""
    setup = json.loads(sys.argv[1])
    # Libraries print what they like; the answers have a pipe of their own.
    answers = os.fdopen(setup["answers"], "w")

    def reply(**answer: Any) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    images, files = np.load(setup["images"]), [Path(path) for path in setup["files"]]
    began = time.perf_counter()
    peer = load(setup)
    best(peer.call(peer.prepare(images[0])))
    versions = {name: importlib.metadata.version(name) for name in peer.packages}
    reply(versions=versions, load_s=time.perf_counter() - began, note=peer.note)
    prepared = [peer.prepare(image) for image in images[:KEPT]]
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "answers":
            reply(classes=[best(peer.call(peer.prepare(image))) for image in images])
        elif request["what"] == "array":
            reply(**timed(peer.call, prepared, request))
        else:
            reply(**timed(peer.file, files[:KEPT], request))


def timed(call: Callable[[Any], Any], inputs: list[Any], request: dict[str, Any]) -> dict[str, list[int]]:
    """Time calls on successive inputs, on the wall's clock and on the processor's."""
    first, wall, cpu = request["first"], [], []
    for index in range(-REWARM, request["calls"]):
        item = inputs[(first + index) % len(inputs)]
        start, busy = time.perf_counter_ns(), time.process_time_ns()
        call(item)
        busy, end = time.process_time_ns() - busy, time.perf_counter_ns()
        if index >= 0:
            wall.append(end - start)
            cpu.append(busy)
    return {"wall_ns": wall, "cpu_ns": cpu}


def best(answer: Any) -> int:
    """The class of logits, or of an answer that is the class."""
    return int(answer) if np.ndim(answer) == 0 else int(np.asarray(answer).reshape(-1).argmax())


def pixels(path: Path, side: int) -> np.ndarray:
    """An image file as the network takes it, the way one writes it by hand."""
    image = Image.open(path).convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(image)
