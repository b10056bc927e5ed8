"""Images from a text-to-image pipeline of diffusers, from a local folder or a hub.

Needs the extra `diffusion`. Only safetensors weights are read, and no code that comes with a model is run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from vlkd_runtime.errors import UnavailableError, first_line

from .quiet import quiet
from .synthesis import text_of
from .synthspecs import DiffusionSettings
from .teacher_names import content_key
from .wording import Prompt


class Diffusers:
    """A diffusers pipeline that takes sentences, such as Stable Diffusion."""

    def __init__(self, pipeline: Any, settings: DiffusionSettings, weights: str) -> None:
        """Take a loaded pipeline; `load` makes one.

        Args:
            pipeline: called with prompts, it gives images.
            settings: how to call it.
            weights: identity of its weights.
        """
        self._pipeline, self._settings, self._weights = pipeline, settings, weights

    @classmethod
    def load(cls, settings: DiffusionSettings, *, redraws: bool = False) -> Diffusers:
        """Load a pipeline from text to image, or from image and text to image.

        Raises:
            UnavailableError: diffusers is not installed, or the weights cannot be had as safetensors.
        """
        try:
            with quiet():
                from diffusers import AutoPipelineForImage2Image, DiffusionPipeline
                from diffusers.utils import logging as chatter
        except ImportError as error:
            msg = (
                f"Expected the package diffusers, found that it cannot be imported ({first_line(error)}): "
                'install it with pip install "vlkd-edge[diffusion]", or choose another synthesiser.'
            )
            raise UnavailableError(msg) from error
        weights = identity(settings)
        try:
            with quiet():
                chatter.disable_progress_bar()
                kind = AutoPipelineForImage2Image if redraws else DiffusionPipeline
                pipeline = kind.from_pretrained(
                    settings.model,
                    revision=settings.revision or None,
                    use_safetensors=True,
                    trust_remote_code=False,
                ).to(settings.device)
                pipeline.set_progress_bar_config(disable=True)
        except Exception as error:
            msg = (
                f"The text-to-image model '{settings.model}' cannot be loaded: {first_line(error)}. It needs "
                "model_index.json and safetensors weights: download it once and name its folder."
            )
            raise UnavailableError(msg) from error
        return cls(pipeline, settings, weights)

    @property
    def name(self) -> str:
        """``diffusion``."""
        return "diffusion"

    @property
    def fingerprint(self) -> str:
        """Hash of weights and settings."""
        how = {name: value for name, value in asdict(self._settings).items() if name != "model"}
        told = f"diffusion-1 {self._weights} {sorted(how.items())}"
        return hashlib.sha256(told.encode()).hexdigest()

    def synthesise(self, prompts: Sequence[Prompt], seed: int) -> Iterator[Image.Image]:
        """Draw one RGB image per prompt.

        Raises:
            ConfigError: a prompt has no words.
        """
        import torch

        texts = [text_of(prompt, self.name) for prompt in prompts]
        how = self._settings
        options: dict[str, Any] = {"num_inference_steps": how.steps, "guidance_scale": how.guidance}
        if how.size:
            options |= {"height": how.size, "width": how.size}
        for start in range(0, len(texts), how.batch):
            some = texts[start : start + how.batch]
            # One generator an image, on the CPU: batch and device then change no image's noise.
            noise = [torch.Generator().manual_seed(seed + start + k) for k in range(len(some))]
            with quiet():
                drawn = self._pipeline(prompt=some, generator=noise, **options).images
            yield from (image.convert("RGB") for image in drawn)

    def restyle(
        self, images: Sequence[Image.Image], texts: Sequence[str], seeds: Sequence[int]
    ) -> Iterator[Image.Image]:
        """Redraw images from noise of ``strength``; at the pipeline's size, or at 512 pixels a side."""
        import torch

        how = self._settings
        side = how.size or 512
        options = {
            "num_inference_steps": how.steps,
            "guidance_scale": how.guidance,
            "strength": how.strength,
        }
        for start in range(0, len(texts), how.batch):
            part = slice(start, start + how.batch)
            given = [
                image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC) for image in images[part]
            ]
            noise = [torch.Generator().manual_seed(seed) for seed in seeds[part]]
            with quiet():
                drawn = self._pipeline(
                    prompt=list(texts[part]), image=given, generator=noise, **options
                ).images
            yield from (image.convert("RGB") for image in drawn)


def identity(settings: DiffusionSettings) -> str:
    """What the weights are: the content of a folder's files, or a hub's word for them.

    Raises:
        UnavailableError: there is no such folder, and the name is no hub id.
    """
    model, folder = settings.model, Path(settings.model)
    if folder.is_dir():
        return content_key(sorted(path for path in folder.rglob("*") if path.is_file()))
    if folder.is_absolute() or model.startswith(".") or model.count("/") != 1:
        msg = (
            f"Expected a diffusers folder or a hub id <owner>/<name>, found nothing at '{model}': name a "
            "folder that holds model_index.json (synthesis.diffusion.model)."
        )
        raise UnavailableError(msg)
    return f"{model}@{settings.revision}"
