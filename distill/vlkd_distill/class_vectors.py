"""Class vectors: the teacher's words for the classes, embedded once and stored.

Letters used in shapes: C classes, T texts of a class, D embedding size.

References:
    Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021,
    section 3.1.4 (prompt ensembling in embedding space).
    Li et al., "Distilling Large Vision-Language Model with Out-of-Distribution Generalizability", ICCV 2023
    (label texts enriched by what the class looks like).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from vlkd_runtime.errors import ConfigError
from vlkd_runtime.strictjson import JsonProblems, parse
from vlkd_runtime.vectors import ClassVectors

from .templates import nearest_name, prompts, read_text, read_toml

if TYPE_CHECKING:
    from .teachers import Teacher

# Many texts at once fill the memory of a large text encoder.
_TEXTS_AT_ONCE = 256


def compute(
    teacher: Teacher,
    names: Sequence[str],
    templates: Sequence[str],
    attributes: Mapping[str, Sequence[str]] | None = None,
) -> ClassVectors:
    """Embed the classes: per class, unit rows of its prompts, their mean, unit again.

    Args:
        teacher: whose text encoder speaks.
        names: class names in label order; underscores become spaces in the prompts.
        templates: texts with one ``{}`` each.
        attributes: class name to what one sees of it; the mean is then over every template with every
            attribute, and without the bare templates.

    Returns:
        Unit rows ``(C, D)`` with everything needed to compute them again.

    Raises:
        ConfigError: attributes as `check_attributes` refuses them.
    """
    if attributes is not None:
        attributes = check_attributes(attributes, names)
    texts = prompts(names, templates, attributes)
    return ClassVectors(
        names=tuple(names),
        vectors=embed_prompts(teacher, texts),
        prompts=texts,
        templates=tuple(templates),
        teacher=teacher.name,
        teacher_fingerprint=teacher.fingerprint,
        logit_scale=teacher.logit_scale,
    )


def embed_prompts(teacher: Teacher, texts: Sequence[Sequence[str]]) -> npt.NDArray[np.float32]:
    """Turn the prompts of each class into its vector; stored prompts give the stored vectors again.

    Args:
        teacher: whose text encoder speaks.
        texts: for each class, its prompts.

    Returns:
        Unit rows ``(C, D)``.
    """
    rows = []
    for own in texts:
        parts = [
            teacher.embed_texts(own[start : start + _TEXTS_AT_ONCE])
            for start in range(0, len(own), _TEXTS_AT_ONCE)
        ]
        mean = np.concatenate(parts).astype(np.float64).mean(axis=0)
        rows.append(mean / np.linalg.norm(mean))
    return np.asarray(rows, dtype=np.float32)


def read_attributes(path: Path, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Read what one sees of each class: a TOML or JSON file from class name to a list of phrases.

    A single text stands for a list of one. A text that ends in a full stop is a sentence; see
    `templates.prompts` for how both are used.

    Args:
        path: the file, ending in ``.toml`` or ``.json``.
        names: the classes it must describe, all of them and no other.

    Raises:
        ConfigError: the file cannot be read, or as `check_attributes`.
    """
    suffix = path.suffix.lower()
    if suffix not in (".toml", ".json"):
        msg = f"{path}: expected a file of attributes that ends in .toml or .json; rename it."
        raise ConfigError(msg)
    text = read_text(path, "attributes")
    try:
        table = read_toml(text, path) if suffix == ".toml" else parse(text)
    except JsonProblems as error:
        msg = f"{path}: {error}; put it right there."
        raise ConfigError(msg) from error
    if not isinstance(table, dict):
        msg = (
            f"{path}: expected an object from class names to lists of phrases, found {type(table).__name__}."
        )
        raise ConfigError(msg)
    found: dict[str, list[str]] = {}
    for name, phrases in table.items():
        listed = [phrases] if isinstance(phrases, str) else phrases
        if not isinstance(listed, list) or not all(isinstance(phrase, str) for phrase in listed):
            msg = (
                f"{path}: expected a list of texts for the class '{name}', found {str(phrases)[:80]!r}; "
                'write it like ["whiskers", "four legs"].'
            )
            raise ConfigError(msg)
        found[name] = listed
    return check_attributes(found, names, where=str(path))


def check_attributes(
    attributes: Mapping[str, Sequence[str]], names: Sequence[str], where: str = "attributes"
) -> dict[str, tuple[str, ...]]:
    """Hold attributes to the classes they describe.

    Args:
        attributes: class name to phrases.
        names: the classes.
        where: what to call them in messages.

    Returns:
        The phrases without blanks around them, in the order of ``names``.

    Raises:
        ConfigError: an unknown class, a class without attributes, a phrase that is empty, holds control
            characters or is there twice; all such problems are listed.
    """
    problems = []
    for name in attributes:
        if name not in names:
            hint = nearest_name(name, names) or f" The classes are {_few(names)}."
            problems.append(f"'{name}' is no class.{hint}")
    cleaned = {name: tuple(map(str.strip, attributes.get(name, ()))) for name in names}
    missing = [name for name, phrases in cleaned.items() if not phrases]
    if missing:
        problems.append(f"Expected at least one attribute for each class, found none for {_few(missing)}.")
    for name, phrases in cleaned.items():
        for index, phrase in enumerate(phrases):
            if not phrase or not phrase.isprintable():
                problems.append(f"Attribute {index} of '{name}' must be printable text, found {phrase!r}.")
            elif phrase in phrases[:index]:
                problems.append(f"'{name}' has the attribute '{phrase}' twice.")
    if problems:
        msg = "\n  ".join(
            [f"{where}: expected attributes for exactly the classes that are embedded:", *problems]
        )
        raise ConfigError(msg)
    return cleaned


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(f"'{name}'" for name in names[:8]) + more
