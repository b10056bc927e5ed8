"""The verbs as a user runs them: output, JSON, exit codes, and no torch where none is needed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vlkd_runtime import Classifier

NO_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {forbidden!r}:
            raise ImportError("forbidden here: " + name)
sys.meta_path.insert(0, Refuse())
sys.argv = ["vlkd-edge"] + {arguments!r}
from vlkd_edge.__main__ import main
main()
"""
HEAVY = {"torch", "torchvision", "timm", "open_clip", "onnx", "matplotlib", "jinja2"}


def run(*arguments: str | Path, forbidden: set[str] = HEAVY) -> subprocess.CompletedProcess[str]:
    """Run a verb in a process of its own where heavy packages cannot be imported."""
    script = NO_TORCH.format(forbidden=forbidden, arguments=[str(argument) for argument in arguments])
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.parametrize(
    "verb",
    [
        [],
        ["build"],
        ["verify"],
        ["predict"],
        ["bench"],
        ["preflight"],
        ["guard"],
        ["targets"],
        ["export"],
        ["doctor"],
    ],
    ids=lambda v: "".join(v),
)
def test_help_needs_neither_torch_nor_an_engine(verb: list[str]) -> None:
    done = run(*verb, "--help", forbidden=HEAVY | {"onnxruntime"})
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_verify_a_good_bundle_and_its_archive(bundle: Path) -> None:
    for path in (bundle, bundle.parent / "tiny.vlkd"):
        done = run("verify", path, "--json")
        answer = json.loads(done.stdout)
        assert done.returncode == 0 and answer["ok"] is True
        assert [check["name"] for check in answer["checks"]][-1] == "self-test"
        assert all(check["ok"] for check in answer["checks"])


@pytest.mark.parametrize("name", ["manifest.json", "model.onnx", "golden.safetensors", "evidence.json"])
def test_verify_and_predict_refuse_a_flipped_byte(
    bundle: Path, tmp_path: Path, picture: Path, name: str
) -> None:
    broken = shutil.copytree(bundle, tmp_path / "broken")
    data = bytearray((broken / name).read_bytes())
    data[len(data) // 2] ^= 1
    (broken / name).write_bytes(data)
    verified, predicted = run("verify", broken, "--json"), run("predict", broken, picture)
    answer = json.loads(verified.stdout)
    assert verified.returncode == 1 and answer["ok"] is False
    assert any(name in check["detail"] for check in answer["checks"] if not check["ok"])
    assert predicted.returncode == 1 and name in predicted.stderr and "Traceback" not in predicted.stderr


def test_predict_prints_labels_and_agrees_with_the_library(bundle: Path, picture: Path) -> None:
    done = run("predict", bundle, picture, "--json", "--top", "2")
    answer = json.loads(done.stdout)
    assert done.returncode == 0 and (answer["engine"], answer["provider"]) == (
        "ort-cpu",
        "CPUExecutionProvider",
    )
    (row,) = answer["predictions"]
    with Classifier.load(bundle) as classifier:
        expected = classifier.predict(picture, top=2)
    assert row["label"] == expected.label and row["probability"] == pytest.approx(expected.probability)
    assert [(e["label"], pytest.approx(e["probability"])) for e in row["top"]] == list(expected.top)
    plain = run("predict", bundle, picture)
    assert f"{expected.label} {expected.probability:.1%}" in plain.stdout


def test_predict_answers_the_good_images_and_names_the_bad_one(
    bundle: Path, picture: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.jpg").write_text("not an image")
    done = run("predict", bundle, picture, tmp_path / "text.jpg", tmp_path / "none.png")
    assert done.returncode == 2
    assert "picture.png: " in done.stdout
    assert "text.jpg" in done.stderr and "none.png" in done.stderr and "Traceback" not in done.stderr


def test_bench_measures_this_machine_and_says_that_it_is_no_jetson(bundle: Path, tmp_path: Path) -> None:
    done = run("bench", bundle, "--samples", "1000", "--json", "--record", tmp_path / "log.jsonl")
    answer = json.loads(done.stdout)
    assert done.returncode == 0
    assert 0 < answer["latency_ms"]["p50"] <= answer["latency_ms"]["p99"]
    assert all(timing["stats"]["n"] >= 1000 for timing in answer["latency"].values())
    assert answer["bundle"]["stand_in"].startswith("An untrained network")
    (line,) = (tmp_path / "log.jsonl").read_text().splitlines()
    assert json.loads(line) == answer
    few = ("--samples", "20", "--processes", "1", "--no-throughput", "--no-power")
    assert "this is not the jetson-orin-nano" in run("bench", bundle, *few).stdout


def test_the_doctor_works_in_a_base_install() -> None:
    done = run("doctor", "--json", forbidden=HEAVY | {"onnxruntime"})
    answer = json.loads(done.stdout)
    assert done.returncode == 0 and "torch" not in answer["python"]["packages"]
    assert answer["engines"]["ort-cpu"] == {
        "available": False,
        "reason": "no onnxruntime: pip install 'vlkd-edge[ort]'",
    }
    missing = answer["targets"]["cpu-x86"]["build"]["missing"]
    assert missing[0]["install"] == "pip install 'vlkd-edge[build]'"


def test_targets_names_the_alias() -> None:
    assert "alias of jetson-orin-nano" in run("targets").stdout
    listed = json.loads(run("targets", "--json").stdout)["targets"]
    assert {"jetson", "jetson-orin-nano"} <= {target["name"] for target in listed}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["verify", "nowhere"], "nowhere", id="no bundle"),
        pytest.param(["predict", "nowhere", "x.png"], "nowhere", id="no bundle to predict with"),
        pytest.param(["preflight", "none.onnx"], "none.onnx", id="no graph"),
        pytest.param(["build", "--target", "toaster"], "Unknown target 'toaster'", id="target"),
        pytest.param(["build", "--config", "none.toml"], "Expected a configuration file", id="configuration"),
        pytest.param(["build", "--set", "data.root=nowhere"], "Expected a data folder at nowhere", id="data"),
        pytest.param(
            ["build", "--set", "teacher.model=bert"], "The teacher 'bert' has no known form", id="teacher"
        ),
        pytest.param(
            ["build", "--set", "teacher.model=local-dir:none"],
            "Expected an open_clip model folder",
            id="teacher folder",
        ),
        pytest.param(["build", "--set", "student.archh=x"], "Did you mean 'arch'", id="typo"),
        pytest.param(["frobnicate"], "No such command", id="verb"),
    ],
)
def test_mistakes_exit_with_2_and_one_message(tmp_path: Path, arguments: list[str], message: str) -> None:
    out = ["--out", str(tmp_path / "out")] if arguments[0] == "build" else []
    done = run(*arguments, *out, forbidden={"torch", "timm", "open_clip"})
    assert done.returncode == 2, done.stderr
    assert message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "stages").exists()
