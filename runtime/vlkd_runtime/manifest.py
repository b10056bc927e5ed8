"""The bundle's manifest: what is inside, for which device, from where, and the hashes that hold it together.

Letters: N static batch, H rows, W columns, D sizes of the joint space, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from .preprocess import PreprocessSpec
from .strictjson import JsonValue

SCHEMA_VERSION = 1
FORMAT = "vlkd-bundle"
MANIFEST_NAME = "manifest.json"

# Largest size in bytes of each file, the manifest first. These five are a bundle, no more and no fewer.
LIMITS: Mapping[str, int] = MappingProxyType(
    {
        MANIFEST_NAME: 16 << 20,
        "class_vectors.safetensors": 256 << 20,
        "evidence.json": 64 << 20,
        "golden.safetensors": 256 << 20,
        "model.onnx": 1 << 30,
    }
)
CONTENT_NAMES = tuple(name for name in LIMITS if name != MANIFEST_NAME)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What the graph takes and gives, and how it was made.

    Attributes:
        precision: What the weights are stored in: ``float32``, ``float16``, ``int8`` and so on.
        dialect: The flavour of the graph, such as the kind of QDQ; free text for the reader of a report.
        opset: Version of the default ONNX operator set.
        image: Shape (N, H, W, 3) of the input ``image``, uint8.
        embedding: Shape (N, D) of the output ``embedding``, float32.
        logits: Shape (N, C) of the output ``logits``, float32.
    """

    precision: str
    dialect: str
    opset: int
    image: tuple[int, int, int, int]
    embedding: tuple[int, int]
    logits: tuple[int, int]

    def to_json(self) -> dict[str, JsonValue]:
        """Give the fields as a JSON object."""
        return {
            "precision": self.precision,
            "dialect": self.dialect,
            "opset": self.opset,
            "inputs": {"image": {"dtype": "uint8", "shape": list(self.image)}},
            "outputs": {
                "embedding": {"dtype": "float32", "shape": list(self.embedding)},
                "logits": {"dtype": "float32", "shape": list(self.logits)},
            },
        }


@dataclass(frozen=True, slots=True)
class GoldenTolerance:
    """How far an engine's answers may be from the golden ones.

    Attributes:
        min_cosine: Least cosine between an embedding and its golden one, for each sample.
        max_logit_gap: Largest absolute difference of any logit.
    """

    min_cosine: float
    max_logit_gap: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestDraft:
    """A manifest before the files are known.

    Attributes:
        name: What to call the model.
        target: The device it was made for.
        model: The graph's tensors and precision.
        preprocess: How images are brought to the graph.
        classes: Class names in the order of the logits.
        logit_scale: Logits are this times the cosine.
        golden: The self-test's tolerances.
        provenance: Where it came from: text by name.
        stand_in: Which demo world or stand-in teacher is behind it; None where all is real.
    """

    name: str
    target: str
    model: ModelSpec
    preprocess: PreprocessSpec
    classes: tuple[str, ...]
    logit_scale: float
    golden: GoldenTolerance
    provenance: Mapping[str, str] = field(default_factory=dict)
    stand_in: str | None = None

    def to_json(self) -> dict[str, JsonValue]:
        """Give the fields as a JSON object, without files and digest."""
        return {
            "format": FORMAT,
            "schema_version": SCHEMA_VERSION,
            "name": self.name,
            "target": self.target,
            "model": self.model.to_json(),
            "preprocess": self.preprocess.to_json(),
            "classes": list(self.classes),
            "logit_scale": float(self.logit_scale),
            "golden": {
                "min_cosine": float(self.golden.min_cosine),
                "max_logit_gap": float(self.golden.max_logit_gap),
            },
            "provenance": dict(self.provenance),
            "stand_in": self.stand_in,
        }


@dataclass(frozen=True, slots=True)
class FileEntry:
    """What a file of the bundle must be.

    Attributes:
        sha256: Hash of its content, in hex.
        size_bytes: Its length.
    """

    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest(ManifestDraft):
    """A manifest as read from a bundle.

    Attributes:
        files: Size and hash of each file beside the manifest.
        digest: SHA-256 of the manifest without its digest line; it names the bundle as a whole.
    """

    files: Mapping[str, FileEntry]
    digest: str
