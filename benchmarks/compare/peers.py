"""Other ways to run the same student on the same images, in turns, as ratios to ONNX Runtime on the float graph.

Example:
    vlkd-edge build --target cpu-x86 --out OUT
    python benchmarks/compare/peers.py OUT --data DATA --held-out sketch --torch-python VENV/bin/python
    --onnxruntime-python VENV/bin/python --optimum-python VENV/bin/python --openvino-python VENV/bin/python
    --out benchmarks/results/compare-peers

The peers are torch, eager and compiled; ONNX Runtime by hand; this project's runtime, float and as shipped; optimum;
and OpenVINO, float and quantized by NNCF. Each runs in a process and a virtual environment of its own: the files
requirements-*.txt say how to make one. torch and ONNX Runtime use this Python where none is named for them, which the
record says; optimum and OpenVINO are left out then, and said to be. Each round gives every peer one turn, in an order
drawn anew; a ratio is the median over rounds of the peer's time over ONNX Runtime's of that round, its interval a
bootstrap over rounds. Time is the processor's, of all threads of the peer's process, computing in one: on an idle
machine that is the time that passes, and on a busy one the waiting for others is left out. Ends with exit code 1 where
a peer failed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from turns import KINDS, LEAST_ROUNDS, Entrant, Result, race, ratio

from vlkd_bench.bounds import wilson
from vlkd_bench.machine import read_machine
from vlkd_bench.samples import Sample
from vlkd_compress.calibration import select_calibration
from vlkd_compress.interface import Interface, change
from vlkd_distill.data import scan
from vlkd_edge.exporting import find_bundle, optimum_config, optimum_processor
from vlkd_runtime.atomic import write_text
from vlkd_runtime.bundle import Bundle
from vlkd_runtime.manifest import MODEL_NAME
from vlkd_runtime.preprocess import prepare

HERE = Path(__file__).parent
REFERENCE = "onnxruntime"


def main() -> int:
    """Race the peers and write what came of it."""
    asked = _arguments()
    bundle, held_out = find_bundle(asked.build), tuple(asked.held_out.split(","))
    if bundle.manifest.preprocess.resize != "squash":
        sys.exit(
            "Expected a bundle that squashes images, as the hand-written peers do; found one that crops."
        )
    dataset = scan(asked.data, classes=bundle.manifest.classes)
    samples = list(dataset.of(held_out))
    np.random.default_rng(asked.seed).shuffle(samples)  # type: ignore[arg-type]
    samples = samples[: asked.images]
    calibration = select_calibration(
        dataset.of(dataset.sources(held_out)),
        asked.calibration_images,
        seed=asked.seed,
        forbidden_domains=held_out,
    )
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        entrants, absent = _entrants(asked, bundle, place, samples, calibration)
        results = race(
            entrants,
            len(samples),
            asked.rounds,
            asked.calls,
            seed=asked.seed,
            say=lambda text: print(text, file=sys.stderr),
        )
    if next(r for r in results if r.entrant.name == REFERENCE).failed:
        sys.exit("ONNX Runtime, in whose units all is told, failed: nothing is written.")
    record = {
        "images": len(samples),
        "held_out": held_out,
        "rounds": asked.rounds,
        "calls": asked.calls,
        "peers": [_row(result, results, samples) for result in results],
        "not_run": absent,
        "shared_environment": [
            name for name in ("torch", "onnxruntime") if not getattr(asked, f"{name}_python")
        ],
        "time": "CPU time of each peer's process per image, one thread; peers in turns, in one run. The machine may "
        "have been busy with other work: ratios are of the same rounds, wall times are not to be taken alone.",
        "stand_in": bundle.manifest.stand_in,
        "bundle": bundle.manifest.digest,
        "command": _command(asked, bundle),
        "machine": read_machine().describe(),
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    text = markdown(record)
    if asked.out is not None:
        write_text(asked.out.with_suffix(".json"), json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        write_text(asked.out.with_suffix(".md"), text)
    print(text)
    return int(any(result.failed for result in results))


def _command(asked: argparse.Namespace, bundle: Bundle) -> str:
    """What measures again, without paths of this machine."""
    build, data = asked.build.resolve(), asked.data.resolve()
    where = f"OUT/{data.relative_to(build).as_posix()}" if data.is_relative_to(build) else "DATA"
    named = [
        name for name in ("torch", "onnxruntime", "optimum", "openvino") if getattr(asked, f"{name}_python")
    ]
    pythons = "".join(f" --{name}-python VENV/bin/python" for name in named)
    return (
        f"vlkd-edge build --target {bundle.manifest.target} --out OUT && python benchmarks/compare/peers.py OUT "
        f"--data {where} --held-out {asked.held_out} --images {asked.images} "
        f"--calibration-images {asked.calibration_images} --rounds {asked.rounds} --calls {asked.calls} "
        f"--seed {asked.seed}{pythons}"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("build", type=Path, help="output folder of vlkd-edge build")
    parser.add_argument("--data", type=Path, required=True, help="folder of domains that it was built from")
    parser.add_argument("--held-out", required=True, help="domains to classify, with commas")
    parser.add_argument("--torch-python", help="Python with requirements-torch.txt; this one if absent")
    parser.add_argument(
        "--onnxruntime-python", help="Python with requirements-onnxruntime.txt; this one if absent"
    )
    parser.add_argument("--optimum-python", help="Python with requirements-optimum.txt")
    parser.add_argument("--openvino-python", help="Python with requirements-openvino.txt")
    parser.add_argument("--images", type=int, default=800)
    parser.add_argument("--calibration-images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--calls", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="path of the result without its suffix")
    asked = parser.parse_args()
    if asked.rounds < LEAST_ROUNDS:
        parser.error(f"--rounds: expected at least {LEAST_ROUNDS} for an interval")
    return asked


def _entrants(
    asked: argparse.Namespace,
    bundle: Bundle,
    place: Path,
    samples: Sequence[Sample],
    calibration: Sequence[Sample],
) -> tuple[list[Entrant], dict[str, str]]:
    """Write what the peers need; return those that can run, and why the others cannot."""
    spec, variants = bundle.manifest.preprocess, bundle.manifest.variants
    exact = next(variant for variant in variants if variant.model.precision == "float32")
    model = place / "float32.onnx"
    model.write_bytes(bundle.files[exact.file])
    for name, chosen in (("images", samples), ("calibration", calibration)):
        np.save(place / f"{name}.npy", np.stack([prepare(sample.path, spec) for sample in chosen]))
    common = {
        "images": str(place / "images.npy"),
        "files": [str(sample.path.resolve()) for sample in samples],
        "side": spec.width,
        "threads": 1,
        "model": str(model),
        "build": str(asked.build.resolve()),
        "bundle": str(bundle.path.resolve()),
        "calibration": str(place / "calibration.npy"),
        "folder": str(place / "optimum"),
    }
    ours = tuple(path for path in map(str, map(Path.resolve, map(Path, sys.path[1:]))) if Path(path).is_dir())

    def own(name: str, title: str, script: str, python: str | None = None, **more: Any) -> Entrant:
        # An environment of its own brings its packages; this one may need the folders that this process found its in.
        python, folders = (os.path.abspath(python), ()) if python else (sys.executable, ours)  # noqa: PTH100
        return Entrant(name, title, python, HERE / f"peer_{script}.py", {**common, **more}, folders)

    found = [
        own(REFERENCE, "ONNX Runtime, float32", "onnxruntime", asked.onnxruntime_python),
        own("torch-eager", "torch, eager", "torch", asked.torch_python, compile=False),
        own("torch-compile", "torch.compile", "torch", asked.torch_python, compile=True),
    ]
    # The first of each precision; TensorRT's dialect is made for TensorRT, and nobody runs it on a processor.
    runnable = [variant for variant in variants if variant.model.dialect != "tensorrt-qdq"]
    for precision, variant in {variant.model.precision: variant for variant in reversed(runnable)}.items():
        title = f"vlkd_runtime, {precision}" + ", as shipped" * (variant.file == MODEL_NAME)
        found.append(own(f"ours-{precision}", title, "ours", variant=variant.name))
    absent = {}
    if asked.optimum_python:
        _optimum_folder(bundle, model, place / "optimum")
        script, python = HERE / "peer_optimum.py", os.path.abspath(asked.optimum_python)  # noqa: PTH100  (no links followed)
        found.append(Entrant("optimum", "optimum-onnx, float32", python, script, common))
    else:
        absent["optimum"] = "no --optimum-python"
    if asked.openvino_python:
        script, python = HERE / "peer_openvino.py", os.path.abspath(asked.openvino_python)  # noqa: PTH100
        for name, title, quantize, exact in (
            ("openvino", "OpenVINO, float32", False, True),
            ("openvino-auto", "OpenVINO, in the precision it chooses", False, False),
            ("nncf", "OpenVINO + NNCF, INT8", True, False),
        ):
            setup = {**common, "quantize": quantize, "exact": exact}
            found.append(Entrant(name, title, python, script, setup))
    else:
        absent |= dict.fromkeys(("openvino", "openvino-auto", "nncf"), "no --openvino-python")
    return found, absent


def _optimum_folder(bundle: Bundle, model: Path, folder: Path) -> None:
    """Write the float graph as `vlkd-edge export --format optimum` writes the shipped one."""
    import onnx

    wanted = Interface(None, 1, "nchw", float_input=True, input_name="pixel_values")
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(optimum_config(bundle)))
    (folder / "preprocessor_config.json").write_text(
        json.dumps(optimum_processor(bundle.manifest.preprocess))
    )
    onnx.save(change(onnx.load(model), wanted), folder / "model.onnx")


def _row(result: Result, results: Sequence[Result], samples: Sequence[Sample]) -> dict[str, Any]:
    head = {"name": result.entrant.name, "title": result.entrant.title, "versions": dict(result.versions)}
    if result.failed:
        return {**head, "failed": result.failed}
    reference = next(other for other in results if other.entrant.name == REFERENCE)
    right = sum(guess == sample.label for guess, sample in zip(result.classes, samples, strict=True))
    row: dict[str, Any] = {
        **head,
        "note": result.note,
        "load_s": round(result.load_s, 2),
        "accuracy": right / len(samples),
        "accuracy_interval": wilson(right, len(samples)),
        "answers_unlike_reference": sum(
            a != b for a, b in zip(result.classes, reference.classes, strict=True)
        ),
    }
    for what in KINDS:
        mine, theirs = result.rounds[what], reference.rounds[what]
        value, interval = ratio(mine, theirs, "cpu_ns")
        row[what] = {
            "cpu_ms": round(float(np.median([item["cpu_ns"] for item in mine])) / 1e6, 4),
            "wall_ms": round(float(np.median([item["wall_ns"] for item in mine])) / 1e6, 4),
            "ratio": round(value, 3),
            "ratio_interval": [round(end, 3) for end in interval],
            "wall_ratio": round(ratio(mine, theirs, "wall_ns")[0], 3),
        }
    return row


def markdown(record: dict[str, Any]) -> str:
    """The record as a table."""
    lines = [
        "# The same student, run by others",
        "",
        f"{record['images']} held-out images ({', '.join(record['held_out'])}), {record['rounds']} rounds of "
        f"{record['calls']} calls. Times are in units of ONNX Runtime's on the float graph, less is faster, with 95 % "
        "intervals; *array* is one prepared image, *file* begins with an image file.",
        "",
        "| | array | | file | | accuracy | answers unlike ONNX Runtime's |",
        "|---|---|---|---|---|---|---|",
    ]
    for peer in record["peers"]:
        if "failed" in peer:
            lines.append(f"| {peer['title']} | failed: {peer['failed']} | | | | | |")
            continue
        cells = []
        for what in KINDS:
            low, high = peer[what]["ratio_interval"]
            cells += [f"{peer[what]['ratio']:.2f} ({low:.2f}–{high:.2f})", f"{peer[what]['cpu_ms']:.2f} ms"]
        low, high = (100 * end for end in peer["accuracy_interval"])
        accuracy = f"{100 * peer['accuracy']:.1f} % ({low:.1f}–{high:.1f})"
        lines.append(
            f"| {peer['title']} | {' | '.join(cells)} | {accuracy} | {peer['answers_unlike_reference']} |"
        )
    lines += [f"| {name} | not run: {reason} | | | | | |" for name, reason in record["not_run"].items()]
    versions = sorted({f"{k} {v}" for peer in record["peers"] for k, v in peer["versions"].items()})
    notes = [f"{peer['title']}: {peer['note']}." for peer in record["peers"] if peer.get("note")]
    lines += ["", record["time"], *(f"\n{note}" for note in notes)]
    lines += ["", f"Versions: {', '.join(versions)}.", "", f"Machine: {record['machine']}, {record['when']}."]
    lines += [f"\nStand-in: {record['stand_in']}"] if record["stand_in"] else []
    return "\n".join([*lines, "", f"    {record['command']}", ""])


if __name__ == "__main__":
    sys.exit(main())
