"""The side of ``overhead.py`` that runs optimum: classifies the files whose numbers it is given, and says how long.

Runs in a Python with ``optimum-onnx`` and imports nothing of this project.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from typing import Any

import onnxruntime
import torch
from optimum.onnxruntime import ORTModelForImageClassification
from PIL import Image
from transformers import AutoImageProcessor


def main() -> None:
    """Serve requests on standard input until it ends."""
    folder, threads, paths = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    options = onnxruntime.SessionOptions()
    if threads:
        torch.set_num_threads(threads)
        options.intra_op_num_threads = options.inter_op_num_threads = threads
    model = ORTModelForImageClassification.from_pretrained(folder, session_options=options)
    processors = {fast: AutoImageProcessor.from_pretrained(folder, use_fast=fast) for fast in (False, True)}
    names = ("optimum-onnx", "transformers", "onnxruntime", "torch", "torchvision")
    print(json.dumps({name: importlib.metadata.version(name) for name in names}), flush=True)

    def classify(files: list[str], fast: bool, batch: int) -> list[str]:
        labels: list[str] = []
        for start in range(0, len(files), batch):
            images = [Image.open(path) for path in files[start : start + batch]]
            logits: Any = model(**processors[fast](images=images, return_tensors="pt")).logits
            labels += [model.config.id2label[int(best)] for best in logits.argmax(-1)]
        return labels

    for line in sys.stdin:
        asked = json.loads(line)
        files = [paths[which] for which in asked["which"]]
        wall, cpu = time.perf_counter(), time.process_time()
        labels = classify(files, asked["fast"], asked["batch"])
        answer = {"labels": labels, "wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
