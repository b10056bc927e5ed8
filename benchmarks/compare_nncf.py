"""NNCF's accuracy-controlled quantization on a task of ``vlkd-edge compress``: same model, images, labels and budget.

Runs in a virtual environment of its own (``pip install nncf onnx onnxruntime pillow``), with this project's packages on
PYTHONPATH; nothing of it needs torch. Reads what a run of ``vlkd-edge compress`` left in its output folder: the float
model in the project's form, the calibration images and the held-out images. Prints one JSON object.

    python benchmarks/compare_nncf.py vlkd-out/compress --data DATA --held-out sketch --budget 1.0
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

RANKING_IMAGES = 300


def main() -> int:
    """Quantize with NNCF, then judge and race the result as every candidate of the ladder is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="output folder of vlkd-edge compress")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--held-out", required=True)
    parser.add_argument(
        "--budget", type=float, default=1.0, help="points the mean over held-out images may drop"
    )
    parser.add_argument("--calibration-images", type=int, default=256)
    parser.add_argument("--out", type=Path, default=Path("nncf.onnx"))
    asked = parser.parse_args()

    import nncf
    import onnx
    import onnxruntime as ort

    from vlkd_bench.machine import read_machine
    from vlkd_bench.paired import GuardBudget, judge
    from vlkd_bench.predictions import evaluate
    from vlkd_compress.calibration import select_calibration
    from vlkd_compress.fused import count_fused
    from vlkd_compress.speed import race
    from vlkd_distill.data import scan
    from vlkd_runtime import Classifier
    from vlkd_runtime.preprocess import PreprocessSpec, prepare

    held_out = tuple(asked.held_out.split(","))
    dataset = scan(asked.data)
    guarded = dataset.of(held_out)
    calibration = select_calibration(
        dataset.of(dataset.sources(held_out)), asked.calibration_images, seed=0, forbidden_domains=held_out
    )
    (source,) = asked.run.glob("stages/adopt-*/model.onnx")
    model = onnx.load(source)
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    spec = PreprocessSpec(shape[1], shape[2])
    # NNCF walks the whole validation set for each trial; decoding is done once for both sides' sake.
    images = {sample.image: prepare(sample.path, spec)[np.newaxis] for sample in (*calibration, *guarded)}
    calls = 0

    def feed(sample: Any) -> dict[str, np.ndarray]:
        return {"image": images[sample.image]}

    def accuracy(candidate: onnx.ModelProto, samples: Iterable[Any]) -> tuple[float, list[float]]:
        nonlocal calls
        calls += 1
        session = ort.InferenceSession(candidate.SerializeToString(), providers=["CPUExecutionProvider"])
        right = [
            float(session.run(["logits"], feed(sample))[0].argmax() == sample.label) for sample in samples
        ]
        return float(np.mean(right)), right

    started = time.monotonic()
    quantized = nncf.quantize_with_accuracy_control(
        model,
        calibration_dataset=nncf.Dataset(calibration, feed),
        validation_dataset=nncf.Dataset(guarded, lambda sample: sample),
        validation_fn=accuracy,
        max_drop=asked.budget / 100,
        drop_type=nncf.DropType.ABSOLUTE,
        subset_size=len(calibration),
        advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(
            ranking_subset_size=RANKING_IMAGES
        ),
    )
    seconds = time.monotonic() - started
    onnx.save(quantized, asked.out)
    names = dataset.classes
    rows = []
    for path in (source, asked.out):
        with Classifier.from_model(path, spec, names, logit_scale=1.0, threads=1) as classifier:
            rows.append(evaluate(classifier, guarded))
    verdict = judge(rows[0], rows[1], GuardBudget(worst_points=asked.budget, mean_points=asked.budget))
    speed = race(source, asked.out, images[calibration[0].image])
    fused = count_fused(asked.out, 0)
    print(
        json.dumps(
            {
                "tool": f"nncf {nncf.__version__}, quantize_with_accuracy_control",
                "search_seconds": round(seconds, 1),
                "evaluations": calls,
                "worst": {
                    "domain": verdict.worst_domain,
                    "drop": verdict.worst.drop,
                    "upper": verdict.worst.upper,
                },
                "verdict": verdict.verdict,
                "ratio": speed.ratio,
                "ratio_interval": [speed.ratio_low, speed.ratio_high],
                "size_bytes": asked.out.stat().st_size,
                "integer_layers": fused.integer,
                "float_layers": fused.floating,
                "machine": read_machine().describe(),
            },
            indent=1,
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
