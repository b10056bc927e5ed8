"""What is kept of built engines, and when it is not believed."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from vlkd_runtime import atomic
from vlkd_runtime.engines.base import EngineOptions
from vlkd_runtime.engines.building import engine_identity, get_engine
from vlkd_runtime.engines.cuda import Gpu
from vlkd_runtime.engines.enginecache import Entry, default_cache, prepare_cache
from vlkd_runtime.engines.tensorrt import TensorRtEngine
from vlkd_runtime.errors import ConfigError, UnavailableError

sys.path.insert(0, str(Path(__file__).parent))
from fakes import open_fake


def test_the_engine_is_cached_under_everything_it_depends_on(tiny: Any, built: Any, tmp_path: Path) -> None:
    options = EngineOptions(cache=prepare_cache(tmp_path / "c"))
    for expected in (1, 1):
        engine, _, _ = open_fake(tiny, options)
        assert len(built) == expected
        engine.close()
    assert engine.built.how == "found in the cache"
    for change, other in (
        ({"__version__": "10.7.0"}, options),
        ({}, dataclasses.replace(options, workspace_bytes=1 << 20)),
        ({}, dataclasses.replace(options, dla_core=0)),
    ):
        before = len(built)
        open_fake(tiny, other, **change)[0].close()
        assert len(built) == before + 1
    keys = [engine.identity[key] for key in ("gpu", "driver", "compute capability", "tensorrt", "model")]
    digest = hashlib.sha256(tiny.files["model.onnx"]).hexdigest()
    assert keys == ["Fake Orin", "12.6", "8.7", "10.3.0", digest]


def replaced_with_its_side_car(place: Path) -> None:
    """What another machine's engine would look like: whole in itself, for another key."""
    (place / "engine.plan").write_bytes(b"plan:evil")
    note = json.loads((place / "engine.plan.json").read_text())
    note["sha256"] = hashlib.sha256(b"plan:evil").hexdigest()
    note["identity"]["gpu"] = "another"
    (place / "engine.plan.json").write_text(json.dumps(note))


def linked(place: Path) -> None:
    (place / "engine.plan").rename(place / "elsewhere")
    (place / "engine.plan").symlink_to(place / "elsewhere")


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        pytest.param(lambda p: (p / "engine.plan").write_bytes(b"plan:evil"), "not the file", id="altered"),
        pytest.param(lambda p: (p / "engine.plan").unlink(), "No such file", id="gone"),
        pytest.param(linked, "engine.plan", id="link"),
        pytest.param(lambda p: (p / "engine.plan.json").unlink(), "No such file", id="no-side-car"),
        pytest.param(lambda p: (p / "engine.plan.json").write_text("{"), "not JSON", id="side-car"),
        pytest.param(lambda p: (p / "engine.plan.json").write_text("{}"), "no note", id="empty-side-car"),
        pytest.param(replaced_with_its_side_car, "another model, machine or version", id="other-key"),
    ],
)
def test_what_is_in_the_cache_is_checked(
    harm: Any, reason: str, tiny: Any, built: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = EngineOptions(cache=prepare_cache(tmp_path / "c"))
    engine, _, _ = open_fake(tiny, options)
    engine.close()
    harm(engine.folder)
    seen: list[bytes] = []
    real = TensorRtEngine._deserialise

    def watched(self: TensorRtEngine, made: Any) -> bool:
        seen.append(made.plan)
        return real(self, made)

    monkeypatch.setattr(TensorRtEngine, "_deserialise", watched)
    again, _, _ = open_fake(tiny, options)
    assert seen == [b"plan:1"]
    assert again.built.how.startswith("built, because ")
    assert reason in again.built.how
    again.close()


def test_an_engine_that_does_not_load_is_built_again_once(tiny: Any, built: Any, tmp_path: Path) -> None:
    options = EngineOptions(cache=prepare_cache(tmp_path / "c"))
    open_fake(tiny, options)[0].close()
    engine, _, _ = open_fake(tiny, options, refused={b"plan:0"})
    assert engine.built.plan == b"plan:1"
    engine.close()
    with pytest.raises(UnavailableError, match=r"does not load the engine it built: .*another version"):
        open_fake(tiny, options, refused={b"plan:1", b"plan:2"})
    assert len(built) == 3


def test_a_full_cache_costs_a_build_and_nothing_else(
    tiny: Any, built: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = EngineOptions(cache=prepare_cache(tmp_path / "c"))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic, "write_bytes", full)
    engine, _, _ = open_fake(tiny, options)
    assert engine.built.how.endswith("and not kept: No space left on device")
    engine.close()
    monkeypatch.setattr(Entry, "make", full)
    engine, _, _ = open_fake(tiny, options)
    assert engine.built.how == "built, because the cache cannot be written: No space left on device"
    assert engine.folder is None
    engine.close()


def test_the_timing_cache_is_kept_for_other_models(tiny: Any, built: Any, tmp_path: Path) -> None:
    cache = prepare_cache(tmp_path / "c")
    gpu = Gpu("Fake Orin", "8.7", True, True, "12.6")
    for model in (b"first", b"second"):
        identity = engine_identity(model, "tensorrt", "10.3.0", gpu, EngineOptions(cache=cache))
        get_engine(model, identity, EngineOptions(cache=cache), fresh=False)
    shared = {key: value for key, value in identity.items() if key != "model"}
    # The stand-in puts a word in front of what it was given.
    assert Entry.of(cache, shared).read("timing.bin")[0] == b"timingtiming"


def test_caches_that_others_can_write_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "c"
    place.mkdir(mode=0o777)
    place.chmod(0o777)
    with pytest.raises(ConfigError, match=r"nobody else can write to, found mode 777 .*chmod go-w"):
        prepare_cache(place)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="cannot make the cache folder"):
        prepare_cache(tmp_path / "file" / "c")
    monkeypatch.setenv("VLKD_CACHE", str(place))
    with pytest.raises(ConfigError, match="chmod"):
        default_cache()
    for relative in ("some/cache", "~/cache"):
        monkeypatch.setenv("VLKD_CACHE", relative)
        with pytest.raises(ConfigError, match=f"VLKD_CACHE: expected an absolute path, found '{relative}'"):
            default_cache()
    place.chmod(0o700)
    with monkeypatch.context() as other:
        other.setattr(os, "geteuid", lambda: os.getuid() + 1)
        with pytest.raises(ConfigError, match=r"found mode 700 .*set VLKD_CACHE to a folder of user"):
            prepare_cache(place)
    monkeypatch.delenv("VLKD_CACHE")
    monkeypatch.setenv("CACHE_DIRECTORY", f"{tmp_path / 'service'}:{tmp_path / 'other'}")
    assert default_cache() == tmp_path / "service"
    monkeypatch.delenv("CACHE_DIRECTORY")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert default_cache() is None  # a device without a home works, and keeps nothing
