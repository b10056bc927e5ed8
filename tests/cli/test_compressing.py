"""The verb ``compress`` on a classifier from elsewhere that tells colours apart."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from rich.console import Console

import vlkd_edge.climbing
from vlkd_bench.paired import GuardBudget
from vlkd_compress.speed import Speed
from vlkd_distill.data import scan, split_of
from vlkd_edge.compressing import Outcome, Request, compress
from vlkd_edge.config import GuardConfig
from vlkd_runtime import Classifier, PreprocessSpec
from vlkd_runtime.errors import CalibrationError, ConfigError, DataError, VlkdError

SIDE = 16
COLOURS = {"blue": (2, 230), "green": (1, 230), "red": (0, 230)}
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def picture(colour: str, seed: int, *, dark: bool) -> np.ndarray:
    """Patches in which one channel stands out."""
    random = np.random.default_rng(seed)
    channel, level = COLOURS[colour]
    patches = random.integers(0, 120, (4, 4, 3))
    patches[..., channel] = level
    image = np.kron(patches, np.ones((4, 4, 1)))
    return (image * (0.8 if dark else 1.0)).astype(np.uint8)


def write_data(root: Path, counts: dict[str, int], make: Callable[..., np.ndarray] = picture) -> Path:
    for number, (domain, count) in enumerate(counts.items()):
        for colour in COLOURS:
            folder = root / domain / colour
            folder.mkdir(parents=True)
            for index in range(count):
                image = make(colour, 1000 * number + index, dark=domain == "night")
                Image.fromarray(image).save(folder / f"{index}.png")
    return root


def write_model(path: Path, *, gain: float = 1.0) -> Path:
    """Write a classifier in NCHW with float input: sums of colours, whose names are in order of the alphabet."""
    random = np.random.default_rng(3)
    weight = random.normal(size=(24, 3, 3, 3)) * 0.02
    for index in range(24):
        weight[index, index % 3, 1, 1] = 1.0
    last = np.zeros((3, 24))
    for index in range(24):
        last[2 - index % 3, index] = 0.5
    middle = np.eye(24).reshape(24, 24, 1, 1) + random.normal(size=(24, 24, 1, 1)) * 0.01
    constants = {"w": weight * gain, "m": middle, "v": last, "b": np.zeros(3)}
    nodes = [
        helper.make_node("Conv", ["input", "w"], ["c"], name="stem", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("Conv", ["r", "m"], ["d"], name="middle"),
        helper.make_node("Relu", ["d"], ["e"], name="relu2"),
        helper.make_node("GlobalAveragePool", ["e"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "v", "b"], ["scores"], name="last", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


def widen(source: Path, path: Path) -> Path:
    """Give the middle layer's input one channel a thousand times as large as the rest, and have nobody read it.

    Swish and squeeze-and-excite networks do so to some channels: one scale for the tensor then rounds the others away.
    """
    model = onnx.load(source)
    values = {item.name: numpy_helper.to_array(item).copy() for item in model.graph.initializer}
    values["w"][23] = 40.0
    values["m"][:, 23] = 0.0
    second = np.eye(24, dtype=np.float32).reshape(24, 24, 1, 1)
    del model.graph.initializer[:]
    values["n"] = second
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
    middle = next(node for node in model.graph.node if node.name == "relu2")
    middle.output[0] = "g"
    index = list(model.graph.node).index(middle) + 1
    model.graph.node.insert(index, helper.make_node("Conv", ["g", "n"], ["e"], name="second"))
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "colours", {"day": 20, "lamp": 20, "night": 120})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "colours.onnx")


@pytest.fixture(autouse=True)
def _steady_races(monkeypatch: pytest.MonkeyPatch) -> None:
    """A race tells what the machine is busy with; here the candidate always wins two to one."""
    result = Speed("ort-cpu test", 1, 30, 2.0, 1.0, 2.0, 1.9, 2.1)
    monkeypatch.setattr(vlkd_edge.climbing, "race", lambda *_, **__: result)


def ask(model: Path, data: Path, out: Path, **options: Any) -> Outcome:
    plain: dict[str, Any] = {
        "held_out": ("night",),
        "target": "cpu-x86",
        "mean": MEAN,
        "std": STD,
        "calibration_images": 32,
        "budget": GuardBudget(3.0, 3.0),
        "qat_epochs": 0,
    }
    return compress(Request(model, data, **(plain | options)), out, Console(stderr=True))


def test_the_json_contract_and_the_chosen_model(model: Path, data: Path, tmp_path: Path) -> None:
    found = ask(model, data, tmp_path / "out")
    plain = json.loads(json.dumps(found.plain))
    assert found.exit_code == 0 and plain["chosen"] == "int8-percentile"
    (first, *_) = plain["candidates"]
    assert first["worst"].keys() == {"domain", "drop", "upper"} and first["mean"].keys() == {"drop", "upper"}
    assert first["worst"]["upper"] <= 3.0 and first["latency_ms"] == 1.0 and first["size_bytes"] > 0
    assert first["fused"]["integer"] == first["fused"]["planned"] == 2
    assert plain["float"]["accuracy"]["night"] > 0.6
    assert {"ladder.json", "ladder.md", "ladder.png", "model.onnx"} <= {
        p.name for p in (tmp_path / "out").iterdir()
    }
    spec = PreprocessSpec(SIDE, SIDE)
    with Classifier.from_model(
        tmp_path / "out/model.onnx", spec, sorted(COLOURS), logit_scale=1.0
    ) as classifier:
        assert classifier.predict(picture("green", 1, dark=False)).label == "green"


def test_a_second_run_finds_everything_done(model: Path, data: Path, tmp_path: Path) -> None:
    first = ask(model, data, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("stages/*/*")}
    second = ask(model, data, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("stages/*/*")} == before
    assert second.plain["candidates"] == first.plain["candidates"]


def test_a_budget_nobody_keeps_ends_with_1_and_the_best_candidates_figures(
    model: Path, data: Path, tmp_path: Path
) -> None:
    found = ask(model, data, tmp_path, budget=GuardBudget(0.0, 0.0), target="jetson")
    assert found.exit_code == 1 and found.plain["chosen"] is None and found.plain["model"] is None
    assert found.plain["best"] and "The best, " in found.plain["reason"]
    assert not (tmp_path / "model.onnx").exists()


def test_a_slower_candidate_is_refused_with_the_figures(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Speed("ort-cpu test", 1, 30, 1.0, 2.0, 0.5, 0.4, 0.6)
    monkeypatch.setattr(vlkd_edge.climbing, "race", lambda *_, **__: slow)
    found = ask(model, data, tmp_path, ranked=False)
    (only, *_) = found.plain["candidates"]
    assert only["verdict"] == "refused" and only["worst"] is None and found.exit_code == 1
    assert "slower than float on the target's engine: 0.50 times" in only["reason"]
    assert "1.00 ms" in only["reason"] or "against 1.00" in only["reason"]


def test_the_normalisation_is_found_by_trying(model: Path, data: Path, tmp_path: Path) -> None:
    found = ask(model, data, tmp_path, mean=(), std=(), normalise="imagenet", ranked=False)
    assert found.plain["float"]["input"] == "'imagenet', as given"
    auto = ask(model, data, tmp_path / "auto", mean=(), std=(), normalise="auto", ranked=False)
    assert "detected on 96 labelled source images (imagenet" in auto.plain["float"]["input"]
    with pytest.raises(ConfigError, match=r"Cannot tell how .* wants its input.*order of the logits"):
        mixed = ("green", "red", "blue")
        ask(model, data, tmp_path / "mixed", mean=(), std=(), normalise="auto", classes=mixed)


WATCHED: dict[str, Any] = {"active": False, "openers": set(), "root": ""}


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if not (WATCHED["active"] and event == "open" and str(arguments[0]).startswith(WATCHED["root"])):
        return
    frame, names = sys._getframe(1), set()
    while frame is not None:
        names.add(getattr(frame.f_code, "co_qualname", frame.f_code.co_name))
        frame = frame.f_back  # type: ignore[assignment]
    WATCHED["openers"].add(frozenset(names))


def test_no_held_out_image_reaches_calibration(model: Path, data: Path, tmp_path: Path) -> None:
    """Watch who opens held-out images during a whole climb, the ranking of layers included."""
    sys.addaudithook(_watch)
    WATCHED.update(active=True, root=str(data / "night"))
    try:
        nothing = GuardBudget(0.0, 0.0)
        ask(model, data, tmp_path / "cpu", budget=nothing, coverage=True)
        ask(model, data, tmp_path / "jetson", budget=nothing, target="jetson", qat_epochs=1, ranked=False)
    finally:
        WATCHED["active"] = False
    openers = WATCHED["openers"]
    assert any("evaluate" in names for names in openers)  # the watch sees what it should
    assert any("Climber.rank.<locals>.work" in names or "rank" in names for names in openers)
    forbidden = {"CalibrationImages.load", "_calibration", "Climber.calibration", "_detect"}
    forbidden |= {"_start.<locals>.work", "quantize_with_training"}
    assert list((tmp_path / "jetson/stages").glob("int8-qat-*"))
    assert not [names for names in openers if names & forbidden]


def test_the_ladder_restores_what_default_int8_breaks(model: Path, data: Path, tmp_path: Path) -> None:
    wide = widen(model, tmp_path / "wide.onnx")
    found = ask(wide, data, tmp_path / "out", target="jetson", budget=GuardBudget(5.0, 5.0))
    first, *_ = found.plain["candidates"]
    assert first["name"] == "int8-percentile" and first["verdict"] == "fail" and first["worst"]["drop"] > 20
    *_, chosen = found.plain["candidates"]
    assert found.exit_code == 0 and chosen["name"] == found.plain["chosen"] and chosen["worst"]["drop"] < 1
    # Other ranges cut the large channel off; the ranking names the layer that reads it.
    assert chosen["name"].startswith("int8-") and chosen["name"] != first["name"]
    assert found.plain["ranking"]["groups"][0]["layers"] == ("middle",)


def test_training_is_tried_only_after_everything_else_in_int8(
    model: Path, data: Path, tmp_path: Path
) -> None:
    found = ask(model, data, tmp_path, budget=GuardBudget(0.0, 0.0), target="jetson", qat_epochs=1)
    names = [item["name"] for item in found.plain["candidates"]]
    others = [name for name in names if name.startswith("int8") and name != "int8-qat"]
    assert names == [*others, "int8-qat", "fp16"]
    trained = found.plain["candidates"][-2]
    assert trained["worst"] is not None and "trained for 1 epochs with the float model's answers" in str(
        trained["steps"]
    )
    assert trained["fused"] is None and "no engine" in trained["fused_reason"]
    first = ask(model, data, tmp_path / "passes", target="jetson", qat_epochs=1)
    assert first.plain["chosen"] == "int8-percentile" and len(first.plain["candidates"]) == 1
    assert not list((tmp_path / "passes/stages").glob("int8-qat-*"))


@pytest.mark.parametrize(
    ("missing", "images", "match"),
    [
        pytest.param(True, 20, r"needs torch.*pip install 'vlkd-edge\[qat\]'", id="no torch"),
        pytest.param(False, 10, "at least 64 source images to train .* found 60", id="too few images"),
    ],
)
def test_training_that_cannot_be_is_refused_with_the_reason(
    missing: bool, images: int, match: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_data(tmp_path / "data", {"day": images, "lamp": images, "night": 40})
    if missing:
        find = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *rest: None if name == "torch" else find(name, *rest)
        )
    found = ask(
        model,
        root,
        tmp_path / "out",
        budget=GuardBudget(0.0, 0.0),
        target="jetson",
        qat_epochs=1,
        ranked=False,
    )
    refused = {item["name"]: item for item in found.plain["candidates"]}["int8-qat"]
    assert refused["verdict"] == "refused" and re.search(match, refused["reason"])


@pytest.mark.parametrize("flat", [True, False], ids=["class folders", "one domain"])
def test_without_domains_the_guard_judges_on_virtual_ones(flat: bool, model: Path, tmp_path: Path) -> None:
    pytest.importorskip("imagecorruptions")
    root = write_data(tmp_path / "data", {"day": 40})
    asked = GuardConfig(virtual=("grey", "noise"), severities=(1,))
    found = ask(
        model, root / "day" if flat else root, tmp_path / "out", held_out=(), guard=asked, ranked=False
    )
    (first, *_) = found.plain["candidates"]
    assert first["domains"].keys() == {"virtual-grey", "virtual-noise"}
    assert first["virtual"] is True and "virtual" in first["reason"]
    assert any("virtual domains (grey, noise)" in line for line in found.plain["contract"])
    usable = sum(split_of(sample.image) == "train" for sample in scan(root / "day" if flat else root).samples)
    assert first["domains"]["virtual-grey"]["n"] == 120 - usable


def test_images_that_cannot_be_decoded_are_left_out_and_named(
    model: Path, data: Path, tmp_path: Path
) -> None:
    shutil.copytree(data, tmp_path / "data")
    whole = ask(model, data, tmp_path / "whole")
    for name in ("day/blue", "night/red"):
        next(iter(sorted((tmp_path / "data" / name).iterdir()))).write_bytes(b"no picture")
    found = ask(model, tmp_path / "data", tmp_path / "out")
    (told,) = [line for line in found.plain["contract"] if "cannot be decoded" in line]
    assert told.startswith("2 images are left out and cannot be decoded: day/blue/") and "night/red/" in told
    counts = [
        next(int(word) for word in one.plain["contract"][1].split() if word.isdecimal())
        for one in (whole, found)
    ]
    assert counts[1] == counts[0] - 1
    assert found.exit_code == 0 and found.plain["chosen"] == whole.plain["chosen"]

    for path in (tmp_path / "data/day").rglob("*.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"images cannot be decoded; at most 1% may be"):
        ask(model, tmp_path / "data", tmp_path / "again")


def test_a_copy_of_a_held_out_image_is_refused(model: Path, tmp_path: Path) -> None:
    root = write_data(tmp_path / "data", {"day": 12, "night": 12})
    (root / "day/red/stolen.png").write_bytes((root / "night/red/0.png").read_bytes())
    with pytest.raises(
        CalibrationError, match=r"found day/red/stolen\.png with the same content as night/red/0"
    ):
        ask(model, root, tmp_path / "out", calibration_images=64)


def noisy(colour: str, seed: int, *, dark: bool) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def flat(colour: str, seed: int, *, dark: bool) -> np.ndarray:
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    image[..., COLOURS[colour][0]] = 100 + seed % 100 + 60 * dark
    return image


@pytest.mark.parametrize(
    ("make", "counts", "error", "match"),
    [
        pytest.param(picture, {"day": 1, "lamp": 1, "night": 1}, CalibrationError,
                     r"at least 32 samples .* found 6 \(3 in day, 3 in lamp\)", id="one image a domain and class"),
        pytest.param(flat, {"day": 12, "night": 2}, CalibrationError, "one flat colour", id="constant images"),
        pytest.param(noisy, {"day": 12, "night": 2}, CalibrationError, "random noise", id="random images"),
        pytest.param(picture, {"night": 12}, ConfigError, "leave at least one", id="everything held out"),
    ],
)  # fmt: skip
def test_data_that_cannot_calibrate(
    make: Callable[..., np.ndarray],
    counts: dict[str, int],
    error: type[VlkdError],
    match: str,
    model: Path,
    tmp_path: Path,
) -> None:
    root = write_data(tmp_path / "data", counts, make)
    with pytest.raises(error, match=match):
        ask(model, root, tmp_path / "out")


def test_activations_that_are_not_finite_are_refused(data: Path, tmp_path: Path) -> None:
    broken = onnx.load(write_model(tmp_path / "broken.onnx"))
    value = numpy_helper.to_array(broken.graph.initializer[1]).copy()
    value[0, 0] = np.nan
    broken.graph.initializer[1].CopyFrom(numpy_helper.from_array(value, "m"))
    onnx.save(broken, tmp_path / "broken.onnx")
    with pytest.raises(VlkdError, match=r"finite"):
        ask(tmp_path / "broken.onnx", data, tmp_path / "out")


def test_a_model_that_is_quantized_already_is_refused(model: Path, data: Path, tmp_path: Path) -> None:
    done = ask(model, data, tmp_path / "first")
    with pytest.raises(DataError, match="quantized already"):
        ask(Path(done.plain["model"]), data, tmp_path / "second")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        pytest.param({"mean": (), "std": ()}, "Give --normalise", id="no normalisation"),
        pytest.param({"normalise": "half"}, "found both", id="two normalisations"),
        pytest.param({"mean": (), "std": (), "normalise": "nose"}, "found 'nose'", id="unknown one"),
        pytest.param({"candidates": ("fp16",)}, "for tensorrt only", id="wrong dialect"),
        pytest.param({"candidates": ("fp8",), "target": "jetson"}, "needs FP8, and jetson-orin", id="no FP8"),
        pytest.param({"jpeg_scale": 17}, "jpeg_scale must be an integer from 0 to 16", id="jpeg scale"),
        pytest.param({"held_out": ("dusk",)}, "names the domain 'dusk'", id="unknown domain"),
        pytest.param({"target": "toaster"}, "Unknown target 'toaster'", id="unknown target"),
        pytest.param({"classes": ("red", "green")}, "3 logits, and .* has 2 classes", id="classes"),
    ],
)
def test_requests_that_cannot_be_meant(
    options: dict[str, Any], match: str, model: Path, data: Path, tmp_path: Path
) -> None:
    with pytest.raises((ConfigError, DataError), match=match):
        ask(model, data, tmp_path, **options)


def test_defaults_are_those_of_the_command_line() -> None:
    import inspect

    from vlkd_edge.verbs.making import compress as verb

    defaults = {name: item.default for name, item in inspect.signature(verb).parameters.items()}
    request = {field.name: field.default for field in dataclasses.fields(Request)}
    for name in ("normalise", "layout", "bgr", "resize", "crop_fraction", "interpolation", "threads", "seed"):
        assert defaults[name] == request[name], name
    assert defaults["coverage"] is request["coverage"] and defaults["rank"] is request["ranked"]
