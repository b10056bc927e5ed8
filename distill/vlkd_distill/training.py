"""The one loop that runs every stage of every method: progress, checkpoints, exact resume.

Letters used in shapes: R images that train, n backbone features, B batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor

from . import averaging, checkpoints, losses
from .augment import clean_views
from .augmentation import Augmentation
from .clip_student import share_statistics
from .compute import CPU, autocast
from .diverging import Course
from .feeding import Feed, TrainingData, epoch_rows, steps_of
from .freezing import freeze_first
from .heap import keep_freed_memory
from .mapped import Ebb
from .processes import ALONE, Ring
from .specs import JUDGING, Settings
from .stages import Method, Stage
from .students import Student

OnStep = Callable[[str, int, float], None]


def total_steps(settings: Settings, method: Method, data: TrainingData) -> int:
    """How often `train` will call ``on_step``."""
    per_epoch = steps_of(len(data.rows), settings.batch)
    return sum(stage.epochs * per_epoch for stage in method.stages())


def train(
    student: Student,
    method: Method,
    settings: Settings,
    data: TrainingData,
    folder: Path,
    on_step: OnStep = lambda *_: None,
    augmentation: Augmentation | None = None,
    ring: Ring = ALONE,
    hold: Callable[[], None] = lambda: None,
    device: torch.device = CPU,
) -> Student:
    """Run a method's stages on a student, in place.

    A checkpoint is written after every epoch; a run that finds one goes on from there and ends with the
    same weights as an uninterrupted run.

    Args:
        student: trained in place; its head has ``method.outputs()`` columns.
        method: what to do.
        settings: how.
        data: with what.
        folder: where the checkpoint lies.
        on_step: called as ``on_step(stage name, steps done, loss)``.
        augmentation: limits of the random views.
        ring: the processes that train together; each ends with the same weights.
        hold: called after each step of the optimizer, to put back what may not change.
        device: where to compute; the student comes back on the processor.

    Raises:
        TrainingError: a loss or the weights are not finite.
    """
    keep_freed_memory()
    folder.mkdir(parents=True, exist_ok=True)
    on_features = folder / f"features-{ring.rank}.npy"
    on_features.unlink(missing_ok=True)  # of a run that was killed
    student.to(device)
    method.to(device)
    feed = Feed(method, settings, data, augmentation, ring, device)
    share_statistics(student, ring)
    resumed = checkpoints.load(folder)
    kept = torch.from_numpy(data.rows)
    stages = method.stages()
    for index, stage in enumerate(stages):
        _select_trainable(student, stage, settings)
        steps_per_epoch = steps_of(len(data.rows), settings.batch)
        optimizer = _optimizer(student, settings)
        schedule = _Schedule(optimizer, stage.lr, stage.epochs * steps_per_epoch)
        title = f"the stage '{stage.name}' of {settings.method}"
        course = Course(title, stage.epochs * steps_per_epoch, stage.rate, stage.lr)
        last = index == len(stages) - 1
        rule = settings.weights if last else settings.align_weights
        keeper = averaging.keeper(rule, stage.start_share)
        keeper.begin(student.state_dict())
        first_epoch = 0
        if resumed is not None:
            if resumed.stage > index:
                on_step(stage.name, stage.epochs * steps_per_epoch, math.nan)
                continue
            checkpoints.restore(resumed, student, optimizer)
            keeper.restore({name: tensor.to(device) for name, tensor in resumed.kept.items()})
            first_epoch, resumed = resumed.epoch, None
            schedule.done = first_epoch * steps_per_epoch
            on_step(stage.name, schedule.done, math.nan)
        features = None
        if stage.cached_features and first_epoch < stage.epochs:
            features = _cached_features(student, settings, data, on_features)
        judged = rule in JUDGING
        # Counted from the last stage, so that every method's backbone sees the same batches and views.
        from_last = len(stages) - 1 - index
        for epoch in range(first_epoch, stage.epochs):
            seed = _epoch_seed(settings.seed, from_last, epoch)
            generator = torch.Generator().manual_seed(seed)
            torch.manual_seed(seed + 1)
            _train_mode(student, stage, settings)
            for chosen in epoch_rows(data.domains, settings.batch, generator):
                rows = kept[chosen]
                if features is not None:
                    loss = method.loss(student.head(features.of(chosen).to(device)), feed.clean(rows))
                else:
                    views, batch = feed.views(rows, generator)
                    with autocast(settings.precision, device):
                        outputs = student(views)
                    loss = method.loss(ring.join(outputs.float(), len(rows)), batch)
                value = float(loss.detach())
                course.check_loss(value, schedule.done)
                # Cached features are trained on whole in every process: their gradients are the same already.
                schedule.step(loss, ring if features is None else ALONE)
                hold()
                keeper.step(student.state_dict(), schedule.share)
                if judged and schedule.at_one_of(settings.judgements):
                    keeper.judge(_source_loss(student, method, settings, data), student.state_dict())
                    _train_mode(student, stage, settings)
                on_step(stage.name, 1, value)
            course.check_weights(student.parameters())
            if ring.first:
                checkpoints.save(folder, student, optimizer, index, epoch + 1, keeper.state())
        if features is not None:
            features.remove()
        averaging.select(student, keeper.final())
    share_statistics(student, ALONE)
    student.eval().requires_grad_(False).to(CPU)
    method.to(CPU)
    return student


def _epoch_seed(seed: int, stage: int, epoch: int) -> int:
    return int(np.random.SeedSequence([seed, stage, epoch]).generate_state(1)[0])


def _train_mode(student: Student, stage: Stage, settings: Settings) -> None:
    student.train()
    if settings.batch_norm == "frozen" or stage.cached_features:
        for module in student.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.eval()


@torch.no_grad()
def _source_loss(student: Student, method: Method, settings: Settings, data: TrainingData) -> float:
    """Cross-entropy of the student's answers on the source images kept back, as they are."""
    student.eval()
    kept_back, labels = np.array(data.selection), torch.from_numpy(data.store.labels)
    total, ebb, device = 0.0, Ebb(data.store.pixels), student.mean.device
    for start in range(0, len(kept_back), 64):
        rows = kept_back[start : start + 64]
        pixels = data.store.pixels[rows]
        ebb.touch(pixels.nbytes)
        with autocast(settings.precision, device):
            outputs = student(clean_views(torch.from_numpy(pixels).to(device)))
        loss = losses.cross_entropy(method.logits(outputs.float()), labels[rows].to(device))
        total += float(loss) * len(rows)
    return total / len(kept_back)


def _select_trainable(student: Student, stage: Stage, settings: Settings) -> None:
    student.head.requires_grad_(stage.trains in ("head", "all"))
    student.backbone.requires_grad_(stage.trains in ("backbone", "all"))
    freeze_first(student.backbone, settings.frozen_groups)


def _optimizer(student: Student, settings: Settings) -> torch.optim.AdamW:
    trainable = [p for p in student.parameters() if p.requires_grad]
    return torch.optim.AdamW(
        [
            {"params": [p for p in trainable if p.ndim > 1], "weight_decay": settings.weight_decay},
            {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
        ]
    )


class _Schedule:
    """Linear warm-up over a twentieth of the steps, then half a cosine to zero."""

    def __init__(self, optimizer: torch.optim.Optimizer, peak: float, steps: int) -> None:
        self._optimizer, self._peak, self._steps = optimizer, peak, max(1, steps)
        self.done = 0

    @property
    def share(self) -> float:
        """Part of the stage that is done."""
        return self.done / self._steps

    def at_one_of(self, times: int) -> bool:
        """Whether this step ends one of ``times`` equal parts."""
        return self.done * times // self._steps > (self.done - 1) * times // self._steps

    def step(self, loss: Tensor, ring: Ring) -> None:
        warm = max(1, self._steps // 20)
        if self.done < warm:
            factor = (self.done + 1) / warm
        else:
            factor = 0.5 * (1 + math.cos(math.pi * (self.done - warm) / max(1, self._steps - warm)))
        for group in self._optimizer.param_groups:
            group["lr"] = self._peak * factor
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        ring.add_gradients(p for group in self._optimizer.param_groups for p in group["params"])
        self._optimizer.step()
        self.done += 1


class _Features:
    """Features of the images that train, in a file: they may be many more than fit into memory."""

    def __init__(self, path: Path, count: int, batches: Iterator[Tensor]) -> None:
        self._path, start = path, 0
        for batch in batches:
            if start == 0:
                self._rows = open_memmap(path, "w+", np.float32, (count, batch.shape[1]))
                self._ebb = Ebb(self._rows)
            self._rows[start : start + len(batch)] = batch.numpy()
            self._ebb.touch(batch.nbytes)
            start += len(batch)

    def of(self, chosen: Tensor) -> Tensor:
        """Rows ``(B, n)``."""
        found = torch.from_numpy(self._rows[chosen.numpy()])
        self._ebb.touch(found.nbytes)
        return found

    def remove(self) -> None:
        """Delete the file."""
        self._path.unlink()


@torch.no_grad()
def _cached_features(student: Student, settings: Settings, data: TrainingData, path: Path) -> _Features:
    """Features ``(R, n)`` of the clean images that train, from the backbone as it is.

    A backbone that starts from random weights has batch statistics of nothing yet; where they are to be
    trained, they are first taken from the images, so that the projection is fitted to features as the
    next stage will see them.
    """
    if settings.batch_norm == "train":
        _estimate_batch_norm(student, settings, data)
    student.eval()
    return _Features(path, len(data.rows), _pass(student, settings, data))


def _pass(student: Student, settings: Settings, data: TrainingData) -> Iterator[Tensor]:
    """Features of the clean images that train, a batch at a time."""
    ebb, device = Ebb(data.store.pixels), student.mean.device
    for start in range(0, len(data.rows), 64):
        pixels = torch.from_numpy(data.store.pixels[data.rows[start : start + 64]])
        ebb.touch(pixels.nbytes)
        with autocast(settings.precision, device):
            features = student.features(clean_views(pixels.to(device)))
        yield features.float().cpu()


def _estimate_batch_norm(student: Student, settings: Settings, data: TrainingData) -> None:
    layers = [m for m in student.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain mean over batches
    student.train()
    for _ in _pass(student, settings, data):
        pass
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
