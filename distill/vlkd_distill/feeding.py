"""What a student is shown at each step: which images, in which view, with which answer of the teacher.

Letters used in shapes: N images, B batch, D embedding size, V styles.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .augment import random_views
from .augmentation import Augmentation
from .compute import CPU, autocast
from .data import check_batch
from .mapped import Ebb
from .pixels import PixelStore
from .processes import ALONE, Ring
from .specs import Settings
from .stages import Batch, Method
from .styled import StyledStore
from .teachers import Teacher


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Everything that training may look at.

    Attributes:
        store: train images of the source domains.
        embeddings: the teacher's embeddings of the clean images ``(N, D)``, if the method asks for them.
        teacher: for ``same_aug`` views.
        styled: style views of the same images, if the method asks for them.
        selection: rows of the store that choose the weights instead of making them.
        captions: the teacher's embeddings of the images' captions ``(N, D)``, if the method asks for them.
    """

    store: PixelStore
    embeddings: npt.NDArray[np.float32] | None
    teacher: Teacher | None
    styled: StyledStore | None = None
    selection: tuple[int, ...] = ()
    captions: npt.NDArray[np.float32] | None = None
    rows: npt.NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        kept = np.setdiff1d(np.arange(len(self.store.samples)), np.array(self.selection, dtype=np.int64))
        object.__setattr__(self, "rows", kept)

    @property
    def domains(self) -> tuple[str, ...]:
        """Domain of each row that trains."""
        every = self.store.domains
        return tuple(every[row] for row in self.rows)


class Feed:
    """Draws views and targets of chosen rows; everything random comes from the caller's generator."""

    def __init__(
        self,
        method: Method,
        settings: Settings,
        data: TrainingData,
        how: Augmentation | None = None,
        ring: Ring = ALONE,
        device: torch.device = CPU,
    ) -> None:
        self._device = device
        self._method, self._settings, self._data = method, settings, data
        self._how, self._ring = how or Augmentation(), ring
        self._labels = torch.from_numpy(data.store.labels)
        drawn = () if data.styled is None else (data.styled.pixels, data.styled.embeddings)
        self._ebb = Ebb(data.store.pixels, data.embeddings, data.captions, *drawn)

    def views(self, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Batch]:
        """Random views of the rows ``(B,)`` and what the loss may look at.

        Of several processes, each gets the views of its own part ``(part, 3, S, S)``, and the whole batch's answers.
        """
        data, at = self._data, rows.numpy()
        styles = self._styles(len(rows), generator)
        part = self._ring.part(len(rows))
        own, own_styles = at[part], styles[part]
        pixels = data.store.pixels[own]
        drawn = np.flatnonzero(own_styles >= 0)
        if len(drawn) and data.styled is not None:
            pixels[drawn] = data.styled.pixels[own_styles[drawn], own[drawn]]
        self._ebb.touch(2 * pixels.nbytes)
        own_pixels = torch.from_numpy(pixels).to(self._device)
        views = random_views(own_pixels, self._how, generator, (part, len(rows)))
        return views, self._batch(rows, self._target(views, at, styles))

    def clean(self, rows: Tensor) -> Batch:
        """What the loss may look at besides cached features of the clean images."""
        target = None
        if self._method.needs_teacher and self._data.embeddings is not None:
            target = torch.from_numpy(self._data.embeddings[rows.numpy()])
            self._ebb.touch(target.nbytes)
        return self._batch(rows, target)

    def _batch(self, rows: Tensor, target: Tensor | None) -> Batch:
        """What the loss may look at, where the outputs are."""
        captions = self._data.captions
        told = None if captions is None else torch.from_numpy(captions[rows.numpy()])
        labels, *rest = (
            tensor if tensor is None else tensor.to(self._device)
            for tensor in (self._labels[rows], target, told)
        )
        assert labels is not None
        return Batch(labels, *rest)

    def _styles(self, count: int, generator: torch.Generator) -> npt.NDArray[np.int64]:
        """Style of each view, -1 for the image as it is; draws nothing where there are no styles."""
        if self._data.styled is None or not self._method.uses_styles:
            return np.full(count, -1, dtype=np.int64)
        styles = torch.randint(len(self._data.styled.styles), (count,), generator=generator)
        plain = torch.rand(count, generator=generator) >= self._settings.style_share
        result: npt.NDArray[np.int64] = torch.where(plain, -1, styles).numpy()
        return result

    def _target(
        self, views: Tensor, rows: npt.NDArray[np.int64], styles: npt.NDArray[np.int64]
    ) -> Tensor | None:
        data = self._data
        if not self._method.needs_teacher:
            return None
        if self._settings.teacher_view == "same_aug" and data.teacher is not None:
            with autocast(self._settings.precision, self._device):
                return self._ring.join(data.teacher.embed_views(views), len(rows))
        if data.embeddings is None:
            return None
        target = data.embeddings[rows]
        drawn = np.flatnonzero(styles >= 0)
        if len(drawn) and data.styled is not None:
            if data.styled.embeddings is None:
                msg = "Style views without the teacher's answers were given to a training that does not ask."
                raise RuntimeError(msg)
            target[drawn] = data.styled.embeddings[styles[drawn], rows[drawn]]
        self._ebb.touch(2 * target.nbytes)
        return torch.from_numpy(target)


def epoch_rows(domains: Sequence[str], batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Row indices of one epoch's batches, each drawn evenly from the domains.

    A domain smaller than its share is gone through again; the epoch has ``ceil(N / batch)`` batches.

    Args:
        domains: the domain of each row (N,).
        batch: images a batch, at least one a domain; the remainder of ``batch / domains`` goes to the first domains.
        generator: source of randomness.

    Raises:
        ConfigError: a batch cannot hold an image of each domain.
    """
    names = sorted(set(domains))
    check_batch(names, batch)
    steps = steps_of(len(domains), batch)
    rows_of = {
        name: torch.tensor([i for i, domain in enumerate(domains) if domain == name]) for name in names
    }
    streams = []
    for position, name in enumerate(names):
        share = batch // len(names) + (position < batch % len(names))
        rounds = math.ceil(steps * share / len(rows_of[name]))
        order = [
            rows_of[name][torch.randperm(len(rows_of[name]), generator=generator)] for _ in range(rounds)
        ]
        streams.append(torch.cat(order)[: steps * share].view(steps, share))
    yield from torch.cat(streams, 1)


def steps_of(images: int, batch: int) -> int:
    """Batches of one epoch."""
    return math.ceil(images / batch)
