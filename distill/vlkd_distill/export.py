"""From a trained student to the float ONNX graph, with a parity check that can fail the build.

Letters used in shapes: K images, D embedding size, C classes, H and W pixels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import onnx
import torch

from vlkd_runtime.atomic import write_bytes
from vlkd_runtime.engines import open_engine
from vlkd_runtime.errors import ParityError, TrainingError
from vlkd_runtime.preprocess import PreprocessSpec
from vlkd_runtime.vectors import ClassVectors

from .quiet import quiet
from .students import Deployable

OPSET = 20


@dataclass(frozen=True, slots=True)
class Parity:
    """How far an exported graph is from the network it came from.

    Attributes:
        images: number of images compared.
        max_logit_gap: largest absolute difference of a logit.
        min_cosine: smallest cosine between embeddings.
        agreement: share of images with the same prediction.
    """

    images: int
    max_logit_gap: float
    min_cosine: float
    agreement: float


def export(
    network: Deployable,
    image_size: int,
    path: Path,
    *,
    metadata: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write the network as ONNX: uint8 ``(1, H, W, 3)`` in, ``embedding`` and ``logits`` out, static shapes.

    The same network and metadata give the same bytes. Other opsets, batches and layouts are made of this graph by
    ``vlkd_compress.interface``, which holds the two against each other.

    Args:
        network: the torch module.
        image_size: H and W.
        path: where the graph goes.
        metadata: what the model says of itself, see `describe`.
    """
    example = torch.zeros(1, image_size, image_size, 3, dtype=torch.uint8)
    network.eval().to(memory_format=torch.contiguous_format)
    with quiet():
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["embedding", "logits"],
            optimize=True,
        )
    assert program is not None
    model = program.model_proto
    _strip(model)
    for key, value in sorted(metadata.items()):
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model)
    write_bytes(path, model.SerializeToString(deterministic=True))


def describe(vectors: ClassVectors, preprocess: PreprocessSpec, arch: str) -> dict[str, str]:
    """What a graph says of itself in its metadata: classes, teacher, preparation of images, architecture."""
    return {
        "vlkd.classes": json.dumps(list(vectors.names), ensure_ascii=False),
        "vlkd.logit_scale": repr(float(vectors.logit_scale)),
        "vlkd.preprocess": json.dumps(preprocess.to_json(), sort_keys=True),
        "vlkd.student": arch,
        "vlkd.teacher": vectors.teacher,
        "vlkd.teacher_fingerprint": vectors.teacher_fingerprint,
    }


def check_parity(
    network: Deployable, path: Path, images: npt.NDArray[np.uint8], *, max_logit_gap: float, min_cosine: float
) -> Parity:
    """Run network and graph on the same images and compare.

    Args:
        network: the torch module.
        path: the ONNX graph.
        images: ``(K, H, W, 3)`` uint8.
        max_logit_gap: tolerated absolute difference.
        min_cosine: tolerated smallest cosine.

    Raises:
        TrainingError: the network's own embeddings are zero or not finite.
        ParityError: the graph differs beyond tolerance.
    """
    with torch.inference_mode():
        embedding, logits = (output.numpy() for output in network(torch.from_numpy(images)))
    _refuse_collapsed(embedding, logits)
    engine = open_engine(path, engine="ort-cpu")
    try:
        outputs = [engine.run(images[i : i + 1]) for i in range(len(images))]
    finally:
        engine.close()
    graph_logits = np.concatenate([output.logits for output in outputs])
    graph_embedding = np.concatenate([output.embedding for output in outputs])
    parity = Parity(
        images=len(images),
        max_logit_gap=float(np.abs(logits - graph_logits).max()),
        min_cosine=float((embedding * graph_embedding).sum(-1).min()),
        agreement=float((logits.argmax(-1) == graph_logits.argmax(-1)).mean()),
    )
    if not (parity.max_logit_gap <= max_logit_gap and parity.min_cosine >= min_cosine):
        msg = (
            f"The exported graph {path.name} differs from the network: logit gap {parity.max_logit_gap:.4g} "
            f"(tolerated {max_logit_gap:g}), smallest cosine {parity.min_cosine:.6f} (tolerated {min_cosine:g}), "
            f"on {parity.images} images. This is a defect of the export: report it with student.arch."
        )
        raise ParityError(msg)
    return parity


def _refuse_collapsed(embedding: npt.NDArray[np.float32], logits: npt.NDArray[np.float32]) -> None:
    """Refuse a network that says nothing, whatever its graph says; rows of ``embedding`` should have length one."""
    finite = np.isfinite(embedding).all(-1) & np.isfinite(logits).all(-1)
    short = np.linalg.norm(embedding.astype(np.float64), axis=-1) < 0.5
    broken = int((~finite | short).sum())
    if broken:
        msg = (
            f"Expected unit embeddings from the trained student, found zero or not finite ones for {broken} of "
            f"{len(embedding)} images: its training ran away or collapsed, and the export is not to blame. Lower "
            "distill.lr, to a tenth at first, and run again."
        )
        raise TrainingError(msg)


def _strip(model: onnx.ModelProto) -> None:
    """Drop what differs from run to run or names this machine's files."""
    model.doc_string = ""
    del model.metadata_props[:]
    model.producer_name, model.producer_version = "vlkd-edge", _own_version()
    graph = model.graph
    graph.doc_string = ""
    graph.name = "student"
    del graph.metadata_props[:]
    for node in graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in (*graph.value_info, *graph.input, *graph.output):
        value.doc_string = ""
        del value.metadata_props[:]


def _own_version() -> str:
    try:
        return version("vlkd-edge")
    except PackageNotFoundError:  # run from its sources, not installed
        return ""
