"""What a student is and how it is trained, as plain values that need no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

Pretrained = Literal["none", "hub", "package"]
TeacherView = Literal["clean_cached", "same_aug"]
MethodName = Literal["erm", "kd", "vl2v-adip", "vlm-ood", "data-free"]


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
        soft_temperature: T of naive distillation and of data-free.
        prompt_weight: beta of data-free, the weight of the class that an image was made from.
        embedding_weight: of data-free's distance to the teacher's image embedding; 0 leaves it out.
        text_temperature: tau of vlm-ood's similarities.
        nearest_texts: k of vlm-ood's proximity term: how many class texts nearest to the teacher it compares.
        cls_weight: of vlm-ood's cross-entropy on the class vectors; 0 switches a term off.
        distance_weight: of its squared distance to the teacher's unit embedding.
        contrast_weight: of its image-to-image InfoNCE.
        proximity_weight: of its vision-language proximity.
        style_share: chance that vlkd shows a style view instead of the image.
        teacher_view: ``same_aug`` embeds the very view the student sees (the paper); ``clean_cached``
            embeds each image once.
        batch_norm: ``frozen`` keeps the statistics of the start weights (the paper).
        precision: ``auto`` multiplies in bfloat16 where the processor has it in hardware (good for dense
            and grouped convolutions, slower for depthwise ones); ``float32`` never does.
        seed: of batches and views.
    """

    method: MethodName = "vl2v-adip"
    epochs: int = 2
    lr: float = 2e-4
    align_epochs: int = 30
    align_lr: float = 1e-3
    batch: int = 48
    weight_decay: float = 0.01
    image_weight: float = 0.5
    soft_weight: float = 0.5
    soft_temperature: float = 2.0
    prompt_weight: float = 0.5
    embedding_weight: float = 1.0
    text_temperature: float = 0.07
    nearest_texts: int = 256
    cls_weight: float = 1.0
    distance_weight: float = 1.0
    contrast_weight: float = 1.0
    proximity_weight: float = 1.0
    style_share: float = 0.5
    teacher_view: TeacherView = "same_aug"
    batch_norm: Literal["train", "frozen"] = "frozen"
    precision: Literal["auto", "float32"] = "float32"
    seed: int = 0

    @property
    def asks_about_images(self) -> bool:
        """Whether vlm-ood has a term on; all but its cross-entropy look at the teacher's image embeddings."""
        return self.distance_weight > 0 or self.contrast_weight > 0 or self.proximity_weight > 0

    def used(self) -> dict[str, Any]:
        """The values that this method reads: what its result depends on."""
        return {name: getattr(self, name) for name in (*_SHARED, *_READ[self.method])}


_SHARED = ("method", "epochs", "lr", "batch", "weight_decay", "batch_norm", "precision", "seed")
_READ: Mapping[MethodName, tuple[str, ...]] = MappingProxyType(
    {
        "erm": (),
        "kd": ("soft_weight", "soft_temperature", "teacher_view"),
        "vl2v-adip": ("align_epochs", "align_lr", "image_weight", "teacher_view"),
        "vlm-ood": (
            *("text_temperature", "nearest_texts", "cls_weight", "distance_weight"),
            *("contrast_weight", "proximity_weight", "teacher_view"),
        ),
        "data-free": (
            *("align_epochs", "align_lr", "soft_temperature", "prompt_weight", "embedding_weight"),
            "teacher_view",
        ),
    }
)


@dataclass(frozen=True, slots=True)
class StudentSpec:
    """What the student is before it learns anything.

    Attributes:
        arch: timm model name.
        image_size: input height and width in pixels.
        pretrained: where the start weights come from.
        seed: seeds the weights that start random.
        options: extra keyword arguments of the timm model.
    """

    arch: str
    image_size: int
    pretrained: Pretrained = "none"
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
