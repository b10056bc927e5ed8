"""Targets as data: the built-in table is coherent, and a user's own are typed like any configuration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vlkd_edge import configfile
from vlkd_edge.app import app
from vlkd_edge.targets import TARGETS, describe, find, load
from vlkd_runtime.errors import ConfigError
from vlkd_runtime.targets import GIB, JETPACKS

NAMES = (
    *("jetson", "jetson-orin-nano", "jetson-orin-nx", "jetson-agx-orin", "jetson-agx-thor", "jetson-xavier"),
    *("desktop-rtx", "desktop-trt", "cpu-x86", "cpu-arm"),
)
OWN = """
[targets.nano-4gb]
inherits = "jetson-orin-nano"
memory_gib = 4
jetpack = ["6.0"]

[targets.small-board]
engine = "onnxruntime-cpu"
compute_capability = []
jetpack = []
tensorrt = []
precisions = ["float32", "int8"]
memory_gib = 1.5
reserved_gib = 0.5
dialect = "onnxruntime-qdq"
"""


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_the_built_in_table_is_coherent(target: object) -> None:
    assert [t.name for t in TARGETS] == list(NAMES)
    found = describe(find(str(getattr(target, "name"))))  # noqa: B009
    assert found["prefers"] in found["precisions"] and found["opset"] <= found["newest_opset"]
    assert found["budget_bytes"] > 0.7 * GIB
    assert [release["release"] for release in found["releases"]] == list(found["jetpack"])
    stated = {item.tensorrt for item in JETPACKS if item.release in found["jetpack"] and item.tensorrt}
    assert found["jetpack"] == () or stated == set(found["tensorrt"])
    capabilities = [float(item) for item in found["compute_capability"]]
    # FP8 needs compute capability 8.9, bfloat16 8.0, on every device that the target covers.
    for precision, least in (("float8", 8.9), ("bfloat16", 8.0), ("float4", 10.0)):
        assert precision not in found["precisions"] or min(capabilities) >= least
    assert bool(found["rails"]) == found["name"].startswith("jetson")


def test_an_alias_gives_what_it_stands_for() -> None:
    assert find("jetson").name == "jetson-orin-nano"
    assert find("jetson") == find("jetson-orin-nano")


def test_own_targets_inherit_and_stand_alone(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(OWN)
    nano, board = load(tmp_path / "own.toml")
    assert (nano.name, nano.title, nano.memory_gib, nano.jetpack) == ("nano-4gb", "nano-4gb", 4.0, ("6.0",))
    assert (nano.rails, nano.tensorrt) == (find("jetson").rails, find("jetson").tensorrt)
    assert nano.alias_of == "" and nano.budget_bytes == int(2.5 * GIB)
    assert (board.engine, board.opset, board.prefers) == ("onnxruntime-cpu", 20, "int8")
    assert find("nano-4gb", (nano, board)) is nano


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("x = 1", "expected at least one table", id="no table"),
        pytest.param("targets = 3", "expected tables \\[targets.NAME\\], found 3", id="no tables"),
        pytest.param('targets.a = "b"', "targets.a: expected a table", id="a string"),
        pytest.param("[targets.jetson]", "targets.jetson: expected a new name", id="taken name"),
        pytest.param('[targets."a b"]\ninherits = "jetson"', "targets.a b: expected a new name", id="blank"),
        pytest.param('[targets.a]\ninherits = "jetsn"', "Did you mean 'jetson'", id="parent"),
        pytest.param("[targets.a]\nopset = 19", "expected compute_capability, dialect, engine", id="missing"),
        pytest.param(
            '[targets.a]\ninherits = "jetson"\nmemory = 3\ndla_cores = "two"',
            "(?s)2 problems.*dla_cores: expected a whole number.*memory: unknown key. Did you mean 'memory_gib'",
            id="two at once",
        ),
        pytest.param('[targets.a]\ninherits = "jetson"\nalias_of = "x"', "alias_of: is not set", id="alias"),
        pytest.param(
            '[targets.a]\ninherits = "jetson"\nprecisions = ["int4"]',
            "expected one of 'float32'",
            id="precision",
        ),
        pytest.param(
            '[targets.a]\ninherits = "jetson"\nprefers = "float8"', "prefers: expected one", id="prefers"
        ),
        pytest.param(
            '[targets.a]\ninherits = "jetson"\njetpack = ["8"]', "jetpack: expected releases", id="jetpack"
        ),
        pytest.param('[targets.a]\ninherits = "jetson"\nopset = 21', "opset: expected 13 to", id="opset"),
        pytest.param(
            '[targets.a]\ninherits = "jetson"\nmemory_gib = 0', "memory_gib: expected 0.25", id="memory"
        ),
        pytest.param("[targets.a", "Expected a TOML file", id="no TOML"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "own.toml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load(tmp_path / "own.toml")


def test_a_configuration_brings_its_own_target(tmp_path: Path) -> None:
    path = tmp_path / "vlkd.toml"
    path.write_text('target = "nano-4gb"\n' + OWN)
    assert configfile.load(path).device().memory_gib == 4.0
    (tmp_path / "own.toml").write_text(OWN)
    path.write_text(f'target = "small-board"\ntargets_file = "{tmp_path / "own.toml"}"\n')
    assert configfile.load(path).device().engine == "onnxruntime-cpu"
    path.write_text('target = "a"\n[targets.a]\nmemory = 1\n')
    with pytest.raises(ConfigError, match=r"targets\.a\.memory: unknown key"):
        configfile.load(path)
    with pytest.raises(ConfigError, match="Unknown target 'nano-4gb'"):
        configfile.load(None, (), ['target="nano-4gb"']).device()


def test_the_verb_lists_and_shows_one(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(OWN)
    runner = CliRunner()
    listed = json.loads(runner.invoke(app, ["targets", "--json"]).stdout)["targets"]
    assert [target["name"] for target in listed] == list(NAMES)
    one = json.loads(
        runner.invoke(
            app, ["targets", "nano-4gb", "--targets-file", str(tmp_path / "own.toml"), "--json"]
        ).stdout
    )
    assert one["memory_gib"] == 4.0 and one["releases"][0]["tensorrt"] == "8.6.2"
    text = runner.invoke(app, ["targets", "jetson-agx-thor"]).stdout
    assert "VDD_CPU_SOC_MSS" in text and "10.13" in text
