"""Writes the bundle: the graph that passed, its class vectors, golden samples and the evidence."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vlkd_bench.samples import Sample
from vlkd_compress.guard import Trial
from vlkd_runtime.bundle import Bundle, pack, write_bundle
from vlkd_runtime.manifest import GoldenTolerance, ManifestDraft, ModelSpec, Plan, PrebuiltEngine, Variant

from .facts import Facts, Written
from .ship import Shipping, golden, precision
from .targets import Target

# Another engine rounds otherwise than ONNX Runtime's CPU provider does. It may be about as far from these
# outputs as they are from the float graph's, and no further than what a wrong engine would show.
_MIN_COSINE = {"int8": 0.98, "float16": 0.999, "float32": 0.9999}
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


def write(
    ship: Shipping,
    target: Target,
    chosen: Trial,
    floating: Path,
    train: Sequence[Sample],
    facts: Facts,
    root: Path,
) -> Written:
    """Write the bundle as a folder and as an archive, replacing the ones of an earlier build.

    The same graph, vectors and evidence give the same bytes.
    """
    vectors, kind = ship.vectors, precision(chosen.candidate)
    size, classes = ship.config.student.image_size, len(vectors.names)
    held_out = ship.config.data.held_out
    samples, float_gap = golden(ship, chosen.candidate.path, floating, train)
    shares = _SMALLEST_GAP_SHARE * vectors.logit_scale, _LARGEST_GAP_SHARE * vectors.logit_scale
    draft = ManifestDraft(
        name=ship.config.name,
        target=target.name,
        model=ModelSpec(
            precision=kind,
            dialect=target.dialect,
            opset=target.opset,
            image=(1, size, size, 3),
            embedding=(1, int(vectors.vectors.shape[1])),
            logits=(1, classes),
            plan=Plan(int8_ops=_int8_ops(chosen.candidate.path)),
        ),
        preprocess=ship.spec,
        classes=vectors.names,
        logit_scale=vectors.logit_scale,
        golden=GoldenTolerance(_MIN_COSINE[kind], min(max(float_gap, shares[0]), shares[1])),
        provenance={
            "teacher": vectors.teacher,
            "teacher fingerprint": vectors.teacher_fingerprint,
            "student": ship.config.student.arch,
            "method": ship.config.distill.method,
            **({"held out": ", ".join(held_out)} if held_out else {"guarded on": "virtual domains"}),
            "compression": "; ".join(chosen.candidate.steps),
        },
        stand_in=" ".join(facts.stand_ins) or None,
    )
    # The float graph comes along for engines that INT8 or float16 would only slow down.
    exact = dataclasses.replace(draft.model, precision="float32", dialect="onnx", plan=Plan())
    further = Variant.further("float32", exact, GoldenTolerance(_MIN_COSINE["float32"], shares[0]))
    engines = _engines(facts, kind)
    draft = dataclasses.replace(draft, further=(further,), engines=tuple(engines))
    evidence = {
        "contract": list(facts.contract),
        "guard": {
            "candidate": chosen.candidate.name,
            "verdict": chosen.verdict.verdict,
            "reason": chosen.verdict.reason,
            "virtual": chosen.verdict.comparison.virtual,
            "domains": {name: dataclasses.asdict(drop) for name, drop in chosen.verdict.domains.items()},
            "flip_rate": chosen.verdict.flip_rate,
        },
        "preflight": {key: (facts.preflight or {}).get(key) for key in ("verdict", "engine", "reason")},
    }
    places = Places.of(root, ship.config.name, target.name)
    folder = write_bundle(
        places.folder,
        draft,
        {
            "model.onnx": chosen.candidate.path,
            further.file: floating,
            **{engine.file: path for engine, path in engines.items()},
            "class_vectors.safetensors": vectors.to_bytes(),
            "golden.safetensors": samples.to_bytes(),
            "evidence.json": (json.dumps(evidence, indent=1, sort_keys=True) + "\n").encode(),
        },
        replace=True,
    )
    archive = pack(folder, places.archive)
    return Written(
        folder=folder,
        archive=archive,
        digest=Bundle.open(folder).manifest.digest,
        size_bytes=sum(path.stat().st_size for path in folder.iterdir()),
    )


def _engines(facts: Facts, variant: str) -> dict[PrebuiltEngine, Path]:
    """The engine that the preflight built, where it is the target's own and needs no building on the device."""
    found = facts.preflight or {}
    if not found.get("engine_file"):
        return {}
    engine = PrebuiltEngine("rtx", variant, "tensorrt-rtx", str(found["engine_version"]))
    return {engine: Path(found["engine_file"])}


def _int8_ops(model: Path) -> int:
    """Count the convolutions and linear layers that read dequantized values."""
    from vlkd_compress.graph import WEIGHTED, Graph, load

    graph = Graph(load(model))
    made_by = {name: node.op_type for name, node in graph.producers.items()}
    return sum(
        node.op_type in WEIGHTED and all(made_by.get(name) == "DequantizeLinear" for name in node.input[:2])
        for node in graph.model.graph.node
    )
