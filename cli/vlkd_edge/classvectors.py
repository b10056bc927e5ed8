"""The class vectors that a configuration asks for: its templates, its attributes, embedded once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .config import Config
from .learn import Learning
from .stages import StageResult


def class_vectors(learning: Learning, classes: Sequence[str], teacher: str) -> StageResult:
    """Embed the class names once."""
    asked = learning.config.teacher
    templates = chosen_templates(learning.config)
    attributes = chosen_attributes(learning.config, classes)

    def work(folder: Path) -> None:
        from vlkd_distill.class_vectors import compute

        made = compute(learning.teacher(), classes, templates, attributes)
        made.save(folder / "class_vectors.safetensors")

    inputs: dict[str, Any] = {"teacher": teacher, "classes": list(classes), "templates": list(templates)}
    if asked.attributes:
        inputs["attributes"] = {name: list(texts) for name, texts in (attributes or {}).items()}
    return learning.workspace.stage("vectors", inputs, work)


def chosen_templates(config: Config) -> tuple[str, ...]:
    """The configured templates: a built-in set, a file, or a list.

    Raises:
        ConfigError: no such set or file, or a template that is none.
    """
    from vlkd_distill.templates import resolve_templates, templates_from

    named = config.teacher.templates
    return templates_from(named) if isinstance(named, str) else resolve_templates(named)


def chosen_attributes(config: Config, classes: Sequence[str]) -> Mapping[str, Sequence[str]] | None:
    """The configured attributes of these classes; None where class names speak for themselves.

    Raises:
        ConfigError: as `vlkd_distill.class_vectors.read_attributes`.
    """
    named = config.teacher.attributes
    if not named:
        return None
    from vlkd_distill.class_vectors import check_attributes, read_attributes

    if named != "demo":
        return read_attributes(Path(named), classes)
    from vlkd_distill.demo.attributes import ATTRIBUTES

    known = {name: phrases for name, phrases in ATTRIBUTES.items() if name in classes}
    return check_attributes(known, classes, where="the demo world's attributes")
