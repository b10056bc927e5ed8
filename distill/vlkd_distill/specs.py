"""What a student is and how it is trained, as plain values that need no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from vlkd_runtime.errors import ConfigError

CLIP_PREFIX = "clip:"
"""In front of an open_clip teacher's name, as a student's architecture: its image tower with visual prompts."""

TEACHER = "teacher"
"""As a student's architecture: a copy of the teacher's own image encoder."""

Pretrained = Literal["none", "hub", "package"]
TeacherView = Literal["clean_cached", "same_aug"]
MethodName = Literal["erm", "kd", "vl2v-adip", "vl2v-sd", "promptkd", "vlm-ood", "data-free", "vlkd"]
Rule = Literal["last", "mean", "source-best", "swad"]
ProjectorNorm = Literal["batch", "layer"]
JUDGING: frozenset[Rule] = frozenset({"source-best", "swad"})
StyleName = Literal["grey", "pencil", "edges", "contours", "poster", "paint", "palette"]


@dataclass(frozen=True, slots=True)
class Settings:
    """How a method trains. Every value is recorded with the result.

    Attributes:
        method: how the student learns; see ``vlkd_distill.methods``.
        epochs: passes that train the backbone; the same for every method that is compared.
        lr: peak learning rate of those passes.
        align_epochs: passes of the first stage of VL2V-ADiP and of data-free.
        align_lr: its learning rate.
        batch: images a step, drawn evenly from the source domains.
        weight_decay: AdamW's.
        image_weight: lambda of VL2V-ADiP, the weight of the teacher's image embedding.
        soft_weight: w of naive distillation, the weight of the teacher's soft labels.
        soft_temperature: T of naive distillation, promptkd, data-free and vlkd.
        divergence_weight: of promptkd's T^2 KL(teacher || student), a mean over the batch. PromptKD's code divides
            by classes, too, so its KD_WEIGHT of 1000 is ``1000 / C`` here.
        projector_norm: of promptkd's projector between its two layers: ``batch`` takes each batch's statistics (the
            paper), ``layer`` looks at one sample alone.
        answers_weight: of the same divergence in vlkd.
        prompt_weight: beta of data-free, the weight of the class that an image was made from.
        embedding_weight: of data-free's distance to the teacher's image embedding; 0 leaves it out.
        text_temperature: tau of vlm-ood's similarities.
        nearest_texts: k of vlm-ood's proximity term: how many class texts nearest to the teacher it compares.
        cls_weight: of vlm-ood's and vlkd's cross-entropy on the class vectors; 0 switches a term off.
        distance_weight: of their squared distance to the teacher's unit embedding.
        contrast_weight: of its image-to-image InfoNCE.
        proximity_weight: of its vision-language proximity.
        caption_weight: of vlm-ood's contrast with captions, which are then read from ``data.captions``.
        relation_weight: of vlkd's relations between samples.
        style_share: chance that vlkd shows a style view instead of the image.
        styles: the styles it draws; see ``vlkd_distill.stylise``.
        prompted_styles: further styles of vlkd, as texts with one ``{}`` for the class name; images are redrawn by the
            synthesiser (``synthesis.synthesiser``: ``diffusion`` from image and text, or ``inversion``).
        start_share: of vlkd: how much of the weights that its last stage began with is mixed into those it ends with.
            One half for a start that is good by itself; 0 for none of it.
        teacher_view: ``same_aug`` embeds the very view the student sees (the paper); ``clean_cached``
            embeds each image once.
        batch_norm: ``frozen`` keeps the statistics of the start weights (the paper).
        frozen_groups: leading groups of the backbone's layers that keep their start weights, in timm's coarse order:
            1 is the stem, 3 the stem and two stages; see ``vlkd_distill.freezing``. 0 trains all.
        precision: ``auto`` multiplies in bfloat16 where the processor has it in hardware (good for dense
            and grouped convolutions, slower for depthwise ones); ``float32`` never does.
        weights: which weights a training ends with: the ``last``, the ``mean`` over the second half's steps,
            those with the least loss on source images kept back (``source-best``), or ``swad``'s; see
            ``vlkd_distill.averaging``. No rule looks at a held-out domain.
        align_weights: the same for the first stage of methods that align, so what the second one starts from:
            ``source-best`` is VL2V's best single checkpoint.
        kept_back: share of the source images that ``source-best`` and ``swad`` judge by and do not train on.
        judgements: how often they do.
        seed: of batches and views.
        processes: how many share the work of each batch; the result is the same up to rounding. Under torchrun, as many
            as it has started.
        device: ``auto`` computes on an NVIDIA GPU where torch has one; ``cpu``, ``cuda`` or ``cuda:N``. With several
            processes each takes a GPU of its own, as far as there are.
    """

    method: MethodName = "vlkd"
    epochs: int = 2
    lr: float = 2e-4
    align_epochs: int = 30
    align_lr: float = 1e-3
    batch: int = 48
    weight_decay: float = 0.01
    image_weight: float = 0.5
    soft_weight: float = 0.5
    soft_temperature: float = 2.0
    divergence_weight: float = 1.0
    projector_norm: ProjectorNorm = "batch"
    answers_weight: float = 1.0
    prompt_weight: float = 0.5
    embedding_weight: float = 1.0
    text_temperature: float = 0.07
    nearest_texts: int = 256
    cls_weight: float = 1.0
    distance_weight: float = 1.0
    contrast_weight: float = 1.0
    proximity_weight: float = 1.0
    caption_weight: float = 0.0
    relation_weight: float = 0.0
    style_share: float = 0.5
    styles: tuple[StyleName, ...] = ("pencil", "edges", "poster", "grey", "paint", "palette")
    prompted_styles: tuple[str, ...] = ()
    start_share: float = 0.0
    teacher_view: TeacherView = "same_aug"
    batch_norm: Literal["train", "frozen"] = "frozen"
    frozen_groups: int = 0
    precision: Literal["auto", "float32"] = "float32"
    weights: Rule = "last"
    align_weights: Rule = "last"
    kept_back: float = 0.1
    judgements: int = 20
    seed: int = 0
    processes: int = 1
    device: str = "auto"

    @property
    def every_style(self) -> tuple[str, ...]:
        """The styles that are drawn and those that are named, in the order of `StyledStore`."""
        return (*self.styles, *self.prompted_styles)

    @property
    def judges(self) -> bool:
        """Whether source images are kept back to choose weights by."""
        aligned = self.align_weights in JUDGING and "align_epochs" in _READ[self.method]
        return self.weights in JUDGING or aligned

    @property
    def asks_about_images(self) -> bool:
        """Whether vlm-ood has a term on; all but its cross-entropy look at the teacher's image embeddings."""
        return self.distance_weight > 0 or self.contrast_weight > 0 or self.proximity_weight > 0

    @property
    def reads_captions(self) -> bool:
        """Whether the method looks at captions of the images."""
        return self.method == "vlm-ood" and self.caption_weight > 0

    def used(self) -> dict[str, Any]:
        """The values that this method reads: what its result depends on."""
        judging = ("kept_back", "judgements") if self.judges else ()
        captions = ("caption_weight",) if self.reads_captions else ()
        frozen = ("frozen_groups",) if self.frozen_groups else ()
        named = ("prompted_styles",) if self.method == "vlkd" and self.prompted_styles else ()
        norm = ("projector_norm",) if self.method == "promptkd" and self.projector_norm != "batch" else ()
        aligns = self.align_weights != "last" and "align_epochs" in _READ[self.method]
        aligned = ("align_weights",) if aligns else ()
        mixed = ("start_share",) if self.method == "vlkd" and self.start_share else ()
        read = (*_SHARED, *judging, *captions, *frozen, *aligned, *named, *norm, *mixed, *_READ[self.method])
        return {name: getattr(self, name) for name in read}

    def as_json(self) -> dict[str, Any]:
        """All values, to write beside results; what is younger than some results is left out where it is theirs."""
        plain = dataclasses.asdict(self)
        for name, theirs in _YOUNGER.items():
            if plain[name] == theirs:
                del plain[name]
        return plain


_YOUNGER = MappingProxyType(
    {
        "caption_weight": 0,
        "frozen_groups": 0,
        "answers_weight": 1,
        "start_share": 0,
        "device": "auto",
        "align_weights": "last",
        "projector_norm": "batch",
        "prompted_styles": (),
    }
)
_SHARED = ("method", "epochs", "lr", "batch", "weight_decay", "batch_norm", "precision", "weights", "seed")
_READ: Mapping[MethodName, tuple[str, ...]] = MappingProxyType(
    {
        "erm": (),
        "kd": ("soft_weight", "soft_temperature", "teacher_view"),
        "vl2v-adip": ("align_epochs", "align_lr", "image_weight", "teacher_view"),
        "vl2v-sd": ("image_weight", "teacher_view"),
        "promptkd": ("soft_temperature", "divergence_weight", "teacher_view"),
        "vlm-ood": (
            *("text_temperature", "nearest_texts", "cls_weight", "distance_weight"),
            *("contrast_weight", "proximity_weight", "teacher_view"),
        ),
        "data-free": (
            *("align_epochs", "align_lr", "soft_temperature", "prompt_weight", "embedding_weight"),
            "teacher_view",
        ),
        "vlkd": (
            *("align_epochs", "align_lr", "cls_weight", "distance_weight", "answers_weight"),
            *("soft_temperature", "relation_weight", "style_share", "styles", "teacher_view"),
        ),
    }
)


@dataclass(frozen=True, slots=True)
class PromptSettings:
    """How prompts are learned; the values are PromptSRC's.

    Attributes:
        tokens: learned tokens a layer, in each tower.
        layers: prompted layers, counted from the first; a tower with fewer has them in all of its own.
        start: the words whose token embeddings the first layer's context starts from; where they are fewer
            than ``tokens``, the rest start as small noise.
        shots: labelled images a class that are looked at, drawn by the seed; 0 for all.
        epochs: passes over them.
        batch: images a step.
        lr: of SGD with momentum 0.9, falling as a cosine to zero.
        weight_decay: SGD's.
        text_weight: of the mean absolute distance between prompted and frozen text embeddings.
        image_weight: likewise for image embeddings; without effect where the image tower has no prompts.
        logit_weight: of KL(zero-shot || prompted), a mean over images and classes as in PromptSRC; its
            weight as a mean over images alone is ``logit_weight / C``.
        average_at: epoch with the largest weight in the average of the prompts, as a share of all epochs.
        average_width: standard deviation of those weights, likewise.
        templates: prompts of the frozen text embeddings.
        min_area: smallest crop of a random view; views are drawn only where the image tower has prompts.
    """

    tokens: int = 4
    layers: int = 9
    start: str = "a photo of a"
    shots: int = 16
    epochs: int = 20
    batch: int = 8
    lr: float = 5e-3
    weight_decay: float = 5e-4
    text_weight: float = 25.0
    image_weight: float = 10.0
    logit_weight: float = 1.0
    average_at: float = 0.75
    average_width: float = 0.05
    templates: tuple[str, ...] = ("a photo of a {}.", "a painting of a {}.", "a sketch of a {}.", "a {}.")
    min_area: float = 0.3

    def __post_init__(self) -> None:
        counts = {name: getattr(self, name) for name in ("tokens", "layers", "epochs", "batch")}
        wrong = [f"{name} must be at least 1, found {value}" for name, value in counts.items() if value < 1]
        if self.shots < 0:
            wrong.append(f"shots must be 0 (all images) or more, found {self.shots}")
        if self.average_width <= 0:
            wrong.append(f"average_width must be above 0, found {self.average_width}")
        if wrong:
            msg = f"prompts: {'; '.join(wrong)}. Correct the settings of prompt learning."
            raise ConfigError(msg)


@dataclass(frozen=True, slots=True)
class StudentSpec:
    """What the student is before it learns anything.

    Attributes:
        arch: timm model name; ``teacher``, a copy of the teacher's image encoder with its weights; for promptkd also
            ``clip:<teacher name>``, an open_clip image transformer.
        image_size: input height and width in pixels.
        pretrained: where a timm model's start weights come from.
        seed: seeds the weights that start random.
        options: extra keyword arguments of the timm model.
    """

    arch: str
    image_size: int
    pretrained: Pretrained = "none"
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
