"""What a student is before it learns: a timm network, the same with a projector, or a CLIP's image tower."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from vlkd_runtime.errors import ConfigError

from . import clip_student, students
from .specs import CLIP_PREFIX, TEACHER, StudentSpec
from .stages import Method
from .students import Student
from .teachers import OpenClipTeacher, Teacher


def start(spec: StudentSpec, method: Method, teacher: Callable[[], Teacher]) -> Student:
    """Make the student that a method starts from; the same spec gives the same weights.

    Args:
        spec: the student.
        method: says what kind of student it trains.
        teacher: gives the teacher; asked only where the student is made of it.

    Raises:
        ConfigError: the method cannot train such a student, or needs a teacher that is not open_clip's.
        UnavailableError: the start weights cannot be had.
    """
    clip = spec.arch.startswith(CLIP_PREFIX)
    if spec.arch == TEACHER:
        return _copied(spec, method, teacher())
    match method.start:
        case "teacher":
            return copy_of(teacher(), spec.image_size)
        case "projector" if clip:
            source = OpenClipTeacher.load(spec.arch.removeprefix(CLIP_PREFIX))
            return clip_student.prompted_student(
                source,
                spec.image_size,
                method.outputs(),
                **_prompt_sizes(spec),
                norm=method.projector_norm,
                seed=spec.seed,
            )
        case "projector":
            plain = students.create(spec, method.outputs())
            return clip_student.with_projector(plain, method.outputs(), method.projector_norm, spec.seed + 1)
    if clip:
        msg = (
            f"student.arch = '{spec.arch}': a CLIP's image tower with visual prompts is trained by promptkd only. "
            "Choose distill.method = 'promptkd', or a timm model."
        )
        raise ConfigError(msg)
    return students.create(spec, method.outputs())


def _prompt_sizes(spec: StudentSpec) -> dict[str, int]:
    """How many tokens a CLIP's tower learns, in how many layers.

    Raises:
        ConfigError: ``student.options`` say something else.
    """
    wrong = [
        name
        for name, value in spec.options.items()
        if name not in ("tokens", "layers") or type(value) is not int or not 1 <= value <= 1000
    ]
    if wrong:
        msg = (
            f"student.options of '{spec.arch}': expected 'tokens' and 'layers' as whole numbers from 1, found "
            f"'{wrong[0]}' = {spec.options[wrong[0]]!r}."
        )
        raise ConfigError(msg)
    return dict(spec.options)


def untrained(spec: StudentSpec, method: Method, teacher: Callable[[], Teacher]) -> Student:
    """The same network with whatever weights are at hand, for weights that are about to be loaded."""
    return start(dataclasses.replace(spec, pretrained="none"), method, teacher)


def copy_of(teacher: Teacher, image_size: int) -> Student:
    """Make a student that is a copy of the teacher's image encoder.

    Args:
        teacher: whose encoder.
        image_size: height and width of the student's images in pixels.

    Raises:
        ConfigError: it is not open_clip's, or its encoder cannot take images of that size.
    """
    if not isinstance(teacher, OpenClipTeacher):
        msg = (
            f"The teacher '{teacher.name}' shows its answers only; expected an open_clip teacher, whose image encoder "
            "the student starts as by distill.method = 'vl2v-sd' or student.arch = 'teacher'. Take a timm model and "
            "another method, such as vl2v-adip, which needs answers alone."
        )
        raise ConfigError(msg)
    return clip_student.from_teacher(teacher, image_size)


def _copied(spec: StudentSpec, method: Method, teacher: Teacher) -> Student:
    """The teacher's image encoder with the head that the method trains: its own where that ends in its space."""
    student = copy_of(teacher, spec.image_size)
    if method.start == "projector":
        return clip_student.with_projector(student, method.outputs(), method.projector_norm, spec.seed + 1)
    if method.predicts_by_vectors:
        return student
    return clip_student.with_classifier(student, method.outputs(), spec.seed + 1)
