"""One student's training as another process finds it: by names of files, not by what this process has opened."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vlkd_bench.samples import Sample
from vlkd_runtime.vectors import ClassVectors

from . import checkpoints, closing, methods, processes, starting, teacher_loading, training
from .compute import device_of
from .feeding import TrainingData
from .pixels import PixelStore
from .processes import Ring
from .prompting import PromptedTeacher
from .recovery import Recovering, Recovery, hold_zeros
from .specs import Settings, StudentSpec
from .stages import Method
from .students import Student
from .styled import StyledStore
from .teachers import OpenClipTeacher, Teacher


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """What a training reads; everything here can be handed to another process.

    Attributes:
        settings: how the method trains.
        vectors: the class vectors.
        student: what starts.
        samples: train images that could be decoded, the rows of the store.
        store: folder of the pixel store.
        embeddings: file of the teacher's embeddings of the clean images; None if the method asks for none.
        styled: folder of the style views; None if the method shows none.
        captions: file of its embeddings of their captions; None if the method reads none.
        selection: rows that choose the weights instead of making them.
        views: whether the teacher embeds the views.
        teacher: its name.
        cache: where what a teacher needs is kept.
        folder: where the checkpoint lies.
        closed: files and folders that no process may open while it trains; as it is when this is made.
        recovery: what to go on from; None for a training from the start.
        prompts: file of the prompts with which the teacher sees views; None where it sees them as it is.
    """

    settings: Settings
    vectors: ClassVectors
    student: StudentSpec
    samples: tuple[Sample, ...]
    store: Path
    embeddings: Path | None
    styled: Path | None
    captions: Path | None
    selection: tuple[int, ...]
    views: bool
    teacher: str
    cache: Path
    folder: Path
    closed: tuple[Path, ...] = field(default_factory=closing.forbidden)
    recovery: Recovery | None = None
    prompts: Path | None = None

    def train(
        self, data: TrainingData, teacher: Callable[[], Teacher], on_step: training.OnStep = lambda *_: None
    ) -> Student:
        """Train in as many processes as the settings say.

        Args:
            data: what this process has opened already.
            teacher: gives the teacher, where the student is made of it.
            on_step: as for `training.train`.

        Raises:
            UnavailableError: another process failed.
        """
        trained: list[Student] = []
        processes.run(
            self.settings.processes,
            lambda ring: trained.append(self._go(ring, data, teacher, on_step)),
            self,
            device_of(self.settings.device),
        )
        return trained[0]

    def __call__(self, ring: Ring) -> None:
        """Do the part of a process that was started for it."""
        with closing.forbid(self.closed) if self.closed else contextlib.nullcontext():
            self._go(ring, self.open(), self._load, lambda *_: None)

    def open(self) -> TrainingData:
        """Open what lies on disk."""
        embeddings, captions = (
            None if path is None else np.load(path, mmap_mode="r", allow_pickle=False)
            for path in (self.embeddings, self.captions)
        )
        styled = None if self.styled is None else StyledStore.open(self.styled, self.settings.every_style)
        store = PixelStore.open(self.store, self.samples)
        teacher = self._seer() if self.views else None
        return TrainingData(store, embeddings, teacher, styled, self.selection, captions)

    def _load(self) -> Teacher:
        return teacher_loading.load(self.teacher, self.cache)

    def _seer(self) -> Teacher:
        """Who embeds the views: the teacher, or the teacher with its learned prompts."""
        plain = self._load()
        if self.prompts is None:
            return plain
        assert isinstance(plain, OpenClipTeacher)  # or there would be no prompts
        return PromptedTeacher.load(self.prompts, plain)

    def _go(
        self, ring: Ring, data: TrainingData, teacher: Callable[[], Teacher], on_step: training.OnStep
    ) -> Student:
        method: Method = methods.create(self.settings, self.vectors)
        device = device_of(self.settings.device, ring.local)
        if self.recovery is None:
            student = starting.start(self.student, method, teacher)
            return training.train(
                student, method, self.settings, data, self.folder, on_step, ring=ring, device=device
            )
        student = starting.untrained(self.student, method, teacher)
        checkpoints.load_weights(self.recovery.weights, student)
        student.to(device)  # before its zeros are noted
        return training.train(
            student,
            Recovering(method, self.recovery),
            self.settings,
            data,
            self.folder,
            on_step,
            ring=ring,
            hold=hold_zeros(student, self.recovery.zeros),
            device=device,
        )
