"""Sentences around a class name."""

from __future__ import annotations

from collections.abc import Sequence

from vlkd_runtime.errors import ConfigError

# Our own wordings, except "a photo of a {}" (VL2V-ADiP's single template, without a period).
TEMPLATES: dict[str, tuple[str, ...]] = {
    "photo": ("a photo of a {}",),
    "styles": ("a photo of a {}", "a painting of a {}", "a cartoon of a {}", "a sketch of a {}"),
}


def resolve_templates(named: str | Sequence[str]) -> tuple[str, ...]:
    """Turn the name of a built-in template set, or a list of templates, into templates.

    Raises:
        ConfigError: unknown set, empty list, or a template without ``{}``.
    """
    if isinstance(named, str):
        if named not in TEMPLATES:
            msg = (
                f"Unknown template set '{named}' (teacher.templates). Expected one of {', '.join(TEMPLATES)}, "
                "or a list of templates."
            )
            raise ConfigError(msg)
        return TEMPLATES[named]
    bad = [template for template in named if template.count("{}") != 1]
    if bad or not named:
        msg = f"Expected templates with one {{}} for the class name each, found {bad or 'an empty list'}."
        raise ConfigError(msg)
    return tuple(named)
