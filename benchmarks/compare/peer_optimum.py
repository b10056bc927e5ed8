"""optimum-onnx: `ORTModelForImageClassification` with its image processor, on the folder that `export` writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from optimum.onnxruntime import ORTModelForImageClassification
from PIL import Image
from serving import Peer, serve
from transformers import AutoImageProcessor


def load(setup: dict[str, Any]) -> Peer:
    """Load model and processor."""
    torch.set_num_threads(setup["threads"])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = setup["threads"]
    model = ORTModelForImageClassification.from_pretrained(setup["folder"], session_options=options)
    processor = AutoImageProcessor.from_pretrained(setup["folder"])

    def prepare(image: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(image.transpose(2, 0, 1)[None].astype(np.float32))

    def call(image: torch.Tensor) -> np.ndarray:
        return model(pixel_values=image).logits[0].numpy()

    def file(path: Path) -> int:
        inputs = processor(images=Image.open(path).convert("RGB"), return_tensors="pt")
        return int(model(**inputs).logits.argmax(-1))

    return Peer(("optimum-onnx", "transformers", "onnxruntime", "torch"), prepare, call, file)


if __name__ == "__main__":
    serve(load)
