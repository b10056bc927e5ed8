"""What ``export`` writes answers what the bundle answers, and what it cannot write it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from vlkd_distill import checkpoints, students
from vlkd_distill.torch_tensorrt_engine import HalfBody, TorchTensorRtEngine
from vlkd_edge.app import app
from vlkd_edge.exporting import optimum_processor
from vlkd_edge.torch_export import find_student, load_network
from vlkd_runtime import Bundle, Classifier, PreprocessSpec
from vlkd_runtime.errors import ConfigError, DataError, RefusalError, UnavailableError, UsageError

from .conftest import SPEC, VECTORS

IMAGES = np.random.default_rng(3).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


@pytest.fixture
def expected(bundle: Path) -> np.ndarray:
    with Classifier.load(bundle) as classifier:
        return classifier.infer(IMAGES).logits


def test_onnx_in_another_opset_batch_and_layout(bundle: Path, tmp_path: Path, expected: np.ndarray) -> None:
    out = tmp_path / "model.onnx"
    done = run(bundle, "-o", out, "--opset", "19", "--batch", "1:2:5", "--layout", "nchw", "--json")
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert (answer["opset"], answer["input"]) == (19, "image uint8 (batch, 3, 32, 32)")
    assert answer["bundle"] == Bundle.open(bundle).manifest.digest
    assert answer["parity"]["largest_gap"] < 1e-3 and answer["bytes"] == out.stat().st_size
    session = ort.InferenceSession(out)
    found = session.run(["logits"], {"image": np.ascontiguousarray(IMAGES.transpose(0, 3, 1, 2))})[0]
    assert np.allclose(found, expected, atol=1e-4)
    properties = {item.key: item.value for item in onnx.load(out).metadata_props}
    assert properties["vlkd.batch_profile"] == "1:2:5"
    assert json.loads(properties["vlkd.classes"]) == ["cat", "dog", "fish"]
    assert (properties["vlkd.teacher"], properties["vlkd.student"]) == ("test", "resnet10t")
    assert json.loads(properties["vlkd.preprocess"])["height"] == 32


def test_a_build_folder_and_an_archive_are_sources_too(bundle: Path, tmp_path: Path) -> None:
    build = tmp_path / "build"
    build.mkdir()
    (build / "bundle").symlink_to(bundle)
    digests = set()
    for source in (bundle, bundle.parent / "tiny.vlkd", build):
        answer = json.loads(run(source, "-o", tmp_path / "m.onnx", "--json").stdout)
        digests.add(answer["bundle"])
    assert len(digests) == 1


def test_an_optimum_folder_has_labels_and_a_processor_that_only_resizes(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "optimum"
    done = run(bundle, "-o", out, "--format", "optimum", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["input"] == "pixel_values float32 (batch, 3, 32, 32)"
    assert sorted(path.name for path in out.iterdir()) == [
        "config.json",
        "model.onnx",
        "preprocessor_config.json",
    ]
    config = json.loads((out / "config.json").read_text())
    assert config["id2label"] == {"0": "cat", "1": "dog", "2": "fish"}
    processor = json.loads((out / "preprocessor_config.json").read_text())
    assert processor["size"] == {"height": 32, "width": 32} and processor["do_normalize"] is False
    pixels = np.ascontiguousarray(IMAGES.transpose(0, 3, 1, 2), np.float32)
    found = ort.InferenceSession(out / "model.onnx").run(["logits"], {"pixel_values": pixels})[0]
    with Classifier.load(bundle) as classifier:
        assert np.allclose(found, classifier.infer(IMAGES).logits, atol=1e-4)
    assert run(bundle, "-o", out, "--format", "optimum", "--batch", "4").exception is not None


def test_processors_of_crops() -> None:
    made = optimum_processor(PreprocessSpec(224, 224, "crop", 0.875, "bicubic"))
    assert (made["size"], made["crop_size"]) == ({"shortest_edge": 256}, {"height": 224, "width": 224})
    assert made["resample"] == Image.Resampling.BICUBIC
    with pytest.raises(ConfigError, match="Expected a square crop, found 100 x 200"):
        optimum_processor(PreprocessSpec(100, 200, "crop", 0.875))


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        pytest.param(["--batch", "0"], ConfigError, "expected a number of images, or smallest", id="batch"),
        pytest.param(
            ["--batch", "4:2:8"], ConfigError, "none below the one before, found '4:2:8'", id="profile"
        ),
        pytest.param(
            ["--format", "torch-tensorrt"], UnavailableError, r"vlkd-edge\[torch-tensorrt\]", id="package"
        ),
    ],
)
def test_mistakes_are_named(
    bundle: Path, tmp_path: Path, arguments: list[str], kind: type[Exception], message: str
) -> None:
    done = run(bundle, "-o", tmp_path / "x", *arguments)
    assert isinstance(done.exception, kind)
    with pytest.raises(kind, match=message):
        raise done.exception
    assert not (tmp_path / "x").exists()


@pytest.fixture
def build(bundle: Path, tmp_path: Path) -> Path:
    """What a build leaves: the stages of a trained student and its vectors, and the bundle."""
    root = tmp_path / "build"
    stages = root / "stages"
    for name in ("vectors-v1", "vl2v-adip-t1", "export-vl2v-adip-e1", "export-erm-e2"):
        (stages / name).mkdir(parents=True)
    (root / "bundle").symlink_to(bundle)
    VECTORS.save(stages / "vectors-v1" / "class_vectors.safetensors")
    student = {
        "arch": SPEC.arch,
        "image_size": 32,
        "pretrained": "none",
        "seed": 0,
        "options": dict(SPEC.options),
    }
    checkpoints.save_weights(stages / "vl2v-adip-t1" / "student.safetensors", students.create(SPEC, 8).eval())
    records = {
        "vl2v-adip-t1": {"stage": "vl2v-adip", "inputs": {"student": student}},
        "export-vl2v-adip-e1": {"stage": "export-vl2v-adip", "inputs": {"trained": "t1", "vectors": "v1"}},
        "export-erm-e2": {"stage": "export-erm", "inputs": {"trained": "other", "vectors": "v1"}},
    }
    for name, record in records.items():
        (stages / name / "stage.json").write_text(json.dumps(record))
    return root


def test_the_torch_student_of_a_build_is_the_one_in_its_bundle(build: Path, expected: np.ndarray) -> None:
    network, size = load_network(find_student(build))
    assert size == 32
    with torch.inference_mode():
        found = network(torch.from_numpy(IMAGES))[1].numpy()
    assert np.allclose(found, expected, atol=1e-3)
    (build / "stages" / "vl2v-adip-t1" / "student.safetensors").unlink()
    with pytest.raises(DataError, match="Expected the stages t1 and v1 in"):
        find_student(build)
    with pytest.raises(DataError, match="a bundle holds no torch weights"):
        find_student(build / "bundle")


def test_float16_is_for_the_body_and_the_head_stays_float32(build: Path, expected: np.ndarray) -> None:
    network, _ = load_network(find_student(build))
    module = HalfBody(network).eval()
    kinds = {parameter.dtype for parameter in module.network.student.parameters()}
    assert kinds == {torch.float16} and next(network.student.parameters()).dtype == torch.float32
    with torch.inference_mode():
        embedding, logits = module(torch.from_numpy(IMAGES))
    assert (embedding.dtype, logits.dtype) == (torch.float32, torch.float32)
    assert np.allclose(logits.numpy(), expected, atol=0.1)
    with pytest.raises(RefusalError, match="found a plain classifier"):
        HalfBody(students.Deployable(network.student, None))(torch.from_numpy(IMAGES))


def fake_torch_tensorrt(calls: list[dict[str, Any]]) -> types.ModuleType:
    """A stand-in for the package: it records what it is asked, and 'compiles' to the program's own module."""
    module = types.ModuleType("torch_tensorrt")

    def compile(program: Any, **options: Any) -> Any:
        calls.append(options)
        return program.module()

    module.__dict__.update(__version__="0.0", dynamo=types.SimpleNamespace(compile=compile))
    return module


def test_the_engine_keeps_the_interface_of_the_runtimes_engines(
    build: Path, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package itself needs a GPU: what is held here is everything around its one call."""
    calls: list[dict[str, Any]] = []
    network, size = load_network(find_student(build))
    monkeypatch.setitem(sys.modules, "torch_tensorrt", fake_torch_tensorrt(calls))
    if not torch.cuda.is_available():
        with pytest.raises(UnavailableError, match="Expected an NVIDIA GPU that torch can use"):
            TorchTensorRtEngine.compile(network, size)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.nn.Module, "cuda", lambda self: self)
        zeros = torch.zeros
        monkeypatch.setattr(torch, "zeros", lambda *a, device=None, **k: zeros(*a, **k))
    engine = TorchTensorRtEngine.compile(network, size, batch=5, precision="float32")
    monkeypatch.undo()
    assert calls[0]["require_full_compilation"] is True and len(calls) == 1
    output = engine.run(IMAGES)
    assert np.allclose(output.logits, expected, atol=1e-3) and output.embedding.dtype == np.float32
    assert (engine.info.name, engine.info.batch) == ("torch-tensorrt", 5)
    with pytest.raises(UsageError, match=r"expected uint8 \(5, 32, 32, 3\), found uint8 \(1"):
        engine.run(IMAGES[:1])
    engine.close()
    with pytest.raises(UsageError, match="the engine was closed"):
        engine.run(IMAGES)


OPTIMUM = """
import json, sys
from optimum.onnxruntime import ORTModelForImageClassification
from transformers import AutoImageProcessor, pipeline
folder, image = sys.argv[1:]
model = ORTModelForImageClassification.from_pretrained(folder)
processor = AutoImageProcessor.from_pretrained(folder)
answers = pipeline("image-classification", model=model, image_processor=processor)([image] * 3, batch_size=2, top_k=3)
from PIL import Image
logits = model(**processor(Image.open(image), return_tensors="pt")).logits
print(json.dumps({"answers": answers, "logits": logits.tolist()}))
"""


def test_optimum_and_a_transformers_pipeline_load_the_folder(
    bundle: Path, tmp_path: Path, picture: Path
) -> None:
    out = tmp_path / "optimum"
    assert run(bundle, "-o", out, "--format", "optimum").exit_code == 0
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", OPTIMUM, str(out), str(picture)],
        capture_output=True,
        text=True,
        check=False,
        env={**environment, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    with Classifier.load(bundle) as classifier:
        ours = classifier.predict(picture, top=3)
    for row in answer["answers"]:
        assert [entry["label"] for entry in row] == [label for label, _ in ours.top]
        assert [entry["score"] for entry in row] == pytest.approx([share for _, share in ours.top], abs=0.01)
