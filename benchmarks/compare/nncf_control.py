"""NNCF's accuracy-controlled quantization beside our ladder: same float model, images, labels and budget.

First ours, then NNCF's in a virtual environment of its own, with this project's packages on PYTHONPATH and no torch;
ONNX Runtime is for the race:
    vlkd-edge compress MODEL.onnx --data DATA --held-out sketch --target cpu-x86 --out RUN
    python3 -m venv venv-nncf
    venv-nncf/bin/pip install -r benchmarks/compare/requirements-openvino.txt 'onnxruntime>=1.20'
    venv-nncf/bin/python benchmarks/compare/nncf_control.py RUN --data DATA --held-out sketch

It reads from RUN the float model in our form and what our ladder chose, gives NNCF the same calibration images and the
same held-out images to control accuracy on, judges both results with the guard, and races float, ours and NNCF's in one
process. The result is ``benchmarks/results/NAME.{json,md}``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import onnx
import onnxruntime as ort

from vlkd_bench.machine import read_machine
from vlkd_bench.paired import GuardBudget, judge
from vlkd_bench.predictions import evaluate
from vlkd_bench.samples import Sample
from vlkd_compress.calibration import select_calibration
from vlkd_compress.fused import count_fused
from vlkd_compress.speed import race
from vlkd_distill.data import scan
from vlkd_runtime import Classifier
from vlkd_runtime.atomic import write_text
from vlkd_runtime.preprocess import PreprocessSpec, prepare

RESULTS = Path(__file__).parents[1] / "results"
RANKING_IMAGES = 300


def main() -> int:
    """Search with NNCF, judge and race both results, write the table."""
    asked = parse(sys.argv[1:])
    held_out = tuple(asked.held_out.split(","))
    dataset = scan(asked.data)
    guarded = dataset.of(held_out)
    source = next(asked.run.glob("stages/adopt-*/model.onnx"))
    ladder = json.loads((asked.run / "ladder.json").read_text())
    if ladder["model"] is None:
        sys.exit(
            f"Expected a run whose ladder chose a candidate, found none in {asked.run}: {ladder['reason']}"
        )
    calibration = select_calibration(
        dataset.of(dataset.sources(held_out)),
        ladder["calibration"]["images"],
        seed=ladder["calibration"]["seed"],
        forbidden_domains=held_out,
    )
    shape = [dim.dim_value for dim in onnx.load(source).graph.input[0].type.tensor_type.shape.dim]
    spec = PreprocessSpec(shape[1], shape[2])
    theirs = asked.run / "nncf.onnx"
    found = asked.run / "nncf.json"
    if not (theirs.exists() and found.exists()):
        write_text(found, json.dumps(search(source, theirs, calibration, guarded, spec, asked.budget)))
    ours = Path(ladder["model"])
    budget = GuardBudget(worst_points=asked.budget, mean_points=asked.budget)
    rows = {}
    for name, path in (("float", source), ("ours", ours), ("nncf", theirs)):
        with Classifier.from_model(path, spec, dataset.classes, logit_scale=1.0, threads=1) as classifier:
            rows[name] = evaluate(classifier, guarded)
    image = prepare(calibration[0].path, spec)[np.newaxis]
    pairs = (("ours", source, ours), ("nncf", source, theirs), ("ours against nncf", theirs, ours))
    races = {}
    for name, first, second in pairs:
        speed = race(first, second, image, seconds=asked.seconds)
        races[name] = {
            "ratio": speed.ratio,
            "low": speed.ratio_low,
            "high": speed.ratio_high,
            "rounds": speed.rounds,
        }
    told = {"ours": {"seconds": stage_seconds(asked.run)}, "nncf": json.loads(found.read_text())}
    table = {
        "model": asked.model_words or str(source.name),
        "note": asked.note,
        "held_out": held_out,
        "images": len(guarded),
        "calibration_images": len(calibration),
        "budget": asked.budget,
        "float_accuracy": float(np.mean([row.correct for row in rows["float"]])),
        "machine": read_machine().describe().partition(", load ")[0],
        "nncf_version": nncf.__version__,
        "onnxruntime": ort.__version__,
        "chosen": ladder["chosen"],
        "tools": {
            name: told[name]
            | worst(judge(rows["float"], rows[name], budget))
            | {"size_bytes": path.stat().st_size, "layers": layers(path), "race": races[name]}
            for name, path in (("ours", ours), ("nncf", theirs))
        },
        "ours_against_nncf": races["ours against nncf"],
    }
    write_text(RESULTS / f"{asked.name}.json", json.dumps(table, indent=1) + "\n")
    write_text(RESULTS / f"{asked.name}.md", render(table))
    print(f"wrote {asked.name}.json and {asked.name}.md in {RESULTS.name}/")
    return 0


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="output folder of vlkd-edge compress for a CPU target")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--held-out", required=True)
    parser.add_argument("--budget", type=float, default=1.0, help="points that accuracy may drop")
    parser.add_argument("--seconds", type=float, default=6.0, help="for each race")
    parser.add_argument("--name", default="compare-nncf", help="name of the result files")
    parser.add_argument("--model-words", default="", help="what the table calls the model")
    parser.add_argument("--note", default="", help="a sentence below the table")
    return parser.parse_args(words)


def search(
    source: Path,
    out: Path,
    calibration: Sequence[Sample],
    guarded: Sequence[Sample],
    spec: PreprocessSpec,
    budget: float,
) -> dict[str, Any]:
    """Let NNCF quantize under accuracy control; how long it took, and how often it evaluated."""
    # NNCF walks the whole validation set for each trial; images are decoded once, outside its time.
    images = {sample.image: prepare(sample.path, spec)[np.newaxis] for sample in (*calibration, *guarded)}
    calls = 0

    def feed(sample: Sample) -> dict[str, np.ndarray]:
        return {"image": images[sample.image]}

    def accuracy(candidate: onnx.ModelProto, samples: Iterable[Sample]) -> tuple[float, list[float]]:
        nonlocal calls
        calls += 1
        session = ort.InferenceSession(candidate.SerializeToString(), providers=["CPUExecutionProvider"])
        right = [float(session.run(["logits"], feed(one))[0].argmax() == one.label) for one in samples]
        return float(np.mean(right)), right

    started = time.monotonic()
    quantized = nncf.quantize_with_accuracy_control(
        onnx.load(source),
        calibration_dataset=nncf.Dataset(calibration, feed),
        validation_dataset=nncf.Dataset(guarded, lambda sample: sample),
        validation_fn=accuracy,
        max_drop=budget / 100,
        drop_type=nncf.DropType.ABSOLUTE,
        subset_size=len(calibration),
        advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(
            ranking_subset_size=RANKING_IMAGES
        ),
    )
    seconds = time.monotonic() - started
    onnx.save(quantized, out)
    return {"seconds": round(seconds, 1), "evaluations": calls}


def stage_seconds(run: Path) -> float:
    """What our ladder took from the adopted model on: every stage, races and held-out answers included."""
    taken = [json.loads(path.read_text()) for path in run.glob("stages/*/stage.json")]
    return round(sum(stage["seconds"] for stage in taken if stage["stage"] != "adopt"), 1)


def worst(verdict: Any) -> dict[str, Any]:
    """The worst domain of a verdict."""
    return {
        "verdict": verdict.verdict,
        "worst": {"domain": verdict.worst_domain, "drop": verdict.worst.drop, "upper": verdict.worst.upper},
    }


def layers(model: Path) -> dict[str, int]:
    """Convolutions and linear layers in ONNX Runtime's own graph."""
    fused = count_fused(model, 0)
    return {"integer": fused.integer, "float": fused.floating}


def render(table: dict[str, Any]) -> str:
    """The table as Markdown."""
    tools = [table["tools"][name] for name in ("ours", "nncf")]
    facts: dict[str, Callable[[dict[str, Any]], str]] = {
        "drop on the worst domain, upper bound at 95 %": lambda item: (
            f"{item['worst']['drop']:.2f}, {item['worst']['upper']:.2f}"
        ),
        "the guard's verdict": lambda item: str(item["verdict"]),
        "faster than float (95 % interval of the median)": lambda item: _ratio(item["race"]),
        "layers in integers, in float": lambda item: (
            f"{item['layers']['integer']}, {item['layers']['float']}"
        ),
        "size": lambda item: f"{item['size_bytes'] / 1e6:.2f} MB",
        "search": lambda item: f"{item['seconds']:.0f} s",
    }
    lines = [
        "# Our ladder and NNCF's accuracy control on the same model",
        "",
        f"{table['model']}, held out: {', '.join(table['held_out'])} ({table['images']} images, float "
        f"{100 * table['float_accuracy']:.1f} %); {table['calibration_images']} calibration images of the other "
        f"domains, the same for both; budget {table['budget']:g} point. ONNX Runtime {table['onnxruntime']} on the "
        "CPU, one thread, every race in turns in one process.",
        "",
        f"| | ours ({table['chosen']}) | NNCF {table['nncf_version']}, `quantize_with_accuracy_control` |",
        "|---|---|---|",
        *(f"| {words} | {cell(tools[0])} | {cell(tools[1])} |" for words, cell in facts.items()),
        "",
        f"Ours against NNCF's, in turns: {_ratio(table['ours_against_nncf'])} times as fast. NNCF stops when the point "
        f"estimate on the held-out images is within the budget, after {tools[1]['evaluations']} evaluations; ours "
        "stops when the upper bound is.",
        "",
        *([table["note"], ""] if table["note"] else []),
        "How to repeat: the top of [nncf_control.py](../compare/nncf_control.py) has the commands. Machine: "
        f"{table['machine']}; it was shared with other work, so search times are upper bounds.",
    ]
    return "\n".join(lines) + "\n"


def _ratio(item: dict[str, Any]) -> str:
    return f"{item['ratio']:.2f} ({item['low']:.2f} to {item['high']:.2f}, {item['rounds']} rounds)"


if __name__ == "__main__":
    sys.exit(main())
