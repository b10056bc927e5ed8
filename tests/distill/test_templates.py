"""Template sets, template files, and the prompts they make with and without attributes."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlkd_distill.templates import TEMPLATES, prompts, resolve_templates, templates_from
from vlkd_runtime.errors import ConfigError


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_built_in_sets_are_sound(name: str) -> None:
    templates = TEMPLATES[name]
    assert templates_from(name) == resolve_templates(name) == templates
    assert len(set(templates)) == len(templates)
    assert all(text.count("{}") == 1 and text == text.strip() and text.isascii() for text in templates)


def test_sets_that_published_numbers_hang_on_keep_their_words() -> None:
    assert TEMPLATES["photo"] == ("a photo of a {}",)
    assert TEMPLATES["vlm-ood"] == ("a photo of {}",)
    assert TEMPLATES["name"] == ("{}",)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        pytest.param("t.txt", "\ufeff# ours\n\n  a {} \na {} at night\n", id="text"),
        pytest.param("t.TOML", 'templates = ["a {}", "a {} at night"]', id="toml"),
    ],
)
def test_template_files(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert templates_from(str(tmp_path / name)) == ("a {}", "a {} at night")


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        pytest.param("t.txt", b"", "found an empty list", id="empty"),
        pytest.param("t.txt", b"a {}\na photo", r"t\.txt: .*found \['a photo'\]", id="no place"),
        pytest.param("t.txt", b"a {}\na {}", r"found \['a \{\}'\] repeated", id="twice"),
        pytest.param("t.txt", b"a {} caf\xe9", "another byte at 8; save it as UTF-8", id="latin-1"),
        pytest.param("t.toml", b"templates = [", "t.toml: not TOML: ", id="broken"),
        pytest.param("t.toml", b'templates = "a {}"', "without such a list", id="no list"),
        pytest.param("t.toml", b'template = ["a {}"]', "the one key templates .*found template ", id="key"),
        pytest.param("t.toml", b'templates = ["a {}", 3]', r"texts only, found \['a \{\}', 3\]", id="number"),
    ],
)
def test_impossible_template_files(tmp_path: Path, name: str, content: bytes, match: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=match):
        templates_from(str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "match"),
    [
        pytest.param("style", r"Unknown template set 'style'.*Did you mean 'styles'\?", id="mistyped"),
        pytest.param("t.csv", "that ends in .txt or .toml", id="other file"),
        pytest.param("nowhere/t.txt", "cannot read the templates: No such file", id="missing"),
    ],
)
def test_what_is_neither_a_set_nor_a_file(name: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        templates_from(name)


def test_prompts_by_hand() -> None:
    assert prompts(["sea_horse", "Cat"], ["a {}", "{} drawn"]) == (
        ("a sea horse", "sea horse drawn"),
        ("a Cat", "Cat drawn"),
    )
    described = {"cat": ["whiskers", " four legs "], "dog": ["A furry animal."]}
    assert prompts(["dog", "cat"], ["a photo of {}", "{}"], described) == (
        ("a photo of dog . A furry animal.", "dog . A furry animal."),
        (
            "a photo of cat with whiskers",
            "a photo of cat with four legs",
            "cat with whiskers",
            "cat with four legs",
        ),
    )


def test_braces_in_a_class_name_are_no_format() -> None:
    assert prompts(["{0} {}"], ["a {}"]) == (("a {0} {}",),)
