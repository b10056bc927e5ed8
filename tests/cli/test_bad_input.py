"""What a user may get wrong about teacher and data, through the verbs: told plainly and early, and nothing is lost."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlkd_distill.data import scan
from vlkd_distill.teacher_export import write_store
from vlkd_edge import configfile, planned
from vlkd_runtime.errors import ConfigError

from .conftest import asked_about

Edge = Callable[..., tuple[int, dict[str, Any]]]
WriteData = Callable[..., Path]


def trained(out: Path) -> list[str]:
    return [path.name for path in out.glob("stages/*") if path.name.startswith(("erm", "vl2v", "pixels"))]


DG = ("bench", "dg", "--held-out", "sketch", "--methods", "vl2v-adip")
BUILD = ("build", "--target", "jetson")
HELD_OUT = ('data.held_out=["sketch"]',)


def test_embeddings_that_are_not_finite_name_their_images(
    tmp_path: Path, edge: Edge, write_data: WriteData, vendor: Any
) -> None:
    found = scan(write_data())
    train = found.of(["photo"], "train")
    bad = [np.asarray(Image.open(sample.path))[0, 0].tolist() for sample in (train[3], train[20])]
    code, answer = edge(*DG, settings=(vendor(broken=bad),))
    assert (
        code == 2
        and f"not finite for 2 of {len(train)} images: {train[3].path}, {train[20].path}." in str(answer)
    )
    assert not list((tmp_path / "out/stages").glob("vl2v-adip-*[0-9a-f]"))
    code, _ = edge(*DG, settings=(vendor(),))
    assert code == 0
    again = {key for key, count in asked_about(tmp_path).items() if count > 1}
    assert len(again) == 2  # the good ones were kept


def test_a_teacher_of_another_size_than_the_stored_vectors(
    tmp_path: Path, edge: Edge, write_data: WriteData, vendor: Any
) -> None:
    write_data()
    code, _ = edge(*DG, settings=(vendor(size=8), "teacher.query_budget=2"))  # as far as the class vectors
    assert code == 2
    (vectors,) = (tmp_path / "out/stages").glob("vectors-*")
    other = vendor(size=12)
    code, answer = edge(*DG, "--cache", str(tmp_path / "new"), settings=(other,))
    message = answer["error"]["message"]
    assert code == 2 and f"size 8, as the class vectors in {vectors} have, found size 12" in message
    assert "remove that folder" in message and "change its fingerprint" in message
    code, answer = edge(*DG, settings=(other,))  # here it is the answers kept that are of another size
    assert code == 2 and "gave embeddings of size 12, expected 8 as in its answers kept in" in str(answer)


@pytest.mark.parametrize("verb", ["bench dg", "build"])
def test_a_store_that_lacks_images_is_refused_before_any_training(
    tmp_path: Path, edge: Edge, write_data: WriteData, verb: str
) -> None:
    samples = scan(write_data()).samples
    rows = np.random.default_rng(1).normal(size=(len(samples), 8))
    texts, text_rows = ["a cat", "a dog"], np.eye(2, 8)
    place = tmp_path / "store"
    place.mkdir()
    known = [k for k in range(len(samples)) if k not in range(2, 20)]

    def add(name: str, chosen: list[int]) -> None:
        write_store(
            place / name, name="vendor", logit_scale=20.0, images=[samples[k].path for k in chosen],
            image_rows=rows[chosen], texts=texts, text_rows=text_rows,
        )  # fmt: skip

    add("a.safetensors", known)
    # A table does not train the configuration's own method, which draws style views of which a store knows nothing.
    words, settings = (BUILD, HELD_OUT) if verb == "build" else (DG, ("distill.method=vlkd",))
    code, answer = edge(*words, settings=(f"teacher.model=store:{place}", *settings))
    message = answer["error"]["message"]
    assert code == 2 and "has no embedding of 18 of" in message and "and 13 more. It holds" in message
    assert str(samples[2].path) in message and "write_store" in message
    assert trained(tmp_path / "out") == []
    if verb == "bench dg":
        add("b.safetensors", [k for k in range(len(samples)) if k not in known])
        code, table = edge(*words, settings=(f"teacher.model=store:{place}", *settings))
        assert code == 0 and len(table["rows"]) == 2, table


@pytest.mark.parametrize(
    ("domains", "per_class", "words", "settings", "match"),
    [
        (
            ("photo",),
            25,
            ("bench", "dg", "--methods", "vl2v-adip"),
            (),
            "It has one domain only ('photo'): add images of another",
        ),
        (("photo",), 25, BUILD, ('data.held_out=["photo"]',), "data.held_out = []"),
        (("photo",), 25, BUILD, ('data.held_out=["sketch"]',), "With one domain, hold none out"),
        (("photo", "sketch"), 1, DG, (), "One image in five, by the hash of its name, is for testing"),
        (("photo", "sketch"), 1, BUILD, HELD_OUT, "some tens a class and domain are the least"),
    ],
    ids=["dg-one-domain", "build-one-domain", "build-no-such-domain", "dg-one-image", "build-one-image"],
)
def test_data_that_are_too_little_for_the_question(
    tmp_path: Path,
    edge: Edge,
    write_data: WriteData,
    domains: tuple[str, ...],
    per_class: int,
    words: tuple[str, ...],
    settings: tuple[str, ...],
    match: str,
) -> None:
    write_data(domains, per_class)
    code, answer = edge(*words, settings=settings)
    assert code == 2 and match in answer["error"]["message"], answer
    assert not (tmp_path / "out/stages").exists()


STORE = "teacher.model=store:{}/store.safetensors"
CALL = "teacher.model=call:json:loads"
SHARED = ("distill.processes=2", "distill.batch_norm=frozen", "distill.teacher_view=same_aug")


@pytest.mark.parametrize(
    ("words", "settings", "match"),
    [
        (("bench", "dg", "--methods", "erm,vlkd"), ("distill.method=kd", STORE), "knows no style views"),
        (
            ("bench", "dg", "--methods", "erm,kd"),
            (STORE, "distill.teacher_view=same_aug"),
            "knows no random views",
        ),
        (("bench", "dg", "--methods", "erm,promptkd"), (CALL,), "promptkd looks inside the teacher"),
        (("bench", "dg", "--methods", "erm,vl2v-sd"), (STORE,), "vl2v-sd looks inside the teacher"),
        (
            ("bench", "dg", "--methods", "erm,vl2v-sd"),
            ("teacher.query_budget=9",),
            "found 'demo' with a budget of 9",
        ),
        (
            ("bench", "dg", "--methods", "erm"),
            (CALL, "student.arch=teacher"),
            "is a copy of the teacher's image encoder",
        ),
        (
            ("bench", "dg", "--methods", "promptkd,erm"),
            ("student.arch=clip:demo",),
            "trained by promptkd only, found erm. Leave it out",
        ),
        (
            ("bench", "dg", "--methods", "erm,kd"),
            (*SHARED, "teacher.query_budget=9"),
            "a teacher whose questions are counted embeds views",
        ),
        (
            ("bench", "disjoint", "--methods", "ce-only,promptkd-seen", "--unseen", "dog"),
            (CALL,),
            "promptkd looks inside the teacher",
        ),
        (BUILD, ("distill.method=vl2v-sd", CALL, *HELD_OUT), "vl2v-sd looks inside the teacher"),
        (
            BUILD,
            ("distill.method=promptkd", "student.arch=clip:demo", *HELD_OUT),
            "a build trains erm beside its method",
        ),
    ],
    ids=[
        "styles-of-a-store",
        "views-of-a-store",
        "dg-promptkd",
        "dg-vl2v-sd",
        "dg-budget",
        "dg-copy",
        "dg-clip-tower",
        "dg-counted-views",
        "disjoint-promptkd",
        "build-vl2v-sd",
        "build-clip-tower",
    ],
)
def test_what_a_planned_method_cannot_have_is_told_before_any_work(
    tmp_path: Path,
    edge: Edge,
    write_data: WriteData,
    words: tuple[str, ...],
    settings: tuple[str, ...],
    match: str,
) -> None:
    write_data()
    (tmp_path / "store.safetensors").write_bytes(b"")
    code, answer = edge(*words, settings=tuple(setting.format(tmp_path) for setting in settings))
    assert code == 2 and match in answer["error"]["message"], answer
    assert not (tmp_path / "out/stages").exists()


def test_what_the_models_of_a_planned_method_cannot_do_is_told_before_any_training(
    tmp_path: Path, edge: Edge, write_data: WriteData
) -> None:
    write_data()
    words = ("bench", "dg", "--held-out", "sketch", "--methods", "erm,vl2v-sd")
    # The named student has more groups of layers than the teacher, whose copy vl2v-sd trains.
    deep = ("student.arch=tf_efficientnet_lite0", "student.options={}", "distill.frozen_groups=5")
    code, answer = edge(*words, settings=deep)
    assert code == 2 and "expected fewer than the 5 groups of layers" in answer["error"]["message"], answer
    assert trained(tmp_path / "out") == []


def test_a_training_that_runs_away_is_no_finished_stage(
    tmp_path: Path, edge: Edge, write_data: WriteData
) -> None:
    write_data()
    settings = ("distill.lr=10", "distill.epochs=6", "distill.batch_norm=frozen")
    code, answer = edge("bench", "dg", "--held-out", "sketch", "--methods", "erm", settings=settings)
    assert code == 1 and answer["error"]["kind"] == "TrainingError", answer
    assert (
        "of the stage 'train' of erm: the training ran away with distill.lr = 10"
        in answer["error"]["message"]
    )
    assert not list((tmp_path / "out/stages").glob("erm-*[0-9a-f]/student.safetensors"))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ((), "the demo's renderer draws scenes and redraws no image"),
        (
            ("synthesis.synthesiser=inversion", "teacher.model=onnx-pair:x"),
            "needs the gradients of an open_clip teacher",
        ),
        (
            ("synthesis.synthesiser=inversion", 'distill.prompted_styles=["a toy"]'),
            "expected texts with one {} for the class name, found 'a toy'",
        ),
        (
            ("synthesis.synthesiser=inversion", 'distill.prompted_styles=["a pencil sketch of a {}"]'),
            "says 'sketch', and what is named is not unseen",
        ),
    ],
    ids=["renderer", "black box", "no class", "held-out domain"],
)
def test_styles_that_texts_cannot_name(settings: tuple[str, ...], match: str) -> None:
    asked = ('distill.prompted_styles=["a toy {}"]', "data.held_out=sketch", *settings)
    config = configfile.load(None, settings=asked)
    with pytest.raises(ConfigError, match=re.escape(match)):
        planned.check(config, dataclasses.replace(config.distill, method="vlkd"))
    planned.check(config, dataclasses.replace(config.distill, method="erm"))
