"""The gate on bundles that really got worse: one does more work, and one was calibrated on the wrong images."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from PIL import Image

from vlkd_compress.calibrated import Calibration
from vlkd_compress.recipes import Recipe, make
from vlkd_distill import students
from vlkd_runtime import Classifier
from vlkd_runtime.vectors import ClassVectors

IMAGES, CALIBRATION = 100, 16
# Strong contrasts drive activations far beyond what faint ones show to a calibration.
CONTRASTS = {"photo": 12.0, "sketch": 90.0}
EXTRA_PRODUCTS, EXTRA_SIZE = 40, 1024
FAST = ("--samples", "40", "--processes", "3", "--no-throughput", "--no-power")
Images = dict[str, npt.NDArray[np.uint8]]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a verb in a process of its own."""
    words = [sys.executable, "-m", "vlkd_edge", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=600)


@pytest.fixture(scope="module")
def drawn() -> Images:
    """Images of coarse random patches, by domain (N, H, W, 3)."""
    rng = np.random.default_rng(3)
    return {
        domain: np.clip(
            128 + contrast * np.kron(rng.normal(size=(IMAGES, 4, 4, 3)), np.ones((1, 8, 8, 1))), 0, 255
        ).astype(np.uint8)
        for domain, contrast in CONTRASTS.items()
    }


@pytest.fixture(scope="module")
def network(small: Any, drawn: Images, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ClassVectors]:
    """An untrained network whose class vectors lie where its embeddings of the images differ from each other."""
    root = tmp_path_factory.mktemp("network")
    student = students.create(small.spec, 8).eval()
    first = students.Deployable(student, students.FusedHead(small.vectors))
    model = small.export(first, small.vectors, root / "first.onnx")
    with Classifier.from_model(model, small.preprocess, small.vectors.names, logit_scale=10.0) as classifier:
        found = {
            name: np.concatenate([classifier.infer(image[None]).embedding for image in images])
            for name, images in drawn.items()
        }
    means = np.linalg.qr(np.stack([rows.mean(0) for rows in found.values()]).T)[0]
    about = found["sketch"] - found["sketch"].mean(0)
    directions = np.linalg.svd(about - about @ means @ means.T, full_matrices=False)[2]
    rows = np.stack([directions[0], -directions[0], directions[1]]).astype(np.float32)
    vectors = replace(small.vectors, vectors=rows)
    second = students.Deployable(student, students.FusedHead(vectors))
    return small.export(second, vectors, root / "model.onnx"), vectors


@pytest.fixture(scope="module")
def good(small: Any, network: tuple[Path, ClassVectors], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle that is the baseline."""
    model, vectors = network
    return small.pack(tmp_path_factory.mktemp("good"), model, vectors)


@pytest.fixture(scope="module")
def data(small: Any, good: Path, drawn: Images, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images as files, each in the folder of the class that the good bundle sees in it."""
    root = tmp_path_factory.mktemp("data")
    with Classifier.load(good) as classifier:
        for domain, images in drawn.items():
            for number, image in enumerate(images):
                folder = root / domain / small.vectors.names[classifier.predict(image).index]
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(folder / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def badly_quantized(
    small: Any, network: tuple[Path, ClassVectors], drawn: Images, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The same in INT8, its ranges clipped to what faint images need."""
    root, (model, vectors) = tmp_path_factory.mktemp("bad"), network
    calibration = Calibration(model, list(drawn["photo"][:CALIBRATION]))
    make(Recipe.named("int8-minmax", "cpu"), calibration, root / "model.onnx")
    return small.pack(root, root / "model.onnx", vectors, "int8")


@pytest.fixture(scope="module")
def slow(small: Any, network: tuple[Path, ClassVectors], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same answers from a graph that also does work that nobody needs."""
    root, (model, vectors) = tmp_path_factory.mktemp("slow"), network
    graph = onnx.load(model)
    rng = np.random.default_rng(0)
    constants = {
        "widen": rng.normal(size=(8, EXTRA_SIZE)).astype(np.float32),
        "turn": (rng.normal(size=(EXTRA_SIZE, EXTRA_SIZE)) / EXTRA_SIZE**0.5).astype(np.float32),
        "nothing": np.zeros((EXTRA_SIZE, 3), np.float32),
    }
    for name, values in constants.items():
        graph.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    for node in graph.graph.node:
        node.output[:] = ["needed" if name == "logits" else name for name in node.output]
        node.input[:] = ["needed" if name == "logits" else name for name in node.input]
    chain = [onnx.helper.make_node("MatMul", ["embedding", "widen"], ["extra0"])]
    for number in range(EXTRA_PRODUCTS):
        product = [f"extra{number}", "turn"]
        chain.append(onnx.helper.make_node("MatMul", product, [f"extra{number + 1}"]))
    chain.append(onnx.helper.make_node("MatMul", [f"extra{EXTRA_PRODUCTS}", "nothing"], ["gone"]))
    chain.append(onnx.helper.make_node("Add", ["needed", "gone"], ["logits"]))
    graph.graph.node.extend(chain)
    onnx.checker.check_model(graph)
    onnx.save(graph, root / "model.onnx")
    return small.pack(root, root / "model.onnx", vectors)


def judged(now: Path, base: Path, out: Path, *more: str | Path) -> tuple[int, dict[str, Any], int, str]:
    """Exit code, JSON, failures in the JUnit file and first line of the HTML of ``report``."""
    junit, html = out / "r.xml", out / "r.html"
    done = run("report", now, "--baseline", base, "--json", "--junit", junit, "--html", html, *more)
    suite = ET.parse(junit).getroot().find("testsuite")
    assert suite is not None
    failures = int(suite.attrib["failures"])
    return done.returncode, json.loads(done.stdout), failures, html.read_text().splitlines()[0]


def worse(answer: dict[str, Any]) -> set[str]:
    return {metric["name"] for metric in answer["metrics"] if metric["verdict"] == "regression"}


def test_a_bundle_that_does_more_work_turns_everything(good: Path, slow: Path, tmp_path: Path) -> None:
    now, base = tmp_path / "now.jsonl", tmp_path / "base.jsonl"
    done = run("bench", slow, *FAST, "--record", now, "--against", good, "--against-record", base)
    assert done.returncode == 0, done.stderr
    code, answer, failures, first = judged(now, base, tmp_path)
    assert (code, answer["verdict"]) == (1, "regression")
    assert failures == len(worse(answer))
    # Which of them are judged is up to how busy the machine is.
    assert any(name.startswith("latency ") for name in worse(answer))
    assert "<title>Regression" in first and "latency" in first
    # The other way round it is an improvement, and no alarm.
    code, answer, failures, first = judged(base, now, tmp_path)
    assert (code, answer["verdict"], failures) == (0, "ok", 0) and "<title>No regression" in first


def test_a_bundle_quantized_on_the_wrong_images_turns_everything(
    good: Path, badly_quantized: Path, data: Path, tmp_path: Path
) -> None:
    # Latencies are no matter here: twenty times as slow would be let pass.
    calm = ("--latency-percent", "2000")
    base, now = tmp_path / "base.jsonl", tmp_path / "now.jsonl"
    for bundle, record in ((good, base), (badly_quantized, now)):
        done = run("bench", bundle, *FAST, "--data", data, "--record", record)
        assert done.returncode == 0, done.stderr
    code, answer, failures, first = judged(now, base, tmp_path, *calm, "--images", data)
    assert (code, answer["verdict"]) == (1, "regression")
    assert "accuracy sketch" in worse(answer) and answer["metrics"][0]["name"] == "accuracy sketch"
    assert answer["metrics"][0]["change"] < -10 and failures == len(worse(answer))
    assert "<title>Regression" in first and "accuracy sketch got worse" in first
    page = (tmp_path / "r.html").read_text()
    assert page.count('src="data:image/jpeg;base64,') >= 9 and "Pictures with another answer" in page
    again = tmp_path / "again.jsonl"
    assert run("bench", good, *FAST, "--data", data, "--record", again).returncode == 0
    code, answer, failures, first = judged(again, base, tmp_path, *calm)
    assert (code, failures) == (0, 0) and "<title>No regression" in first
    assert {m["change"] for m in answer["metrics"] if m["name"].startswith("accuracy")} == {0.0}
