"""Checks a bundle step by step and reports instead of raising."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .bundle import BundleReader
from .engines.base import EngineOptions
from .errors import RefusalError, UsageError
from .loading import load_engine

_ENGINE_STEP = "self-test"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: What it was; the names and their order are the same for every bundle.
        ok: Whether it holds.
        detail: What was found, or what is wrong.
    """

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What checking a bundle gave.

    Attributes:
        ok: Whether every check holds.
        checks: All checks in order; those after the first failure did not run and are not ok.
    """

    ok: bool
    checks: tuple[Check, ...]


def verify(
    path: str | os.PathLike[str],
    *,
    engine: str = "auto",
    threads: int | None = None,
    public_keys: Sequence[bytes | Path] = (),
) -> VerifyReport:
    """Check a bundle from its container to the answers of its model.

    Args:
        path: A bundle folder or ``.vlkd`` archive.
        engine: Which engine to self-test; ``none`` leaves that check out.
        threads: How many threads the engine may use.
        public_keys: Keys of whom to trust; given any, one of them must have signed the bundle.

    Raises:
        DataError: Nothing is there to be read.
        ConfigError: An engine nobody knows.
        UnavailableError: The engine is not installed.
    """
    reader = BundleReader(path, public_keys=public_keys)
    steps: list[tuple[str, Callable[[], str]]] = list(reader.steps)
    if engine != "none":
        steps.append((_ENGINE_STEP, lambda: _self_test(reader, engine, threads)))
    checks: list[Check] = []
    failed: str | None = None
    for name, check in steps:
        if failed is not None:
            checks.append(Check(name, False, f"not checked, because {failed} failed"))
            continue
        try:
            checks.append(Check(name, True, check()))
        except UsageError:
            raise
        except RefusalError as error:
            failed = name
            checks.append(Check(name, False, str(error)))
    return VerifyReport(failed is None, tuple(checks))


def _self_test(reader: BundleReader, engine: str, threads: int | None) -> str:
    bundle = reader.bundle()
    # Run anew and kept nowhere: whoever asks for a check means now.
    loaded = load_engine(bundle, engine=engine, options=EngineOptions(threads), self_test="always")
    info, selection = loaded.engine.info, loaded.selection
    loaded.engine.close()
    result = selection.self_test
    return (
        f"{info.name} ({info.provider} {info.version}), variant {selection.variant}: {result['samples']} samples, "
        f"cosine at least {result['min_cosine']:.6f}, logits within {result['max_logit_gap']:.4g}"
    )
