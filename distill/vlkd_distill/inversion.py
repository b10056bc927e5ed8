"""Images from a CLIP-like teacher alone: pixels are changed until the teacher reads the prompt in them.

VQGAN-CLIP, by which Xuan et al. (see `diversify`) synthesise, moves the latent grid of a trained generator and so
needs a generator's weights. This moves the Fourier coefficients of the image itself, which needs none: the
prior is a natural image's 1/f spectrum and its correlated colours. Images look like what the teacher looks
for, not like photographs. The loss is the cosine; VQGAN-CLIP has the squared great-circle distance.

Letters used in shapes: N images, V views of each, D embedding size, H and W pixels.

References:
    Crowson et al., "VQGAN-CLIP: Open Domain Image Generation and Manipulation Using Only an Off-the-Shelf
    Checkpoint", ECCV 2022 (optimising through CLIP over random augmentations).
    Olah, Mordvintsev and Schubert, "Feature Visualization", Distill 2017 (Fourier basis, decorrelated colour).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vlkd_runtime.errors import ConfigError

from .diversify import Prompt
from .teachers import OpenClipTeacher

# Square root of natural images' colour covariance, as published with "Feature Visualization".
_COLOURS = torch.tensor([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])


@dataclass(frozen=True, slots=True)
class InversionSettings:
    """How long and how hard to look.

    Attributes:
        size: side of the images in pixels.
        steps: gradient steps.
        views: V, random views of each image in a step.
        batch: images that are changed together.
        learning_rate: of Adam, on whitened coefficients.
        decay: exponent of the amplitude's fall with frequency; 1 is a natural image's.
        smoothness: weight of the total variation.
        noise: standard deviation of the noise on a view, in pixel values of 0 to 1.
    """

    size: int = 64
    steps: int = 100
    views: int = 2
    batch: int = 16
    learning_rate: float = 0.05
    decay: float = 1.0
    smoothness: float = 0.5
    noise: float = 0.05

    def __post_init__(self) -> None:
        if not 16 <= self.size <= 1024 or min(self.steps, self.views, self.batch) < 1:
            msg = (
                "Expected images of 16 to 1024 pixels and at least 1 step, 1 view and 1 image a batch; "
                f"found {self}."
            )
            raise ConfigError(msg)


class Inversion:
    """Synthesises through the gradients of an open_clip teacher; reads sentences and embeddings alike."""

    def __init__(self, teacher: OpenClipTeacher, settings: InversionSettings | None = None) -> None:
        self._teacher = teacher
        self._settings = settings or InversionSettings()

    @property
    def name(self) -> str:
        """``inversion``."""
        return "inversion"

    @property
    def reads_text(self) -> bool:
        """It looks for an embedding; a sentence is embedded first."""
        return False

    @property
    def fingerprint(self) -> str:
        """Hash of the teacher's weights and the settings."""
        told = f"inversion-1 {self._teacher.fingerprint} {sorted(asdict(self._settings).items())}"
        return hashlib.sha256(told.encode()).hexdigest()

    def synthesise(self, prompts: Sequence[Prompt], seed: int) -> Iterator[Image.Image]:
        """Find one RGB image per prompt.

        Raises:
            ConfigError: a prompt's embedding is of another teacher's size, or it has neither words nor one.
        """
        step = self._settings.batch
        for start in range(0, len(prompts), step):
            targets = self._targets(prompts[start : start + step])
            rng = torch.Generator().manual_seed(seed + start)
            pixels = invert(self._teacher, targets, self._settings, rng)
            levels = (pixels * 255).round().byte().permute(0, 2, 3, 1).numpy()
            yield from (Image.fromarray(image) for image in levels)

    def _targets(self, prompts: Sequence[Prompt]) -> Tensor:
        """Unit rows ``(N, D)`` to look for."""
        rows = []
        for prompt in prompts:
            if prompt.target is not None:
                rows.append(prompt.target)
            else:
                rows.append(self._teacher.embed_texts([prompt.text or ""])[0])
            if (prompt.text is None and prompt.target is None) or rows[-1].shape != (self._teacher.dim,):
                msg = (
                    f"Expected prompts with words or an embedding of size {self._teacher.dim} for the teacher "
                    f"'{self._teacher.name}', found {rows[-1].shape} ({prompt.provenance}): make them with it."
                )
                raise ConfigError(msg)
        return torch.from_numpy(np.stack(rows))


def invert(
    teacher: OpenClipTeacher, targets: Tensor, settings: InversionSettings, rng: torch.Generator
) -> Tensor:
    """Change images until the teacher's embeddings of their views point to the targets.

    Minimises the mean of ``1 - cos(view, target)`` plus total variation.

    Args:
        teacher: who looks.
        targets: unit rows ``(N, D)``.
        settings: how.
        rng: of starts and views.

    Returns:
        Images ``(N, 3, H, W)``, 0 to 1.
    """
    size = settings.size
    coefficients = torch.randn(len(targets), 3, size, size // 2 + 1, 2, generator=rng).requires_grad_()
    envelope = spectrum(size, settings.decay)
    optimizer = torch.optim.Adam([coefficients], lr=settings.learning_rate)
    wanted = targets.repeat(settings.views, 1)
    for _ in range(settings.steps):
        images = paint(coefficients, envelope)
        seen = embed_with_gradient(teacher, _views(images, settings, rng))
        loss = (1 - (seen * wanted).sum(dim=1)).mean() + settings.smoothness * total_variation(images)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return paint(coefficients, envelope).detach()


def spectrum(size: int, decay: float) -> Tensor:
    """Amplitude of each Fourier coefficient of a real image, ``(H, W // 2 + 1)``: ``1 / f ** decay``.

    Scaled so that white noise through it has unit variance; the mean, f = 0, counts as the lowest frequency.
    """
    down, across = torch.fft.fftfreq(size).abs(), torch.fft.rfftfreq(size)
    frequency = torch.sqrt(down[:, None] ** 2 + across[None, :] ** 2).clamp_min(1 / size)
    amplitude = frequency**-decay
    # A coefficient off the first and last column stands for its mirror image, too.
    weight = torch.full((size // 2 + 1,), 2.0)
    weight[0] = weight[-1] = 1.0
    return amplitude / torch.sqrt((amplitude**2 * weight * 2).sum()) * size


def paint(coefficients: Tensor, envelope: Tensor) -> Tensor:
    """Whitened coefficients ``(N, 3, H, W // 2 + 1, 2)`` to images ``(N, 3, H, W)``, 0 to 1."""
    scaled = torch.view_as_complex(coefficients) * envelope
    planes = torch.fft.irfft2(scaled, s=(len(envelope), len(envelope)), norm="ortho")
    # The strongest colour axis gets unit length, and sigmoid's slope is a quarter.
    mixing = _COLOURS / _COLOURS.norm(dim=0).max()
    return torch.sigmoid(1.5 * torch.einsum("rc,nchw->nrhw", mixing, planes))


def total_variation(images: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels, summed over both directions."""
    across = (images[..., 1:] - images[..., :-1]).abs().mean()
    return across + (images[..., 1:, :] - images[..., :-1, :]).abs().mean()


def _views(images: Tensor, settings: InversionSettings, rng: torch.Generator) -> Tensor:
    """Random crops, turns, mirrorings, contrasts and noise: ``(V * N, 3, H, W)``.

    Without them the gradient finds patterns that only the unturned, unmoved teacher reads.
    """
    count = settings.views * len(images)

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=rng)

    zoom, turn = between(0.6, 1.05), between(-15, 15) * math.pi / 180
    mirror = torch.where(between(0, 1) < 0.5, -1.0, 1.0)
    room = (1 - zoom).clamp_min(0)
    rows = [
        torch.stack([zoom * mirror * turn.cos(), -zoom * turn.sin(), room * between(-1, 1)], dim=1),
        torch.stack([zoom * mirror * turn.sin(), zoom * turn.cos(), room * between(-1, 1)], dim=1),
    ]
    shape = (count, *images.shape[1:])
    grid = F.affine_grid(torch.stack(rows, dim=1), list(shape), align_corners=False)
    many = images.repeat(settings.views, 1, 1, 1)
    views = F.grid_sample(many, grid, padding_mode="reflection", align_corners=False)
    contrast = between(0.8, 1.2).view(-1, 1, 1, 1)
    views = 0.5 + (views - 0.5) * contrast + between(-0.1, 0.1).view(-1, 1, 1, 1)
    return views + settings.noise * torch.randn(shape, generator=rng)


def embed_with_gradient(teacher: OpenClipTeacher, views: Tensor) -> Tensor:
    """What `OpenClipTeacher.embed_views` gives, with gradient: unit rows ``(N, D)``."""
    if tuple(views.shape[-2:]) != teacher._size:
        views = F.interpolate(views, teacher._size, mode="bilinear", antialias=True, align_corners=False)
    return teacher._encode((views - teacher._mean) / teacher._std)
