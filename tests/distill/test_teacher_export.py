"""Writing ONNX pairs: the demo teacher's towers and tiny transformers models against torch, and what is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vlkd_distill import teacher_export
from vlkd_distill.onnx_pair import OnnxPairTeacher, PairSpec
from vlkd_distill.teacher_names import check_name
from vlkd_distill.teachers import OpenClipTeacher
from vlkd_runtime.errors import ConfigError, ParityError, UnavailableError

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
        teacher_export._check(demo_pair, spec, reference)


@pytest.mark.parametrize("name", ["store:x", "call:math:pi"])
def test_only_open_clip_models_have_towers(name: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"")
    name = name.replace("x", str(tmp_path / "x"))
    with pytest.raises(ConfigError, match="Expected an open_clip teacher"):
        teacher_export.write_onnx_pair(name, tmp_path / "pair")


class Processor:
    """What an image processor of transformers says of itself."""

    def __init__(self, **changes: Any) -> None:
        self.plain = {
            "size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}, "resample": 3,
            "do_resize": True, "do_center_crop": True, "do_rescale": True, "rescale_factor": 1 / 255,
            "do_normalize": True, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.3],
        } | changes  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        return copy.deepcopy(self.plain)


def test_an_image_processor_is_read() -> None:
    found = teacher_export._transformers_image("m", Processor(), 32)
    assert (found["height"], found["width"], found["shortest"]) == (32, 32, 40)
    assert found["interpolation"] == "bicubic" and found["mean"] == (0.5, 0.4, 0.3)
    squashed = Processor(size={"height": 48, "width": 40}, crop_size=None, do_center_crop=None, resample=2)
    found = teacher_export._transformers_image("m", squashed, 32)
    assert (found["height"], found["width"], found["shortest"]) == (48, 40, None)
    assert found["interpolation"] == "bilinear"


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"do_center_crop": False}, id="shorter side without a crop"),
        pytest.param({"do_normalize": False}, id="not normalised"),
        pytest.param({"rescale_factor": 1 / 127.5}, id="another range"),
        pytest.param({"resample": 0}, id="nearest"),
        pytest.param({"size": {"height": 40, "width": 40}}, id="squashed, then cropped"),
    ],
)
def test_an_image_processor_that_cannot_be_written_down(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="in a way that a pair's"):
        teacher_export._transformers_image("m", Processor(**changes), 32)


@pytest.fixture(scope="module", params=["clip", "siglip"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with random weights, as transformers saves one."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    folder: Path = tmp_path_factory.mktemp("hf") / request.param
    words = ["<pad>", "<s>", "</s>", "<unk>", "a", "photo", "of", "cat", "x", "dog", ",", "sketch"]
    reader = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    reader.normalizer = tokenizers.normalizers.Lowercase()
    reader.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    reader.post_processor = tokenizers.processors.TemplateProcessing(
        "<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=reader, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    text = {
        "vocab_size": 12, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 10, "projection_dim": 16,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": 32, "patch_size": 8, "projection_dim": 16,
    }  # fmt: skip
    torch.manual_seed(3)
    if request.param == "clip":
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
        transformers.CLIPModel(config).save_pretrained(folder)
        processor = transformers.CLIPImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        )
    else:
        config = transformers.SiglipConfig(text_config=text, vision_config=vision)
        transformers.SiglipModel(config).save_pretrained(folder)
        processor = transformers.SiglipImageProcessor(size={"height": 32, "width": 32})
    processor.save_pretrained(folder)
    return folder


def test_a_transformers_model_becomes_a_pair(saved: Path, tmp_path: Path) -> None:
    import transformers

    check_name(f"hf-dir:{saved}")
    teacher_export.export_transformers(str(saved), tmp_path / "pair")
    pair = OnnxPairTeacher("pair", tmp_path / "pair")
    model = transformers.AutoModel.from_pretrained(saved).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(saved)
    tokens = tokenizer(list(TEXTS), padding="max_length", truncation=True, max_length=10, return_tensors="pt")
    pixels = torch.from_numpy(np.stack([pair.spec.prepare(image) for image in pictures()]))
    with torch.no_grad():
        whole = model(input_ids=tokens["input_ids"], pixel_values=pixels)
    np.testing.assert_allclose(pair.embed_texts(TEXTS), whole.text_embeds.numpy(), atol=1e-4)
    np.testing.assert_allclose(pair.embed_images(pictures()), whole.image_embeds.numpy(), atol=1e-4)
    logits = pair.logit_scale * pair.embed_images(pictures()) @ pair.embed_texts(TEXTS).T
    bias = float(getattr(model, "logit_bias", torch.zeros(1)).detach())
    np.testing.assert_allclose(logits + bias, whole.logits_per_image.numpy(), atol=1e-3)
    assert pair.name == "pair" and pair.spec.context_length == 10


def test_another_kind_of_image_processor_is_noticed(saved: Path, tmp_path: Path) -> None:
    import transformers

    processor = transformers.AutoImageProcessor.from_pretrained(saved)
    spec = PairSpec(
        "m", 1.0, 32, 32, **({"shortest": None} if "siglip" in saved.name else {"shortest": 32}),
        crop_rounding="down", interpolation="bicubic", mean=tuple(processor.image_mean),
        std=tuple(processor.image_std), tokenizer="clip-bpe", context_length=4, pad_id=0,
    )  # fmt: skip
    teacher_export._check_pixels(spec, processor)
    import dataclasses

    for change in ({"mean": (0.45, 0.5, 0.5)}, {"interpolation": "bilinear"}, {"height": 40, "shortest": 40}):
        with pytest.raises(ParityError, match="Its image processor does more"):
            teacher_export._check_pixels(dataclasses.replace(spec, **change), processor)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ConfigError, match=r"\*.safetensors in .*, found none"):
        check_name(f"hf-dir:{tmp_path}")
    with pytest.raises(UnavailableError, match="cannot be loaded"):
        teacher_export.export_transformers(str(tmp_path), tmp_path / "pair")
    assert not (tmp_path / "pair").exists()
