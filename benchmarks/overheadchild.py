"""The side of ``overhead.py`` that runs optimum: classifies the file whose number it is given, and says how long.

Runs in a Python with ``optimum-onnx`` and imports nothing of this project.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time

import onnxruntime
import torch
from optimum.onnxruntime import ORTModelForImageClassification
from PIL import Image
from transformers import AutoImageProcessor


def main() -> None:
    """Serve numbers on standard input until it ends."""
    folder, paths = sys.argv[1], sys.argv[2:]
    torch.set_num_threads(1)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    model = ORTModelForImageClassification.from_pretrained(folder, session_options=options)
    processor = AutoImageProcessor.from_pretrained(folder)
    names = ("optimum-onnx", "transformers", "onnxruntime")
    versions = {name: importlib.metadata.version(name) for name in names}
    print(json.dumps({**versions, "processor": type(processor).__name__}), flush=True)
    for line in sys.stdin:
        path = paths[int(line)]
        start = time.process_time()
        inputs = processor(images=Image.open(path), return_tensors="pt")
        logits = model(**inputs).logits
        label = model.config.id2label[int(logits.softmax(-1).argmax(-1))]
        seconds = time.process_time() - start
        print(json.dumps({"label": label, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
