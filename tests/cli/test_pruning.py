"""Pruned students in a build: the ladder prunes less when the guard says no, resumes, ships and says what was done."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import vlkd_edge.climbing
import vlkd_edge.pruning
from vlkd_compress.graph import load
from vlkd_compress.prune.settings import PruneSettings
from vlkd_compress.prune.sparsegraph import count_sparse
from vlkd_compress.speed import Speed
from vlkd_edge import configfile
from vlkd_edge.build import build
from vlkd_edge.pruning import cuts
from vlkd_edge.reporting import Outcome
from vlkd_edge.torch_export import find_student, load_network
from vlkd_runtime import Bundle, Classifier
from vlkd_runtime.errors import ConfigError
from vlkd_runtime.tensorfile import read_tensors

from .test_build import SMALL

PRUNED = (
    *SMALL,
    "guard.mean_points=60",
    "student.options={channels=[16, 32, 64, 128], stem_width=16}",  # sparse layers come in sixteens
    "distill.method=vl2v-adip",
    "distill.teacher_view=clean_cached",
    "compress.prune.images=16",
    "compress.prune.rounds=2",
    "compress.prune.round_to=4",
    "compress.prune.epochs=1",
)


def run(out: Path, *settings: str) -> tuple[Outcome, Mapping[str, Any]]:
    config = configfile.load(configfile.DEMO, (), (*PRUNED, *settings))
    found = build(config, out, out.parent / "cache", Console(quiet=True))
    return found, json.loads((out / "ladder.json").read_text())


@pytest.fixture(scope="module")
def built(
    demo_world: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Outcome, Mapping[str, Any]]:
    out = tmp_path_factory.mktemp("build") / "out"
    shutil.copytree(demo_world, out / "stages" / demo_world.name)
    return out, *run(out, "compress.prune.target=macs:0.6", "compress.prune.sparsity=2:4")


def test_the_boldest_cut_ships_with_its_figures(built: tuple[Path, Outcome, Mapping[str, Any]]) -> None:
    out, outcome, ladder = built
    assert outcome.exit_code == 0 and ladder["chosen"] == "macs60-2in4-int8-percentile"
    (first,) = ladder["candidates"]
    pruned = first["pruned"]
    assert pruned["macs"] <= 0.6 * pruned["dense_macs"] and pruned["sparse_layers"] > 0
    steps = "; ".join(first["steps"])
    assert "of the multiply-adds" in steps and "worst-domain harm" in steps
    assert "only with its sparse-weights flag; not timed on a GPU" in steps
    assert "recovered by 1 epochs of vl2v-adip" in steps
    assert (
        "2:4 in" in (out / "ladder.md").read_text()
        and "multiply-adds left" in (out / "ladder.md").read_text()
    )
    assert "macs60-2in4-int8-percentile" in (out / "report.md").read_text()


def test_the_bundle_holds_one_network_in_two_precisions(
    built: tuple[Path, Outcome, Mapping[str, Any]],
) -> None:
    out, _, ladder = built
    bundle = Bundle.open(out / "bundle")
    assert bundle.manifest.model.precision == "int8"
    with Classifier.load(bundle) as classifier:  # the golden samples hold both variants against each other
        assert classifier.infer(bundle.golden.images[:1]).logits.shape == (1, 16)
    sparse = count_sparse(load(out / "bundle" / "model.onnx")).sparse
    assert len(sparse) >= ladder["candidates"][0]["pruned"]["sparse_layers"]
    # TensorRT looks for the zeros only where the manifest says that there are some.
    assert all(variant.model.plan.sparse_ops == len(sparse) for variant in bundle.manifest.variants)


def test_the_torch_student_is_the_one_that_ships(built: tuple[Path, Outcome, Mapping[str, Any]]) -> None:
    out, *_ = built
    (stage,) = out.glob("stages/recover-macs60-2in4-*")
    (dense,) = out.glob("stages/vl2v-adip-*")
    exports = sorted(out.glob("stages/export-vl2v-adip-*/stage.json"))
    assert len(exports) == 2
    for path in exports:  # the unpruned one is the newer now
        pruned = json.loads(path.read_text())["inputs"]["trained"] in stage.name
        os.utime(path, (0, 0) if pruned else None)
    found = find_student(out)
    assert found.weights.parent == stage != dense
    network, size = load_network(found)
    images = Bundle.open(out / "bundle").golden.images
    with Classifier.load(out / "bundle", engine="ort-cpu", variant="float32") as classifier:
        expected = classifier.infer(images).embedding
    with torch.inference_mode():
        embedding = network(torch.from_numpy(np.array(images)))[0].numpy()
    assert size == images.shape[1] and np.allclose(embedding, expected, atol=1e-4)


def test_recovery_keeps_the_zeros_and_the_embedding(built: tuple[Path, Outcome, Mapping[str, Any]]) -> None:
    out, *_ = built
    (cut,), (recovered,) = (
        list(out.glob(f"stages/{name}-*")) for name in ("macs60-2in4", "recover-macs60-2in4")
    )
    zeros = json.loads((cut / "pruned.json").read_text())["zeros"]
    before, after = (
        read_tensors((folder / "student.safetensors").read_bytes(), where="")[0]
        for folder in (cut, recovered)
    )
    assert zeros and before.keys() == after.keys()
    for name in zeros:
        assert np.array_equal(before[name] == 0, after[name] == 0) and not np.array_equal(
            before[name], after[name]
        )
    (trained,) = out.glob("stages/vl2v-adip-*")
    whole = read_tensors((trained / "student.safetensors").read_bytes(), where="")[0]
    assert after["head.weight"].shape[0] == whole["head.weight"].shape[0]


def test_a_second_run_finds_everything_done_and_a_lost_stage_comes_out_the_same(
    built: tuple[Path, Outcome, Mapping[str, Any]],
) -> None:
    out, *_ = built
    (recovered,) = out.glob("stages/recover-macs60-2in4-*")
    weights = (recovered / "student.safetensors").read_bytes()
    shutil.rmtree(recovered)
    again, _ = run(out, "compress.prune.target=macs:0.6", "compress.prune.sparsity=2:4")
    done = [stage["name"] for stage in json.loads(again.json_text)["stages"] if not stage["cached"]]
    assert done == ["recover-macs60-2in4"]
    assert (recovered / "student.safetensors").read_bytes() == weights


def test_what_fails_is_pruned_less_and_then_not_at_all(
    built: tuple[Path, Outcome, Mapping[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(built[0], out)
    found, ladder = run(
        out,
        "compress.prune.target=macs:0.6",
        "compress.prune.sparsity=2:4",
        "compress.prune.steps=[1.0, 0.5]",
        "compress.rank=false",
        "compress.qat_epochs=0",
        "guard.worst_points=0",
        "guard.mean_points=0",
        "guard.early_stop=false",
        'compress.candidates=["int8-percentile", "fp16"]',
    )
    assert found.exit_code == 1
    names = [item["name"] for item in ladder["candidates"]]
    int8 = [f"{graph}int8-percentile" for graph in ("macs60-2in4-", "macs60-", "macs80-", "")]
    assert names == [*int8, "macs60-2in4-fp16", "macs60-fp16", "macs80-fp16", "fp16"]


def test_a_cut_that_cannot_be_made_is_refused_in_the_record(
    built: tuple[Path, Outcome, Mapping[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(built[0], out)
    found, ladder = run(out, "compress.prune.target=macs:0.01", "compress.prune.steps=[1.0]")
    first, second = ladder["candidates"]
    assert first["name"] == "macs1-int8-percentile" and first["verdict"] == "refused"
    assert "leave 1 % of the multiply-adds" in first["reason"]
    assert found.exit_code == 0 and second["name"] == ladder["chosen"] == "int8-percentile"


def test_latency_is_measured_where_the_engine_runs(
    built: tuple[Path, Outcome, Mapping[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(built[0], out)

    def race(floating: Path, candidate: Path, *_: object, **__: object) -> Speed:
        share = candidate.stat().st_size / floating.stat().st_size
        return Speed("ort-cpu test", 1, 30, 1.0, share, 1 / share, 1 / share, 1 / share)

    for module in (vlkd_edge.climbing, vlkd_edge.pruning):
        monkeypatch.setattr(module, "race", race)
    _, ladder = run(out, "target=cpu-x86", "compress.prune.target=latency:0.8", "compress.prune.epochs=0")
    first = ladder["candidates"][0]
    assert first["name"].startswith("latency80-") and first["verdict"] == "pass"
    graph = next(out.glob("stages/export-vl2v-adip-*/model.onnx"))
    assert 0.5 < first["pruned"]["macs"] / first["pruned"]["dense_macs"] < 1.0 and graph.exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("compress.prune.target=macs:1.4",), r"compress.prune.target: .* below 1, found 'macs:1.4'"),
        (
            ("compress.prune.steps=[0.5, 1.0]",),
            r"compress.prune.steps: expected parts of the cut above 0, falling",
        ),
        (("compress.prune.epochs=-1",), r"compress.prune.epochs: expected 0 to"),
        (("compress.prune.importance=random",), r"compress.prune.importance"),
    ],
    ids=["more than all", "steps that rise", "no epochs", "unknown importance"],
)
def test_settings_that_cannot_be_meant_are_refused(settings: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        configfile.load(configfile.DEMO, (), settings)


def test_a_latency_that_cannot_be_measured_here_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"whose latency cannot be measured here. Ask for macs:0.7"):
        run(tmp_path / "out", "compress.prune.target=latency:0.7")


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        (PruneSettings(), []),
        (PruneSettings("macs:0.6"), ["macs60", "macs76", "macs90"]),
        (PruneSettings("size:0.5", steps=(1.0,), sparsity="2:4"), ["size50-2in4", "size50"]),
        (PruneSettings(sparsity="2:4"), ["2in4"]),
    ],
    ids=["off", "steps", "sparsity first", "sparsity alone"],
)
def test_cuts_in_the_order_of_the_ladder(settings: PruneSettings, names: list[str]) -> None:
    assert [cut.name for cut in cuts(settings)] == names
