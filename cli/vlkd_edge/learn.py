"""What a build learns from: data, pixels, the teacher. torch is imported only to do work."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlkd_bench.predictions import write_predictions
from vlkd_bench.samples import Sample
from vlkd_distill import data as domain_data
from vlkd_distill import teacher_names
from vlkd_distill.datacontract import describe
from vlkd_distill.specs import CLIP_PREFIX, TEACHER, MethodName, Settings, StudentSpec
from vlkd_runtime.errors import ConfigError, DataError
from vlkd_runtime.preprocess import PreprocessSpec
from vlkd_runtime.vectors import ClassVectors

from . import sharded
from .config import Config
from .progress import Live
from .stages import StageResult, Workspace, versions

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from vlkd_distill.teachers import OpenClipTeacher, Teacher


@dataclass(slots=True)
class Learning:
    """What the stages below share.

    Attributes:
        config: the build's configuration.
        workspace: where stages lie.
        live: progress.
    """

    config: Config
    workspace: Workspace
    live: Live
    _teachers: dict[tuple[str, int | None], Teacher] = field(default_factory=dict)  # which copies share

    def teacher(self) -> Teacher:
        """The teacher, loaded on first use."""
        name, budget = self._asked
        if (name, budget) not in self._teachers:
            from vlkd_distill import compute, teacher_loading

            device = compute.device_of(self.config.distill.device)
            if device != compute.CPU:
                self.live.say(f"computing on {compute.describe(device)}")
            self._teachers[name, budget] = teacher_loading.load(name, self.workspace.cache, budget, device)
        return self._teachers[name, budget]

    @property
    def _asked(self) -> tuple[str, int | None]:
        """Name and budget of the teacher."""
        asked = self.config.teacher
        return asked.model, asked.query_budget

    @property
    def loaded_teacher(self) -> Teacher | None:
        """The teacher, if anything has loaded it."""
        return self._teachers.get(self._asked)

    def open_clip_teacher(self, method: str) -> OpenClipTeacher:
        """The teacher, for methods that look inside it.

        Raises:
            ConfigError: it shows its answers only.
        """
        from vlkd_distill.teachers import OpenClipTeacher

        teacher = self.teacher()
        if not isinstance(teacher, OpenClipTeacher):
            msg = (
                f"{method} looks inside the teacher: expected an open_clip model without a query budget, found "
                f"'{teacher.name}'. Choose such a teacher, or a method that needs answers alone, such as vl2v-adip."
            )
            raise ConfigError(msg)
        return teacher

    @property
    def spec(self) -> PreprocessSpec:
        """How student and device prepare an image."""
        student = self.config.student
        size = student.image_size
        return PreprocessSpec(height=size, width=size, resize="squash", jpeg_scale=student.jpeg_scale)

    def student_spec(self) -> StudentSpec:
        """The student before it learns anything; the same for the method and its baseline."""
        student, seed = self.config.student, self.config.distill.seed
        return StudentSpec(student.arch, student.image_size, student.pretrained, seed, student.options)

    def settings(self, method: MethodName) -> Settings:
        """The training settings of a method."""
        return dataclasses.replace(self.config.distill, method=method)


def check_models(learning: Learning, methods: Sequence[MethodName]) -> None:
    """Refuse an unknown student, or weights that cannot be had, before any long work.

    What an earlier run has fetched and used is not asked for again.

    Args:
        learning: names teacher and student.
        methods: every method that is to train; some look inside the teacher.

    Raises:
        UsageError: names what to change, install or download.
    """
    inputs: dict[str, Any] = {
        "teacher": learning.config.teacher.model,
        "student": dataclasses.asdict(learning.student_spec()),
    }
    frozen = learning.config.distill.frozen_groups
    if frozen:
        inputs["frozen_groups"] = frozen
    inside = [name for name in dict.fromkeys(methods) if describe(name).white_box]
    if inside:
        inputs["inside"] = inside

    def work(_: Path) -> None:
        from vlkd_distill import freezing, starting, students
        from vlkd_distill.methods import METHODS
        from vlkd_distill.prompting import TextTower

        spec, starts = learning.student_spec(), {METHODS[name].start for name in methods}
        named = starts != {"teacher"}  # vl2v-sd's student is the teacher's copy, whatever is named
        if named:
            students.check(spec)
        with learning.live.task("loading the models", None):
            learning.teacher()
            if spec.arch == TEACHER or "teacher" in starts:
                copied = starting.copy_of(learning.teacher(), spec.image_size)
                freezing.freeze_first(copied.backbone, frozen)
            if named and spec.arch != TEACHER and not spec.arch.startswith(CLIP_PREFIX):
                freezing.freeze_first(students.create(spec, 1).backbone, frozen)
            if "promptkd" in methods:
                TextTower.of(learning.open_clip_teacher("promptkd"))

    learning.workspace.stage("models", inputs, work)


def scan(config: Config) -> domain_data.DomainDataset:
    """Read the data folder that the configuration names.

    Raises:
        DataError: it, a domain, a class or its images are missing.
    """
    data = config.data
    return domain_data.scan(Path(data.root), domains=data.domains, classes=data.classes)


def domains(config: Config) -> tuple[str, ...]:
    """The domains of the configured data.

    Raises:
        DataError: as `scan`.
    """
    if sharded.lies_in_shards(config):
        return sharded.domains(config)
    if config.data.root != "demo":
        return scan(config).domains
    from vlkd_distill.demo.scene import STYLES

    return tuple(config.data.domains or STYLES)


def class_names(config: Config) -> tuple[str, ...]:
    """The classes of the configured data, in label order; none where shards must be read to know them.

    Raises:
        DataError: as `scan`.
    """
    if sharded.lies_in_shards(config):
        return config.data.classes
    if config.data.root != "demo":
        return scan(config).classes
    from vlkd_distill.demo.scene import CLASSES

    return tuple(config.data.classes or CLASSES)


def check_domains(config: Config, *, needed: bool) -> tuple[str, ...]:
    """Refuse held-out domains that do not exist, before anything is rendered or decoded; gives the other domains.

    Args:
        config: names data and held-out domains.
        needed: whether anything learns from the other domains; if so, one must be left.

    Raises:
        UsageError: as `scan`, or a domain is unknown.
    """
    where = "the demo world" if config.data.root == "demo" else config.data.root
    return domain_data.source_domains(domains(config), config.data.held_out, where, needed=needed)


def absent(config: Config) -> tuple[Sample, ...]:
    """Images that show none of the classes, if the configuration names any.

    Raises:
        DataError: the folder is missing or holds no image.
    """
    return domain_data.scan_absent(Path(config.data.unknown)) if config.data.unknown else ()


def dataset(learning: Learning) -> domain_data.DomainDataset:
    """Read the data folder or the shards, or render the demo world; with few images to learn from, if asked.

    Raises:
        DataError: as `scan`.
    """
    whole, data = _whole_dataset(learning), learning.config.data
    return domain_data.with_shots(whole, data.shots, data.held_out) if data.shots else whole


def _whole_dataset(learning: Learning) -> domain_data.DomainDataset:
    config = learning.config.data
    if sharded.lies_in_shards(learning.config):
        return sharded.dataset(learning)
    if config.root != "demo":
        return scan(learning.config)
    from vlkd_distill import demo

    per_style = {
        style: config.demo_held_out_images if style in config.held_out else config.demo_images
        for style in demo.STYLES
    }

    def render(folder: Path) -> None:
        if (folder / "images").is_dir():  # killed between the last picture and the end of the stage
            return
        for left in folder.glob(".images.*"):
            shutil.rmtree(left, ignore_errors=True)
        total = sum(per_style.values()) * len(demo.CLASSES)
        with learning.live.task("rendering the demo", total) as advance:
            demo.write_world(folder / "images", per_class=per_style, seed=config.demo_seed, progress=advance)

    inputs = {"images": per_style, "seed": config.demo_seed, "renderer": _renderer(demo.__path__[0])}
    stage = learning.workspace.stage("data", inputs, render)
    return domain_data.scan(stage.folder / "images", domains=config.domains, classes=config.classes)


def _renderer(package: str) -> str:
    """Hash of the renderer's source: another renderer draws another world."""
    digest = hashlib.sha256()
    for path in sorted(Path(package).rglob("*.py")):
        if "teacher" not in path.name:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def teacher_key(config: Config) -> str:
    """Identity of the teacher without loading it: the content of its files, or the name a hub knows."""
    return teacher_names.teacher_key(config.teacher.model)


def pixels(learning: Learning, samples: Sequence[Sample]) -> StageResult:
    """Decode the train images of the source domains."""
    if sharded.learns_from_shards(learning.config, samples):
        return sharded.pixels(learning, samples)

    def work(folder: Path) -> None:
        from vlkd_distill import pixels as store

        with learning.live.task("decoding images", len(samples)) as advance:
            built = store.build(folder, samples, learning.spec, advance)
        for _, reason in built.bad:
            learning.live.say(f"left out: {reason}")

    inputs = {"images": domain_data.content_key(samples), "preprocess": learning.spec.to_json()}
    return learning.workspace.stage("pixels", inputs, work)


def usable(store: StageResult, samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """The images that could be decoded: what calibration and golden samples are drawn from, too."""
    bad = {image for image, _ in json.loads((store.folder / "bad.json").read_text())}
    return tuple(sample for sample in samples if sample.image not in bad)


def check_known(learning: Learning, samples: Sequence[Sample]) -> None:
    """Refuse a store of embeddings that lacks images of this run, before anything is trained.

    Raises:
        DataError: counts them and names the first, or an embedding is not finite.
    """
    config = learning.config
    if teacher_names.form_of(config.teacher.model) != "store" or sharded.lies_in_shards(config):
        return

    def work(_: Path) -> None:
        from vlkd_distill.embeddings import EmbedsFiles

        teacher = learning.teacher()
        assert isinstance(teacher, EmbedsFiles)
        teacher.check_samples(samples)

    inputs = {"teacher": teacher_key(config), "images": domain_data.content_key(samples)}
    learning.workspace.stage("store", inputs, work)


def matched(learning: Learning, vectors: StageResult) -> Teacher:
    """The teacher, held to the class vectors that its embeddings are to be compared with.

    Raises:
        DataError: they have another size.
    """
    teacher, stored = learning.teacher(), load_vectors(vectors)
    size = int(stored.vectors.shape[1])
    if teacher.dim != size:
        msg = (
            f"Expected embeddings of size {size}, as the class vectors in {vectors.folder} have, found size "
            f"{teacher.dim} from the teacher '{teacher.name}'. They are of two models: remove that folder to embed "
            "the class names anew, or set teacher.model to the one that they are of. A teacher in code must change "
            "its fingerprint when its model changes."
        )
        raise DataError(msg)
    return teacher


def teacher_predictions(
    learning: Learning, samples: Sequence[Sample], vectors: StageResult, teacher: str
) -> StageResult:
    """The teacher's zero-shot predictions on test images: the mark that students are held against."""

    def work(folder: Path) -> None:
        from vlkd_distill.embeddings import embed
        from vlkd_distill.zero_shot import predict

        stored = load_vectors(vectors)
        with learning.live.task("asking the teacher", len(samples)) as advance:
            cache, mapped = learning.workspace.cache / "embeddings", folder / "embeddings.npy"
            rows = embed(matched(learning, vectors), samples, cache, advance, into=mapped)
        write_predictions(folder / "predictions.jsonl", predict(rows, stored, samples), stored.names)
        mapped.unlink()

    inputs = {"teacher": teacher, "vectors": vectors.key, "images": domain_data.content_key(samples)}
    return learning.workspace.stage("teacher", inputs | versions("torch", "open_clip_torch"), work)


def teacher_embeddings(learning: Learning, samples: Sequence[Sample]) -> npt.NDArray[np.float32]:
    """The teacher's unit embeddings ``(N, D)`` of some images, from the cache where it has them."""
    from vlkd_distill.embeddings import embed

    with learning.live.task("asking the teacher", len(samples)) as advance:
        return embed(learning.teacher(), samples, learning.workspace.cache / "embeddings", advance)


def load_vectors(stage: StageResult) -> ClassVectors:
    """The class vectors of a stage."""
    return ClassVectors.load(stage.folder / "class_vectors.safetensors")
