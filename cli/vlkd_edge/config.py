"""What ``vlkd.toml`` may say, as typed values; `configfile` reads it."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vlkd_bench.verdict import GuardBudget
from vlkd_compress.prune.settings import PruneSettings
from vlkd_distill.specs import TEACHER, PromptSettings, Settings
from vlkd_distill.synthspecs import SynthesisSettings

from . import targets as devices

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
        shots: how many train images of each class in each source domain are learned from, always the same ones; 0 for
            all. What is measured on stays whole.
        unknown: folder of images that show none of the classes, for the guard's rejection of unknowns; none when empty.
        unlabelled: folder of images without labels, from which promptkd's student learns, too, as from one more domain;
            none when empty.
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
    shots: int = 0
    unknown: str = ""
    unlabelled: str = ""
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
            ``onnx-pair:<folder>``, ``store:<file>``, ``call:<module>:<attribute>``, ``hf-dir:<folder>``,
            or ``hf:<model id>``.
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
        arch: timm model name, ``clip:<name of a teacher>``, or ``teacher``: a copy of the teacher's image encoder.
        image_size: input height and width in pixels.
        jpeg_scale: JPEG files are decoded at 1/2, 1/4 or 1/8 as far as this many times ``image_size`` is left on both
            sides, in training as on the device; 0 decodes them whole.
        pretrained: ``none``, ``hub``, or ``package`` (the ``weights`` extra).
        options: further keyword arguments of the timm model; of a CLIP that promptkd trains (``clip:<teacher name>``),
            ``tokens`` and ``layers`` of its visual prompts.
    """

    arch: str = "tf_efficientnet_lite0"
    image_size: int = 64
    jpeg_scale: int = 2
    pretrained: Literal["none", "hub", "package"] = "package"
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def words(self) -> str:
        """What it starts as, for tables."""
        if self.arch == TEACHER:
            return f"the teacher's image encoder at {self.image_size} px"
        return f"{self.arch} at {self.image_size} px, start weights {self.pretrained}"


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
