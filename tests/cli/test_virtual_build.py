"""A build from one folder of classes, without domains: the guard judges on virtual ones and says so everywhere."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vlkd_bench.predictions import read_predictions
from vlkd_bench.samples import ABSENT
from vlkd_distill.data import ONE_DOMAIN, split_of
from vlkd_distill.demo import write_world
from vlkd_edge.__main__ import main
from vlkd_runtime import Bundle

pytest.importorskip("imagecorruptions", exc_type=ImportError)
SETTINGS = (
    "data.held_out=[]",
    "student.arch=resnet10t",
    "student.options={channels=[8, 16, 32, 64], stem_width=8}",
    "student.image_size=32",
    "student.pretrained=none",
    "distill.batch_norm=train",
    "distill.epochs=1",
    "distill.align_epochs=1",
    "compress.calibration_images=32",
    "guard.worst_points=80",
    "guard.mean_points=80",
    "guard.rejection_points=90",
    'guard.virtual=["grey", "noise"]',
    "bench.samples=50",
)
DOMAINS = {"virtual-grey", "virtual-noise"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    root = tmp_path_factory.mktemp("flat")
    write_world(root / "world", per_class={"photo": 20}, seed=3)
    shutil.move(root / "world" / "photo" / "guitar", root / "unknown")
    words = ["build", "--out", str(root / "out"), "--json", "--set", f"data.root={root / 'world' / 'photo'}"]
    words += ["--set", f"data.unknown={root / 'unknown'}"]
    words += [word for setting in SETTINGS for word in ("--set", setting)]
    done = subprocess.run(
        [sys.executable, "-m", "vlkd_edge", *words], capture_output=True, text=True, check=False, timeout=900
    )
    assert done.returncode == 0, done.stderr
    return root / "out", json.loads(done.stdout.splitlines()[-1])


def test_every_verdict_and_report_names_the_virtual_domains(built: tuple[Path, dict[str, Any]]) -> None:
    out, answer = built
    assert answer["guard"]["virtual"] is True and answer["guard"]["domains"].keys() == DOMAINS
    assert answer["guard"]["unknowns"] == 20 and answer["guard"]["rejection"]["upper"] < 90
    assert "The domains are virtual" in answer["guard"]["reason"]
    assert answer["accuracy"]["held_out"] == [] and answer["accuracy"]["shipped"].keys() == {ONE_DOMAIN}
    assert any("virtual domains (grey, noise)" in line for line in answer["contract"])
    for name in ("report.md", "report.html"):
        text = (out / name).read_text()
        assert "Accuracy on virtual domains stays within budget" in text and "virtual" in text
    evidence = Bundle.open(out / "bundle").evidence["guard"]
    assert evidence["virtual"] is True and evidence["domains"].keys() == DOMAINS


def test_virtual_domains_are_drawn_from_test_images_alone(built: tuple[Path, dict[str, Any]]) -> None:
    out, _ = built
    names = Bundle.open(out / "bundle").manifest.classes
    rows = read_predictions(out / "guard" / "reference.jsonl", names)
    tests = {row.source for row in rows if row.label != ABSENT}
    rows = tuple(row for row in rows if row.label != ABSENT)
    assert {row.domain for row in rows} == DOMAINS and len(rows) == 2 * len(tests)
    assert tests and all(split_of(image) == "test" for image in tests)


def test_the_stored_predictions_give_the_same_verdict(
    built: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, answer = built
    monkeypatch.chdir(out / "guard")
    (stored,) = json.loads((out / "guard" / "verdicts.json").read_text())
    monkeypatch.setattr(sys, "argv", [*shlex.split(stored["command"]), "--json"])
    with pytest.raises(SystemExit) as end:
        main()
    again = json.loads(capsys.readouterr().out)
    assert end.value.code == 0 and again == answer["guard"]
    assert stored["answered"] == stored["available"] == again["images"] + again["unknowns"]
    assert stored["saved"] == 0
