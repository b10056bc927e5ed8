"""Images from class names: `vlkd-edge synth`, and what a data-free build says and looks at."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlkd_distill import data
from vlkd_distill.synthspecs import SynthesisSettings
from vlkd_edge import configfile, synthesising
from vlkd_edge.__main__ import main
from vlkd_edge.config import Config
from vlkd_edge.facts import DEMO_DATA, Images, stand_ins
from vlkd_edge.synthesising import DEMO_SYNTHESISER
from vlkd_runtime.errors import ConfigError

Run = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a verb in this process: exit code, and the JSON object on standard output."""

    def verb(*words: str) -> tuple[int, dict[str, Any]]:
        monkeypatch.setattr(sys, "argv", ["vlkd-edge", *words, "--json"])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), json.loads(capsys.readouterr().out.strip().splitlines()[-1])

    return verb


def test_synth_writes_a_data_folder_a_sheet_and_a_report(tmp_path: Path, run: Run) -> None:
    words = (
        "synth",
        "--names",
        "car,cat,tree",
        "--set",
        "synthesis.images_per_class=5",
        "--out",
        str(tmp_path),
    )
    code, made = run(*words)
    assert code == 0
    found = data.scan(tmp_path / "images", classes=("car", "cat", "tree"))
    assert found.domains == ("synthetic-demo",)
    assert made["images"] == len(found.samples) == 15 - made["dropped"]
    assert Path(made["images_folder"]) == tmp_path / "images" / "synthetic-demo"
    assert [row["class_name"] for row in made["classes"]] == ["car", "cat", "tree"]
    assert made["consistency"] == 1.0  # the judge saw to it
    with Image.open(made["sheet"]) as sheet:
        assert sheet.size == (96 + 5 * 68 + 4, 3 * 68 + 4)
    report = (tmp_path / "report.md").read_text()
    assert "stands in for a text-to-image model" in report and "No prompt says: sketch" in report
    assert json.loads((tmp_path / "report.json").read_text())["rule"] == "contrastive"
    prompts = json.loads((tmp_path / "images" / "synthetic-demo.json").read_text())["prompts"]
    assert len(prompts) == 15
    assert not [one["text"] for one in prompts if "sketch" in one["text"] or "drawing" in one["text"]]

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png") if path.name != "contact.png"}
    assert run(*words)[1] == made
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (("--names", "car,dog"), "names one of airplane"),
        ((), "Expected one of --names, --names-from, --dataset"),
        (("--names", "car,cat", "--set", "synthesis.rule=mixed"), "Did you mean 'mix'?"),
        (("--names", "car,cat", "--set", "synthesis.space=token"), "has no words, and the synthesiser 'demo'"),
        (("--names", "car,cat", "--set", "synthesis.synthesiser=diffusion"), "synthesis.diffusion.model: expected"),
        (("--names", "car,cat", "--set", "synthesis.inversion.steps=0"), "synthesis.inversion.steps: expected 1"),
        (
            ("--names", "car,cat", "--set", 'synthesis.exclude=["photo","snapshot","painting","clip art","neon",'
             '"cartoon"]'),
            "Expected styles, looks and places",
        ),
    ],
    ids=["unknown class", "no names", "rule", "space", "no model", "steps", "no word left"],
)  # fmt: skip
def test_what_cannot_be_made_is_refused(tmp_path: Path, run: Run, words: tuple[str, ...], match: str) -> None:
    code, answer = run("synth", "--out", str(tmp_path), *words)
    assert code == 2
    assert match in answer["error"]["message"]


def test_a_class_that_no_image_shows_is_an_error(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vlkd_distill import synthcheck

    monkeypatch.setattr(
        synthcheck.ConsistencyJudge, "__call__", lambda self, images, names: [name != "cat" for name in names]
    )
    words = ("synth", "--names", "car,cat", "--set", "synthesis.images_per_class=3", "--out", str(tmp_path))
    code, answer = run(*words)
    assert code == 2
    assert (
        "none of those made for cat for what they should show (3 images dropped" in answer["error"]["message"]
    )


def config(*settings: str) -> Config:
    return configfile.load(None, (), ("distill.method=data-free", *settings))


def test_held_out_styles_are_left_out_unless_asked_for() -> None:
    assert "pencil drawing" in synthesising.excluded(config())
    assert "sketch" not in synthesising.vocabulary(config()).styles
    named = config("synthesis.exclude_held_out=false", 'synthesis.exclude=["neon"]')
    assert synthesising.excluded(named) == ("neon",)
    assert {"sketch", "pencil drawing"} < set(synthesising.vocabulary(named).styles)
    assert "neon sign" not in synthesising.vocabulary(named).styles


@pytest.mark.parametrize(
    ("settings", "has_woodcut"),
    [((), False), (("synthesis.vocabulary=general",), True), (("synthesis.synthesiser=inversion",), False),
     (("synthesis.synthesiser=inversion", "teacher.model=ViT-B-16:openai"), True)],
    ids=["demo", "general", "demo teacher", "real teacher"],
)  # fmt: skip
def test_the_vocabulary_fits_who_reads_it(settings: tuple[str, ...], has_woodcut: bool) -> None:
    assert ("woodcut" in synthesising.vocabulary(config(*settings)).styles) is has_woodcut


def test_settings_that_nobody_reads_change_nothing() -> None:
    plain = SynthesisSettings()
    other = dataclasses.replace(plain, inversion=dataclasses.replace(plain.inversion, steps=1))
    assert plain.used() == other.used()
    single = dataclasses.replace(plain, rule="single")
    assert single.used() == dataclasses.replace(single, prompts_per_class=3, exclude=("a",)).used()
    inverting = dataclasses.replace(plain, synthesiser="inversion")
    assert inverting.used() != dataclasses.replace(other, synthesiser="inversion").used()


def test_the_contract_says_what_the_images_are_made_from() -> None:
    made = synthesising.contract(config())
    assert made.startswith(
        "The images are made from the class names alone by the synthesiser 'demo' from contrastive prompts"
    )
    assert "no prompt says sketch" in made
    assert "one plain prompt a class" in synthesising.contract(config("synthesis.rule=single"))


def test_stand_ins_name_the_renderer() -> None:
    assert stand_ins(config())[-1] == DEMO_SYNTHESISER
    assert DEMO_SYNTHESISER not in stand_ins(config("synthesis.synthesiser=inversion"))
    assert stand_ins(configfile.load(None)) == stand_ins(config())[:-1]
    assert stand_ins(config())[0] == DEMO_DATA


def folders(root: Path, domains: tuple[str, ...], count: int) -> data.DomainDataset:
    for domain in domains:
        for name in ("cat", "car"):
            (root / domain / name).mkdir(parents=True)
            for number in range(count):
                (root / domain / name / f"{number}.png").write_bytes(b"")
    return data.scan(root)


def test_made_images_take_the_place_of_real_ones(tmp_path: Path) -> None:
    real = folders(tmp_path / "real", ("photo",), 10)
    made = folders(tmp_path / "made", ("synthetic",), 2).samples
    images = Images.split(real, ("photo",), made)  # every real domain is held out: nothing real to learn from
    assert images.train == made
    assert images.guarded == real.samples and set(images.test) < set(real.samples)
    with pytest.raises(ConfigError, match="leave at least one to train on"):
        Images.split(real, ("photo",))
