"""vlkd.toml: every mistake is named, with the nearest known word, all at once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vlkd_edge import build, configfile
from vlkd_edge.config import Config
from vlkd_runtime.errors import ConfigError


def write(folder: Path, text: str) -> Path:
    path = folder / "vlkd.toml"
    path.write_text(text)
    return path


def test_no_file_is_the_demo() -> None:
    loaded = configfile.load(None)
    assert loaded == Config()
    assert (
        loaded.data.root == "demo" and loaded.teacher.model == "demo" and loaded.data.held_out == ("sketch",)
    )


def test_values_variables_and_overrides(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        name = "pets"
        [vars]
        root = "/data"
        [data]
        root = "${root}/pets"
        held_out = ["drawing"]
        [distill]
        lr = 1
        """,
    )
    loaded = configfile.load(path, ["root=/mnt"], ["student.image_size=96", "data.held_out=photo"])
    assert loaded.data.root == "/mnt/pets"
    assert loaded.distill.lr == 1.0 and isinstance(loaded.distill.lr, float)
    assert loaded.student.image_size == 96 and loaded.data.held_out == ("photo",)


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        pytest.param(
            "[data]\nheldout = ['x']", ["data.heldout: unknown key. Did you mean 'held_out'?"], id="typo"
        ),
        pytest.param(
            "tarjet = 'jetson'", ["tarjet: unknown key. Did you mean 'target'?"], id="top-level typo"
        ),
        pytest.param(
            "[distill]\nepochs = 'ten'", ["distill.epochs: expected a whole number, found 'ten'"], id="type"
        ),
        pytest.param(
            "[distill]\nepochs = true", ["distill.epochs: expected a whole number, found True"], id="bool"
        ),
        pytest.param("[distill]\nepochs = 0", ["distill.epochs: expected 1 to 100000, found 0"], id="range"),
        pytest.param(
            "[distill]\nmethod = 'vl2v-adp'",
            [
                "distill.method: expected one of 'erm', ",
                "found 'vl2v-adp'. Did you mean 'vl2v-adip'?",
            ],
            id="choice",
        ),
        pytest.param(
            "[distill]\ncls_weight = 0\ndistance_weight = 0\ncontrast_weight = 0\nproximity_weight = 0",
            ["distill: expected one of cls_weight, ", "above 0, found none"],
            id="no loss",
        ),
        pytest.param(
            "[distill]\nprocesses = 4\nbatch = 3\nbatch_norm = 'train'",
            ["at most the batch of 3", "expected 1 where distill.batch_norm"],
            id="processes",
        ),
        pytest.param("data = 3", ["data: expected a section, found 3"], id="section"),
        pytest.param("[data]\nheld_out = [1]", ["data.held_out: expected a string, found 1"], id="list item"),
        pytest.param("name = ''", ["name: expected letters"], id="empty name"),
        pytest.param(
            "[guard]\nrejection_points = 2\nvirtual = []\nseverities = [6]",
            [
                "found no folder",
                "guard.virtual: expected at least one",
                "guard.severities: expected numbers from 1 to 5",
            ],
            id="guard",
        ),
        pytest.param(
            "[compress]\ncandidates = ['fp16', 'fp16']",
            ["compress.candidates: expected each once"],
            id="tried twice",
        ),
        pytest.param(
            "[student]\njpeg_scale = 17", ["student.jpeg_scale: expected 0 to 16, found 17"], id="jpeg scale"
        ),
        pytest.param("[data]\nroot = '${where}'", ["data.root: '${where}' names no variable"], id="variable"),
        pytest.param(
            "[data]\nrot = 'a'\n[student]\nimage_size = 1.5\n[guard]\nworst = 1",
            ["3 problems", "data.rot", "student.image_size", "guard.worst"],
            id="all at once",
        ),
        pytest.param("name = ", ["Expected a TOML file"], id="no toml"),
    ],
)
def test_mistakes(tmp_path: Path, text: str, messages: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        configfile.load(write(tmp_path, text))
    assert all(message in str(caught.value) for message in messages), str(caught.value)


@pytest.mark.parametrize(
    ("variables", "settings", "message"),
    [
        pytest.param(["rot=1"], [], "no variable 'rot'. Did you mean 'root'", id="unknown variable"),
        pytest.param(["root"], [], "expected name=value", id="no value"),
        pytest.param([], ["epochs"], "expected section.key=value", id="no setting"),
        pytest.param([], ["distill.epoch=3"], "distill.epoch: unknown key. Did you mean 'epochs'", id="typo"),
    ],
)
def test_mistakes_on_the_command_line(
    tmp_path: Path, variables: list[str], settings: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        configfile.load(write(tmp_path, "[vars]\nroot = 'a'"), variables, settings)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Expected a configuration file at .*found nothing"):
        configfile.load(tmp_path / "none.toml")


def test_every_recipe_is_a_configuration() -> None:
    recipes = sorted((Path(__file__).parents[2] / "distill" / "recipes").glob("*.toml"))
    assert len(recipes) == 4
    loaded = [configfile.load(path) for path in recipes]
    assert all(recipe.data.root != "demo" for recipe in loaded)


def test_the_real_clip_recipe_differs_in_the_teacher_only() -> None:
    folder = Path(__file__).parents[2] / "distill" / "recipes"
    stand_in, real = (configfile.load(folder / f"pacs-{name}.toml").as_json() for name in ("standin", "clip"))
    different = {key for key in stand_in if stand_in[key] != real[key]}
    assert different == {"name", "teacher"}


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (["distill.teacher_view=same_aug"], "knows no random views: expected distill.teacher_view"),
        (["distill.teacher_view=clean_cached"], "knows no style views: expected another method than 'vlkd'"),
    ],
    ids=["random views", "style views"],
)
def test_a_store_is_not_asked_for_what_it_cannot_know(
    tmp_path: Path, settings: list[str], match: str
) -> None:
    (tmp_path / "store.safetensors").write_bytes(b"")
    named = f"teacher.model=store:{tmp_path / 'store.safetensors'}"
    loaded = configfile.load(None, settings=[named, *settings])
    with pytest.raises(ConfigError, match=match):
        build.check_beforehand(loaded)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (["distill.device=tpu"], "distill.device: expected 'auto', 'cpu', 'cuda' or 'cuda:N', found 'tpu'"),
        (
            ["distill.device=cuda:1", "distill.processes=2"],
            "a GPU of its own, found 'cuda:1', which is one for all",
        ),
    ],
)
def test_devices_that_cannot_be_meant(settings: list[str], match: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(match)):
        configfile.load(None, settings=settings)
    assert configfile.load(None, settings=["distill.device=cuda:1"]).distill.device == "cuda:1"
