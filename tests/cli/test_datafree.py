"""Students that learn from made images alone: the table, and that no real image is opened for them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from vlkd_distill import closing, data, demo
from vlkd_distill.demo.scene import sample_scene
from vlkd_edge import configfile, datafree, leaveout
from vlkd_edge.config import Config
from vlkd_runtime.errors import ConfigError

CLASSES = ("car", "cat", "tree")
SMALL = (
    "student.arch=resnet10t",
    "student.options={channels=[8, 16, 32, 64], stem_width=8}",
    "student.image_size=32",
    "student.pretrained=none",
    "distill.batch_norm=train",
    "distill.teacher_view=clean_cached",
    "distill.epochs=1",
    "distill.align_epochs=1",
    "synthesis.images_per_class=6",
    "synthesis.inversion.size=16",
    "synthesis.inversion.steps=2",
    "synthesis.inversion.views=1",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small world of files: three classes in two styles."""
    root = tmp_path_factory.mktemp("data") / "small"
    for style in ("photo", "sketch"):
        for name in CLASSES:
            (root / style / name).mkdir(parents=True)
            for number in range(14):
                demo.render(sample_scene(1, style, name, number), 32).save(
                    root / style / name / f"{number}.png"
                )
    return root


def config(root: Path, *settings: str) -> Config:
    return configfile.load(None, (), (*SMALL, f"data.root={root}", *settings))


def test_no_real_train_image_is_opened(root: Path, tmp_path: Path) -> None:
    train = [sample.path for sample in data.scan(root).samples if data.split_of(sample.image) == "train"]
    plan = leaveout.parse_plan("data-free", "sketch", "0", leaveout.KNOWN)
    with closing.forbid(train):
        table = leaveout.leave_one_out(
            config(root), plan, tmp_path / "out", tmp_path / "cache", Console(quiet=True), "again"
        )
    assert [(cell.method, cell.held_out) for cell in table.cells] == [
        ("teacher", "sketch"), ("data-free", "sketch"),
    ]  # fmt: skip
    assert any("renderer" in sentence for sentence in table.stand_ins)
    (contract,) = table.contract
    assert contract["sources"] == ("synthetic-demo",) and "no real image" in contract["text"]


def test_a_table_has_a_row_for_each_way_and_is_made_once(root: Path, tmp_path: Path) -> None:
    plan = datafree.parse_plan("real,contrastive-named,inversion-contrastive", "sketch", "0", 2)
    settings = config(root, "synthesis.judge=false")

    def run() -> datafree.DataFreeTable:
        return datafree.run(
            settings, plan, tmp_path / "out", tmp_path / "cache", Console(quiet=True), "again", ["Why."]
        )

    table = run()
    datafree.write(table, tmp_path, "table")
    assert [cell.method for cell in table.cells] == ["teacher", *plan.rows]
    real = len(data.scan(root).of(("photo",), "train"))
    made = dict(zip([cell.method for cell in table.cells], table.made, strict=True))
    assert made["real"].images == real and made["real"].vendi is None
    assert made["contrastive-named"].images == real // 3 * 3
    assert made["inversion-contrastive"].images == 6
    seen = {one["method"]: one for one in table.contract}
    assert list(seen) == list(plan.rows)
    assert seen["real"]["labels"] and seen["real"]["sources"] == ("photo",)
    assert "soft labels" in seen["real"]["text"] and "no real image" in seen["contrastive-named"]["text"]
    assert {one["held_out"] for one in seen.values()} == {("sketch",)}
    assert seen["real"]["counts"]["train"] == real and seen["inversion-contrastive"]["counts"]["train"] == 6
    assert "- inversion-contrastive: Learns from no real image" in (tmp_path / "table.md").read_text()
    named, other = (
        json.loads(path.read_text())
        for path in sorted(tmp_path.glob("out/stages/synthesis-*/images/*.json"), key=lambda p: p.name)
    )
    texts = [prompt["text"] for prompt in named["prompts"]]
    assert any("sketch" in text or "drawing" in text for text in texts)
    assert all(prompt["text"] is None for prompt in other["prompts"])
    stages = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/stages").iterdir()}
    assert run() == table
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out/stages").iterdir()} == stages
    assert json.loads((tmp_path / "table.json").read_text())["notes"] == ["Why."]
    assert (tmp_path / "table.md").is_file() and (tmp_path / "table.png").is_file()


@pytest.mark.parametrize(
    ("rows", "seeds", "match"),
    [
        ("real,contrastiv", "0", r"names 'contrastiv'.*Did you mean 'contrastive'\?"),
        ("real,real", "0", "expected each row once"),
        ("real", "0,0", "--seeds: expected different whole numbers"),
        ("real", "x", "--seeds: expected different whole numbers"),
    ],
    ids=["unknown", "twice", "seed twice", "no number"],
)
def test_a_plan_that_cannot_be_meant_is_refused(rows: str, seeds: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        datafree.parse_plan(rows, "sketch", seeds)


@pytest.mark.parametrize("row", ["real", "erm"])
def test_rows_of_real_images_need_a_batch_for_their_domains(tmp_path: Path, row: str) -> None:
    plan = datafree.parse_plan(row, "sketch", "0")
    settings = configfile.load(None, (), (*SMALL, "distill.batch=3"))
    with pytest.raises(ConfigError, match="each of the 4 source domains"):
        datafree.run(settings, plan, tmp_path / "out", tmp_path / "cache", Console(quiet=True), "again")
    assert not (tmp_path / "out").exists()


def test_the_command_is_the_one_that_makes_it_again() -> None:
    plan = datafree.parse_plan("real,mix", "sketch", "0,1", 16)
    found = datafree.command_line(
        plan, Path("/here/vlkd.toml"), ["distill.epochs=1"], ["A note."], "/there/pacs"
    )
    assert found == (
        "vlkd-edge bench data-free --dataset pacs --held-out sketch --seeds 0,1 --inversion-images 16 "
        "--rows real,mix --config vlkd.toml --set distill.epochs=1 --note 'A note.'"
    )
    assert " --dataset 'wds:*.tar' " in datafree.command_line(plan, None, [], [], "wds:/there/*.tar")
