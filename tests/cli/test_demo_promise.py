"""The promise of the demo with its own defaults: minutes of training, so not part of the fast run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("epochs", [4, 12], ids=["the default budget", "three times the budget"])
def test_the_distilled_student_is_ten_points_above_plain_training_and_int8_ships(
    tmp_path: Path, epochs: int
) -> None:
    words = [
        sys.executable,
        "-m",
        "vlkd_edge",
        "build",
        "--target",
        "jetson",
        "--out",
        str(tmp_path),
        "--json",
        "--set",
        f"distill.epochs={epochs}",
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    accuracy = answer["accuracy"]
    assert all(value >= 0.9 for name, value in accuracy["teacher"].items())
    assert accuracy["erm"]["sketch"] <= accuracy["teacher"]["sketch"] - 0.20  # plain training fails there
    assert accuracy["student"]["sketch"] >= accuracy["erm"]["sketch"] + 0.10
    assert answer["guard"]["verdict"] == "pass" and answer["candidates"][-1]["name"].startswith("int8")
