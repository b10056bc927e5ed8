"""The preflight as a user runs it: its contract, and the variants of a bundle."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

FORBIDDEN = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "timm"}:
            raise ImportError("forbidden here: " + name)
sys.meta_path.insert(0, Refuse())
from vlkd_edge.__main__ import main
main()
"""


def preflight(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the verb in a process of its own where torch cannot be imported."""
    command = [sys.executable, "-c", FORBIDDEN, "preflight", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def answer(*words: str | Path) -> tuple[int, dict[str, Any]]:
    """Run it with --json: exit code and the printed object."""
    done = preflight(*words, "--json")
    return done.returncode, json.loads(done.stdout)


def off_centre(graph: Path, out: Path) -> str:
    """Quantize what the first convolution reads around a zero point of 3, which TensorRT refuses; gives its name."""
    model = onnx.load(graph)
    place, conv = next((i, node) for i, node in enumerate(model.graph.node) if node.op_type == "Conv")
    scale, zero = "off/scale", "off/zero"
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(0.05, np.float32), scale))
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(3, np.int8), zero))
    pair = [
        helper.make_node("QuantizeLinear", [conv.input[0], scale, zero], ["off/int8"], name="off/quantize"),
        helper.make_node("DequantizeLinear", ["off/int8", scale, zero], ["off/float"], name="off/back"),
    ]
    conv.input[0] = "off/float"
    for node in reversed(pair):
        model.graph.node.insert(place, node)
    onnx.save(model, out)
    return str(pair[0].name)


@pytest.fixture(scope="module")
def several(bundle: Path, small: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose second variant breaks a rule of TensorRT, and whose third is for the CPU; its first is whole."""
    root = tmp_path_factory.mktemp("several")
    float_graph, odd = bundle / "model.onnx", root / "odd.onnx"
    off_centre(float_graph, odd)
    further = {"float32": (odd, "onnx"), "int8-cpu": (odd, "onnxruntime-qdq")}
    return Path(small.pack(root, float_graph, small.vectors, "float16", "onnx", further))


def test_preflight_prints_the_contract_and_names_rule_and_node(bundle: Path, tmp_path: Path) -> None:
    code, found = answer(bundle)
    assert {"verdict", "rules", "engine", "memory_bytes", "target"} <= set(found)
    assert found["target"] == "jetson-orin-nano"  # the bundle's own
    assert (code == 0) == (found["verdict"] == "pass") == (found["engine"] is not None)
    code, found = answer(bundle, "--target", "jetson-xavier")
    assert (code, found["verdict"]) == (1, "fail")
    assert [(rule["id"], rule["node"]) for rule in found["rules"]] == [("VP001", "model")]
    assert "expected opset 13 to 17" in found["rules"][0]["message"]
    own = tmp_path / "own.toml"
    own.write_text('[targets.tight]\ninherits = "jetson"\nmemory_gib = 2.5\n')
    done = preflight(bundle, "--target", "tight", "--targets-file", own)
    assert done.returncode == 1 and "VP021 memory" in done.stdout
    code, listed = answer("--rules")
    assert code == 0 and len(listed["rules"]) == 26
    assert all(rule["reason"] and rule["source"] for rule in listed["rules"])


def test_a_file_has_no_variants(bundle: Path) -> None:
    code, found = answer(bundle / "model.onnx", "--target", "cpu-x86")
    assert (code, found["verdict"], found["variant"], found["left_out"]) == (0, "pass", None, [])
    (only,) = found["variants"]
    assert only["variant"] is None and only["engine"] == found["engine"] and only["engine"] is not None
    done = preflight(bundle / "model.onnx", "--variant", "float32")
    assert done.returncode == 2 and "bundles have variants" in done.stderr


def test_every_variant_that_the_target_runs_is_checked_and_the_worst_one_counts(several: Path) -> None:
    code, found = answer(several)
    assert (code, found["verdict"], found["variant"]) == (1, "fail", "float32")
    assert [item["variant"] for item in found["variants"]] == [
        "float16",
        "float32",
    ]  # best first for TensorRT
    first, second = found["variants"]
    assert first["verdict"] != "fail" and first["rules"] == []
    assert found["reason"] == second["reason"] and second["verdict"] == "fail"
    rules = [(rule["variant"], rule["name"], rule["node"]) for rule in found["rules"]]
    assert ("float32", "symmetric", "off/quantize") in rules
    assert {variant for variant, *_ in rules} == {"float32"}
    assert [item["variant"] for item in found["left_out"]] == ["int8-cpu"]
    assert "does not take its kind" in found["left_out"][0]["reason"]
    assert found["memory_bytes"] == max(item["memory_bytes"] for item in found["variants"])


def test_the_cpu_takes_them_all(several: Path) -> None:
    code, found = answer(several, "--target", "cpu-x86")
    assert (code, found["verdict"], found["left_out"]) == (0, "pass", []), found["reason"]
    assert [item["variant"] for item in found["variants"]] == ["int8-cpu", "float32", "float16"]
    assert all(item["engine"]["name"] == "ONNX Runtime" for item in found["variants"])


def test_people_are_told_which_variant_each_finding_is_about(several: Path) -> None:
    done = preflight(several)
    lines = done.stdout.splitlines()
    assert done.returncode == 1 and lines[0].startswith("fail for jetson-orin-nano: float32: ")
    place = lines.index("float32: fail")
    assert any(line.startswith("float16: ") for line in lines[:place])
    assert "off/quantize" in lines[place + 1]
    assert "int8-cpu: left out, the engine of jetson-orin-nano does not take its kind" in lines


def test_one_variant_alone(several: Path) -> None:
    code, found = answer(several, "--variant", "float32")
    assert (code, found["variant"]) == (1, "float32")
    assert [item["variant"] for item in found["variants"]] == ["float32"]
    assert {item["reason"] for item in found["left_out"]} == {"another one was asked for"}
    done = preflight(several, "--variant", "float8")
    assert done.returncode == 2 and "expected one of float16, float32, int8-cpu" in done.stderr


def test_a_bundle_of_which_the_target_runs_nothing_fails_and_names_the_node(several: Path) -> None:
    code, found = answer(several, "--variant", "int8-cpu")
    assert (code, found["verdict"], found["left_out"]) == (1, "fail", [])
    assert "engine tensorrt: it takes none of the bundle's variants, which are int8-cpu" in found["reason"]
    assert "off/quantize" in [rule["node"] for rule in found["rules"]]
