"""``vlkd.toml`` as typed values: unknown keys are refused with the nearest known one, all errors at once."""

from __future__ import annotations

import dataclasses
import json
import operator
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vlkd_bench.leaveout import BASELINE
from vlkd_bench.verdict import GuardBudget
from vlkd_compress.prune.settings import Goal, PruneSettings
from vlkd_distill.specs import PromptSettings, Settings
from vlkd_distill.synthspecs import SynthesisSettings
from vlkd_runtime.errors import ConfigError

from . import targets as devices
from .parsing import overrides, parse, put, substitute

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


CandidateName = Literal[
    "int8-minmax",
    "int8-entropy",
    "int8-percentile",
    "int8-mse",
    "int8-dynamic",
    "weights8",
    "weights4",
    "fp16",
]


@dataclass(frozen=True, slots=True)
class DataConfig:
    """Where the images are and which domains nothing may learn from.

    Attributes:
        root: ``demo``, a folder laid out as ``<domain>/<class>/<image>``, or ``wds:<pattern>`` for WebDataset
            shards named ``<domain>-<number>.tar``.
        held_out: domains kept for the guard and the report; none lets the guard judge on virtual domains.
        domains: take only these domains of the folder; all when empty.
        classes: class names in label order; the folder names, sorted, when empty.
        unknown: folder of images that show none of the classes, for the guard's rejection of unknowns; none when empty.
        captions: ``.jsonl`` or ``.csv`` file with a caption for each train image, read where
            ``distill.caption_weight`` is above 0; see `vlkd_distill.captions`.
        stand_in: a sentence shown beside every number, if the data stand in for something else.
        demo_images: images of each class that the demo world renders in each source style.
        demo_held_out_images: the same for each held-out style; the guard needs enough of them to decide.
        demo_seed: seed of the demo world.
    """

    root: str = "demo"
    held_out: tuple[str, ...] = ("sketch",)
    domains: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    unknown: str = ""
    captions: str = ""
    stand_in: str = ""
    demo_images: int = 20
    demo_held_out_images: int = 300
    demo_seed: int = 1

    @property
    def name(self) -> str:
        """What to call the data set: its folder's name, or ``demo``."""
        if self.root.startswith("wds:"):
            return Path(self.root.partition(":")[2]).parent.name or "shards"
        return "demo" if self.root == "demo" else Path(self.root).name


@dataclass(frozen=True, slots=True)
class TeacherConfig:
    """Who teaches, and how the class names become sentences.

    Attributes:
        model: ``demo``, ``local-dir:<folder>`` or ``<architecture>:<pretrained tag>`` of open_clip,
            ``onnx-pair:<folder>``, ``store:<file>``, ``call:<module>:<attribute>``, or ``hf-dir:<folder>``.
        query_budget: most images and texts that may be asked of it; no limit when absent.
        templates: name of a built-in template set, or a list of templates with one ``{}`` each.
        attributes: TOML or JSON file, class name to what one sees of it; ``demo`` for the demo world's.
        stand_in: a sentence shown beside every number, if the teacher stands in for a real one.
    """

    model: str = "demo"
    query_budget: int | None = None
    attributes: str = ""
    templates: str | tuple[str, ...] = "photo"
    stand_in: str = ""


@dataclass(frozen=True, slots=True)
class StudentConfig:
    """What is trained and shipped.

    Attributes:
        arch: timm model name.
        image_size: input height and width in pixels.
        jpeg_scale: JPEG files are decoded at 1/2, 1/4 or 1/8 as far as this many times ``image_size`` is left on both
            sides, in training as on the device; 0 decodes them whole.
        pretrained: ``none``, ``hub``, or ``package`` (the ``weights`` extra).
        options: further keyword arguments of the timm model.
    """

    arch: str = "tf_efficientnet_lite0"
    image_size: int = 64
    jpeg_scale: int = 0
    pretrained: Literal["none", "hub", "package"] = "package"
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CompressConfig:
    """What is tried to make the student smaller, boldest first, and when the search ends.

    Attributes:
        candidates: in the order in which the guard sees them; what suits the target when empty. FP16 and
            weight-only candidates come after the ranked ones.
        rank: when the bold candidates fail, rank layers by their harm to the worst domain and put the worst
            back to float; without, only the candidates are tried.
        trials: most candidates that are tried.
        minutes: after this long no further candidate is begun.
        calibration_images: train images of the source domains that set the scales.
        calibration: ``even`` takes as many of each domain and class; ``coverage`` takes images that leave no
            part of the teacher's embedding space uncovered; ``styles`` offers style views of some of them, too.
        qat_epochs: passes over the train images in quantization-aware training, which is tried when nothing else
            in INT8 passed; 0 leaves it out.
        prune: channels and weights that go before anything is quantized, `vlkd_compress.prune.settings.PruneSettings`.
    """

    candidates: tuple[CandidateName, ...] = ()
    rank: bool = True
    trials: int = 8
    minutes: float = 30.0
    calibration_images: int = 256
    calibration: Literal["even", "coverage", "styles"] = "even"
    qat_epochs: int = 2
    prune: PruneSettings = field(default_factory=PruneSettings)


@dataclass(frozen=True, slots=True)
class GuardConfig:
    """How much compression may cost on the held-out domains, in points: 1.0 is one image in a hundred.

    Attributes:
        worst_points: budget of the worst held-out domain's accuracy.
        mean_points: budget of their mean; not judged apart when there is one domain only.
        flip_points: budget of the share of images with another answer; shown but not judged when absent.
        ece_points: budget of the growth of the expected calibration error; the same.
        rejection_points: budget of the drop in AUROC of telling known classes from absent ones; the same.
        confidence: of the bounds, 0.5 to 1.
        early_stop: stop asking a candidate as soon as its verdict is clear; the error rate stays the same.
        virtual: families of virtual domains, drawn from the source domains' test images where none is held out.
        severities: of the corruptions among them, 1 to 5.
    """

    worst_points: float = 1.0
    mean_points: float = 0.5
    flip_points: float | None = None
    ece_points: float | None = None
    rejection_points: float | None = None
    confidence: float = 0.95
    early_stop: bool = True
    virtual: tuple[Literal["noise", "blur", "weather", "digital", "sketch", "painting", "grey"], ...] = (
        "noise",
        "blur",
        "weather",
        "digital",
        "sketch",
        "painting",
        "grey",
    )
    severities: tuple[int, ...] = (1, 2, 3)

    def budget(self) -> GuardBudget:
        """What the guard is told."""
        plain = dataclasses.asdict(self)
        return GuardBudget(
            **{item.name: plain[item.name] for item in dataclasses.fields(GuardBudget) if item.name in plain}
        )


@dataclass(frozen=True, slots=True)
class BundleConfig:
    """What the bundle holds beside the graph that the guard chose.

    Attributes:
        variants: further precisions of it, each judged before it ships; what suits the target when empty.
    """

    variants: tuple[Literal["float16", "float32"], ...] = ()


@dataclass(frozen=True, slots=True)
class BenchConfig:
    """How the shipped artifact is timed.

    Attributes:
        samples: timed calls; a p99 needs 1000.
        threads: of the engine on this machine.
    """

    samples: int = 1000
    threads: int = 1


@dataclass(frozen=True, slots=True)
class Config:
    """Everything a build depends on.

    Attributes:
        name: names the bundle.
        target: device the bundle is for; see ``vlkd-edge targets``.
        targets: tables of devices of one's own, ``[targets.NAME]``.
        targets_file: a TOML file with such tables, shared by several configurations.
        distill: how the student learns, `vlkd_distill.specs.Settings`; epochs hold for the baseline too.
        synthesis: what ``distill.method = "data-free"`` learns from, `vlkd_distill.synthspecs.SynthesisSettings`.
        prompts: how promptkd learns the teacher's prompts.
    """

    name: str = "demo"
    target: str = "jetson"
    data: DataConfig = field(default_factory=DataConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    distill: Settings = field(default_factory=Settings)
    synthesis: SynthesisSettings = field(default_factory=SynthesisSettings)
    prompts: PromptSettings = field(default_factory=PromptSettings)
    compress: CompressConfig = field(default_factory=CompressConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    bundle: BundleConfig = field(default_factory=BundleConfig)
    bench: BenchConfig = field(default_factory=BenchConfig)
    targets: dict[str, Any] = field(default_factory=dict)
    targets_file: str = ""

    def device(self) -> devices.Target:
        """The target, built in or defined here.

        Raises:
            ConfigError: no such target, or a table that defines none.
        """
        shared = devices.load(Path(self.targets_file) if self.targets_file else None)
        return devices.find(self.target, (*shared, *devices.from_tables(self.targets, [])))

    def as_json(self) -> dict[str, Any]:
        """Plain values, for keys and records."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain


DEMO = Path(__file__).with_name("demo.toml")
"""The recipe of a build without a configuration."""


def load(path: Path | None, variables: Sequence[str] = (), settings: Sequence[str] = ()) -> Config:
    """Read a configuration.

    Args:
        path: a TOML file; every default when None.
        variables: ``name=value`` pairs that override the file's ``[vars]`` table.
        settings: ``section.key=value`` pairs that override anything; values are TOML, bare words are strings.

    Raises:
        ConfigError: names every problem found, not only the first.
    """
    table = _read(path) if path is not None else {}
    errors: list[str] = []
    declared = table.pop("vars", {})
    if not isinstance(declared, dict):
        errors.append(f"vars: expected a section, found {declared!r}.")
        declared = {}
    known = {str(key): str(value) for key, value in declared.items()}
    known |= overrides(variables, known, errors)
    table = substitute(table, known, errors, "")
    for setting in settings:
        put(table, setting, errors)
    config = parse(Config, table, "", errors)
    if config is not None:
        errors += _check(config)
    if errors:
        where = str(path) if path is not None else "the command line"
        listed = "\n".join(f"  {error}" for error in errors)
        msg = f"{len(errors)} problem{'s' * (len(errors) > 1)} in {where}:\n{listed}"
        raise ConfigError(msg)
    assert config is not None
    return config


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        msg = f"Expected a configuration file at {path}, found nothing. Without --config the demo is built."
        raise ConfigError(msg) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        msg = f"Expected a TOML file at {path}: {error}"
        raise ConfigError(msg) from error


_RANGES: dict[str, tuple[float, float]] = {
    "data.demo_images": (20, 100_000),
    "data.demo_seed": (0, 999_999_999),  # the demo teacher learned from the seeds above
    "data.demo_held_out_images": (20, 100_000),
    "student.image_size": (32, 1024),
    "student.jpeg_scale": (0, 16),
    "distill.epochs": (1, 100_000),
    "distill.lr": (1e-8, 10),
    "distill.align_epochs": (0, 100_000),
    "distill.align_lr": (1e-8, 10),
    "distill.batch": (2, 65_536),
    "distill.weight_decay": (0, 10),
    "distill.image_weight": (0, 1),
    "distill.soft_weight": (0, 1),
    "distill.soft_temperature": (0.01, 100),
    "distill.prompt_weight": (0, 1000),
    "distill.embedding_weight": (0, 1000),
    "distill.text_temperature": (0.001, 10),
    "distill.nearest_texts": (1, 1_000_000),
    "distill.cls_weight": (0, 1000),
    "distill.distance_weight": (0, 1000),
    "distill.contrast_weight": (0, 1000),
    "distill.proximity_weight": (0, 1000),
    "distill.caption_weight": (0, 1000),
    "distill.divergence_weight": (0, 100_000),
    "distill.relation_weight": (0, 100_000),
    "distill.style_share": (0, 1),
    "distill.kept_back": (0.01, 0.5),
    "distill.judgements": (3, 100_000),
    "distill.seed": (0, 2**32 - 2),
    "distill.processes": (1, 256),
    "synthesis.images_per_class": (1, 1_000_000),
    "synthesis.prompts_per_class": (1, 1_000_000),
    "synthesis.seed": (0, 2**32 - 1),
    "synthesis.inversion.size": (16, 1024),
    "synthesis.inversion.steps": (1, 1_000_000),
    "synthesis.inversion.views": (1, 1024),
    "synthesis.inversion.batch": (1, 65_536),
    "synthesis.inversion.learning_rate": (1e-6, 10),
    "synthesis.inversion.decay": (0, 4),
    "synthesis.inversion.smoothness": (0, 1000),
    "synthesis.inversion.noise": (0, 1),
    "synthesis.diffusion.size": (0, 4096),
    "synthesis.diffusion.steps": (1, 1000),
    "synthesis.diffusion.guidance": (0, 100),
    "synthesis.diffusion.batch": (1, 1024),
    "compress.calibration_images": (32, 100_000),
    "compress.trials": (1, 1000),
    "compress.minutes": (0, 100_000),
    "compress.qat_epochs": (0, 1000),
    "compress.prune.epochs": (0, 100_000),
    "compress.prune.lr": (0, 10),
    "compress.prune.images": (1, 100_000),
    "compress.prune.rounds": (1, 1000),
    "compress.prune.round_to": (1, 1024),
    "compress.prune.least": (0, 1),
    "guard.worst_points": (0, 100),
    "guard.mean_points": (0, 100),
    "guard.flip_points": (0, 100),
    "guard.ece_points": (0, 100),
    "guard.rejection_points": (0, 100),
    "guard.confidence": (0.5, 0.9999),
    "bench.samples": (10, 10_000_000),
    "bench.threads": (1, 1024),
}


def _check(config: Config) -> list[str]:
    errors = []
    for key, (low, high) in _RANGES.items():
        value = operator.attrgetter(key)(config)
        if value is not None and not low <= value <= high:
            errors.append(f"{key}: expected {low:g} to {high:g}, found {value!r}.")
    if not config.name or not config.name.replace("-", "").replace("_", "").replace(".", "").isalnum():
        errors.append(f"name: expected letters, digits, '-', '_' and '.', found {config.name!r}.")
    if config.distill.method == BASELINE:
        errors.append(
            f"distill.method: expected a method that learns from the teacher, found '{BASELINE}', the baseline that "
            "every build trains beside it."
        )
    weights = ("cls_weight", "distance_weight", "contrast_weight", "proximity_weight", "caption_weight")
    if not any(getattr(config.distill, name) > 0 for name in weights):
        errors.append(
            f"distill: expected one of {', '.join(weights)} above 0, found none: vlm-ood needs a loss."
        )
    if config.distill.caption_weight > 0 and not config.data.captions:
        errors.append(
            "distill.caption_weight: expected a file of captions in data.captions, found none; name one, or set 0."
        )
    devices.from_tables(config.targets, errors)
    guard = config.guard
    if not guard.virtual or len(set(guard.virtual)) != len(guard.virtual):
        errors.append(f"guard.virtual: expected at least one, each once, found {list(guard.virtual)}.")
    if not guard.severities or not set(guard.severities) <= set(range(1, 6)):
        errors.append(f"guard.severities: expected numbers from 1 to 5, found {list(guard.severities)}.")
    if guard.rejection_points is not None and not config.data.unknown:
        errors.append(
            "guard.rejection_points: expected images of absent classes in data.unknown, found no folder."
        )
    errors += _check_processes(config)
    candidates = config.compress.candidates
    if len(set(candidates)) != len(candidates):
        errors.append(f"compress.candidates: expected each once, found {list(candidates)}.")
    return errors + _check_pruning(config.compress.prune) + _check_synthesis(config.synthesis)


def _check_pruning(asked: PruneSettings) -> list[str]:
    errors = []
    if asked.target:
        try:
            Goal.parse(asked.target)
        except ConfigError as error:
            errors.append(f"compress.prune.target: {error}")
    steps = list(asked.steps)
    if not steps or steps != sorted(set(steps), reverse=True) or not 0 < steps[-1] <= steps[0] <= 1:
        errors.append(
            f"compress.prune.steps: expected parts of the cut above 0, falling from 1, found {steps}."
        )
    return errors


def _check_synthesis(asked: SynthesisSettings) -> list[str]:
    errors = []
    if asked.space == "token" and asked.rule != "single" and asked.synthesiser != "inversion":
        errors.append(
            f"synthesis.space: a prompt in token space has no words, and the synthesiser '{asked.synthesiser}' "
            "reads nothing else: expected 'sentence', or the synthesiser 'inversion'."
        )
    if asked.synthesiser == "diffusion" and not asked.diffusion.model:
        errors.append(
            "synthesis.diffusion.model: expected a diffusers folder or a hub id <owner>/<name>, found nothing."
        )
    return errors


def _check_processes(config: Config) -> list[str]:
    """What several processes cannot share."""
    how = config.distill
    if how.processes == 1:
        return []
    errors = []
    if how.batch < how.processes:
        errors.append(f"distill.processes: expected at most the batch of {how.batch}, found {how.processes}.")
    if how.batch_norm == "train":
        errors.append(
            "distill.processes: expected 1 where distill.batch_norm = 'train', as batch statistics are of one "
            f"process's part of a batch, found {how.processes}. Use 'frozen', or one process."
        )
    if how.method == "promptkd" and how.teacher_view == "same_aug":
        errors.append("distill.processes: expected 1 for promptkd with distill.teacher_view = 'same_aug'.")
    counted = config.teacher.query_budget is not None or config.teacher.model.startswith("call:")
    if how.teacher_view == "same_aug" and counted:
        errors.append(
            "distill.processes: expected 1 where a teacher whose questions are counted embeds views, found "
            f"{how.processes}. Use distill.teacher_view = 'clean_cached', or one process."
        )
    return errors
