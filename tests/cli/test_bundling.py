"""The engine that a preflight built ahead of time, in the bundle."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from vlkd_compress.guard import Candidate
from vlkd_compress.preflight import run_preflight
from vlkd_edge import bundling
from vlkd_edge.further import Further, wanted
from vlkd_edge.ship import precision
from vlkd_edge.targets import find
from vlkd_runtime import Bundle, Classifier
from vlkd_runtime.bundle import write_bundle
from vlkd_runtime.errors import ConfigError
from vlkd_runtime.manifest import GoldenTolerance, ManifestDraft, Variant

TOLERANCE = GoldenTolerance(0.99, 1.0)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("int8-percentile", "int8"),
        ("fp8-float2-abcd", "float8"),
        ("macs60-fp16", "float16"),
        ("macs60-2in4-fp8", "float8"),
        ("weights4", "int8"),
    ],
)
def test_the_manifest_calls_weights_by_what_they_are(name: str, kind: str) -> None:
    assert precision(Candidate(name, Path("model.onnx"), ())) == kind


def test_an_engine_built_ahead_of_time_is_a_file_of_the_bundle(bundle: Path, tmp_path: Path) -> None:
    kept = tmp_path / "engine.bin"
    result = run_preflight(bundle / "model.onnx", find("desktop-rtx"), keep_engine=kept)
    if result.verdict == "not run":
        pytest.skip(result.reason)
    answer = dataclasses.asdict(result) | {"engine_file": str(kept)}
    facts: Any = SimpleNamespace(preflight=answer, further=())
    whole = Bundle.open(bundle)
    engines = bundling._engines(facts, whole.manifest.variants)
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
    # TensorRT for RTX takes float16 first, so that engine goes along and not the first variant's.
    half = Variant.further(
        "float16", dataclasses.replace(whole.manifest.model, precision="float16"), TOLERANCE
    )
    facts.further = (Further("float16", kept, "", None, answer),)
    assert [e.variant for e in bundling._engines(facts, (*whole.manifest.variants, half))] == ["float16"]
    facts.preflight, facts.further = {"engine_file": None}, ()
    assert bundling._engines(facts, whole.manifest.variants) == {}


@pytest.mark.parametrize(
    ("target", "asked", "expected"),
    [
        pytest.param("jetson", (), ("float16", "float32"), id="jetson"),
        pytest.param("desktop-rtx", (), ("float16", "float32"), id="rtx"),
        pytest.param("cpu-x86", (), ("float32",), id="cpu"),
        pytest.param("jetson", ("float32",), ("float32",), id="asked"),
        pytest.param("cpu-arm", ("float32",), ("float32",), id="cpu-asked"),
    ],
)
def test_variants_that_suit_a_target(target: str, asked: Any, expected: tuple[str, ...]) -> None:
    assert wanted(asked, find(target)) == expected


def test_float16_is_refused_for_a_processor() -> None:
    with pytest.raises(ConfigError, match=r"expected no float16 for cpu-x86, .*Leave it out"):
        wanted(("float16", "float32"), find("cpu-x86"))
