"""Writes the bundle: the graph that passed, its class vectors, golden samples and the evidence."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vlkd_bench.samples import Sample
from vlkd_compress.guard import Trial
from vlkd_runtime.bundle import Bundle, pack, write_bundle
from vlkd_runtime.manifest import GoldenTolerance, ManifestDraft, ModelSpec

from .ship import Shipping, golden, precision
from .targets import Target

if TYPE_CHECKING:
    from .reporting import Facts

# An engine may round otherwise than ONNX Runtime's CPU provider does; these gaps hold for each precision.
_MIN_COSINE = {"int8": 0.98, "float16": 0.999}
_LOGIT_GAP_SHARE = {"int8": 0.1, "float16": 0.02}


@dataclass(frozen=True, slots=True)
class Written:
    """A finished bundle.

    Attributes:
        folder: as a folder.
        archive: as one file.
        digest: names the bundle as a whole.
        size_bytes: of all files in the folder.
        model_bytes: of the graph alone.
    """

    folder: Path
    archive: Path
    digest: str
    size_bytes: int
    model_bytes: int


def write(
    ship: Shipping, target: Target, chosen: Trial, train: Sequence[Sample], facts: Facts, root: Path
) -> Written:
    """Write the bundle as a folder and as an archive, replacing the ones of an earlier build.

    The same graph, vectors and evidence give the same bytes.
    """
    vectors, kind = ship.vectors, precision(chosen.candidate)
    size, classes = ship.config.student.image_size, len(vectors.names)
    draft = ManifestDraft(
        name=ship.config.name,
        target=target.name,
        model=ModelSpec(
            precision=kind,
            dialect=target.dialect,
            opset=20,
            image=(1, size, size, 3),
            embedding=(1, int(vectors.vectors.shape[1])),
            logits=(1, classes),
        ),
        preprocess=ship.spec,
        classes=vectors.names,
        logit_scale=vectors.logit_scale,
        golden=GoldenTolerance(_MIN_COSINE[kind], _LOGIT_GAP_SHARE[kind] * vectors.logit_scale),
        provenance={
            "teacher": vectors.teacher,
            "teacher fingerprint": vectors.teacher_fingerprint,
            "student": ship.config.student.arch,
            "method": ship.config.distill.method,
            "held out": ", ".join(ship.config.data.held_out),
            "compression": "; ".join(chosen.candidate.steps),
        },
        stand_in=" ".join(facts.stand_ins) or None,
    )
    evidence = {
        "contract": list(facts.contract),
        "guard": {
            "candidate": chosen.candidate.name,
            "verdict": chosen.verdict.verdict,
            "reason": chosen.verdict.reason,
            "domains": {name: dataclasses.asdict(drop) for name, drop in chosen.verdict.domains.items()},
            "flip_rate": chosen.verdict.flip_rate,
        },
        "preflight": {key: (facts.preflight or {}).get(key) for key in ("verdict", "engine", "reason")},
    }
    folder = write_bundle(
        root / "bundle",
        draft,
        {
            "model.onnx": chosen.candidate.path,
            "class_vectors.safetensors": vectors.to_bytes(),
            "golden.safetensors": golden(ship, chosen.candidate.path, train),
            "evidence.json": (json.dumps(evidence, indent=1, sort_keys=True) + "\n").encode(),
        },
        replace=True,
    )
    archive = pack(folder, root / f"{ship.config.name}-{target.name}.vlkd")
    return Written(
        folder=folder,
        archive=archive,
        digest=Bundle.open(folder).manifest.digest,
        size_bytes=sum(path.stat().st_size for path in folder.iterdir()),
        model_bytes=(folder / "model.onnx").stat().st_size,
    )
