"""From a bundle to an engine that runs it and has passed the self-test, with the reasons for the choice."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .bundle import Bundle
from .engines import engines_to_try, open_engine
from .engines.base import Considered, EngineOptions, Execution, OpenedEngine, Prebuilt, Selection
from .engines.enginecache import Entry
from .errors import RefusalError, UnavailableError, VlkdError
from .selftest import SelfTestResult, run_self_test
from .variants import Suited, check_plan, rank_variants

SelfTest = Literal["cached", "always", "never"]
_NOTE = "selftest"


@dataclass(frozen=True, slots=True)
class Loaded:
    """An engine and how it was chosen."""

    engine: OpenedEngine
    selection: Selection


def load_engine(
    bundle: Bundle,
    *,
    engine: str = "auto",
    variant: str | None = None,
    options: EngineOptions,
    self_test: SelfTest = "cached",
) -> Loaded:
    """Open the first engine that is there, takes a variant of the bundle and passes the self-test.

    Args:
        bundle: An open bundle.
        engine: The only one to try, or ``auto``.
        variant: The only one to try; None takes the best for the engine.
        options: How to open it.
        self_test: ``cached`` runs it once for each bundle, engine, machine and version.

    Raises:
        RefusalError: The engines that are there refuse the bundle, or fail its self-test or plan.
        UnavailableError: No engine is there.
    """
    names = engines_to_try(engine)
    considered: list[Considered] = []
    refusal: RefusalError | None = None
    missing: UnavailableError | None = None
    for place, name in enumerate(names):
        try:
            loaded = _load_one(bundle, name, variant, options, self_test)
        except UnavailableError as error:
            missing = error
            considered.append(Considered(name, False, str(error)))
            continue
        except RefusalError as error:
            refusal = error
            considered.append(Considered(name, False, str(error)))
            continue
        first = loaded.selection.engine
        reason = "asked for" if engine != "auto" else "the first of these that is there and passes"
        considered.append(Considered(name, True, f"{reason}: {loaded.engine.info.provider}"))
        considered += [Considered(other, False, f"{first} goes before it") for other in names[place + 1 :]]
        return Loaded(loaded.engine, dataclasses.replace(loaded.selection, engines=tuple(considered)))
    if refusal is not None:
        raise refusal
    if len(names) == 1 and missing is not None:
        raise missing
    reasons = "\n".join(f"  {one.name}: {one.reason}" for one in considered)
    msg = f"engine: expected one that this machine has, found none; install one of these:\n{reasons}"
    raise UnavailableError(msg)


def _load_one(
    bundle: Bundle, name: str, wanted: str | None, options: EngineOptions, self_test: SelfTest
) -> Loaded:
    """Try the variants in turn; the error of the best one counts where none works."""
    ranked = rank_variants(bundle.manifest.variants, name, wanted)
    considered: list[Considered] = []
    problem: VlkdError | None = None
    for place, suited in enumerate(ranked):
        variant = suited.variant
        try:
            loaded, execution, tested = _open_and_test(bundle, name, suited, options, self_test)
        except RefusalError as error:
            problem = problem or error
            considered.append(Considered(variant.name, False, str(error)))
            continue
        considered.append(Considered(variant.name, True, suited.reason))
        left = [
            Considered(other.variant.name, False, f"{variant.name} goes before it; {other.reason}")
            for other in ranked[place + 1 :]
        ]
        names = {one.variant.name for one in ranked}
        others = [v.name for v in bundle.manifest.variants if v.name not in names]
        why = "another one was asked for" if wanted is not None else f"{name} refuses its kind"
        refused = [Considered(other, False, why) for other in others]
        variants = (*considered, *left, *refused)
        selection = Selection(name, variant.name, (), variants, loaded.origin, execution, tested)
        return Loaded(loaded, selection)
    assert problem is not None  # rank_variants gives at least one
    raise problem


def _open_and_test(
    bundle: Bundle, name: str, suited: Suited, options: EngineOptions, self_test: SelfTest
) -> tuple[OpenedEngine, Execution | None, dict[str, object]]:
    data = bundle.files[suited.variant.file]
    if suited.variant.model.plan.sparse_ops:
        options = dataclasses.replace(options, sparse_weights=True)
    loaded = open_engine(data, engine=name, options=options, prebuilt=_prebuilt(bundle, name, suited))
    try:
        if self_test == "never":
            return loaded, None, {"when": "not run"}
        entry = _entry(bundle, loaded, suited, options.cache)
        if self_test == "cached" and entry is not None and (found := _recall(entry)) is not None:
            return loaded, *found
        result = run_self_test(loaded, bundle.golden_of(suited.variant), suited.variant.golden)
        execution = _execution(loaded, suited, options)
        check_plan(suited, execution, name, on_accelerator=options.dla_core is not None)
        if entry is not None:
            # A cache that cannot be written costs the next start a self-test, and nothing else.
            with contextlib.suppress(OSError):
                entry.write_note(
                    _NOTE,
                    {
                        "result": dataclasses.asdict(result),
                        "execution": dataclasses.asdict(execution),
                    },
                )
    except BaseException:
        loaded.close()
        raise
    return loaded, execution, {"when": "now", **dataclasses.asdict(result)}


def _execution(loaded: OpenedEngine, suited: Suited, options: EngineOptions) -> Execution:
    """Ask the engine what it runs where something was planned; asking costs a second load in some."""
    plan = suited.variant.model.plan
    if not plan.int8_ops and not plan.dla_share and options.dla_core is None:
        return Execution(loaded.info.provider, note="the bundle plans neither INT8 nor an accelerator")
    return loaded.execution()


def _entry(bundle: Bundle, loaded: OpenedEngine, suited: Suited, cache: Path | None) -> Entry | None:
    """Find the place for a self-test's result: beside the engine, where that is cached."""
    if cache is None:
        return None
    identity = {
        **loaded.identity,
        "bundle": bundle.manifest.digest,
        "variant": suited.variant.name,
        "model": bundle.manifest.files[suited.variant.file].sha256,
    }
    place = Entry.of(cache, identity)
    return Entry(loaded.folder, identity) if loaded.folder is not None else place


def _recall(entry: Entry) -> tuple[Execution, dict[str, object]] | None:
    note, _ = entry.read_note(_NOTE)
    if note is None:
        return None
    try:
        result = SelfTestResult(**_fields(note["result"]))
        execution = Execution(**_fields(note["execution"]))
    except (KeyError, TypeError):
        return None
    return execution, {"when": "before", **dataclasses.asdict(result)}


def _fields(value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        msg = "no object"
        raise TypeError(msg)
    return value


def _prebuilt(bundle: Bundle, name: str, suited: Suited) -> Prebuilt | None:
    for engine in bundle.manifest.engines:
        if engine.kind == name and engine.variant == suited.variant.name:
            return Prebuilt(bundle.files[engine.file], engine.version)
    return None
