"""Several graphs in one bundle, and which one an engine gets."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlkd_runtime import Bundle, Classifier, loading
from vlkd_runtime.bundle import pack, write_bundle
from vlkd_runtime.engines import ENGINE_NAMES, open_engine
from vlkd_runtime.engines.base import EngineOptions, Execution
from vlkd_runtime.errors import BundleError, ConfigError, FallbackError, SelfTestError, UnavailableError
from vlkd_runtime.manifest import GoldenTolerance, Plan, PrebuiltEngine, Variant
from vlkd_runtime.variants import Suited, check_plan, kind_of, rank_variants
from vlkd_runtime.verify import verify

EXACT = GoldenTolerance(0.9999, 0.01)


def described(tiny: Any, precision: str, dialect: str = "onnx", **change: Any) -> Variant:
    model = dataclasses.replace(tiny.draft.model, precision=precision, dialect=dialect, **change)
    return Variant.further(f"{precision}-{dialect}"[:32], model, EXACT)


@pytest.fixture
def several(tiny: Any, build_model: Any, tmp_path: Path) -> Path:
    """A bundle whose first variant is INT8 for TensorRT by name, with a float one that computes otherwise."""
    weight = tiny.weight + 0.05
    other = dataclasses.replace(tiny, weight=weight)
    embedding, logits = other.reference(tiny.golden.images)
    first = dataclasses.replace(tiny.draft.model, precision="int8", dialect="tensorrt-qdq")
    further = Variant.further("float32", tiny.draft.model, EXACT)
    golden = dataclasses.replace(
        tiny.golden, further={"float32": (embedding.astype(np.float32), logits.astype(np.float32))}
    )
    draft = dataclasses.replace(tiny.draft, model=first, further=(further,))
    files = {
        **tiny.files,
        "golden.safetensors": golden.to_bytes(),
        "model.float32.onnx": build_model(weight, tiny.vectors.vectors).SerializeToString(),
    }
    return write_bundle(tmp_path / "several", draft, files)


def test_all_variants_are_read_and_packed(several: Path, tmp_path: Path) -> None:
    archive = pack(several, tmp_path / "several.vlkd")
    for place in (several, archive):
        bundle = Bundle.open(place)
        assert [variant.name for variant in bundle.manifest.variants] == ["int8", "float32"]
        assert set(bundle.files) == {path.name for path in several.iterdir()}
        assert bundle.model == (several / "model.onnx").read_bytes()
    assert pack(archive, tmp_path / "again.vlkd").read_bytes() == archive.read_bytes()


def test_the_cpu_gets_the_float_graph_and_says_why(several: Path, tiny: Any) -> None:
    with Classifier.load(several, threads=1, cache=None) as classifier:
        chosen = classifier.selection
        assert chosen is not None
        assert (chosen.engine, chosen.variant) == ("ort-cpu", "float32")
        assert [(one.name, one.taken) for one in chosen.variants] == [("float32", True), ("int8", False)]
        assert "fuses only part of it" in chosen.variants[1].reason
        assert [one.name for one in chosen.engines] == list(ENGINE_NAMES)
        assert [one.taken for one in chosen.engines] == [False] * 5 + [True]
        assert all("libcuda.so.1" in one.reason for one in chosen.engines[:5])
        float_logits = classifier.infer(tiny.golden.images).logits
    with Classifier.load(several, threads=1, cache=None, variant="int8") as classifier:
        assert classifier.selection is not None
        assert classifier.selection.variant == "int8"
        assert classifier.selection.variants[-1].reason == "another one was asked for"
        assert classifier.infer(tiny.golden.images).logits == pytest.approx(tiny.golden.logits, abs=1e-4)
        assert np.abs(classifier.infer(tiny.golden.images).logits - float_logits).max() > 0.01


def test_a_variant_that_fails_gives_way_to_the_next(several: Path, tiny: Any, tmp_path: Path) -> None:
    bundle = Bundle.open(several)
    files = {name: bundle.files[name] for name in bundle.manifest.content_names}
    wrong = {**files, "model.float32.onnx": files["model.onnx"]}
    place = write_bundle(tmp_path / "wrong", bundle.manifest, wrong)
    with Classifier.load(place, threads=1, cache=None) as classifier:
        assert classifier.selection is not None
        assert classifier.selection.variant == "int8"
        assert classifier.selection.variants[0].name == "float32"
        assert "golden sample 0" in classifier.selection.variants[0].reason
    with pytest.raises(SelfTestError, match="golden sample 0"):
        Classifier.load(place, threads=1, cache=None, variant="float32")
    with pytest.raises(ConfigError, match="expected one of int8, float32, found 'fp4'"):
        Classifier.load(several, variant="fp4")


KINDS = (
    *(("int8", "tensorrt-qdq"), ("int8", "onnxruntime-qdq"), ("float16", "onnx"), ("float32", "onnx")),
    ("float8", "tensorrt-qdq"),
)


@pytest.mark.parametrize(
    ("engine", "order"),
    [
        ("ort-cpu", [1, 3, 0, 2, 4]),
        ("ort-cuda", [2, 3, 0, 1, 4]),
        ("ort-tensorrt", [0, 4, 2, 3]),
        ("tensorrt", [0, 4, 2, 3]),
        ("ort-tensorrt-rtx", [2, 3, 4, 0]),
        ("tensorrt-rtx", [2, 3, 4, 0]),
    ],
)
def test_order(engine: str, order: list[int], tiny: Any) -> None:
    variants = [described(tiny, *kind) for kind in KINDS]
    ranked = rank_variants(variants, engine)
    assert [one.variant for one in ranked] == [variants[index] for index in order]
    assert [one.whole for one in ranked] == [True] + [False] * (len(order) - 1)
    assert all(one.reason for one in ranked)


def test_every_engine_has_an_order(tiny: Any) -> None:
    exact = described(tiny, "float32")
    assert all(rank_variants([exact], engine)[0].variant == exact for engine in ENGINE_NAMES)
    with pytest.raises(UnavailableError, match="takes none of the bundle's variants, which are int8-on"):
        rank_variants([described(tiny, *KINDS[1])], "tensorrt")
    assert kind_of(described(tiny, "fp16")) == "float16"


def test_an_engine_looks_for_zeros_where_the_bundle_says_there_are(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def opened(*arguments: Any, options: EngineOptions, **more: Any) -> Any:
        asked.append(options.sparse_weights)
        return open_engine(*arguments, options=options, **more)

    monkeypatch.setattr(loading, "open_engine", opened)
    for count in (0, 3):
        model = dataclasses.replace(tiny.draft.model, plan=Plan(sparse_ops=count))
        place = write_bundle(
            tmp_path / str(count), dataclasses.replace(tiny.draft, model=model), dict(tiny.files)
        )
        assert Bundle.open(place).manifest.model.plan.sparse_ops == count
        assert ("sparse_ops" in (place / "manifest.json").read_text()) == bool(count)
        Classifier.load(place, engine="ort-cpu", threads=1, cache=None).close()
    assert asked == [False, True]


@pytest.mark.parametrize(
    ("engine", "plan", "execution", "match"),
    [
        pytest.param("ort-cpu", Plan(5), Execution("p", 9, 5), None, id="all-fused"),
        pytest.param(
            "ort-cpu", Plan(5), Execution("p", 9, 4), "expected 5 .* in INT8, found 4", id="one-less"
        ),
        pytest.param("ort-cpu", Plan(5), Execution("p", note="unknown"), None, id="not-told"),
        pytest.param("tensorrt", Plan(10), Execution("p", 9, 8), None, id="merged"),
        pytest.param("tensorrt", Plan(10), Execution("p", 9, 7), "found 7; the others fell back", id="lost"),
        pytest.param("tensorrt", Plan(0, 0.9), Execution("p", 10, 0, 9), None, id="on-the-accelerator"),
        pytest.param(
            "tensorrt", Plan(0, 0.9), Execution("p", 10, 0, 8), "at least 90% .*found 80%", id="too-few"
        ),
        pytest.param("tensorrt", Plan(0, 0.5), Execution("p"), "found 0%", id="nothing-told-of-dla"),
    ],
)
def test_the_plan(engine: str, plan: Plan, execution: Execution, match: str | None, tiny: Any) -> None:
    suited = Suited(described(tiny, "int8", "tensorrt-qdq", plan=plan), "", True)
    if match is None:
        check_plan(suited, execution, engine)
    else:
        with pytest.raises(FallbackError, match=match):
            check_plan(suited, execution, engine)


@pytest.mark.parametrize("layers", [Execution("p", 9, 0, 1), Execution("p", note="names of its layers only")])
def test_an_accelerator_that_was_asked_for_is_used_or_nothing(layers: Execution, tiny: Any) -> None:
    suited = Suited(described(tiny, "float16"), "", True)
    check_plan(suited, layers, "tensorrt", on_accelerator=True)
    with pytest.raises(FallbackError, match="that dla_core asks for, found none; all 9 fell back to the GPU"):
        check_plan(suited, Execution("p", 9, 0, 0), "tensorrt", on_accelerator=True)
    check_plan(suited, Execution("p", 9, 0, 0), "tensorrt")


def test_engines_without_accelerators_do_not_take_one(folder: Path) -> None:
    options = EngineOptions(dla_core=0)
    for engine in ("ort-cpu", "auto"):
        with pytest.raises(UnavailableError, match="dla_core asks for an accelerator"):
            open_engine(folder / "model.onnx", engine=engine, options=options)


def test_a_poor_choice_has_no_plan_to_keep(tiny: Any) -> None:
    suited = Suited(described(tiny, "int8", "tensorrt-qdq", plan=Plan(5)), "", False)
    check_plan(suited, Execution("p", 9, 0), "ort-cpu")


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_plan_that_onnx_runtime_does_not_keep_is_refused(
    in_memory: bool, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fixture's graph is float; a manifest that promises INT8 is found out from the rewritten graph."""
    model = dataclasses.replace(tiny.draft.model, precision="int8", dialect="onnxruntime", plan=Plan(1))
    place = write_bundle(tmp_path / "b", dataclasses.replace(tiny.draft, model=model), tiny.files)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    if not in_memory:
        monkeypatch.delattr(os, "memfd_create", raising=False)
    for cache in (tmp_path / "cache", None):
        with pytest.raises(FallbackError, match="expected 1 convolutions and linear layers in INT8, found 0"):
            Classifier.load(place, threads=1, cache=cache)
    report = verify(place, engine="ort-cpu")
    assert not report.ok
    assert "fell back to float" in report.checks[-1].detail
    assert not list(tmp_path.rglob("*.onnx.*")) and not list(scratch.iterdir())


def test_a_graph_that_can_be_written_nowhere_is_told(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = dataclasses.replace(tiny.draft.model, precision="int8", dialect="onnxruntime", plan=Plan(1))
    place = write_bundle(tmp_path / "b", dataclasses.replace(tiny.draft, model=model), tiny.files)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "memfd_create", full)
    with Classifier.load(place, threads=1, cache=None) as classifier:
        assert classifier.selection is not None
        assert classifier.selection.execution is not None
        assert "cannot be written: No space left" in classifier.selection.execution.note


def test_many_processes_may_load_one_bundle_at_once(tiny: Any, tmp_path: Path) -> None:
    model = dataclasses.replace(tiny.draft.model, precision="int8", dialect="onnxruntime", plan=Plan(1))
    place = write_bundle(tmp_path / "b", dataclasses.replace(tiny.draft, model=model), tiny.files)
    code = (
        "import sys\nfrom pathlib import Path\nfrom vlkd_runtime import Classifier\n"
        "from vlkd_runtime.errors import FallbackError\n"
        "for _ in range(20):\n"
        "    try:\n        Classifier.load(sys.argv[1], cache=Path(sys.argv[2]), threads=1)\n"
        "    except FallbackError:\n        continue\n    sys.exit('loaded')\n"
    )
    command = [sys.executable, "-c", code, str(place), str(tmp_path / "cache")]
    children = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for child in children:
        assert child.communicate(timeout=100)[1] == ""
        assert child.returncode == 0


def version_one(folder: Path) -> bytes:
    """Rewrite a manifest as the first version of this project wrote it."""
    value = json.loads((folder / "manifest.json").read_bytes())
    for key in ("variants", "engines", "digest"):
        value.pop(key)
    value["model"].pop("plan")
    value["schema_version"] = 1
    render = lambda: (json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False) + "\n").encode()  # noqa: E731
    value["digest"] = hashlib.sha256(render()).hexdigest()
    return render()


def test_bundles_of_the_first_schema_are_read(folder: Path, tiny: Any) -> None:
    (folder / "manifest.json").write_bytes(version_one(folder))
    with Classifier.load(folder, threads=1) as classifier:
        assert classifier.manifest is not None
        assert [variant.name for variant in classifier.manifest.variants] == ["float32"]
        assert classifier.infer(tiny.golden.images).logits == pytest.approx(tiny.golden.logits, abs=1e-4)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        pytest.param(
            lambda v: v["variants"].update({"../x": v["variants"]["float32"]}),
            r"variants\.\.\./x must be up to 32",
            id="path",
        ),
        pytest.param(
            lambda v: v["variants"].update({"int8": v["variants"]["float32"]}),
            "int8 has the name of the first",
            id="first-name",
        ),
        pytest.param(
            lambda v: v["variants"].update({f"v{i}": {} for i in range(9)}), "at most 7 are read", id="many"
        ),
        pytest.param(
            lambda v: v["variants"]["float32"].update(golden={"min_cosine": 0.1, "max_logit_gap": 0.1}),
            "variants.float32.golden.min_cosine must be",
            id="lax",
        ),
        pytest.param(
            lambda v: v["variants"]["float32"]["plan"].update(int8_ops=-1), "int8_ops must be", id="plan"
        ),
        pytest.param(
            lambda v: v["model"]["plan"].update(sparse_ops=0), "plan.sparse_ops must be", id="none-sparse"
        ),
        pytest.param(lambda v: v["variants"]["float32"].update(file="x"), "file is not known", id="file"),
        pytest.param(
            lambda v: v["files"].pop("model.float32.onnx"), "model.float32.onnx is missing", id="hash"
        ),
        pytest.param(
            lambda v: v["engines"].update(e={"variant": "fp4", "kind": "k", "version": "1"}),
            "engines.e.variant must be one of int8, float32, found 'fp4'",
            id="engine",
        ),
        pytest.param(lambda v: v.pop("variants"), "variants is missing", id="no-variants"),
    ],
)
def test_manifests_with_impossible_variants(change: Any, match: str, several: Path) -> None:
    value = json.loads((several / "manifest.json").read_bytes())
    value.pop("digest")
    change(value)
    render = lambda: (json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False) + "\n").encode()  # noqa: E731
    value["digest"] = hashlib.sha256(render()).hexdigest()
    (several / "manifest.json").write_bytes(render())
    with pytest.raises(BundleError, match=match):
        Bundle.open(several)


def test_files_without_an_entry_are_refused(several: Path) -> None:
    (several / "model.extra.onnx").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"'model\.extra\.onnx' is missing or too much"):
        Bundle.open(several)


def test_golden_answers_of_every_variant_are_needed(several: Path, tiny: Any, tmp_path: Path) -> None:
    bundle = Bundle.open(several)
    files = {name: bundle.files[name] for name in bundle.manifest.content_names}
    with pytest.raises(BundleError, match=r"expected answers of the variants \['float32'\]"):
        write_bundle(tmp_path / "x", bundle.manifest, {**files, "golden.safetensors": tiny.golden.to_bytes()})


def test_an_engine_built_ahead_travels_with_its_hash(tiny: Any, tmp_path: Path) -> None:
    engine = PrebuiltEngine("rtx", "float32", "tensorrt-rtx", "1.7.1")
    draft = dataclasses.replace(tiny.draft, engines=(engine,))
    place = write_bundle(tmp_path / "b", draft, {**tiny.files, engine.file: b"engine"})
    assert Bundle.open(place).manifest.engines == (engine,)
    (place / engine.file).write_bytes(b"Engine")
    with pytest.raises(BundleError, match=r"engine\.rtx\.bin in .*expected SHA-256"):
        Bundle.open(place)
