"""Learning a teacher's prompts from a few labelled images, and the loss that hands its answers on.

Letters used in shapes: N images, S pixels a side, B batch, C classes, D embedding size.

References:
    PromptSRC: Khattak et al., "Self-regulating Prompts: Foundational Model Adaptation without Forgetting",
    ICCV 2023.
    PromptKD: Li et al., "PromptKD: Unsupervised Prompt Distillation for Vision-Language Models", CVPR 2024.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlkd_runtime.errors import DataError

from . import checkpoints, class_vectors, losses
from .augment import clean_views, random_views
from .augmentation import Augmentation
from .compute import CPU
from .diverging import Course
from .losses import unit
from .prompting import PromptedTeacher, TextTower, encode_images, normalised, takes_visual_prompts
from .specs import PromptSettings
from .teachers import OpenClipTeacher

FILE = "prompts.safetensors"
OnStep = Callable[[str, int, float], None]

_IMAGES_AT_ONCE = 64


class _Learner(nn.Module):
    """The tokens as they are and as they average so far; a module, so that a checkpoint holds both.

    Attributes:
        text: ``(J, n, w)``.
        visual: ``(K, m, v)``, or None where the image tower takes no prompts.
    """

    def __init__(self, text: Tensor, visual: Tensor | None) -> None:
        super().__init__()
        self.text = nn.Parameter(text)
        self.visual = None if visual is None else nn.Parameter(visual)
        for name, tensor in list(self.named_parameters()):
            self.register_buffer(f"{name}_average", torch.zeros_like(tensor))

    @torch.no_grad()
    def average(self, weight: float) -> None:
        """Add this epoch's tokens to the average."""
        for name, tensor in self.named_parameters():
            self.get_buffer(f"{name}_average").add_(tensor, alpha=weight)


def learn_prompts(
    teacher: OpenClipTeacher,
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    names: Sequence[str],
    settings: PromptSettings,
    seed: int,
    folder: Path,
    on_step: OnStep = lambda *_: None,
    device: torch.device = CPU,
) -> PromptedTeacher:
    """Learn a teacher's prompts from a few labelled images of each class.

    A transformer of open_clip's own learns tokens in both towers, any other image tower in the text tower
    only, on image embeddings that are then computed once. A checkpoint is written after every epoch; a call
    that finds one goes on from there and ends with the same prompts.

    Args:
        teacher: takes no gradient and does not change.
        images: ``(N, S, S, 3)``.
        labels: rows of ``names``, ``(N,)``.
        names: the classes that are told apart here; the prompts serve other names too.
        settings: how.
        seed: of the draw of images, of batches, views and noise.
        folder: where `FILE` and the checkpoint go.
        on_step: called as ``on_step("prompts", steps done, loss)``.
        device: where to compute.

    Returns:
        The teacher with the average of the epochs' prompts; also written to ``folder / FILE``.

    Raises:
        ConfigError: the teacher's text tower takes no prompts.
        DataError: labels and images do not fit, or a class has none.
        TrainingError: a loss or the prompts are not finite.
    """
    _check_labels(images, labels, names)
    rows = few_shot(labels, settings.shots, seed)
    lesson = _Lesson(teacher, images[rows], torch.from_numpy(labels[rows]), names, settings, device)
    learner = _start(teacher, lesson.tower, settings, seed).to(device)
    optimizer = torch.optim.SGD(
        learner.parameters(), settings.lr, momentum=0.9, weight_decay=settings.weight_decay
    )
    steps = math.ceil(len(rows) / settings.batch)
    course = Course("learning the prompts", settings.epochs * steps, "prompts.lr", settings.lr)
    first = 0
    if (resumed := checkpoints.load(folder)) is not None:
        checkpoints.restore(resumed, learner, optimizer)
        first = resumed.epoch
        on_step("prompts", first * steps, math.nan)
    weights = average_weights(settings.epochs, settings.average_at, settings.average_width)
    for epoch in range(first, settings.epochs):
        generator = _generator(seed, 1 + epoch)
        order = torch.randperm(len(rows), generator=generator)
        for step, batch in enumerate(torch.split(order, settings.batch)):
            done = (epoch * steps + step) / (settings.epochs * steps)
            for group in optimizer.param_groups:
                group["lr"] = settings.lr * 0.5 * (1 + math.cos(math.pi * done))
            loss = lesson.loss(learner, batch, generator)
            value = float(loss.detach())
            course.check_loss(value, epoch * steps + step)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            on_step("prompts", 1, value)
        course.check_weights(learner.parameters())
        learner.average(weights[epoch])
        checkpoints.save(folder, learner, optimizer, 0, epoch + 1)
    averages = {name: tensor.cpu() for name, tensor in learner.named_buffers()}
    prompted = PromptedTeacher(teacher, averages["text_average"], averages.get("visual_average"))
    prompted.save(folder / FILE)
    return prompted


class _Lesson:
    """What the loss looks at: the images, and what the frozen teacher says of images and classes."""

    def __init__(
        self,
        teacher: OpenClipTeacher,
        images: npt.NDArray[np.uint8],
        labels: Tensor,
        names: Sequence[str],
        settings: PromptSettings,
        device: torch.device,
    ) -> None:
        self.tower = TextTower.of(teacher, device)
        self._teacher, self._settings = teacher, settings
        self._visual = teacher.model_on(device).visual
        self._pixels, self._labels = (
            torch.from_numpy(np.ascontiguousarray(images)).to(device),
            labels.to(device),
        )
        endings = [f"{name.replace('_', ' ')}." for name in names]
        self._ids = self.tower.ids(endings, settings.tokens)
        frozen = class_vectors.compute(teacher, names, settings.templates)
        self._frozen_text = torch.from_numpy(frozen.vectors.copy()).to(device)
        self._views = Augmentation(min_area=settings.min_area, jitter=0.0, grayscale=0.0)
        self._cached: Tensor | None = None
        if not takes_visual_prompts(_visual(teacher)):
            batches = [clean_views(part) for part in torch.split(self._pixels, _IMAGES_AT_ONCE)]
            self._cached = torch.cat([teacher.embed_views(batch) for batch in batches])

    def loss(self, learner: _Learner, rows: Tensor, generator: torch.Generator) -> Tensor:
        """`prompt_loss` of a batch of rows ``(B,)``."""
        text = unit(self.tower.encode(self._ids, learner.text))
        if self._cached is not None:
            frozen = image = self._cached[rows]
        else:
            assert learner.visual is not None
            views = random_views(self._pixels[rows], self._views, generator)
            frozen = self._teacher.embed_views(views)
            image = unit(encode_images(self._visual, normalised(self._teacher, views), learner.visual))
        scale = self._teacher.logit_scale
        return prompt_loss(image, text, frozen, self._frozen_text, self._labels[rows], scale, self._settings)


def prompt_loss(
    image: Tensor,
    text: Tensor,
    frozen_image: Tensor,
    frozen_text: Tensor,
    labels: Tensor,
    scale: float,
    settings: PromptSettings,
) -> Tensor:
    """Cross-entropy, and what holds prompted embeddings and logits to the frozen teacher's.

    ``CE + a mean|t - t0| + b mean|v - v0| + c KL(softmax(z0) || softmax(z)) / (B C)``

    Args:
        image: v, unit rows ``(B, D)``.
        text: t, unit rows ``(C, D)``.
        frozen_image: v0, likewise without prompts.
        frozen_text: t0, likewise.
        labels: ``(B,)`` int64.
        scale: from cosines to the logits z and z0.
        settings: the weights a, b and c.

    References:
        PromptSRC, the self-consistency losses.
    """
    logits = scale * image @ text.t()
    frozen = scale * frozen_image @ frozen_text.t()
    return (
        losses.cross_entropy(logits, labels)
        + settings.text_weight * F.l1_loss(text, frozen_text)
        + settings.image_weight * F.l1_loss(image, frozen_image)
        + settings.logit_weight / logits.shape[1] * losses.soft_divergence(logits, frozen, 1.0)
    )


def average_weights(epochs: int, at: float, width: float) -> tuple[float, ...]:
    """Weight of each epoch's prompts in their average: a normal curve over the epochs, sum 1.

    Args:
        epochs: how many.
        at: epoch with the largest weight, as a share of all; PromptSRC's is 15 of 20.
        width: standard deviation, likewise; PromptSRC's is 1 of 20.

    References:
        PromptSRC, Gaussian-weighted prompt aggregation.
    """
    far = [-0.5 * ((epoch - at * epochs) / (width * epochs)) ** 2 for epoch in range(1, epochs + 1)]
    heights = [math.exp(each - max(far)) for each in far]
    return tuple(height / sum(heights) for height in heights)


def few_shot(labels: npt.NDArray[np.int64], shots: int, seed: int) -> npt.NDArray[np.int64]:
    """Rows of at most ``shots`` images of each class, ascending; all rows for 0.

    Args:
        labels: ``(N,)``.
        shots: images a class.
        seed: of the draw.
    """
    if shots == 0:
        return np.arange(len(labels))
    random = np.random.default_rng(seed)
    picked = [random.permutation(np.flatnonzero(labels == label))[:shots] for label in np.unique(labels)]
    return np.sort(np.concatenate(picked))


def _start(teacher: OpenClipTeacher, tower: TextTower, settings: PromptSettings, seed: int) -> _Learner:
    """Tokens to start from: the words of ``start``, and noise of 0.02 elsewhere."""
    generator = _generator(seed, 0)

    def noise(layers: int, width: int) -> Tensor:
        shape = (min(settings.layers, layers), settings.tokens, width)
        return torch.randn(shape, generator=generator) * 0.02

    embedding = tower.owner.token_embedding.weight
    text = noise(len(tower.owner.transformer.resblocks), embedding.shape[1])
    ids: Tensor = tower.tokenizer([settings.start])[0]
    words = ids[1 : int((ids == tower.tokenizer.eot_token_id).int().argmax())][: settings.tokens]
    text[0, : len(words)] = embedding[words.to(embedding.device)].detach().cpu()
    visual = _visual(teacher)
    if not takes_visual_prompts(visual):
        return _Learner(text, None)
    return _Learner(text, noise(len(visual.transformer.resblocks), visual.class_embedding.shape[0]))


def _visual(teacher: OpenClipTeacher) -> Any:
    return teacher._model.visual


def _generator(seed: int, part: int) -> torch.Generator:
    state = int(np.random.SeedSequence([seed, part]).generate_state(1)[0])
    return torch.Generator().manual_seed(state)


def _check_labels(images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64], names: Sequence[str]) -> None:
    if images.ndim != 4 or images.dtype != np.uint8 or labels.shape != images.shape[:1]:
        msg = (
            f"prompts: expected uint8 images (N, S, S, 3) and N labels, found {images.dtype} {images.shape} and "
            f"{labels.shape}. Give the pixels of the labelled images and their labels."
        )
        raise DataError(msg)
    missing = [name for index, name in enumerate(names) if index not in set(labels.tolist())]
    strange = sorted(set(labels.tolist()) - set(range(len(names))))
    if missing or strange:
        msg = (
            f"prompts: expected images of exactly the {len(names)} classes named, found none of {missing} and the "
            f"labels {strange}. Name the classes that have labelled images."
        )
        raise DataError(msg)
