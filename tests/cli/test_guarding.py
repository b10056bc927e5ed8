"""``vlkd-edge guard``: its JSON contract, its exit codes, what it draws and what it refuses."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlkd_edge.__main__ import main

Line = dict[str, Any]
Run = Callable[..., tuple[int, str, str]]


def lines(domain: str, n: int, lost: int = 0, won: int = 0) -> tuple[list[Line], list[Line]]:
    """Reference and candidate on `n` images, with class names and no more than the contract asks for."""
    both = [("cat", "dog")] * lost + [("dog", "cat")] * won + [("cat", "cat")] * (n - lost - won)
    reference, candidate = (
        [
            {"image": f"{domain}/cat/{i}.png", "domain": domain, "label": "cat", "prediction": one[side]}
            for i, one in enumerate(both)
        ]
        for side in (0, 1)
    )
    return reference, candidate


def write(folder: Path, reference: Sequence[Line], candidate: Sequence[Line]) -> list[str]:
    paths = [folder / "reference.jsonl", folder / "candidate.jsonl"]
    for path, rows in zip(paths, (reference, candidate), strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [str(path) for path in paths]


@pytest.fixture
def guard(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vlkd-edge", "guard", *words])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out, said.err

    return run


@pytest.mark.parametrize(
    ("parts", "options", "verdict", "code"),
    [
        pytest.param([("a", 700), ("b", 700)], [], "pass", 0, id="pass"),
        pytest.param([("a", 700, 60), ("b", 700)], [], "fail", 1, id="fail"),
        pytest.param([("a", 100)], [], "inconclusive", 1, id="too few"),
        pytest.param([("a", 100)], ["--budget-worst", "4"], "pass", 0, id="a wide budget"),
        pytest.param([("a", 320)], ["--confidence", "0.99"], "inconclusive", 1, id="a high confidence"),
        pytest.param([("a", 320)], ["--share", "0.2"], "inconclusive", 1, id="a share of the risk"),
        pytest.param([("a", 900, 9)], ["--budget-flips", "0.5"], "fail", 1, id="flips judged"),
        pytest.param(
            [("a", 9000, 70), ("b", 9000, 70)], ["--budget-mean", "1"], "pass", 0, id="the mean's budget"
        ),
    ],
)
def test_the_json_contract(
    guard: Run,
    tmp_path: Path,
    parts: list[tuple[str, int]],
    options: list[str],
    verdict: str,
    code: int,
) -> None:
    pairs = [lines(*part) for part in parts]
    if "--budget-flips" in options:  # a wide budget, so that flips decide
        options = [*options, "--budget-worst", "10"]
        pairs = [lines("a", 900, 20, 20)]
    files = write(tmp_path, [r for one, _ in pairs for r in one], [r for _, two in pairs for r in two])
    got, out, _ = guard(*files, *options, "--json")
    answer = json.loads(out.strip().splitlines()[-1])
    assert (answer["verdict"], got) == (verdict, code)
    assert answer["domains"].keys() == {part[0] for part in parts}
    for item in answer["domains"].values():
        assert item["n"] > 0 and item["drop"] <= item["upper"]
    assert answer["worst"]["upper"] == max(item["upper"] for item in answer["domains"].values())
    assert answer["mean"]["drop"] <= answer["mean"]["upper"]
    assert 0 <= answer["flip_rate"] <= 1
    assert (answer["images_needed"] is None) == (verdict != "inconclusive")
    assert answer["ece"] is None and answer["rejection"] is None  # nothing was recorded for them


def test_people_get_a_table_and_a_picture(guard: Run, tmp_path: Path) -> None:
    files = write(tmp_path, *lines("night", 120, 1))
    code, out, _ = guard(*files, "--png", str(tmp_path / "guard.png"))
    assert code == 1 and out.startswith("? INCONCLUSIVE")
    flat = " ".join(out.split())
    assert "night 120 0.83" in flat and "more than now, would decide" in flat
    picture = np.asarray(Image.open(io.BytesIO((tmp_path / "guard.png").read_bytes())).convert("RGB"))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50  # something is drawn
    assert guard(*files, "--budget-worst", "5", "--png", str(tmp_path / "wide.png"))[0] == 0
    assert (tmp_path / "wide.png").read_bytes() != (tmp_path / "guard.png").read_bytes()


def test_unknown_images_and_probabilities_are_judged_when_asked(guard: Run, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    reference, candidate = lines("a", 600)
    for row in (*reference, *candidate):
        row |= {"probability": 0.9, "similarity": float(rng.normal(0.3, 0.02))}
    for i in range(300):
        absent = {"image": f"absent/{i}.png", "domain": "absent", "label": None, "prediction": "cat"}
        reference.append(absent | {"similarity": float(rng.normal(0.2, 0.02))})
        candidate.append(absent | {"similarity": float(rng.normal(0.28, 0.02))})
    files = write(tmp_path, reference, candidate)
    code, out, _ = guard(*files, "--json")
    answer = json.loads(out)
    assert code == 0 and answer["domains"]["a"]["n"] == 600 and answer["unknowns"] == 300
    assert answer["rejection"]["drop"] > 10 and answer["ece_change"] == 0
    code, out, _ = guard(*files, "--budget-rejection", "2", "--json")
    assert code == 1 and "AUROC of rejecting unknowns drops" in json.loads(out)["reason"]


def test_a_verdict_that_came_early_is_recomputed_from_its_part(guard: Run, tmp_path: Path) -> None:
    reference, candidate = lines("a", 800)
    files = write(tmp_path, reference, candidate[:400])
    assert guard(*files)[0] == 2
    code, out, _ = guard(*files, "--partial", "--json")
    assert code == 0 and json.loads(out)["domains"]["a"]["n"] == 400


def _spoilt(kind: str, row: Line) -> Line | None:
    return {
        "other image": row | {"image": "a/cat/other.png"},
        "other label": row | {"label": "dog"},
        "other domain": row | {"domain": "b"},
        "nan": row | {"probability": float("nan")},
        "probability": row | {"probability": 1.2},
        "no prediction": {key: value for key, value in row.items() if key != "prediction"},
        "number as image": row | {"image": 7},
    }.get(kind)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("other image", "1 missing from the candidate: a/cat/0.png"),
        ("other label", "found class 'cat' in a for the reference, class 'dog' in a for the candidate"),
        ("other domain", "class 'cat' in b for the candidate"),
        ("nan", "Expected a finite number for 'probability' in"),
        ("probability", "Expected a probability between 0 and 1"),
        ("no prediction", "missing prediction"),
        ("number as image", "Expected a non-empty text for 'image'"),
        ("twice", "found 'a/cat/0.png' twice"),
        ("empty", "found an empty file"),
        ("not JSON", "line 2, found: "),
        ("missing file", "Expected a predictions file"),
        ("no probabilities", "found no probabilities in the predictions"),
        ("budget", "mean_points between 0 and 100 points, found 200"),
    ],
)
def test_what_cannot_be_judged_is_one_clear_line(guard: Run, tmp_path: Path, kind: str, message: str) -> None:
    reference, candidate = lines("a", 4)
    spoilt = _spoilt(kind, candidate[0])
    files = write(tmp_path, reference, [spoilt or candidate[0], *candidate[1:]])
    path = Path(files[1])
    if kind == "twice":
        path.write_text(path.read_text() + json.dumps(candidate[0]) + "\n")
    elif kind == "empty":
        path.write_text("")
    elif kind == "not JSON":
        path.write_text(path.read_text().replace("\n", "\n{", 1))
    elif kind == "missing file":
        path.unlink()
    options = {"no probabilities": ["--budget-ece", "1"], "budget": ["--budget-mean", "200"]}.get(kind, [])
    code, out, err = guard(*files, *options, "--json")
    assert code == 2
    assert message in err and err.startswith("error: ") and len(err.strip().splitlines()) == 1
    assert message in json.loads(out)["error"]["message"]
