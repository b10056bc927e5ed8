"""The bundle's manifest: what is inside, for which device, from where, and the hashes that hold it together.

Letters: N static batch, H rows, W columns, D sizes of the joint space, C classes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from .preprocess import PreprocessSpec
from .strictjson import JsonValue

SCHEMA_VERSION = 2
# Schema 1 had one graph per bundle; such a bundle is read as one variant and never written.
READ_SCHEMAS = (1, 2)
FORMAT = "vlkd-bundle"
MANIFEST_NAME = "manifest.json"
MODEL_NAME = "model.onnx"
SIGNATURE_NAME = "manifest.sig"
SIGNATURE_BYTES = 64
MOST_VARIANTS = 8
MOST_ENGINES = 8
MOST_BYTES = 3 << 30

# Largest size in bytes of each file, the manifest first. Every bundle has these five.
LIMITS: Mapping[str, int] = MappingProxyType(
    {
        MANIFEST_NAME: 16 << 20,
        "class_vectors.safetensors": 256 << 20,
        "evidence.json": 64 << 20,
        "golden.safetensors": 256 << 20,
        MODEL_NAME: 1 << 30,
    }
)
CONTENT_NAMES = tuple(name for name in LIMITS if name != MANIFEST_NAME)
VARIANT_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_FURTHER = re.compile(rf"(model\.{VARIANT_NAME.pattern}\.onnx|engine\.{VARIANT_NAME.pattern}\.bin)")


def file_limit(name: str) -> int | None:
    """Give the largest size in bytes of a bundle's file, or None where no bundle has such a file."""
    if name == SIGNATURE_NAME:
        return SIGNATURE_BYTES
    return LIMITS[MODEL_NAME] if _FURTHER.fullmatch(name) else LIMITS.get(name)


def variant_file(name: str) -> str:
    """Name the file of a further variant."""
    return f"model.{name}.onnx"


def engine_file(name: str) -> str:
    """Name the file of an engine built ahead of time."""
    return f"engine.{name}.bin"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a graph is meant to run as, for the engine's own account to be held against.

    Attributes:
        int8_ops: Convolutions and linear layers that the desk quantized.
        dla_share: Least share of the layers that must run on a deep learning accelerator.
        sparse_ops: Convolutions and linear layers whose weights are 2:4 sparse.
    """

    int8_ops: int = 0
    dla_share: float = 0.0
    sparse_ops: int = 0

    def to_json(self) -> dict[str, JsonValue]:
        """Give the fields as a JSON object."""
        plan: dict[str, JsonValue] = {"int8_ops": self.int8_ops, "dla_share": float(self.dla_share)}
        # Left out where it is 0, for readers that do not know it.
        return plan | ({"sparse_ops": self.sparse_ops} if self.sparse_ops else {})


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
        plan: What it is meant to run as.
    """

    precision: str
    dialect: str
    opset: int
    image: tuple[int, int, int, int]
    embedding: tuple[int, int]
    logits: tuple[int, int]
    plan: Plan = Plan()

    def to_json(self) -> dict[str, JsonValue]:
        """Give the fields as a JSON object."""
        return {
            "precision": self.precision,
            "dialect": self.dialect,
            "opset": self.opset,
            "plan": self.plan.to_json(),
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

    def to_json(self) -> dict[str, JsonValue]:
        """Give the fields as a JSON object."""
        return {"min_cosine": float(self.min_cosine), "max_logit_gap": float(self.max_logit_gap)}


@dataclass(frozen=True, slots=True)
class Variant:
    """One of the graphs that a bundle holds of the same network.

    Attributes:
        name: What to call it.
        file: The bundle's file that holds it.
        model: Its tensors and precision; the tensors are those of the first variant.
        golden: The self-test's tolerances for it.
    """

    name: str
    file: str
    model: ModelSpec
    golden: GoldenTolerance

    @classmethod
    def further(cls, name: str, model: ModelSpec, golden: GoldenTolerance) -> Variant:
        """Describe a graph beside the first one."""
        return cls(name, variant_file(name), model, golden)

    def to_json(self) -> dict[str, JsonValue]:
        """Give the fields as a JSON object, without what all variants share."""
        model = self.model.to_json()
        return {
            **{key: model[key] for key in ("precision", "dialect", "opset", "plan")},
            "golden": self.golden.to_json(),
        }


@dataclass(frozen=True, slots=True)
class PrebuiltEngine:
    """An engine that was built at the desk, for runtimes that can use one.

    Attributes:
        name: What to call it.
        variant: The graph it was built from.
        kind: Which runtime reads it, such as ``tensorrt-rtx``.
        version: The version of that runtime, which must be the same where it is used.
    """

    name: str
    variant: str
    kind: str
    version: str

    @property
    def file(self) -> str:
        """The bundle's file that holds it."""
        return engine_file(self.name)

    def to_json(self) -> dict[str, JsonValue]:
        """Give the fields as a JSON object."""
        return {"variant": self.variant, "kind": self.kind, "version": self.version}


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestDraft:
    """A manifest before the files are known.

    Attributes:
        name: What to call the model.
        target: The device it was made for.
        model: Tensors and precision of the first variant, ``model.onnx``, which is the one that was measured.
        preprocess: How images are brought to the graph.
        classes: Class names in the order of the logits.
        logit_scale: Logits are this times the cosine.
        golden: The self-test's tolerances.
        provenance: Where it came from: text by name.
        stand_in: Which demo world or stand-in teacher is behind it; None where all is real.
        further: The other variants.
        engines: Engines built ahead of time.
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
    further: tuple[Variant, ...] = ()
    engines: tuple[PrebuiltEngine, ...] = ()

    @property
    def variants(self) -> tuple[Variant, ...]:
        """All graphs; the first one, called by its precision, is the one the desk measured."""
        return (Variant(self.model.precision, MODEL_NAME, self.model, self.golden), *self.further)

    @property
    def content_names(self) -> tuple[str, ...]:
        """Names of the files beside the manifest and its signature."""
        more = [*(variant.file for variant in self.further), *(engine.file for engine in self.engines)]
        return tuple(sorted([*CONTENT_NAMES, *more]))

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
            "golden": self.golden.to_json(),
            "provenance": dict(self.provenance),
            "stand_in": self.stand_in,
            "variants": {variant.name: variant.to_json() for variant in self.further},
            "engines": {engine.name: engine.to_json() for engine in self.engines},
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
