"""Writes the bundle: the graph that passed, its class vectors, golden samples and the evidence."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlkd_bench.paired import GuardVerdict
from vlkd_bench.samples import Sample
from vlkd_runtime.bundle import Bundle, pack, write_bundle
from vlkd_runtime.manifest import (
    GoldenTolerance,
    ManifestDraft,
    ModelSpec,
    Plan,
    PrebuiltEngine,
    Variant,
    variant_file,
)
from vlkd_runtime.variants import rank_variants

from .facts import Facts, Written
from .ship import Shipping, golden, precision
from .targets import Target

# Another engine rounds otherwise than ONNX Runtime's CPU provider does. It may be about as far from these
# outputs as they are from the float graph's, and no further than what a wrong engine would show.
_MIN_COSINE = {"int8": 0.98, "float8": 0.98, "float16": 0.999, "float32": 0.9999}
_SMALLEST_GAP_SHARE, _LARGEST_GAP_SHARE = 0.005, 0.03


@dataclass(frozen=True, slots=True)
class Places:
    """Where a build puts its bundle."""

    folder: Path
    archive: Path

    @classmethod
    def of(cls, root: Path, name: str, target: str) -> Places:
        """The places in an output folder."""
        return cls(root / "bundle", root / f"{name}-{target}.vlkd")

    def clear(self) -> None:
        """Take away an earlier build's bundle, which would look like this build's."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.archive.unlink(missing_ok=True)


def write(ship: Shipping, target: Target, facts: Facts, train: Sequence[Sample], root: Path) -> Written:
    """Write the bundle as a folder and as an archive, replacing the ones of an earlier build.

    The same graph, vectors and evidence give the same bytes.
    """
    chosen, vectors = facts.compressed.shown, ship.vectors
    kind, scale = precision(chosen.candidate), vectors.logit_scale
    held_out = ship.config.data.held_out
    along = {item.name: item.model for item in facts.further if item.model is not None}
    samples, gaps = golden(ship, chosen.candidate.path, facts.compressed.floating, along, train)
    sparse = {name: _sparse_ops(facts, path) for name, path in (("", chosen.candidate.path), *along.items())}
    model = ModelSpec(
        precision=kind,
        dialect=target.dialect,
        opset=target.opset,
        image=(1, ship.spec.height, ship.spec.width, 3),
        embedding=(1, int(vectors.vectors.shape[1])),
        logits=(1, len(vectors.names)),
        # Eight-bit floats are dequantized, too, and are no INT8 for an engine to show.
        plan=Plan(
            int8_ops=0 if kind == "float8" else _int8_ops(chosen.candidate.path), sparse_ops=sparse[""]
        ),
    )
    # The further ones come along for engines that the first would only slow down.
    further = tuple(
        Variant.further(
            name,
            dataclasses.replace(model, precision=name, dialect="onnx", plan=Plan(sparse_ops=sparse[name])),
            _tolerance(name, gaps[name], scale),
        )
        for name in along
    )
    draft = ManifestDraft(
        name=ship.config.name,
        target=target.name,
        model=model,
        preprocess=ship.spec,
        classes=vectors.names,
        logit_scale=scale,
        golden=_tolerance(kind, gaps[""], scale),
        provenance={
            "teacher": vectors.teacher,
            "teacher fingerprint": vectors.teacher_fingerprint,
            "student": ship.config.student.arch,
            "method": ship.config.distill.method,
            **({"held out": ", ".join(held_out)} if held_out else {"guarded on": "virtual domains"}),
            "compression": "; ".join(chosen.candidate.steps),
        },
        stand_in=" ".join(facts.stand_ins) or None,
        further=further,
    )
    engines = _engines(facts, draft.variants)
    draft = dataclasses.replace(draft, engines=tuple(engines))
    places = Places.of(root, ship.config.name, target.name)
    folder = write_bundle(
        places.folder,
        draft,
        {
            "model.onnx": chosen.candidate.path,
            **{variant_file(name): path for name, path in along.items()},
            **{engine.file: path for engine, path in engines.items()},
            "class_vectors.safetensors": vectors.to_bytes(),
            "golden.safetensors": samples.to_bytes(),
            "evidence.json": (json.dumps(_evidence(facts), indent=1, sort_keys=True) + "\n").encode(),
        },
        replace=True,
    )
    archive = pack(folder, places.archive)
    return Written(
        folder=folder,
        archive=archive,
        digest=Bundle.open(folder).manifest.digest,
        size_bytes=sum(path.stat().st_size for path in folder.iterdir()),
        variants={variant.name: (folder / variant.file).stat().st_size for variant in draft.variants},
    )


def _tolerance(kind: str, gap: float, scale: float) -> GoldenTolerance:
    """How far another engine may be from a graph's golden outputs, by the float graph's distance from them."""
    least, most = _SMALLEST_GAP_SHARE * scale, _LARGEST_GAP_SHARE * scale
    return GoldenTolerance(_MIN_COSINE[kind], min(max(gap, least), most))


def _evidence(facts: Facts) -> dict[str, Any]:
    shown = facts.compressed.shown
    return {
        "contract": list(facts.contract),
        "guard": {"candidate": shown.candidate.name, **_judged(shown.verdict)},
        "further": {
            item.name: {
                "ships": item.model is not None,
                "reason": item.reason,
                **({} if item.verdict is None else {"guard": _judged(item.verdict)}),
                **({} if item.preflight is None else {"preflight": _asked(item.preflight)}),
            }
            for item in facts.further
        },
        "preflight": _asked(facts.preflight or {}),
    }


def _judged(verdict: GuardVerdict) -> dict[str, Any]:
    return {
        "verdict": verdict.verdict,
        "reason": verdict.reason,
        "virtual": verdict.comparison.virtual,
        "domains": {name: dataclasses.asdict(drop) for name, drop in verdict.domains.items()},
        "flip_rate": verdict.flip_rate,
    }


def _asked(preflight: Mapping[str, Any]) -> dict[str, Any]:
    return {key: preflight.get(key) for key in ("verdict", "engine", "reason")}


def _engines(facts: Facts, variants: Sequence[Variant]) -> dict[PrebuiltEngine, Path]:
    """The engine that the preflight built, where it is the target's own and needs no building on the device.

    Of several variants, the one that the engine will take.
    """
    built = {variants[0].name: facts.preflight or {}}
    built |= {item.name: item.preflight for item in facts.further if item.preflight is not None}
    for suited in rank_variants(variants, "tensorrt-rtx"):
        found = built.get(suited.variant.name, {})
        if found.get("engine_file"):
            engine = PrebuiltEngine("rtx", suited.variant.name, "tensorrt-rtx", str(found["engine_version"]))
            return {engine: Path(found["engine_file"])}
    return {}


def _sparse_ops(facts: Facts, model: Path) -> int:
    """Count the layers whose zeros TensorRT can skip, in a network that was trained to have them."""
    from vlkd_compress.graph import load
    from vlkd_compress.prune.sparsegraph import count_sparse

    best = facts.compressed.climb.best
    meant = best is not None and best.made.pruned is not None and best.made.pruned.sparse_layers > 0
    return len(count_sparse(load(model)).sparse) if meant else 0


def _int8_ops(model: Path) -> int:
    """Count the convolutions and linear layers that read dequantized values."""
    from vlkd_compress.graph import WEIGHTED, Graph, load

    graph = Graph(load(model))
    made_by = {name: node.op_type for name, node in graph.producers.items()}
    return sum(
        node.op_type in WEIGHTED and all(made_by.get(name) == "DequantizeLinear" for name in node.input[:2])
        for node in graph.model.graph.node
    )
