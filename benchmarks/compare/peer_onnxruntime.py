"""ONNX Runtime by hand: the float graph in a session with one thread."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from serving import Peer, pixels, serve


def load(setup: dict[str, Any]) -> Peer:
    """Open the graph."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = setup["threads"]
    session = onnxruntime.InferenceSession(setup["model"], options, providers=["CPUExecutionProvider"])

    def call(image: np.ndarray) -> np.ndarray:
        return session.run(["logits"], {"image": image})[0][0]

    def file(path: Path) -> int:
        return int(call(pixels(path, setup["side"])[None]).argmax())

    return Peer(("onnxruntime",), lambda image: image[None], call, file)


if __name__ == "__main__":
    serve(load)
