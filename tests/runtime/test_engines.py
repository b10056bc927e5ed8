from __future__ import annotations

import dataclasses
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from vlkd_runtime.engines import Engine, EngineInfo, EngineOutput, open_engine
from vlkd_runtime.errors import (
    BundleError,
    ConfigError,
    DataError,
    SelfTestError,
    UnavailableError,
    UsageError,
)
from vlkd_runtime.manifest import GoldenTolerance
from vlkd_runtime.selftest import run_batches, run_self_test


@pytest.fixture(scope="module")
def engine(tiny: Any) -> Engine:
    return open_engine(tiny.files["model.onnx"], threads=1)


@pytest.mark.parametrize("name", ["auto", "ort-cpu"])
@pytest.mark.parametrize("as_file", [False, True], ids=["bytes", "file"])
def test_outputs_are_those_of_the_second_computation(
    name: str, as_file: bool, tiny: Any, tmp_path: Path
) -> None:
    model: bytes | Path = tiny.files["model.onnx"]
    if as_file:
        model = tmp_path / "m.onnx"
        model.write_bytes(tiny.files["model.onnx"])
    engine = open_engine(model, engine=name, threads=1)
    assert engine.info == EngineInfo("ort-cpu", "CPUExecutionProvider", onnxruntime.__version__, 1, 1)
    for image in tiny.golden.images:
        embedding, logits = tiny.reference(image[None])
        output = engine.run(image[None])
        assert output.embedding.dtype == output.logits.dtype == np.float32
        assert output.embedding == pytest.approx(embedding, abs=1e-5)
        assert output.logits == pytest.approx(logits, abs=1e-4)
    engine.close()
    engine.close()
    with pytest.raises(UsageError, match="the engine was closed"):
        engine.run(tiny.golden.images[:1])


def test_strided_images_are_fine(engine: Engine, tiny: Any) -> None:
    wide = np.repeat(tiny.golden.images[:1], 2, axis=2)
    assert not wide[:, :, ::2].flags.c_contiguous
    plain = engine.run(tiny.golden.images[:1]).logits
    assert np.array_equal(engine.run(wide[:, :, ::2]).logits, plain)


@pytest.mark.parametrize(
    ("images", "match"),
    [
        pytest.param(
            np.zeros((1, 8, 8, 3), np.float32), r"expected uint8 \(1, 8, 8, 3\), found float32", id="dtype"
        ),
        pytest.param(np.zeros((2, 8, 8, 3), np.uint8), r"found uint8 \(2, 8, 8, 3\)", id="batch"),
        pytest.param(np.zeros((1, 3, 8, 8), np.uint8), r"found uint8 \(1, 3, 8, 8\)", id="layout"),
        pytest.param(np.zeros((8, 8, 3), np.uint8), r"found uint8 \(8, 8, 3\)", id="rank"),
    ],
)
def test_impossible_images(images: np.ndarray, match: str, engine: Engine) -> None:
    with pytest.raises(UsageError, match=match):
        engine.run(images)


def two_inputs(model: onnx.ModelProto) -> None:
    model.graph.input.append(onnx.helper.make_tensor_value_info("mask", onnx.TensorProto.FLOAT, [1]))


def free_batch(model: onnx.ModelProto) -> None:
    for tensor in (*model.graph.input, *model.graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_param = "N"


def float_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT


def no_embedding(model: onnx.ModelProto) -> None:
    del model.graph.output[0]


def unknown_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "Cats"


@pytest.mark.parametrize("as_file", [False, True], ids=["bytes", "file"])
@pytest.mark.parametrize(
    ("harm", "match"),
    [
        pytest.param(two_inputs, r"expected image tensor\(uint8\) of rank 4.*mask", id="two-inputs"),
        pytest.param(free_batch, "expected fixed shapes", id="free-batch"),
        pytest.param(float_input, r"found image tensor\(float\)", id="float-input"),
        pytest.param(
            no_embedding, r"found image .*, logits tensor\(float\) of rank 2; export", id="no-embedding"
        ),
        pytest.param(unknown_operator, "ONNX Runtime .* cannot load it", id="unknown-operator"),
        pytest.param(lambda m: b"", r"cannot load it|expected", id="empty"),
        pytest.param(lambda m: b"no model at all", "no ONNX model", id="text"),
        pytest.param(lambda m: m.SerializeToString()[:-20], "no ONNX model", id="half"),
    ],
)
def test_impossible_models(
    harm: Callable[[onnx.ModelProto], Any], match: str, as_file: bool, tiny: Any, tmp_path: Path
) -> None:
    model = onnx.load_from_string(tiny.files["model.onnx"])
    data = harm(model)
    data = data if isinstance(data, bytes) else model.SerializeToString()
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    with pytest.raises(DataError if as_file else BundleError, match=match) as caught:
        open_engine(path if as_file else data, threads=1)
    assert (str(path) in str(caught.value)) == as_file


def test_weights_in_other_files_are_refused(tiny: Any, tmp_path: Path) -> None:
    model = onnx.load_from_string(tiny.files["model.onnx"])
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0, location="weights")
    assert (tmp_path / "weights").exists()
    with pytest.raises(DataError, match=r"m\.onnx: it keeps weights in other files; save it as one file"):
        open_engine(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        pytest.param(
            {"engine": "tpu"},
            ConfigError,
            "expected one of auto, tensorrt, .*ort-cpu, found 'tpu'",
            id="unknown",
        ),
        pytest.param({"engine": ""}, ConfigError, "found ''", id="empty"),
        pytest.param({"threads": 0}, ConfigError, "threads: expected an integer from 1", id="no-threads"),
        pytest.param({"threads": 1.5}, ConfigError, r"found 1\.5", id="float-threads"),
        pytest.param({"threads": True}, ConfigError, "found True", id="bool-threads"),
    ],
)
def test_impossible_options(options: dict[str, Any], error: type[Exception], match: str, tiny: Any) -> None:
    with pytest.raises(error, match=match):
        open_engine(tiny.files["model.onnx"], **options)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"m\.onnx: cannot read the model: No such file"):
        open_engine(tmp_path / "m.onnx")


def test_a_missing_package(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UnavailableError, match=r"run: pip install 'vlkd-edge\[ort\]'"):
        open_engine(tiny.files["model.onnx"])


def test_another_provider_is_noticed(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime.InferenceSession, "get_providers", lambda self: ["Other"])
    with pytest.raises(UnavailableError, match=r"expected to run on CPUExecutionProvider, found \['Other'\]"):
        open_engine(tiny.files["model.onnx"])


def test_one_engine_in_many_threads(engine: Engine, tiny: Any) -> None:
    expected = [engine.run(image[None]).logits for image in tiny.golden.images]
    wrong: list[int] = []

    def work() -> None:
        for _ in range(50):
            for index, image in enumerate(tiny.golden.images):
                if not np.array_equal(engine.run(image[None]).logits, expected[index]):
                    wrong.append(index)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_batches_are_cut_and_filled_up(count: int, make_tiny_batched: Callable[[int], Any]) -> None:
    tiny = make_tiny_batched(3)
    engine = open_engine(tiny.files["model.onnx"], threads=1)
    assert engine.info.batch == 3
    output = run_batches(engine, tiny.golden.images[:count])
    assert output.logits == pytest.approx(tiny.golden.logits[:count], abs=1e-4)
    assert output.embedding == pytest.approx(tiny.golden.embedding[:count], abs=1e-5)


class Distorted:
    """An engine that answers with golden outputs changed for one sample."""

    def __init__(self, tiny: Any, change: Callable[[np.ndarray, np.ndarray], None], sample: int = 2) -> None:
        self.info = EngineInfo("npu", "SomeNPU", "1.2", None)
        embedding, logits = tiny.golden.embedding.copy(), tiny.golden.logits.copy()
        change(embedding[sample], logits[sample])
        self._outputs = iter([EngineOutput(e[None], z[None]) for e, z in zip(embedding, logits, strict=True)])

    def run(self, images: np.ndarray) -> EngineOutput:
        return next(self._outputs)

    def close(self) -> None:
        """Nothing to close."""


def set_to(which: int, value: Any) -> Callable[[np.ndarray, np.ndarray], None]:
    def change(*outputs: np.ndarray) -> None:
        outputs[which][:] = value(outputs[which])

    return change


def test_self_test_passes_and_says_how_closely(engine: Engine, tiny: Any) -> None:
    result = run_self_test(engine, tiny.golden, tiny.draft.golden)
    assert result.samples == 4
    assert 0.99999 < result.min_cosine <= 1.000001
    assert 0 <= result.max_logit_gap < 1e-4
    exact = run_self_test(Distorted(tiny, lambda e, z: None), tiny.golden, GoldenTolerance(0.9999, 0.0))
    assert exact.max_logit_gap == 0


@pytest.mark.parametrize(
    ("change", "match"),
    [
        pytest.param(
            set_to(0, lambda e: np.roll(e, 1)), r"cosine to the golden embedding -?0\.\d+", id="direction"
        ),
        pytest.param(set_to(0, lambda e: -e), r"cosine to the golden embedding -1\.0", id="opposite"),
        pytest.param(set_to(0, lambda e: 2 * e), "embedding has length 2, expected 1", id="length"),
        pytest.param(set_to(0, lambda e: np.nan), "embedding has length nan", id="nan-embedding"),
        pytest.param(set_to(1, lambda z: z + 0.0200), r"logits differ by 0\.02", id="gap"),
        pytest.param(set_to(1, lambda z: np.nan), "logits differ by nan", id="nan-logits"),
        pytest.param(set_to(1, lambda z: -z), r"and the label changes from \d to \d", id="label"),
    ],
)
def test_self_test_refuses(change: Any, match: str, tiny: Any) -> None:
    with pytest.raises(SelfTestError, match=match) as caught:
        run_self_test(Distorted(tiny, change), tiny.golden, tiny.draft.golden)
    assert "engine npu (SomeNPU 1.2) failed on golden sample 2" in str(caught.value)


def test_self_test_refuses_other_shapes(tiny: Any) -> None:
    wider = dataclasses.replace(tiny.golden, logits=np.repeat(tiny.golden.logits, 2, axis=1))
    with pytest.raises(SelfTestError, match=r"\(4, 4\) and \(4, 3\), expected \(4, 4\) and \(4, 6\)"):
        run_self_test(Distorted(tiny, lambda e, z: None), wider, tiny.draft.golden)
