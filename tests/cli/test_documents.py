"""What the documents show can be typed: links lead somewhere, verbs and options exist, settings are read."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from vlkd_edge import configfile
from vlkd_edge.app import app

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path
    for path in (*ROOT.glob("*.md"), *ROOT.glob("*/*.md"), *ROOT.glob("benchmarks/results/*.md"))
    if not path.is_relative_to(ROOT / "tests")
)
LINK = re.compile(r"\]\((?!https?:|#)([^)\s]+)\)")
INDENTED = re.compile(r"^    (?=\S)((?:.*\\\n)*.*)", re.MULTILINE)
INLINE = re.compile(r"`(vlkd-edge [^`]+)`")
SETTINGS = re.compile(r"^```toml\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands(text: str) -> Iterator[list[str]]:
    """The words of every vlkd-edge command that a document shows, those of its blocks and of its sentences."""
    shown = [match.replace("\\\n", " ") for match in (*INDENTED.findall(text), *INLINE.findall(text))]
    for line in shown:
        for part in line.split("&&"):
            if (place := part.find("vlkd-edge ")) >= 0:
                yield shlex.split(part[place:], comments=True)[1:]


def unknown(words: list[str]) -> list[str]:
    """The words that the command line would refuse: verbs and options that do not exist."""
    command, rest = typer.main.get_command(app), list(words)
    context = command.context_class(command)
    while rest and hasattr(command, "get_command"):
        name, *left = rest
        if command.name == "bench" and name not in command.commands:
            name, left = "bundle", rest  # what `bench` means without a verb of its own
        elif name.startswith("-"):
            break
        if (found := command.get_command(context, name)) is None:
            return [name]
        command, rest = found, left
    known = {
        name for option in command.get_params(context) for name in (*option.opts, *option.secondary_opts)
    }
    return [word for word in rest if word.startswith("-") and word.partition("=")[0] not in known]


def test_there_are_documents() -> None:
    names = {path.relative_to(ROOT).as_posix() for path in DOCUMENTS}
    assert {
        "README.md",
        "CONTRIBUTING.md",
        "runtime/README.md",
        "distill/README.md",
        "docs/guard.md",
    } <= names


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_to_files(path: Path) -> None:
    for link in LINK.findall(path.read_text()):
        assert (path.parent / link.partition("#")[0]).exists(), link


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_can_be_typed(path: Path) -> None:
    for words in commands(path.read_text()):
        assert not unknown(words), shlex.join(words)


def test_settings_in_the_readme_are_read(tmp_path: Path) -> None:
    blocks = SETTINGS.findall((ROOT / "README.md").read_text())
    assert len(blocks) >= 4
    for block in blocks:
        (tmp_path / "vlkd.toml").write_text(block)
        configfile.load(tmp_path / "vlkd.toml")
