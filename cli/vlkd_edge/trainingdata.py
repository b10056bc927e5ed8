"""What a method's training sees: pixels, and of the teacher's answers what the method asks for."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vlkd_bench.samples import Sample
from vlkd_distill.data import NO_LABEL
from vlkd_distill.specs import MethodName, Settings
from vlkd_runtime.errors import UnavailableError

from . import sharded, synthesising
from .config import Config
from .learn import Learning, matched, teacher_key
from .stages import StageResult

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from vlkd_distill.feeding import TrainingData
    from vlkd_distill.stages import Method
    from vlkd_distill.styled import StyledStore
    from vlkd_distill.teachers import Teacher

# Files in the folder of a training.
EMBEDDINGS = "embeddings.npy"
CAPTIONS = "captions.npy"


def seer(learning: Learning, method: MethodName, vectors: StageResult) -> Callable[[], Teacher]:
    """Who embeds images for a method: the teacher, or the teacher with learned visual prompts."""
    if method != "promptkd":
        return partial(matched, learning, vectors)

    def prompted() -> Teacher:
        from vlkd_distill import prompt_learning
        from vlkd_distill.prompting import PromptedTeacher

        base = learning.open_clip_teacher(method)
        found = PromptedTeacher.load(vectors.folder / prompt_learning.FILE, base)
        return base if found.visual is None else found  # without visual prompts it sees what the teacher sees

    return prompted


def training_data(
    learning: Learning,
    how: Method,
    settings: Settings,
    samples: Sequence[Sample],
    store: StageResult,
    teacher: Callable[[], Teacher],
    folder: Path,
) -> TrainingData:
    """Pixels, and of the teacher's answers what the method asks for: cached ones, the teacher, style views."""
    from vlkd_distill import checkpoints, embeddings, feeding, pixels, splits

    images = pixels.PixelStore.open(store.folder, samples)
    cache, cached, styled = learning.workspace.cache, None, None
    clean = any(stage.cached_features and stage.epochs > 0 for stage in how.stages())
    if how.needs_teacher and (clean or settings.teacher_view == "clean_cached"):
        with learning.live.task("asking the teacher", len(images.samples)) as advance:
            contents = None
            if sharded.learns_from_shards(learning.config, images.samples):
                contents = sharded.contents(learning.config, images.samples)
            cached = embeddings.embed(
                teacher(),
                images.samples,
                cache / "embeddings",
                advance,
                into=folder / EMBEDDINGS,
                contents=contents,
            )
    if how.uses_styles and settings.style_share > 0:
        styled = _styled(learning, settings, images.samples, store)
    asked = teacher() if how.needs_teacher and settings.teacher_view == "same_aug" else None
    kept_back: tuple[int, ...] = ()
    if settings.judges:
        rows = {sample.image: row for row, sample in enumerate(images.samples)}
        labelled = [sample for sample in images.samples if sample.label != NO_LABEL]
        _, chosen = splits.source_holdout(labelled, settings.kept_back, settings.seed)
        kept_back = tuple(rows[sample.image] for sample in chosen)
    captions = _captions(learning, images.samples) if settings.reads_captions else None
    seen = feeding.TrainingData(images, cached, asked, styled, kept_back, captions)
    if asked is not None and not (folder / checkpoints.FILE).exists():
        _check_views(asked, how, settings, seen)
    return seen


def _check_views(teacher: Teacher, how: Method, settings: Settings, seen: TrainingData) -> None:
    """Refuse a training whose views the budget cannot pay for: unlike images, they cannot be kept.

    Raises:
        UnavailableError: says how many questions it needs and how many are left.
    """
    from vlkd_distill.feeding import steps_of
    from vlkd_distill.querybudget import counted

    asked = counted(teacher)
    left = asked.report().left if asked is not None else None
    epochs = sum(stage.epochs for stage in how.stages() if not stage.cached_features)
    needed = epochs * steps_of(len(seen.rows), settings.batch) * settings.batch
    if left is not None and needed > left:
        msg = (
            f"Training asks the teacher '{teacher.name}' about {needed} views ({epochs} epochs of {len(seen.rows)} "
            f"images), and {left} questions of teacher.query_budget are left. Nothing was asked. Raise it, or set "
            'distill.teacher_view = "clean_cached", which asks once about each image.'
        )
        raise UnavailableError(msg)


def _captions(learning: Learning, samples: Sequence[Sample]) -> npt.NDArray[np.float32]:
    """The teacher's embeddings of the images' captions, asked for once."""
    import numpy as np

    from vlkd_distill.captions import embed_captions, read_captions

    captions = read_captions(Path(learning.config.data.captions), samples)

    def work(folder: Path) -> None:
        with learning.live.task("embedding captions", len(captions)) as advance:
            embed_captions(learning.teacher(), captions, folder / CAPTIONS, advance)

    said = hashlib.sha256(json.dumps(captions).encode()).hexdigest()
    inputs = {"teacher": teacher_key(learning.config), "captions": said}
    stage = learning.workspace.stage("captions", inputs, work)
    mapped: npt.NDArray[np.float32] = np.load(stage.folder / CAPTIONS, mmap_mode="r", allow_pickle=False)
    return mapped


def _styled(
    learning: Learning, settings: Settings, samples: Sequence[Sample], store: StageResult
) -> StyledStore:
    """Style views of the train images; with the teacher's embeddings of them, unless training asks about each crop."""
    asks = settings.teacher_view == "clean_cached"

    def work(folder: Path) -> None:
        from vlkd_distill import styled

        total = len(samples) * len(settings.every_style)
        with learning.live.task("drawing other styles", total) as advance:
            cache = learning.workspace.cache / "styled"
            own = None
            if sharded.learns_from_shards(learning.config, samples):
                own = PixelStore.open(store.folder, samples).pixels
            styled.build(
                folder,
                samples,
                learning.spec,
                settings.styles,
                learning.teacher() if asks else None,
                cache,
                advance,
                pixels_of=own,
                named=synthesising.named_styles(learning, settings),
            )

    from vlkd_distill.pixels import PixelStore
    from vlkd_distill.styled import StyledStore

    inputs = {
        "pixels": store.key,
        "styles": list(settings.styles),
        "teacher": teacher_key(learning.config) if asks else "",
        "renderer": style_renderer(),
    }
    if settings.prompted_styles:
        inputs["prompted"] = [*settings.prompted_styles, synthesising.restyler_key(learning.config)]
    stage = learning.workspace.stage("styles", inputs, work)
    return StyledStore.open(stage.folder, settings.every_style)


def captions_key(config: Config) -> str:
    """Hash of the captions' file."""
    return hashlib.sha256(Path(config.data.captions).read_bytes()).hexdigest()


def style_renderer() -> str:
    """Hash of the styles' source: another renderer draws other views."""
    package = importlib.util.find_spec("vlkd_distill")
    assert package is not None and package.origin is not None
    return hashlib.sha256((Path(package.origin).parent / "stylise.py").read_bytes()).hexdigest()[:16]


def folder_of(mapped: object) -> Path:
    """The folder of an array that is mapped from a file."""
    import numpy as np

    assert isinstance(mapped, np.memmap)
    return Path(str(mapped.filename)).parent


def forget_embeddings(folder: Path) -> None:
    """Take away what `training_data` left in a folder that is kept."""
    (folder / EMBEDDINGS).unlink(missing_ok=True)
