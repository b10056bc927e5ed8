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
from dataclasses import asdict

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vlkd_runtime.errors import ConfigError, UnavailableError

from .prompting import normalised
from .synthesis import text_of
from .synthspecs import InversionSettings
from .teachers import OpenClipTeacher, Teacher
from .wording import Prompt

# Square root of natural images' colour covariance, as published with "Feature Visualization".
_COLOURS = torch.tensor([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])


class Inversion:
    """Synthesises through the gradients of an open_clip teacher; reads sentences and embeddings alike."""

    def __init__(self, teacher: Teacher, settings: InversionSettings | None = None) -> None:
        """Take a teacher.

        Raises:
            UnavailableError: it is a black box.
        """
        if not isinstance(teacher, OpenClipTeacher):
            msg = (
                f"Expected for inversion an open_clip teacher, through which gradients flow, found '{teacher.name}', a "
                f"{type(teacher).__name__}: set synthesis.synthesiser to 'diffusion', or choose another teacher."
            )
            raise UnavailableError(msg)
        self._teacher, self._settings = teacher, settings or InversionSettings()

    @property
    def name(self) -> str:
        """``inversion``."""
        return "inversion"

    @property
    def fingerprint(self) -> str:
        """Hash of the teacher's weights and the settings."""
        told = f"inversion-1 {self._teacher.fingerprint} {sorted(asdict(self._settings).items())}"
        return hashlib.sha256(told.encode()).hexdigest()

    def synthesise(self, prompts: Sequence[Prompt], seed: int) -> Iterator[Image.Image]:
        """Find one RGB image per prompt.

        Raises:
            ConfigError: a prompt's embedding is of another teacher's size, or it says nothing.
        """
        step = self._settings.batch
        for start in range(0, len(prompts), step):
            targets = self._targets(prompts[start : start + step])
            rng = torch.Generator().manual_seed(seed + start)
            pixels = invert(self._teacher, targets, self._settings, rng)
            levels = (pixels * 255).round().byte().permute(0, 2, 3, 1).numpy()
            yield from (Image.fromarray(image) for image in levels)

    def restyle(
        self, images: Sequence[Image.Image], texts: Sequence[str], seeds: Sequence[int]
    ) -> Iterator[Image.Image]:
        """Change images from what they are towards a text; what keeps them near is the number of steps."""
        how = self._settings
        wanted = torch.from_numpy(np.array(self._teacher.embed_texts(texts)))
        for image, target, seed in zip(images, wanted, seeds, strict=True):
            pixels = np.asarray(image.convert("RGB").resize((how.size, how.size), Image.Resampling.BICUBIC))
            start = coefficients_of(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 255.0, how.decay)
            rng = torch.Generator().manual_seed(seed)
            found = invert(self._teacher, target[None], how, rng, start)[0]
            yield Image.fromarray((found * 255).round().byte().permute(1, 2, 0).numpy())

    def _targets(self, prompts: Sequence[Prompt]) -> Tensor:
        """Unit rows ``(N, D)`` to look for."""
        unsaid = [prompt for prompt in prompts if prompt.target is None]
        texts = [text_of(prompt, self.name) for prompt in unsaid]
        embedded = iter(self._teacher.embed_texts(texts) if texts else ())
        rows = [next(embedded) if prompt.target is None else prompt.target for prompt in prompts]
        for prompt, row in zip(prompts, rows, strict=True):
            if row.shape != (self._teacher.dim,):
                msg = (
                    f"Expected embeddings of size {self._teacher.dim} for the teacher '{self._teacher.name}', found "
                    f"{row.shape} ({prompt.provenance}): make the prompts with the same teacher."
                )
                raise ConfigError(msg)
        return torch.from_numpy(np.stack(rows))


def invert(
    teacher: OpenClipTeacher,
    targets: Tensor,
    settings: InversionSettings,
    rng: torch.Generator,
    start: Tensor | None = None,
) -> Tensor:
    """Change images until the teacher's embeddings of their views point to the targets.

    Minimises the mean of ``1 - cos(view, target)`` plus total variation.

    Args:
        teacher: who looks.
        targets: unit rows ``(N, D)``.
        settings: how.
        rng: of starts and views.
        start: coefficients as `coefficients_of` gives them; noise when None.

    Returns:
        Images ``(N, 3, H, W)``, 0 to 1.
    """
    size = settings.size
    if start is None:
        start = torch.randn(len(targets), 3, size, size // 2 + 1, 2, generator=rng)
    coefficients = start.clone().requires_grad_()
    envelope = spectrum(size, settings.decay)
    optimizer = torch.optim.Adam([coefficients], lr=settings.learning_rate)
    wanted = targets.repeat(settings.views, 1)
    for _ in range(settings.steps):
        images = paint(coefficients, envelope)
        views = _views(images, settings, rng).to(teacher.device)
        seen = teacher._encode(normalised(teacher, views)).to(wanted.device)
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
    # Real and imaginary part have unit variance each. A coefficient stands for its mirror image, too,
    # except in the columns that are their own mirror image: there only the real part of the sum is seen.
    weight = torch.full((size // 2 + 1,), 4.0)
    weight[0] = 1.0
    if size % 2 == 0:
        weight[-1] = 1.0
    return amplitude / torch.sqrt((amplitude**2 * weight).sum()) * size


def paint(coefficients: Tensor, envelope: Tensor) -> Tensor:
    """Whitened coefficients ``(N, 3, H, W // 2 + 1, 2)`` to images ``(N, 3, H, W)``, 0 to 1."""
    scaled = torch.view_as_complex(coefficients) * envelope
    planes = torch.fft.irfft2(scaled, s=(len(envelope), len(envelope)), norm="ortho")
    # The strongest colour axis gets unit length, and sigmoid's slope is a quarter.
    mixing = _COLOURS / _COLOURS.norm(dim=0).max()
    return torch.sigmoid(1.5 * torch.einsum("rc,nchw->nrhw", mixing, planes))


def coefficients_of(images: Tensor, decay: float) -> Tensor:
    """What `paint` makes these images of, ``(N, 3, S, S)``, 0 to 1; black and white become nearly so."""
    size = images.shape[-1]
    mixing = _COLOURS / _COLOURS.norm(dim=0).max()
    planes = torch.einsum("cr,nrhw->nchw", torch.linalg.inv(mixing), torch.logit(images, 0.01) / 1.5)
    scaled = torch.fft.rfft2(planes, norm="ortho") / spectrum(size, decay)
    return torch.view_as_real(scaled)


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
