"""What a counted teacher was asked: nothing twice, nothing beyond the budget, and told by every verb that asks."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlkd_distill import class_vectors, methods, students, teacher_loading
from vlkd_distill.data import scan
from vlkd_distill.specs import Settings

from .conftest import TINY, Invoke, Small, asked_about

Edge = Callable[..., tuple[int, dict[str, Any]]]
WriteData = Callable[..., Path]
DG = ("bench", "dg", "--held-out", "sketch", "--methods", "vl2v-adip")
BUILD = ("build", "--target", "jetson")
HELD_OUT = ('data.held_out=["sketch"]',)


def test_a_budget_that_runs_out_keeps_what_was_paid_for(
    tmp_path: Path, edge: Edge, write_data: WriteData, vendor: Any
) -> None:
    found = scan(write_data())
    tests, train = len(found.of(found.domains, "test")), len(found.of(["photo"], "train"))
    needed, teacher = tests + train, vendor()
    code, answer = edge(*DG, settings=(teacher, f"teacher.query_budget={tests + 35}"))
    message = answer["error"]["message"]
    assert code == 2 and f"would be asked about {train - 32} more images, but {tests + 34} of the" in message
    assert f"are spent ({tests + 32} images, 2 texts) and 1 are left. Nothing was asked" in message
    assert "Raise teacher.query_budget and run again" in message
    assert sum(asked_about(tmp_path).values()) == tests + 32
    code, table = edge(*DG, settings=(teacher, f"teacher.query_budget={needed + 2}"))
    assert code == 0 and [row["method"] for row in table["rows"]] == ["teacher", "vl2v-adip"]
    assert len(asked_about(tmp_path)) == needed and set(asked_about(tmp_path).values()) == {1}
    counts = {"images": needed, "texts": 2, "left": 0}
    said = table["queries"].pop("text")
    assert said.startswith(
        f"{train - 32} asked in this run, 32 answered from the cache; {needed + 2} of a budget"
    )
    assert table["queries"] == {"asked": train - 32, "from_cache": 32, "budget": needed + 2, **counts}
    # Paid for once: another run in another folder that shares the cache needs no budget at all.
    for from_cache in (needed + 2, 0):  # and then even its stages are found done
        code, again = edge(
            *DG, "--cache", str(tmp_path / "out/cache"), out="b", settings=(teacher, "teacher.query_budget=0")
        )
        assert code == 0 and again["rows"] == table["rows"]
        del again["queries"]["text"]
        assert again["queries"] == {"asked": 0, "from_cache": from_cache, "budget": 0, **counts}


def test_a_build_says_what_the_teacher_was_asked(
    tmp_path: Path, invoke: Invoke, write_data: WriteData, vendor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = scan(write_data())
    asked = 2 + len(found.of(found.domains, "test")) + len(found.of(["photo"], "train"))
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    settings = (
        *TINY, *HELD_OUT, f"data.root={tmp_path / 'data'}", vendor(), f"teacher.query_budget={asked + 7}",
        "compress.calibration_images=32", "compress.candidates=int8-minmax", "guard.worst_points=100",
        "guard.mean_points=100", "bench.samples=10",
    )  # fmt: skip
    words = [word for value in settings for word in ("--set", value)]
    code, answer, said = invoke(*BUILD, "--json", "--out", tmp_path / "out", *words)
    assert code == 0, answer
    text = f"{asked} asked in this run, 0 answered from the cache; {asked} of a budget of {asked + 7} asked in all"
    counts = {"images": asked - 2, "texts": 2, "budget": asked + 7, "left": 7}
    assert answer["queries"].pop("text").startswith(text)
    assert answer["queries"] == {"asked": asked, "from_cache": 0, **counts}
    assert f"Questions to the teacher: {text}" in " ".join(said.split())
    for name in ("report.json", "report.md", "report.html"):
        assert text in (tmp_path / "out" / name).read_text()


@pytest.mark.parametrize(
    "words",
    [
        ("bench", "disjoint", "--unseen", "ant", "--held-out", "sketch", "--methods", "vlm-ood"),
        ("bench", "data-free", "--held-out", "sketch", "--rows", "real"),
        ("vectors", "--names", "ant,zoo"),
        ("align", "--split", "all"),
        ("synth", "--names", "cat,fish"),
    ],
    ids=["disjoint", "data-free", "vectors", "align", "synth"],
)
def test_every_verb_that_asks_says_what_it_asked(
    tmp_path: Path,
    invoke: Invoke,
    write_data: WriteData,
    vendor: Any,
    monkeypatch: pytest.MonkeyPatch,
    small: Small,
    words: tuple[str, ...],
) -> None:
    data = write_data(classes=("Bee", "ant", "zoo"))
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    chosen, name = (*TINY, vendor()), vendor().partition("=")[2]
    settings = [word for value in chosen for word in ("--set", value)]
    out = ["--out", tmp_path / "out"]
    if words[0] == "bench":
        out += ["--dataset", data, *settings]
    elif words[0] == "vectors":
        out = ["--out", tmp_path / "v.safetensors", "--teacher", name]
    elif words[0] == "synth":
        drawn = ("synthesis.images_per_class=2", "synthesis.rule=single", "synthesis.judge=false")
        out += [*settings, *(word for value in drawn for word in ("--set", value))]
    else:
        teacher = teacher_loading.load(name, tmp_path / "vectors")
        vectors = class_vectors.compute(teacher, ("Bee", "ant", "zoo"), ("a {}",))
        vectors = dataclasses.replace(vectors, logit_scale=10.0)  # what small bundles have
        how = methods.create(Settings(method="vl2v-adip"), vectors)
        student = students.create(small.spec, how.outputs())
        network = students.Deployable(student, students.FusedHead(vectors))
        bundle = small.pack(tmp_path, small.export(network, vectors, tmp_path / "model.onnx"), vectors)
        out += [bundle, "--images", data, "--teacher", name]
    code, answer, said = invoke(*words, *out, "--json")
    assert code == (words[0] == "vectors"), answer  # whose lint finds the vendor's vectors much alike
    told = (
        answer["notes"][-1]
        if words[0] == "align"
        else f"Questions to the teacher: {answer['queries']['text']}."
    )
    images = 0 if words[0] == "vectors" else len(asked_about(tmp_path))
    assert re.match(
        rf"Questions to the teacher: \d+ asked in this run, .*\({images} images, [1-9]\d* texts\)", told
    )
    if words[0] != "vectors":
        assert told in " ".join(said.split())


@pytest.mark.parametrize("method", ["vl2v-adip", "vlkd"])
def test_views_that_cannot_all_be_paid_for_are_not_begun(
    tmp_path: Path, edge: Edge, write_data: WriteData, vendor: Any, method: str
) -> None:
    found = scan(write_data())
    tests, train = len(found.of(found.domains, "test")), len(found.of(["photo"], "train"))
    needed = 16 * -(-train // 16)  # one epoch of whole batches
    budget = 2 + tests + train + needed - 1
    views = (vendor(), "distill.teacher_view=same_aug", f"teacher.query_budget={budget}")
    code, answer = edge(*DG[:-1], method, settings=views)
    message = answer["error"]["message"]
    assert (
        code == 2
        and f"about {needed} views (1 epochs of {train} images), and {needed - 1} questions" in message
    )
    assert len(asked_about(tmp_path)) == tests + train  # each image once, for the projection; no view
    code, table = edge(*DG[:-1], method, settings=(*views[:2], f"teacher.query_budget={budget + 1}"))
    assert code == 0 and len(table["rows"]) == 2
    assert sum(asked_about(tmp_path).values()) == tests + train + needed
