"""`vlkd-edge vectors`: files, findings, exit codes, and no torch where vectors are only looked at."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from vlkd_distill import teacher_names
from vlkd_distill.demo import ATTRIBUTES, CLASSES
from vlkd_edge.__main__ import main
from vlkd_edge.vectoring import Request, class_names, picture, run
from vlkd_runtime.errors import ConfigError, DataError, UsageError
from vlkd_runtime.vectors import ClassVectors

LINT_WITHOUT_TORCH = """
import sys
from pathlib import Path
from rich.console import Console
from vlkd_edge.vectoring import Request, run
code = run(Request(lint=Path(sys.argv[1]), names=sys.argv[2]), True, Console())
heavy = {"torch", "open_clip", "timm", "matplotlib", "onnx"} & set(sys.modules)
sys.exit(", ".join(heavy) or code)
"""


class HashTeacher:
    """Embeds a text by its hash, and `same` by the hash of nothing."""

    name, fingerprint, dim, logit_scale = "hash", "a" * 64, 16, 20.0

    def embed_images(self, images: Sequence[Any]) -> np.ndarray:
        raise NotImplementedError

    def embed_views(self, views: Any) -> Any:
        raise NotImplementedError

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        digests = [hashlib.sha256(b"" if "same" in text else text.encode()).digest() for text in texts]
        rows = np.array([[*digest[:16]] for digest in digests], np.float32) - 100
        normed: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return normed


def asked(name: str) -> HashTeacher:
    assert name == "demo"
    return HashTeacher()


def never(name: str) -> HashTeacher:
    raise AssertionError(name)


def answer(
    capsys: pytest.CaptureFixture[str], load: Any = never, **request: Any
) -> tuple[int, dict[str, Any]]:
    code = run(Request(**request), True, Console(), load)
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return code, found


def test_vectors_are_made_reread_and_looked_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.txt").write_text("a {}\none {}\n")
    (tmp_path / "a.toml").write_text('cat = ["whiskers", "fur"]\ndog = "A barking animal."\nfish = ["fins"]')
    out = tmp_path / "new" / "v.safetensors"
    options = {"templates": str(tmp_path / "t.txt"), "attributes": str(tmp_path / "a.toml"), "out": out}
    code, made = answer(capsys, asked, names=" cat,dog , fish", **options)
    stored = ClassVectors.load(out)
    assert code == 0 and made["ok"] and not made["findings"]
    assert stored.names == ("cat", "dog", "fish") and stored.templates == ("a {}", "one {}")
    assert [list(texts) for texts in stored.prompts] == [one["prompts"] for one in made["classes"]]
    assert stored.prompts[1] == ("a dog . A barking animal.", "one dog . A barking animal.")
    for i, one in enumerate(made["classes"]):
        best = max((float(stored.vectors[i] @ stored.vectors[j]), j) for j in range(3) if j != i)
        assert one["nearest"] == stored.names[best[1]] and one["cosine"] == pytest.approx(best[0], abs=1e-6)
    pairs = [float(stored.vectors[i] @ stored.vectors[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert made["mean_cosine"] == pytest.approx(sum(pairs) / 3, abs=1e-6)
    with Image.open(made["picture"]) as image:
        assert image.format == "PNG" and image.size[0] > 300
    assert sorted(path.name for path in out.parent.iterdir()) == ["v.png", "v.safetensors"]

    before = {path: path.stat().st_mtime_ns for path in out.parent.iterdir()}
    code, seen = answer(capsys, lint=out)
    assert code == 0 and seen == {key: value for key, value in made.items() if key != "picture"}
    assert answer(capsys, lint=out, names="cat,dog,fish", dim=16)[0] == 0
    code, seen = answer(capsys, lint=out, names="dog,cat,fish", dim=512)
    assert code == 1 and [one["check"] for one in seen["findings"]] == ["dimension", "order"]
    assert {path: path.stat().st_mtime_ns for path in out.parent.iterdir()} == before


def test_one_vector_for_two_classes_fails_and_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "v.safetensors"
    code, made = answer(capsys, asked, names="same_a,cat,same_b", out=out)
    assert code == 1 and out.is_file()
    assert [(one["severity"], one["check"]) for one in made["findings"]] == [("error", "near")]
    code, made = answer(capsys, asked, names="cat,dog", near=-1.0, out=out)
    assert code == 0 and [one["severity"] for one in made["findings"]] == ["warning"]


def test_the_demo_with_its_own_teacher_and_attributes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = {"out": tmp_path / "v.safetensors"}
    plain = answer(capsys, None, dataset="demo", **out)[1]
    code, described = answer(capsys, None, dataset="demo", attributes="demo", **out)
    assert code == 0 and [one["name"] for one in described["classes"]] == list(CLASSES)
    assert [len(one["prompts"]) for one in described["classes"]] == [
        len(ATTRIBUTES[name]) for name in CLASSES
    ]
    # What enriched texts are for: classes lie further apart.
    assert described["mean_cosine"] < plain["mean_cosine"]


@pytest.mark.parametrize(
    ("request_", "match"),
    [
        pytest.param({}, "one of --names, --names-from, --dataset to name .* found none", id="no names"),
        pytest.param({"names": "a,b", "dataset": "demo"}, "found --names and --dataset", id="two sources"),
        pytest.param({"names": "a"}, "at least two classes", id="one class"),
        pytest.param({"names": "a,b,a"}, "'a' repeated", id="twice"),
        pytest.param({"names": "a,,b"}, "name 1 must be printable", id="empty"),
        pytest.param({"names_from": Path("nowhere.txt")}, "cannot read the class names", id="no file"),
        pytest.param({"dataset": "nowhere"}, "Expected a data folder at nowhere", id="no folder"),
        pytest.param({"names": "a,b", "teacher": "bert"}, "has no known form", id="teacher"),
        pytest.param({"names": "a,b", "templates": "fotos"}, "Unknown template set 'fotos'", id="templates"),
        pytest.param(
            {"names": "a,b", "attributes": "demo"}, "--attributes demo: .*\n.*none for 'a'", id="demo"
        ),
        pytest.param({"names": "a,b", "attributes": "a.csv"}, "ends in .toml or .json", id="attributes"),
        pytest.param({"names": "a,b", "out": Path("v.npy")}, "ends in .safetensors", id="out"),
        pytest.param({"lint": Path("v"), "attributes": "demo"}, "give one of them", id="lint and attributes"),
        pytest.param({"lint": Path("nowhere")}, "cannot read the class vectors", id="nothing to lint"),
    ],
)
def test_mistakes_are_told_before_the_teacher_is_asked(request_: dict[str, Any], match: str) -> None:
    with pytest.raises((ConfigError, DataError), match=match) as caught:
        run(Request(**request_), True, Console(), never)
    assert isinstance(caught.value, UsageError) and caught.value.exit_code == 2


def test_names_from_a_file_and_a_folder(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("dog\n\n  cat \nsea horse\n")
    assert class_names(Request(names_from=tmp_path / "names.txt")) == ("dog", "cat", "sea horse")
    for domain in ("photo", "sketch"):
        for name in ("dog", "cat"):
            (tmp_path / "data" / domain / name).mkdir(parents=True)
            (tmp_path / "data" / domain / name / "1.png").write_bytes(b"")
    assert class_names(Request(dataset=str(tmp_path / "data"))) == ("cat", "dog")


def vectors(count: int, alike: bool = False) -> ClassVectors:
    rows = np.random.default_rng(0).normal(size=(count, 32))
    rows[-1] = rows[0] if alike else rows[-1]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    names = tuple(f"class_{index}" for index in range(count))
    return ClassVectors(names, rows.astype(np.float32), ((),) * count, (), "some", "f", 1.0)


@pytest.mark.parametrize("damage", [None, "norm"])
def test_lint_needs_no_torch_and_reads_bundle_folders(tmp_path: Path, damage: str | None) -> None:
    path = tmp_path / "class_vectors.safetensors"
    vectors(2).save(path)
    if damage:
        path.write_bytes(path.read_bytes()[:-4] + np.float32(9).tobytes())
    done = subprocess.run(
        [sys.executable, "-c", LINT_WITHOUT_TORCH, str(tmp_path), "class_0,class_1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == (1 if damage else 0), done.stderr
    found = json.loads(done.stdout)
    assert [one["check"] for one in found["findings"]] == ([damage] if damage else [])


def test_what_a_person_sees(tmp_path: Path) -> None:
    stored = dataclasses.replace(vectors(3, alike=True), names=("cat", "[bold]dog", "fish"))
    stored.save(tmp_path / "v.safetensors")
    console = Console(file=io.StringIO(), width=110)
    assert run(Request(lint=tmp_path / "v.safetensors"), False, console) == 1
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "[bold]dog" in text and "1.000" in text and "teacher some; mean cosine between classes" in text
    assert (
        "error: Expected a vector of its own for each class, found the same one for 'cat' and 'fish'" in text
    )


def test_one_class_has_no_neighbour(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vectors(1).save(tmp_path / "v.safetensors")
    code, seen = answer(capsys, lint=tmp_path / "v.safetensors")
    assert code == 0 and seen["mean_cosine"] is None and seen["classes"][0]["nearest"] is None


@pytest.mark.parametrize("count", [2, 20, 100])
def test_pictures_grow_with_the_classes(count: int) -> None:
    with Image.open(io.BytesIO(picture(vectors(count), 0.98))) as image:
        pixels = np.asarray(image.convert("RGB"))
    # The map has room for the names: 7 points high at 150 dots an inch.
    assert pixels.shape[0] > count * 7 / 72 * 150
    red = (pixels == (255, 0, 0)).all(axis=2)
    assert not red.any()


def test_pairs_that_lie_too_close_are_framed() -> None:
    with Image.open(io.BytesIO(picture(vectors(5, alike=True), 0.98))) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert (pixels == (255, 0, 0)).all(axis=2).sum() > 100


def test_the_help_names_every_form_of_a_teacher(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["vlkd-edge", "vectors", "--help"])
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit):
        main()
    text = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    forms = {"demo": "'demo'", "open-clip": "'<architecture>:<pretrained tag>'"}
    missing = [name for name in get_args(teacher_names.Form) if forms.get(name, f"'{name}:<") not in text]
    assert not missing
