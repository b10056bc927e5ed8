"""Tiny models of transformers, and as optimum exports them, as ONNX pairs against torch; and what is refused."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vlkd_distill import teacher_loading, transformers_export
from vlkd_distill.onnx_pair import OnnxPairTeacher, PairSpec
from vlkd_distill.teacher_names import check_name
from vlkd_runtime.errors import ConfigError, ParityError, UnavailableError

TEXTS = ("a photo of a cat", "a very small dog, and " + "more " * 40, "Sketch")
LENGTH = 20  # optimum exports with sixteen tokens


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(5)
    sizes = ((90, 71), (64, 64), (33, 120), (40, 41), (200, 64))
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


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
    found = transformers_export._transformers_image("m", Processor(), 32)
    assert (found["height"], found["width"], found["shortest"]) == (32, 32, 40)
    assert found["interpolation"] == "bicubic" and found["mean"] == (0.5, 0.4, 0.3)
    squashed = Processor(size={"height": 48, "width": 40}, crop_size=None, do_center_crop=None, resample=2)
    found = transformers_export._transformers_image("m", squashed, 32)
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
        transformers_export._transformers_image("m", Processor(**changes), 32)


@pytest.fixture(scope="module", params=["clip", "siglip"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with random weights, as transformers saves one."""
    import tokenizers
    import transformers

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
        "num_attention_heads": 2, "max_position_embeddings": LENGTH, "projection_dim": 16,
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
    transformers_export.export_transformers(str(saved), tmp_path / "pair")
    pair = OnnxPairTeacher("pair", tmp_path / "pair")
    model = transformers.AutoModel.from_pretrained(saved).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(saved)
    tokens = tokenizer(
        list(TEXTS), padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt"
    )
    pixels = torch.from_numpy(np.stack([pair.spec.prepare(image) for image in pictures()]))
    with torch.no_grad():
        whole = model(input_ids=tokens["input_ids"], pixel_values=pixels)
    np.testing.assert_allclose(pair.embed_texts(TEXTS), whole.text_embeds.numpy(), atol=1e-4)
    np.testing.assert_allclose(pair.embed_images(pictures()), whole.image_embeds.numpy(), atol=1e-4)
    logits = pair.logit_scale * pair.embed_images(pictures()) @ pair.embed_texts(TEXTS).T
    bias = float(getattr(model, "logit_bias", torch.zeros(1)).detach())
    np.testing.assert_allclose(logits + bias, whole.logits_per_image.numpy(), atol=1e-3)
    assert pair.name == "pair" and pair.spec.context_length == LENGTH


@pytest.fixture(scope="module")
def exported(saved: Path) -> Path:
    """The same model as optimum writes it, without weights of its own."""
    out = saved.with_name(f"{saved.name}-onnx")
    code = (
        "import sys; from optimum.exporters.onnx import main_export; "
        "main_export(sys.argv[1], sys.argv[2], task='zero-shot-image-classification', do_validation=False)"
    )
    words = [sys.executable, "-c", code, str(saved), str(out)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not any(out.glob("*.safetensors"))
    return out


def test_what_optimum_has_exported_is_a_teacher(saved: Path, exported: Path, tmp_path: Path) -> None:
    import transformers

    teacher = teacher_loading.load(f"hf-dir:{exported}", tmp_path)
    model = transformers.AutoModel.from_pretrained(saved).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(saved)
    tokens = tokenizer(
        list(TEXTS), padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt"
    )
    assert isinstance(teacher, OnnxPairTeacher)
    pixels = torch.from_numpy(np.stack([teacher.spec.prepare(image) for image in pictures()]))
    with torch.no_grad():
        whole = model(input_ids=tokens["input_ids"], pixel_values=pixels)
    np.testing.assert_allclose(teacher.embed_texts(TEXTS), whole.text_embeds.numpy(), atol=1e-4)
    np.testing.assert_allclose(teacher.embed_images(pictures()), whole.image_embeds.numpy(), atol=1e-4)
    assert teacher.logit_scale == pytest.approx(float(model.logit_scale.detach().exp()), rel=1e-4)
    assert teacher.spec.context_length == LENGTH


def test_a_graph_of_another_kind_is_refused(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "other")
    shutil.copyfile(pair_of(exported, tmp_path / "pair") / "image.onnx", tmp_path / "other/model.onnx")
    with pytest.raises(
        ConfigError, match=r"expected the inputs pixel_values, input_ids .*found pixel_values and"
    ):
        transformers_export.export_optimum(tmp_path / "other", tmp_path / "out")
    (tmp_path / "other/model.onnx").write_bytes(b"no graph")
    with pytest.raises(UnavailableError, match="cannot be read"):
        transformers_export.export_optimum(tmp_path / "other", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def pair_of(source: Path, folder: Path) -> Path:
    transformers_export.export_optimum(source, folder)
    return folder


def test_the_factor_is_read_off_logits_with_a_bias_and_no_other_ones() -> None:
    rng = np.random.default_rng(0)
    images, texts = rng.standard_normal((2, 8)), rng.standard_normal((3, 8))
    cosines = np.array([[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in texts] for a in images])
    found = transformers_export._scale(Path("m"), images, texts, 12.5 * cosines - 3.0)
    assert found == pytest.approx(12.5, rel=1e-5)
    for logits in (cosines**2, -12.5 * cosines):
        with pytest.raises(ParityError, match="expected logits that are cosines times a factor"):
            transformers_export._scale(Path("m"), images, texts, logits)


def test_another_kind_of_image_processor_is_noticed(saved: Path, tmp_path: Path) -> None:
    import transformers

    processor = transformers.AutoImageProcessor.from_pretrained(saved)
    spec = PairSpec(
        "m", 1.0, 32, 32, **({"shortest": None} if "siglip" in saved.name else {"shortest": 32}),
        crop_rounding="down", interpolation="bicubic", mean=tuple(processor.image_mean),
        std=tuple(processor.image_std), tokenizer="clip-bpe", context_length=4, pad_id=0,
    )  # fmt: skip
    transformers_export._check_pixels(spec, processor)
    for change in ({"mean": (0.45, 0.5, 0.5)}, {"interpolation": "bilinear"}, {"height": 40, "shortest": 40}):
        with pytest.raises(ParityError, match="Its image processor does more"):
            transformers_export._check_pixels(dataclasses.replace(spec, **change), processor)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ConfigError, match=r"\*.safetensors in .*, or optimum.s model\.onnx, found neither"):
        check_name(f"hf-dir:{tmp_path}")
    with pytest.raises(UnavailableError, match="cannot be loaded"):
        transformers_export.export_transformers(str(tmp_path), tmp_path / "pair")
    assert not (tmp_path / "pair").exists()
