"""How a build chooses the images that set the scales."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from vlkd_bench.samples import Sample
from vlkd_edge.calibrating import STYLED_IMAGES, STYLES, choose, style_views
from vlkd_edge.config import CompressConfig, Config, DataConfig
from vlkd_edge.progress import Live
from vlkd_edge.stages import Workspace
from vlkd_runtime.errors import CalibrationError


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sample, ...]:
    root, random, made = tmp_path_factory.mktemp("images"), np.random.default_rng(0), []
    for index in range(48):
        path = root / f"{index}.png"
        coarse = random.integers(0, 256, (4, 4, 3))
        Image.fromarray(np.kron(coarse, np.ones((8, 8, 1))).astype(np.uint8)).save(path)
        made.append(Sample(path, f"photo/{index % 3}/{index}.png", "photo", index % 3))
    return tuple(made)


def embed(given: Sequence[Sample]) -> np.ndarray:
    """Grey pictures on one side of the circle, coloured ones on the other."""
    pixels = [np.asarray(Image.open(sample.path).convert("RGB"), dtype=np.float64) for sample in given]
    colour = np.asarray([np.ptp(picture, axis=-1).mean() for picture in pixels]) / 255.0
    return np.stack([np.cos(3 * colour), np.sin(3 * colour)], axis=1).astype(np.float32)


def asked(calibration: str) -> Config:
    return Config(
        data=DataConfig(held_out=("sketch",)),
        compress=CompressConfig(calibration_images=32, calibration=calibration),  # type: ignore[arg-type]
    )


def test_style_views_are_drawn_once_from_source_images(
    samples: tuple[Sample, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, live = Workspace(tmp_path, tmp_path / "cache"), Live(Console(stderr=True))
    views = style_views(workspace, live, samples, seed=0, held_out=("sketch",))
    assert len(views) == min(len(samples), STYLED_IMAGES)
    assert {view.image.rpartition("/")[2] for view in views} == set(STYLES)
    assert {view.source for view in views} == {sample.image for sample in samples}
    before = [view.path.read_bytes() for view in views]
    assert style_views(workspace, live, samples, seed=0, held_out=("sketch",)) == views
    assert workspace.results[-1].cached and [view.path.read_bytes() for view in views] == before
    grey = [np.ptp(np.asarray(Image.open(v.path)), axis=-1).max() for v in views if v.image.endswith("/grey")]
    assert max(grey) == 0


@pytest.mark.parametrize(("calibration", "styled"), [("even", False), ("coverage", False), ("styles", True)])
def test_views_are_offered_only_where_asked(
    calibration: str, styled: bool, samples: tuple[Sample, ...], tmp_path: Path
) -> None:
    workspace, live = Workspace(tmp_path, tmp_path / "cache"), Live(Console(stderr=True))
    chosen = choose(asked(calibration), workspace, live, samples, "teacher", embed)
    assert len(chosen) == 32 and any(sample.source for sample in chosen) is styled
    again = choose(asked(calibration), workspace, live, samples, "teacher", embed)
    assert again == chosen


def test_no_held_out_image_is_drawn(samples: tuple[Sample, ...], tmp_path: Path) -> None:
    leaked = (*samples, dataclasses.replace(samples[0], image="sketch/0/0.png", domain="sketch"))
    workspace, live = Workspace(tmp_path, tmp_path / "cache"), Live(Console(stderr=True))
    with pytest.raises(CalibrationError, match=r"found the held-out \['sketch'\]"):
        choose(asked("styles"), workspace, live, leaked, "teacher", embed)
    assert not list(tmp_path.rglob("*.png"))
