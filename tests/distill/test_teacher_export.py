"""Writing ONNX pairs: the demo teacher's towers against torch, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vlkd_distill import teacher_export
from vlkd_distill.onnx_pair import OnnxPairTeacher, PairSpec
from vlkd_distill.pair_writing import check_pair
from vlkd_distill.teachers import OpenClipTeacher
from vlkd_runtime.errors import ConfigError, ParityError

TEXTS = ("a photo of a cat", "a very small dog, and " + "more " * 40, "Sketch")


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(5)
    sizes = ((90, 71), (64, 64), (33, 120), (40, 41), (200, 64))
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


@pytest.fixture(scope="module")
def demo() -> OpenClipTeacher:
    return OpenClipTeacher.load("demo")


@pytest.fixture(scope="module")
def demo_pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs") / "demo"
    teacher_export.write_onnx_pair("demo", folder)
    return folder


def test_the_pair_says_what_the_model_says(demo: OpenClipTeacher, demo_pair: Path) -> None:
    assert {path.name for path in demo_pair.iterdir()} == {"image.onnx", "text.onnx", "teacher.json"}
    pair = OnnxPairTeacher("onnx-pair:x", demo_pair)
    assert pair.dim == demo.dim == 128 and pair.name == "onnx-pair:x"
    assert pair.logit_scale == pytest.approx(demo.logit_scale)
    images, texts = pair.embed_images(pictures()), pair.embed_texts(TEXTS)
    expected_images, expected_texts = demo.embed_images(pictures()), demo.embed_texts(TEXTS)
    np.testing.assert_allclose(images, expected_images, atol=1e-5)
    np.testing.assert_allclose(texts, expected_texts, atol=1e-5)
    logits = pair.logit_scale * images @ texts.T
    np.testing.assert_allclose(logits, demo.logit_scale * expected_images @ expected_texts.T, atol=1e-3)
    assert expected_images.std(axis=0).max() > 1e-3  # the comparison is not one of constants


@pytest.mark.parametrize("side", [64, 96], ids=["own size", "other size"])
def test_views_are_prepared_by_the_teacher(demo: OpenClipTeacher, demo_pair: Path, side: int) -> None:
    views = torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(0))
    found = OnnxPairTeacher("pair", demo_pair).embed_views(views)
    torch.testing.assert_close(found, demo.embed_views(views), atol=1e-5, rtol=0)
    assert not found.requires_grad


def test_the_graphs_name_no_place_on_this_machine(demo_pair: Path) -> None:
    for name in ("image.onnx", "text.onnx"):
        assert b"site-packages" not in (demo_pair / name).read_bytes()


def test_a_pair_that_was_written_down_wrongly_is_refused(
    demo_pair: Path, demo: OpenClipTeacher, tmp_path: Path
) -> None:
    spec = PairSpec.read(demo_pair / "teacher.json")

    def reference(images: Any, texts: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.from_numpy(demo.embed_images(images)), torch.from_numpy(
            demo.embed_texts(texts)[::-1].copy()
        )

    with pytest.raises(ParityError, match="text tower of 'demo' gives other embeddings"):
        check_pair(demo_pair, spec, reference)


@pytest.mark.parametrize("name", ["store:x", "call:math:pi"])
def test_only_open_clip_models_have_towers(name: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"")
    name = name.replace("x", str(tmp_path / "x"))
    with pytest.raises(ConfigError, match="Expected an open_clip teacher"):
        teacher_export.write_onnx_pair(name, tmp_path / "pair")
