"""Options that several verbs share, and where they print."""

from __future__ import annotations

import contextlib
import functools
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console

from vlkd_distill.launched import launched
from vlkd_runtime.errors import ConfigError

Word = TypeVar("Word", bound=str)
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle folder or .vlkd archive.")]
EngineName = Annotated[str, typer.Option(help="Inference engine; 'auto' takes the best one here.")]
TargetsFile = Annotated[
    Path | None, typer.Option(help="TOML file with targets.NAME tables of your own; a vlkd.toml will do.")
]
VariantName = Annotated[
    str | None, typer.Option(help="Which of the bundle's graphs; the one that suits the engine if absent.")
]
PublicKeys = Annotated[
    list[Path] | None,
    typer.Option("--public-key", help="Whom to trust: one of these keys must have signed the bundle."),
]
RequireSignature = Annotated[
    bool, typer.Option("--require-signature", help="Refuse to go on without a --public-key to check.")
]

ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", help="vlkd.toml or a recipe; the demo's if absent.")
]
OutFolder = Annotated[Path, typer.Option("--out", "-o", help="Output folder.")]
CacheFolder = Annotated[
    Path | None, typer.Option(help="Where the teacher's answers are kept; share it between runs.")
]
TableName = Annotated[str, typer.Option(help="Name of the files in the output folder.")]
Variables = Annotated[
    list[str] | None, typer.Option(help="name=value: override one of the configuration's variables.")
]
SettingsWords = Annotated[
    list[str] | None, typer.Option("--set", help="section.key=value: override any setting.")
]
Dataset = Annotated[
    str | None,
    typer.Option(
        help="Folder laid out as <domain>/<class>/<image>, 'wds:<pattern>' for WebDataset shards, or 'demo'."
    ),
]
Domains = Annotated[str, typer.Option(help="Domains to take, with commas between them; all if empty.")]
LeftOut = Annotated[str, typer.Option(help="Domains to leave out, one at a time, or 'all'.")]
ClassNames = Annotated[str | None, typer.Option(help="Class names in label order, with commas between them.")]
NamesFrom = Annotated[Path | None, typer.Option(help="Text file with one class name a line, in label order.")]
ClassesOf = Annotated[
    str | None, typer.Option(help="Take the classes of a folder <domain>/<class>/<image>, or of 'demo'.")
]
TeacherFolder = Annotated[Path | None, typer.Option(help="Where an exported teacher is kept.")]
Seeds = Annotated[str, typer.Option(help="Seeds, with commas between them.")]


def stderr() -> Console:
    """For progress and errors."""
    return Console(stderr=True, width=None if sys.stderr.isatty() else 110)


def stdout() -> Console:
    """For results that people read."""
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else 110)


@contextlib.contextmanager
def interruptible(kept: str = "What is finished is kept; the same command goes on.") -> Iterator[None]:
    """Turn an interrupt into one line that says what is kept, and exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"Interrupted. {kept}", file=sys.stderr)
        raise typer.Exit(130) from None


def trains(verb: Callable[..., None]) -> Callable[..., None]:
    """Make a verb one for many processes: those that torchrun starts beside the first help it to train.

    They leave when the first one ends; it alone reads the other options, writes and prints.
    """

    @functools.wraps(verb)
    def run(*args: object, **options: object) -> None:
        launch = launched()
        if launch is None:
            verb(*args, **options)
            return
        from vlkd_distill import processes

        if launch.rank > 0:
            processes.serve(launch)
            return
        with processes.leading():
            verb(*args, **options)

    return run


def answer(as_json: bool, plain: object, markdown: str) -> None:
    """Print a result: one JSON object for programs, or a table for people."""
    if as_json:
        print(json.dumps(plain))
    else:
        from rich.markdown import Markdown

        stdout().print(Markdown(markdown))


def choice(option: str, value: str, allowed: Sequence[Word]) -> Word:
    """Return the allowed word that was given.

    Raises:
        ConfigError: It is none of them.
    """
    for word in allowed:
        if word == value:
            return word
    msg = f"{option}: expected one of {', '.join(allowed)}, found '{value}'."
    raise ConfigError(msg)


def command_words(arguments: Sequence[str]) -> str:
    """Return the command as typed, with the names of files and folders in place of their paths."""
    return shlex.join(["vlkd-edge", *(Path(word).name if "/" in word else word for word in arguments)])
