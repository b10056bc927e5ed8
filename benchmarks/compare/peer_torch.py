"""The torch student that the build trained, eager or compiled, from its checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from serving import Peer, pixels, serve

from vlkd_edge.torch_export import find_student, load_network


def load(setup: dict[str, Any]) -> Peer:
    """Put the student together."""
    torch.set_num_threads(setup["threads"])
    network, _ = load_network(find_student(Path(setup["build"])))
    run = torch.compile(network, dynamic=False) if setup["compile"] else network

    def call(image: torch.Tensor) -> np.ndarray:
        with torch.inference_mode():
            return run(image)[1][0].numpy()

    def prepare(image: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.array(image))[None]

    def file(path: Path) -> int:
        return int(call(prepare(pixels(path, setup["side"]))).argmax())

    return Peer(("torch", "timm"), prepare, call, file)


if __name__ == "__main__":
    serve(load)
