"""What a student is before it learns: a timm network, the same with a projector, or a CLIP's image tower."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from vlkd_runtime.errors import ConfigError

from . import clip_student, students
from .specs import CLIP_PREFIX, StudentSpec
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
    match method.start:
        case "teacher":
            return clip_student.from_teacher(_open_clip(teacher()), spec.image_size)
        case "projector" if clip:
            source = OpenClipTeacher.load(spec.arch.removeprefix(CLIP_PREFIX))
            return clip_student.prompted_student(source, spec.image_size, method.outputs(), seed=spec.seed)
        case "projector":
            plain = students.create(spec, method.outputs())
            return clip_student.with_projector(plain, method.outputs(), "batch", spec.seed + 1)
    if clip:
        msg = (
            f"student.arch = '{spec.arch}': a CLIP's image tower with visual prompts is trained by promptkd only. "
            "Choose distill.method = 'promptkd', or a timm model."
        )
        raise ConfigError(msg)
    return students.create(spec, method.outputs())


def untrained(spec: StudentSpec, method: Method, teacher: Callable[[], Teacher]) -> Student:
    """The same network with whatever weights are at hand, for weights that are about to be loaded."""
    return start(dataclasses.replace(spec, pretrained="none"), method, teacher)


def _open_clip(teacher: Teacher) -> OpenClipTeacher:
    if not isinstance(teacher, OpenClipTeacher):
        msg = (
            f"The teacher '{teacher.name}' shows its answers only; expected an open_clip teacher, whose image encoder "
            "the student of vl2v-sd starts as. Use vl2v-adip, which needs answers alone."
        )
        raise ConfigError(msg)
    return teacher
