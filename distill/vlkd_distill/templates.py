"""Sentences around a class name: built-in template sets, template files, and the prompts they make."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from vlkd_runtime.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TEMPLATES: dict[str, tuple[str, ...]] = {
    # VL2V-ADiP's only template, without a period (CVPR 2024).
    "photo": ("a photo of a {}",),
    # Ours: the styles of the usual domain-generalisation data sets.
    "styles": ("a photo of a {}", "a painting of a {}", "a cartoon of a {}", "a sketch of a {}"),
    # The class name alone, the "(C)" rows of PromptStyler (ICCV 2023).
    "name": ("{}",),
    # Base text of large-VLM distillation for OOD (ICCV 2023): no article, for use with descriptions.
    "vlm-ood": ("a photo of {}",),
    # Ours: where the object is and how it is seen; except the first, which is VL2V-ADiP's.
    "varied": (
        "a photo of a {}",
        "one {} in the middle of the picture",
        "a {} seen from far away",
        "a {} that fills the whole picture",
        "a {} half hidden behind something",
        "a {} among many other things",
        "a {} in bright sunshine",
        "a {} at dusk",
    ),
    # Ours: what the picture is made with.
    "medium": (
        "a snapshot of a {}",
        "a {} painted in oil",
        "a watercolour of a {}",
        "a {} drawn in pencil",
        "an ink drawing of a {}",
        "a {} in a comic strip",
        "a {} on a printed poster",
        "a {} cut out of paper",
    ),
}
_SUFFIXES = (".txt", ".toml")


def resolve_templates(named: str | Sequence[str]) -> tuple[str, ...]:
    """Turn the name of a built-in template set, or a list of templates, into templates.

    Raises:
        ConfigError: unknown set, empty list, or a template without ``{}``.
    """
    if isinstance(named, str):
        if named not in TEMPLATES:
            msg = (
                f"Unknown template set '{named}' (teacher.templates). Expected one of {', '.join(TEMPLATES)}, "
                f"or a list of templates.{nearest_name(named, TEMPLATES)}"
            )
            raise ConfigError(msg)
        return TEMPLATES[named]
    bad = [template for template in named if template.count("{}") != 1]
    if bad or not named:
        msg = f"Expected templates with one {{}} for the class name each, found {bad or 'an empty list'}."
        raise ConfigError(msg)
    return tuple(named)


def templates_from(name_or_file: str) -> tuple[str, ...]:
    """Turn the name of a built-in template set, or a file of templates, into templates.

    A ``.txt`` file has one template a line; blank lines and lines that start with ``#`` are left out. A
    ``.toml`` file has one key, ``templates``, with a list.

    Raises:
        ConfigError: neither a set nor a file, a file that cannot be read, or templates as `resolve_templates`
            refuses them or that are there twice.
    """
    path = Path(name_or_file)
    if name_or_file in TEMPLATES:
        return TEMPLATES[name_or_file]
    if path.suffix.lower() not in _SUFFIXES:
        msg = (
            f"Unknown template set '{name_or_file}'. Expected one of {', '.join(TEMPLATES)}, or a file of "
            f"templates that ends in {' or '.join(_SUFFIXES)}.{nearest_name(name_or_file, TEMPLATES)}"
        )
        raise ConfigError(msg)
    text = read_text(path, "templates")
    found = _toml_templates(text, path) if path.suffix.lower() == ".toml" else _lines(text)
    try:
        templates = resolve_templates(found)
    except ConfigError as error:
        msg = f"{path}: {error}"
        raise ConfigError(msg) from error
    repeated = sorted({template for template in templates if templates.count(template) > 1})
    if repeated:
        msg = f"{path}: expected each template once, found {repeated} repeated; leave the copies out."
        raise ConfigError(msg)
    return templates


def _lines(text: str) -> list[str]:
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def _toml_templates(text: str, path: Path) -> list[str]:
    table = read_toml(text, path)
    found = table.get("templates")
    if set(table) != {"templates"} or not isinstance(found, list):
        msg = (
            f"{path}: expected the one key templates with a list of texts, found "
            f"{', '.join(table) or 'no key'}{'' if isinstance(found, list) else ' without such a list'}; "
            'write templates = ["a photo of a {}"].'
        )
        raise ConfigError(msg)
    if not all(isinstance(item, str) for item in found):
        msg = f"{path}: expected templates to hold texts only, found {found}; put each in quotes."
        raise ConfigError(msg)
    return found


def prompts(
    names: Sequence[str], templates: Sequence[str], attributes: Mapping[str, Sequence[str]] | None = None
) -> tuple[tuple[str, ...], ...]:
    """The texts of each class: templates, or every template with every attribute.

    A phrase is joined by "with", as in ``a photo of a cat with whiskers``. A whole sentence, told by its full
    stop, follows after a full stop of its own, spaced as in the reference: ``a photo of cat . A furry animal.``

    Args:
        names: class names in label order; underscores become spaces.
        templates: texts with one ``{}`` each.
        attributes: class name to phrases or sentences; every class has some.

    References:
        Li et al., "Distilling Large Vision-Language Model with Out-of-Distribution Generalizability",
        ICCV 2023 (enriched label texts; one template and one sentence a class there).
    """
    plain = {
        name: [template.replace("{}", name.replace("_", " ")) for template in templates] for name in names
    }
    if attributes is None:
        return tuple(tuple(plain[name]) for name in names)
    return tuple(
        tuple(_joined(text, attribute) for text in plain[name] for attribute in attributes[name])
        for name in names
    )


def _joined(text: str, attribute: str) -> str:
    attribute = attribute.strip()
    return f"{text} . {attribute}" if attribute.endswith(".") else f"{text} with {attribute}"


def nearest_name(name: str, known: Iterable[str]) -> str:
    """A hint at the known name that a mistyped one may stand for, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean '{near[0]}'?" if near else ""


def read_text(path: Path, what: str) -> str:
    """Read a file that a person wrote.

    Raises:
        ConfigError: it is not there, or is no UTF-8 text.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        msg = f"{path}: cannot read the {what}: {error.strerror}; check the path."
        raise ConfigError(msg) from error
    except UnicodeDecodeError as error:
        msg = f"{path}: expected the {what} as UTF-8 text, found another byte at {error.start}; save it as UTF-8."
        raise ConfigError(msg) from error


def read_toml(text: str, path: Path) -> dict[str, object]:
    """Parse TOML.

    Raises:
        ConfigError: it is none; says where.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        msg = f"{path}: not TOML: {error}; put it right there."
        raise ConfigError(msg) from error
