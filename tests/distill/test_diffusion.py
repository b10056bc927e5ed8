"""A tiny diffusers pipeline with random weights, saved as a real one is, draws what prompts ask for."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from vlkd_distill.diffusion import Diffusers, identity
from vlkd_distill.quiet import quiet
from vlkd_distill.synthspecs import DiffusionSettings
from vlkd_distill.wording import Prompt
from vlkd_runtime.errors import ConfigError, UnavailableError

try:
    with quiet():
        import diffusers
        import transformers
except ImportError:
    diffusers = None
needs_diffusers = pytest.mark.skipif(
    diffusers is None, reason="diffusers is not installed (extra 'diffusion')"
)

PROMPTS = tuple(Prompt("cat", f"a photo of a {words}", None, "test") for words in ("cat", "dog", "big cat"))
FAST = DiffusionSettings(steps=2, batch=2)


def write_pipeline(folder: Path, seed: int = 0) -> Path:
    """Stable Diffusion's parts, a few thousand weights each, from diffusers' own classes."""
    letters = [*map(chr, range(97, 123)), "-"]
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    start, end = vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]
    with quiet():
        torch.manual_seed(seed)
        tokenizer = transformers.CLIPTokenizer(
            str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=32
        )
        text = transformers.CLIPTextConfig(
            vocab_size=len(vocabulary), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, max_position_embeddings=32, bos_token_id=start, eos_token_id=end,
            pad_token_id=end,
        )  # fmt: skip
        unet = diffusers.UNet2DConditionModel(
            sample_size=8, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=16,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), attention_head_dim=2, norm_num_groups=4,
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        )  # fmt: skip
        vae = diffusers.AutoencoderKL(
            block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=4,
            up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, sample_size=16,
        )  # fmt: skip
        pipeline = diffusers.StableDiffusionPipeline(
            vae=vae, text_encoder=transformers.CLIPTextModel(text), tokenizer=tokenizer, unet=unet,
            scheduler=diffusers.DDIMScheduler(), safety_checker=None, feature_extractor=None,
            requires_safety_checker=False,
        )  # fmt: skip
        pipeline.save_pretrained(folder / "pipeline", safe_serialization=True)
    return folder / "pipeline"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_pipeline(tmp_path_factory.mktemp("diffusion") / "a"))


def drawn(settings: DiffusionSettings, seed: int = 0) -> np.ndarray:
    return np.stack([np.asarray(image) for image in Diffusers.load(settings).synthesise(PROMPTS, seed)])


@needs_diffusers
def test_a_saved_pipeline_draws_one_image_per_prompt(model: str) -> None:
    settings = dataclasses.replace(FAST, model=model)
    images = drawn(settings)
    assert images.shape == (3, 16, 16, 3) and images.dtype == np.uint8
    assert (images.reshape(3, -1).std(axis=1) > 5).all()
    assert (drawn(settings) == images).all()
    assert (drawn(settings, seed=1) != images).any()
    other_batch = drawn(dataclasses.replace(settings, batch=3))
    assert np.abs(other_batch.astype(int) - images.astype(int)).max() <= 1  # the noise is each image's own
    assert drawn(dataclasses.replace(settings, size=24)).shape == (3, 24, 24, 3)


@needs_diffusers
def test_a_fingerprint_tells_weights_and_settings_apart_and_no_place(model: str, tmp_path: Path) -> None:
    settings = dataclasses.replace(FAST, model=model)
    other = dataclasses.replace(settings, model=str(write_pipeline(tmp_path / "b", seed=1)))
    moved = Path(model).rename(tmp_path / "moved")
    try:
        prints = [
            Diffusers(None, how, identity(how)).fingerprint
            for how in (dataclasses.replace(settings, model=str(moved)), other)
        ]
    finally:
        moved.rename(model)
    own = Diffusers.load(settings).fingerprint
    assert prints[0] == own != prints[1]
    assert Diffusers.load(dataclasses.replace(settings, steps=3)).fingerprint != own


@needs_diffusers
def test_what_cannot_be_drawn_is_refused(model: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Expected a prompt in words for the synthesiser 'diffusion'"):
        next(
            Diffusers.load(dataclasses.replace(FAST, model=model)).synthesise(
                [Prompt("cat", None, np.ones(8, np.float32), "token space")], 0
            )
        )
    (tmp_path / "empty").mkdir()
    with pytest.raises(UnavailableError, match=r"cannot be loaded: .*needs model_index\.json"):
        Diffusers.load(DiffusionSettings(model=str(tmp_path / "empty")))


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UnavailableError, match=r'pip install "vlkd-edge\[diffusion\]"'):
        Diffusers.load(DiffusionSettings(model="owner/name"))


@pytest.mark.parametrize("name", ["/nothing/here", "./nothing", "nothing", "a/b/c"])
def test_a_name_that_is_neither_folder_nor_hub_id_is_refused(name: str) -> None:
    with pytest.raises(UnavailableError, match="Expected a diffusers folder or a hub id"):
        identity(DiffusionSettings(model=name))


def test_a_hub_id_is_taken_at_its_word() -> None:
    assert identity(DiffusionSettings(model="owner/name", revision="1a")) == "owner/name@1a"


@needs_diffusers
def test_a_pipeline_redraws_images_from_themselves_and_a_text(model: str) -> None:
    from PIL import Image

    rng = np.random.default_rng(3)
    images = [Image.fromarray(rng.integers(0, 256, (20, 30, 3)).astype(np.uint8)) for _ in range(3)]
    texts = ["a drawing of a cat", "a drawing of a dog", "a drawing of a cat"]
    settings = dataclasses.replace(FAST, model=model, size=16, steps=4, strength=0.5)

    def redrawn(how: DiffusionSettings, seeds: list[int]) -> np.ndarray:
        redraws = Diffusers.load(how, redraws=True)
        return np.stack([np.asarray(image) for image in redraws.restyle(images, texts, seeds)])

    found = redrawn(settings, [1, 2, 3])
    assert found.shape == (3, 16, 16, 3)
    assert (redrawn(settings, [1, 2, 3]) == found).all()
    one_at_a_time = redrawn(dataclasses.replace(settings, batch=1), [1, 2, 3])
    assert np.abs(one_at_a_time.astype(int) - found.astype(int)).max() <= 1
    assert (redrawn(settings, [1, 2, 4])[2] != found[2]).any()
    # The weaker, the nearer to what the pipeline makes of the image itself.
    weak = redrawn(dataclasses.replace(settings, strength=0.25), [1, 2, 3])
    assert (weak != found).any()
