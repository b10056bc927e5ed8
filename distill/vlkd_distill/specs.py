"""What a student is and how it is trained, as plain values that need no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Pretrained = Literal["none", "hub", "package"]
TeacherView = Literal["clean_cached", "same_aug"]


@dataclass(frozen=True, slots=True)
class Settings:
    """How a method trains. Every value is recorded with the result.

    Attributes:
        method: key of ``vlkd_distill.methods.METHODS``.
        epochs: passes that train the backbone; the same for every method that is compared.
        lr: peak learning rate of those passes.
        align_epochs: passes of VL2V-ADiP's first stage.
        align_lr: its learning rate.
        batch: images a step, drawn evenly from the source domains.
        weight_decay: AdamW's.
        image_weight: lambda of VL2V-ADiP, the weight of the teacher's image embedding.
        soft_weight: w of naive distillation, the weight of the teacher's soft labels.
        soft_temperature: T of naive distillation.
        text_temperature: tau of vlm-ood's similarities.
        nearest_texts: k of vlm-ood's proximity term: how many class texts nearest to the teacher it compares.
        teacher_view: ``same_aug`` embeds the very view the student sees (the paper); ``clean_cached``
            embeds each image once.
        batch_norm: ``frozen`` keeps the statistics of the start weights (the paper).
        precision: ``auto`` multiplies in bfloat16 where the processor has it in hardware (good for dense
            and grouped convolutions, slower for depthwise ones); ``float32`` never does.
        seed: of batches and views.
    """

    method: str
    epochs: int
    lr: float
    align_epochs: int
    align_lr: float
    batch: int
    weight_decay: float
    image_weight: float
    soft_weight: float
    soft_temperature: float
    text_temperature: float
    nearest_texts: int
    teacher_view: TeacherView
    batch_norm: Literal["train", "frozen"]
    precision: Literal["auto", "float32"]
    seed: int


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
