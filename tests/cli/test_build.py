"""The main job end to end on a small demo world: what it prints, leaves behind, survives and refuses."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import pytest

from vlkd_bench.predictions import read_predictions
from vlkd_distill.data import scan, split_of
from vlkd_runtime import Bundle, Classifier, PreprocessSpec

from .conftest import Invoke

SMALL = (
    "data.demo_images=20",
    "data.demo_held_out_images=25",
    "student.arch=resnet10t",
    "student.options={channels=[8, 16, 32, 64], stem_width=8}",
    "student.image_size=32",
    "student.jpeg_scale=2",
    "student.pretrained=none",
    "distill.batch_norm=train",
    'distill.styles=["grey"]',
    "distill.epochs=2",
    "distill.align_epochs=2",
    "compress.calibration_images=32",
    "guard.worst_points=60",
    "bench.samples=50",
)


def words(out: Path, *extra: str, target: str = "jetson") -> list[str]:
    settings = [word for value in (*SMALL, *extra) for word in ("--set", value)]
    return ["build", "--target", target, "--out", str(out), "--json", *settings]


def command(out: Path) -> list[str]:
    return [sys.executable, "-m", "vlkd_edge", *words(out)]


def run(out: Path) -> tuple[int, dict[str, Any], str]:
    """Build in a process of its own: exit code, the printed object, what was said."""
    done = subprocess.run(command(out), capture_output=True, text=True, check=False, timeout=600)
    lines = done.stdout.strip().splitlines()
    return done.returncode, json.loads(lines[-1]) if lines else {}, done.stderr


@pytest.fixture(scope="module")
def built(demo_world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("build") / "out"
    shutil.copytree(demo_world, out / "stages" / demo_world.name)
    code, answer, said = run(out)
    assert code == 0, said
    return out, answer


def test_the_json_contract(built: tuple[Path, dict[str, Any]]) -> None:
    out, answer = built
    assert Path(answer["bundle"]) == out / "bundle" and Path(answer["report"]) == out / "report.html"
    assert {"name", "seconds", "cached"} <= answer["stages"][0].keys()
    assert answer["accuracy"]["held_out"] == ["sketch"]
    styles = {"painting", "photo", "sketch"}
    for role in ("teacher", "erm", "student", "shipped"):
        assert answer["accuracy"][role].keys() == styles
        assert all(0 <= value <= 1 for value in answer["accuracy"][role].values())
    assert answer["guard"]["verdict"] == "pass" and answer["guard"]["domains"].keys() == {"sketch"}
    assert answer["preflight"]["verdict"] in ("pass", "not run")
    latency = answer["latency_ms"]
    assert latency["p50"] > 0 and (latency["p99"] is None or latency["p99"] >= latency["p50"])
    assert Bundle.open(out / "bundle").manifest.preprocess == PreprocessSpec(32, 32, jpeg_scale=2)
    assert answer["size_bytes"] == sum(path.stat().st_size for path in (out / "bundle").iterdir())


def test_the_report_is_there_in_every_form_and_names_the_stand_ins(
    built: tuple[Path, dict[str, Any]],
) -> None:
    out, _ = built
    assert json.loads((out / "report.json").read_text())["outcome"] == "pass"
    for name in ("report.md", "report.html"):
        text = (out / name).read_text()
        assert "stands in for a real one" in text and "sketch" in text
    page = (out / "report.html").read_text()
    found = re.findall(r'<section id="(\w+)"', page)
    assert found == [
        "accuracy",
        "guard",
        "candidates",
        "flips",
        "classes",
        "latency",
        "preflight",
        "contract",
        "origin",
        "stages",
    ]


def test_the_report_shows_the_pictures_that_compression_changed(built: tuple[Path, dict[str, Any]]) -> None:
    """Counted again from the predictions that the guard stored and those of the test images."""
    out, answer = built
    names = Bundle.open(out / "bundle").manifest.classes
    files = [out / "guard/reference.jsonl", *out.glob("stages/evaluate-student-*/predictions.jsonl")]
    before = {row.image: row for path in files for row in read_predictions(path, names)}
    (shipped,) = out.glob("stages/measure-*/predictions.jsonl")
    judged = [path for path in (out / "guard").glob("*.jsonl") if path.stem != "reference"]
    after = {row.image: row for path in (shipped, *judged) for row in read_predictions(path, names)}
    for domain, counts in answer["flips"].items():
        pairs = [(before[name], row) for name, row in after.items() if row.domain == domain]
        changed = [(a, b) for a, b in pairs if a.prediction != b.prediction]
        assert counts["images"] == len(pairs)
        assert counts["lost"] == sum(a.correct for a, _ in changed)
        assert counts["won"] == sum(b.correct for _, b in changed)
    shown = (out / "report.html").read_text().count('<img alt="')
    flips = sum(item["lost"] + item["won"] + item["other"] for item in answer["flips"].values())
    assert (shown > 0) == (flips > 0)


def test_the_shipped_accuracy_is_the_bundles_own(built: tuple[Path, dict[str, Any]]) -> None:
    """Recount the sketch column from the bundle, the images and nothing else."""
    out, answer = built
    (images,) = out.glob("stages/data-*/images")
    dataset = scan(images)
    tests = dataset.of(["sketch"], "test")
    bundle = Bundle.open(out / "bundle")  # by itself, the processor would take the float graph
    with Classifier.load(bundle, engine="ort-cpu", variant=bundle.manifest.variants[0].name) as classifier:
        right = sum(classifier.predict(sample.path).index == sample.label for sample in tests)
    assert answer["accuracy"]["shipped"]["sketch"] == pytest.approx(right / len(tests))


def test_the_bundle_is_int8_and_carries_its_evidence(built: tuple[Path, dict[str, Any]]) -> None:
    bundle = Bundle.open(built[0] / "bundle")
    assert bundle.manifest.model.precision == "int8" and bundle.manifest.target == "jetson-orin-nano"
    assert bundle.manifest.stand_in is not None and "demo world" in bundle.manifest.stand_in
    assert bundle.evidence.keys() == {"contract", "guard", "further", "preflight"}
    # float16 ships along only if the guard let it pass by itself; the float graph always does.
    half = cast(Any, bundle.evidence["further"])["float16"]
    names = ["int8", *(["float16"] if half["ships"] else []), "float32"]
    assert [variant.name for variant in bundle.manifest.variants] == names
    assert half["guard"]["verdict"] == "pass" or not half["ships"]
    assert half["guard"]["domains"].keys() == cast(Any, bundle.evidence["guard"])["domains"].keys()
    with Classifier.load(bundle, engine="ort-cpu", cache=None) as classifier:
        assert classifier.selection is not None
        assert classifier.selection.variant == "float32"  # TensorRT's INT8 is not for the processor
    archive = Bundle.open(built[0] / "demo-jetson-orin-nano.vlkd")
    assert archive.manifest.digest == bundle.manifest.digest


def test_guard_and_accuracy_look_at_the_images_the_contract_names(built: tuple[Path, dict[str, Any]]) -> None:
    out, answer = built
    (guarded,) = out.glob("stages/evaluate-int8-*/predictions.jsonl")
    names = Bundle.open(out / "bundle").manifest.classes
    rows = read_predictions(guarded, names)
    assert {row.domain for row in rows} == {"sketch"} and len(rows) == 25 * 16
    (tested,) = out.glob("stages/evaluate-erm-*/predictions.jsonl")
    assert all(split_of(row.image) == "test" for row in read_predictions(tested, names))
    assert any("all 400 images of the held-out" in line for line in answer["contract"])


def test_a_second_run_does_nothing_and_needs_no_torch(built: tuple[Path, dict[str, Any]]) -> None:
    out, answer = built
    script = (
        "import sys\n"
        "from vlkd_edge.__main__ import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    print('torch' in sys.modules, file=sys.stderr)\n"
    )
    program = [sys.executable, "-c", script, *words(out)]
    done = subprocess.run(program, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "False"
    again = json.loads(done.stdout.splitlines()[-1])
    assert all(stage["cached"] for stage in again["stages"])
    assert again["accuracy"] == answer["accuracy"] and again["latency_ms"] == answer["latency_ms"]
    (line,) = (out / "history.jsonl").read_text().splitlines()  # what was found done is no new build
    entry = json.loads(line)
    assert (entry["kind"], entry["outcome"]) == ("build", "pass")
    assert entry["mean"] == answer["accuracy"]["shipped"]["sketch"]


def test_killed_in_training_it_goes_on_and_ends_with_the_same_bundle(
    built: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(built[0], out)
    for stage in out.glob("stages/*"):
        if not stage.name.startswith(("data", "models", "vectors", "pixels", "teacher")):
            shutil.rmtree(stage)
    shutil.rmtree(out / "bundle")
    child = subprocess.Popen(command(out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(out.glob("stages/*.part/checkpoint.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert list(out.glob("stages/*.part")) and not (out / "bundle").exists()
    code, _, said = run(out)
    assert code == 0, said
    assert not list(out.glob("stages/*.part"))
    first, second = (Bundle.open(folder / "bundle").manifest.digest for folder in (built[0], out))
    assert first == second


WATCH = """
import json, sys, threading
opened = set()
def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], str) and "/images/sketch/" in arguments[0]:
        frame, names = sys._getframe(1), set()
        while frame:
            names.add(frame.f_code.co_qualname)
            frame = frame.f_back
        opened.add(frozenset(names & INTERESTING))
sys.argv = ["vlkd-edge"] + {arguments!r}
INTERESTING = {interesting!r}
sys.addaudithook(watch)
from vlkd_edge.__main__ import main
try:
    main()
finally:
    print(json.dumps([sorted(names) for names in opened]), file=sys.stderr)
"""
MAY_OPEN = {
    "evaluate",
    "problem_of",  # what is measured on is looked through before anything is trained, in a thread of its own
    "teacher_predictions.<locals>.work",
    "content_key",
    "refuse_held_out",
    "thumbnail",
}
MUST_NOT_OPEN = {
    "build.<locals>.decode",  # the pixel store, in a thread of its own
    "train.<locals>.work",
    "export.<locals>.work",
    "CalibrationImages.load",
    "golden",
    "timed_call",
}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="frames have no qualified names before Python 3.11")
def test_held_out_images_are_opened_by_evaluation_alone(
    built: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """Watch every file that a whole build opens, and who asked for it."""
    out = tmp_path / "out"
    (data,) = built[0].glob("stages/data-*")
    shutil.copytree(data, out / "stages" / data.name)
    script = WATCH.format(arguments=words(out), interesting=MAY_OPEN | MUST_NOT_OPEN)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr
    openers = [set(names) for names in json.loads(done.stderr.strip().splitlines()[-1])]
    assert {"evaluate"} in openers and {"content_key"} in openers  # the watch sees what it should
    assert all(names & MAY_OPEN and not names & MUST_NOT_OPEN for names in openers), openers


def test_a_guard_that_says_no_ships_nothing(
    built: tuple[Path, dict[str, Any]], tmp_path: Path, invoke: Invoke
) -> None:
    out = tmp_path / "out"
    shutil.copytree(built[0], out)
    code, answer, _ = invoke(*words(out, "guard.worst_points=0"))
    assert code == 1 and answer["bundle"] == "" and answer["guard"]["verdict"] in ("fail", "inconclusive")
    names = [candidate["name"] for candidate in answer["candidates"]]
    assert names[0] == "int8-percentile" and len(names) > 2  # the ladder was climbed down
    record = json.loads((out / "ladder.json").read_text())
    assert record["chosen"] is None and [item["name"] for item in record["candidates"]][: len(names)] == names
    assert not (out / "bundle").exists() and not list(out.glob("*.vlkd"))  # nor an earlier build's
    assert "shipped" not in answer["accuracy"]


def test_a_bundle_for_rtx_carries_the_engine_of_its_preflight(
    built: tuple[Path, dict[str, Any]], tmp_path: Path, invoke: Invoke
) -> None:
    out = shutil.copytree(built[0], tmp_path / "out", ignore=shutil.ignore_patterns(".lock"))
    code, answer, said = invoke(*words(out, target="desktop-rtx"))
    if answer["preflight"]["verdict"] == "not run":
        pytest.skip(answer["preflight"]["detail"])
    assert code == 0, said
    bundle = Bundle.open(out / "bundle")
    (engine,) = bundle.manifest.engines
    # TensorRT for RTX has no INT8 convolutions and takes float16, which passed the guard, too.
    assert [variant.name for variant in bundle.manifest.variants] == ["int8", "float16", "float32"]
    assert (engine.kind, engine.variant, engine.file) == ("tensorrt-rtx", "float16", "engine.rtx.bin")
    assert engine.version and len(bundle.files[engine.file]) > 1000
    stages = [path for path in (out / "stages").glob("preflight-*/engine.bin") if path.stat().st_size > 0]
    assert bundle.files[engine.file] in [path.read_bytes() for path in stages] and len(stages) == 2
    assert Bundle.open(built[0] / "bundle").manifest.engines == ()


def test_a_target_that_refuses_gets_no_bundle(
    built: tuple[Path, dict[str, Any]], tmp_path: Path, invoke: Invoke
) -> None:
    out = shutil.copytree(built[0], tmp_path / "out", ignore=shutil.ignore_patterns(".lock"))
    tight = ("targets.tight.inherits=jetson", "targets.tight.memory_gib=2.5")
    code, answer, said = invoke(*words(out, *tight, target="tight"))
    assert (code, answer["preflight"]["verdict"]) == (1, "fail"), said
    assert "VP021 memory" in answer["preflight"]["detail"]
    assert not (out / "bundle").exists() and not list(out.glob("*tight*.vlkd"))


def test_a_damaged_stage_is_done_again(
    built: tuple[Path, dict[str, Any]], tmp_path: Path, invoke: Invoke
) -> None:
    out = tmp_path / "out"
    shutil.copytree(built[0], out)
    (model,) = out.glob("stages/candidate-int8-*/model.onnx")
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(data)
    (record,) = out.glob("stages/vectors-*/stage.json")
    record.write_text("{")
    code, answer, said = invoke(*words(out))
    assert code == 0, said
    redone = {stage["name"] for stage in answer["stages"] if not stage["cached"]}
    assert redone == {"vectors", "candidate-int8-percentile"}


def test_same_inputs_same_archive(built: tuple[Path, dict[str, Any]], invoke: Invoke) -> None:
    archive = built[0] / "demo-jetson-orin-nano.vlkd"
    before = hashlib.sha256(archive.read_bytes()).hexdigest()
    assert invoke(*words(built[0]))[0] == 0
    assert hashlib.sha256(archive.read_bytes()).hexdigest() == before
