"""OpenVINO on the float graph, or on what NNCF's post-training quantization makes of it.

On processors with bfloat16 it computes float graphs in that by itself; the set-up says whether it may.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino
from serving import Peer, pixels, serve


def load(setup: dict[str, Any]) -> Peer:
    """Read the graph, quantize it if asked to, and compile it for one thread."""
    core = openvino.Core()
    model, packages, note = core.read_model(setup["model"]), ("openvino",), "the float graph"
    if setup["quantize"]:
        import nncf

        images = np.load(setup["calibration"])
        dataset = nncf.Dataset([image[None] for image in images])
        model = nncf.quantize(model, dataset, subset_size=len(images))
        packages, note = (
            ("openvino", "nncf"),
            f"nncf.quantize with its defaults on {len(images)} source images",
        )
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": setup["threads"],
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
        **({"INFERENCE_PRECISION_HINT": "f32"} if setup["exact"] else {}),
    }
    compiled = core.compile_model(model, "CPU", settings)
    note += f", float parts in {compiled.get_property('INFERENCE_PRECISION_HINT').to_string()}"
    request, logits = compiled.create_infer_request(), compiled.output("logits")

    def call(image: np.ndarray) -> np.ndarray:
        return request.infer({0: image})[logits][0]

    def file(path: Path) -> int:
        return int(call(pixels(path, setup["side"])[None]).argmax())

    return Peer(packages, lambda image: image[None], call, file, note)


if __name__ == "__main__":
    serve(load)
