"""The ablation's table: what stands in it is paired by seed and is the mean over the held-out domains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import ablation
from vlkd_edge import configfile

RESULTS = Path(ablation.__file__).parent / "results"
RECORDS = [path for path in RESULTS.glob("*.json") if path.stem.endswith("vlkd-ablation")]


def row(variant: str, domain: str, seed: int, accuracy: float) -> dict[str, Any]:
    method = "vlkd" if variant else "erm"
    return {
        "variant": variant,
        "method": method,
        "held_out": domain,
        "seed": seed,
        "accuracy": accuracy,
        "source_accuracy": 0.9,
    }


def table(*rows: dict[str, Any]) -> dict[str, str]:
    text = ablation.render(
        {
            "command": "python benchmarks/ablation.py",
            "machine": "a machine",
            "teacher": "demo",
            "student": "small",
            "stand_ins": ["It stands in."],
            "settings": {},
            "sources": ["photo", "painting"],
            "rows": rows,
        }
    )
    assert "> It stands in." in text
    return {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if line.startswith("|")}


def test_a_variant_is_held_against_the_same_seeds() -> None:
    # The gaps are +10 and +20 points: 15 in the mean, 5 their standard error, whatever the seeds' own spread.
    lines = table(
        row("", "sketch", 0, 0.30),
        row("vlkd", "sketch", 0, 0.40),
        row("vlkd", "sketch", 1, 0.70),
        row("other", "sketch", 1, 0.90),
        row("other", "sketch", 0, 0.50),
    )
    assert lines["other"] == "| other | 70.0 ± 20.0 | +15.0 ± 5.0 | 90.0 ± 0.0 |"
    assert lines["vlkd"] == "| vlkd | 55.0 ± 15.0 |  | 90.0 ± 0.0 |"
    assert lines["erm"] == "| erm | 30.0 | -10.0 | 90.0 |"


def test_several_domains_are_averaged_before_the_spread_is_taken() -> None:
    lines = table(
        row("vlkd", "sketch", 0, 0.40),
        row("vlkd", "photo", 0, 0.80),
        row("other", "sketch", 0, 0.50),
        row("other", "photo", 0, 0.60),
    )
    assert lines["what"] == "| what | sketch | photo | mean | against vlkd | sources |"
    assert lines["vlkd"] == "| vlkd | 40.0 | 80.0 | 60.0 |  | 90.0 |"
    assert lines["other"] == "| other | 50.0 | 60.0 | 55.0 | -5.0 | 90.0 |"


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_the_tables_are_made_of_their_records(path: Path) -> None:
    assert path.with_suffix(".md").read_text() == ablation.render(json.loads(path.read_text()))


def test_the_command_names_no_folder_of_this_machine() -> None:
    words = ["--name", "x", "--config", "r.toml", "--var", "pacs=/some/where/pacs", "--only", "no labels"]
    found = ablation.spelled(ablation.parse([*words, "--held-out", "all"]))
    assert "--var pacs=pacs" in found
    assert "--only 'no labels' --seeds 0" in found
    assert "/some" not in found
    assert ablation.spelled(ablation.parse([])) == "python benchmarks/ablation.py --seeds 0"


@pytest.mark.parametrize("name", ablation.VARIANTS)
def test_every_variant_changes_the_recipe(name: str) -> None:
    usual = configfile.load(ablation.DEMO)
    changed = configfile.load(ablation.DEMO, settings=ablation.VARIANTS[name])
    assert (usual == changed) is (name not in ablation.USUAL)
