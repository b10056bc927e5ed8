"""Images from a text-to-image pipeline of diffusers, from a local folder or a hub.

Needs the extra `diffusion`. Only safetensors weights are read, and no code that comes with a model is run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vlkd_runtime.errors import UnavailableError

from .diversify import Prompt
from .quiet import first_line, quiet
from .synthesis import text_of


class Diffusers:
    """A diffusers pipeline that takes sentences, such as Stable Diffusion."""

    def __init__(
        self,
        pipeline: Any,
        identity: str,
        *,
        steps: int = 25,
        guidance: float = 7.5,
        size: int | None = None,
        batch: int = 4,
    ) -> None:
        """Take a loaded pipeline; `load` makes one.

        Args:
            pipeline: called with prompts, it gives images.
            identity: of its weights.
            steps: denoising steps.
            guidance: weight of the prompt against none.
            size: side of the images in pixels; the pipeline's own when None.
            batch: prompts drawn together.
        """
        self._pipeline, self._identity = pipeline, identity
        self._options: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": guidance}
        if size is not None:
            self._options |= {"height": size, "width": size}
        self._batch = batch

    @classmethod
    def load(
        cls, model: str, *, revision: str | None = None, device: str = "cpu", **options: Any
    ) -> Diffusers:
        """Load a pipeline.

        Args:
            model: folder that `save_pretrained` wrote, or the id of a model on the hub.
            revision: commit or tag on the hub; name one, so that the weights cannot change unseen.
            device: where to compute, as torch names it.
            options: `steps`, `guidance`, `size` and `batch` of the class.

        Raises:
            UnavailableError: diffusers is not installed, or the weights cannot be had as safetensors.
        """
        try:
            with quiet():
                from diffusers import DiffusionPipeline
        except ImportError as error:
            msg = (
                f"Expected the package diffusers, found that it cannot be imported ({first_line(error)}): "
                'install it with pip install "vlkd-edge[diffusion]", or choose another synthesiser.'
            )
            raise UnavailableError(msg) from error
        folder = Path(model)
        if not folder.is_dir() and (folder.is_absolute() or model.startswith(".") or model.count("/") != 1):
            msg = (
                f"Expected a diffusers folder or a hub id <owner>/<name>, found nothing at '{model}': name a "
                "folder that holds model_index.json."
            )
            raise UnavailableError(msg)
        try:
            with quiet():
                pipeline = DiffusionPipeline.from_pretrained(
                    model, revision=revision, use_safetensors=True, trust_remote_code=False
                ).to(device)
                pipeline.set_progress_bar_config(disable=True)
        except Exception as error:
            msg = (
                f"The text-to-image model '{model}' cannot be loaded: {first_line(error)}. It needs "
                "model_index.json and safetensors weights: download it once and name its folder."
            )
            raise UnavailableError(msg) from error
        identity = _folder_hash(folder) if folder.is_dir() else f"{model}@{revision}"
        return cls(pipeline, identity, **options)

    @property
    def name(self) -> str:
        """``diffusion``."""
        return "diffusion"

    @property
    def reads_text(self) -> bool:
        """Sentences are all it reads."""
        return True

    @property
    def fingerprint(self) -> str:
        """Hash of the model's identity and the options; a hub id without revision is taken at its word."""
        told = f"diffusion-1 {self._identity} {sorted(self._options.items())}"
        return hashlib.sha256(told.encode()).hexdigest()

    def synthesise(self, prompts: Sequence[Prompt], seed: int) -> Iterator[Image.Image]:
        """Draw one RGB image per prompt.

        Raises:
            ConfigError: a prompt has no words.
        """
        import torch

        texts = [text_of(prompt, self.name) for prompt in prompts]
        for start in range(0, len(texts), self._batch):
            some = texts[start : start + self._batch]
            # One generator an image, on the CPU: batch and device then change no image's noise.
            noise = [torch.Generator().manual_seed(seed + start + k) for k in range(len(some))]
            with quiet():
                drawn = self._pipeline(prompt=some, generator=noise, **self._options).images
            yield from (image.convert("RGB") for image in drawn)


def _folder_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
