"""The engine that a preflight built ahead of time, in the bundle."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from vlkd_compress.preflight import run_preflight
from vlkd_edge import bundling
from vlkd_edge.targets import find
from vlkd_runtime import Bundle, Classifier
from vlkd_runtime.bundle import write_bundle
from vlkd_runtime.manifest import ManifestDraft


def test_an_engine_built_ahead_of_time_is_a_file_of_the_bundle(bundle: Path, tmp_path: Path) -> None:
    kept = tmp_path / "engine.bin"
    result = run_preflight(bundle / "model.onnx", find("desktop-rtx"), keep_engine=kept)
    if result.verdict == "not run":
        pytest.skip(result.reason)
    facts: Any = SimpleNamespace(preflight=dataclasses.asdict(result) | {"engine_file": str(kept)})
    engines = bundling._engines(facts, "float32")
    whole = Bundle.open(bundle)
    fields = {field.name: getattr(whole.manifest, field.name) for field in dataclasses.fields(ManifestDraft)}
    draft = ManifestDraft(**cast(Any, fields | {"target": "desktop-rtx", "engines": tuple(engines)}))
    files = {name: whole.files[name] for name in whole.manifest.content_names}
    written = write_bundle(
        tmp_path / "rtx", draft, {**files, **{item.file: path for item, path in engines.items()}}
    )
    found = Bundle.open(written)
    (engine,) = found.manifest.engines
    assert (engine.kind, engine.variant, engine.version) == ("tensorrt-rtx", "float32", result.engine_version)
    assert found.files[engine.file] == kept.read_bytes()
    assert found.manifest.files[engine.file].size_bytes == result.engine_bytes
    with Classifier.load(written, engine="ort-cpu") as classifier:
        assert classifier.predict(whole.golden.images[0]).label in whole.manifest.classes
    facts.preflight["engine_file"] = None
    assert bundling._engines(facts, "float32") == {}
