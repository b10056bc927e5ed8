"""Reads and writes ``manifest.json``, holding every byte of it to its one canonical form.

Letters: N static batch, D sizes of the joint space, C classes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NoReturn

from .errors import BundleError, ConfigError, DataError
from .manifest import (
    CONTENT_NAMES,
    FORMAT,
    LIMITS,
    MODEL_NAME,
    MOST_ENGINES,
    MOST_VARIANTS,
    READ_SCHEMAS,
    VARIANT_NAME,
    FileEntry,
    GoldenTolerance,
    Manifest,
    ManifestDraft,
    ModelSpec,
    Plan,
    PrebuiltEngine,
    Variant,
    engine_file,
    variant_file,
)
from .preprocess import PreprocessSpec
from .strictjson import Fields, JsonProblems, canonical, parse
from .vectors import check_names

_HASH = re.compile(r"[0-9a-f]{64}")
_DIGEST_LINE = re.compile(rb'^  "digest": "([0-9a-f]{64})",\n', re.MULTILINE)
_LOOSEST_COSINE = 0.5


def render_manifest(draft: ManifestDraft, contents: Mapping[str, bytes]) -> bytes:
    """Serialise a manifest for the given files, with their hashes and the digest.

    Raises:
        BundleError: The draft cannot be a manifest; all problems are listed.
    """
    value = draft.to_json()
    value["files"] = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in contents.items()
    }
    try:
        value["digest"] = hashlib.sha256(canonical(value)).hexdigest()
        data = canonical(value)
    except ValueError as error:
        _refuse("the manifest to write", [str(error)])
    parse_manifest(data, where="the manifest to write")
    return data


def parse_manifest(data: bytes, *, where: str) -> Manifest:
    """Read and check a manifest's bytes, every one of them.

    Args:
        data: The file.
        where: What to call it in messages.

    Raises:
        BundleError: Not strict JSON, of another schema, with fields missing, unknown or impossible, with a
            digest that does not match, or not in canonical form. All problems found are listed.
    """
    try:
        value = parse(data)
    except JsonProblems as error:
        raise BundleError(_message(where, error.problems)) from error
    problems: list[str] = []
    fields = Fields(value, "", problems)
    if problems:
        _refuse(where, problems)
    schema = _check_schema(fields, where)
    manifest = _read(fields, schema, problems)
    if problems:
        _refuse(where, problems)
    _check_digest(data, value, where)
    return manifest


def _check_schema(fields: Fields, where: str) -> int:
    """Before anything else: another schema's fields would only give misleading problems."""
    kind, version = fields.take("format"), fields.take("schema_version")
    if kind != FORMAT:
        _refuse(where, [f"format must be {FORMAT!r}, found {kind!r}"])
    if type(version) is not int or version not in READ_SCHEMAS:
        msg = (
            f"{where}: found schema version {version!r}, this reader knows "
            f"{' and '.join(map(str, READ_SCHEMAS))}; "
            "update vlkd-edge on this machine or build the bundle with the same version"
        )
        raise BundleError(msg)
    return version


def _read(fields: Fields, schema: int, problems: list[str]) -> Manifest:
    logit_scale = fields.number("logit_scale", 1e-3, 1e4)
    preprocess = _preprocess(fields, problems)
    classes = _classes(fields)
    model = _model(fields.inner("model"), preprocess, len(classes), planned=schema > 1)
    further = _further(fields, model, logit_scale) if schema > 1 else ()
    engines = (
        _engines(fields, (model.precision, *(variant.name for variant in further))) if schema > 1 else ()
    )
    manifest = Manifest(
        name=fields.text("name", longest=256),
        target=fields.text("target", longest=256),
        model=model,
        preprocess=preprocess,
        classes=classes,
        logit_scale=logit_scale,
        golden=_tolerance(fields.inner("golden"), logit_scale),
        provenance=_provenance(fields),
        stand_in=fields.optional_text("stand_in"),
        further=further,
        engines=engines,
        files=_files(fields.inner("files"), further, engines),
        digest=_hash(fields, "digest"),
    )
    fields.finish()
    return manifest


def _preprocess(fields: Fields, problems: list[str]) -> PreprocessSpec:
    value = fields.take("preprocess")
    try:
        return PreprocessSpec.from_json(value)  # type: ignore[arg-type]  # it refuses what is no object
    except ConfigError as error:
        if value is not None:
            problems.append(str(error))
        return PreprocessSpec(1, 1)


def _classes(fields: Fields) -> tuple[str, ...]:
    classes = fields.texts("classes")
    try:
        check_names(classes)
    except DataError as error:
        fields.problems.append(str(error))
    return classes


def _tolerance(fields: Fields, logit_scale: float) -> GoldenTolerance:
    tolerance = GoldenTolerance(
        fields.number("min_cosine", _LOOSEST_COSINE, 1.0),
        # A gap as large as the logits themselves would let any engine through.
        fields.number("max_logit_gap", 0.0, logit_scale / 2),
    )
    fields.finish()
    return tolerance


def _plan(fields: Fields) -> Plan:
    # May be absent; written as 0 it would have two forms.
    sparse = fields.integer("sparse_ops", 1, 1_000_000) if "sparse_ops" in fields.left() else 0
    plan = Plan(fields.integer("int8_ops", 0, 1_000_000), fields.number("dla_share", 0.0, 1.0), sparse)
    fields.finish()
    return plan


def _further(fields: Fields, first: ModelSpec, logit_scale: float) -> tuple[Variant, ...]:
    """Read the variants beside the first one, whose tensors they share."""
    inner = fields.inner("variants")
    found = []
    for name in _names(inner, MOST_VARIANTS - 1):
        entry = inner.inner(name)
        if name == first.precision:
            inner.note(name, "has the name of the first variant, which is called by its precision")
        model = dataclasses.replace(
            first,
            precision=entry.text("precision", longest=64),
            dialect=entry.text("dialect", longest=64),
            opset=entry.integer("opset", 1, 1000),
            plan=_plan(entry.inner("plan")),
        )
        found.append(Variant.further(name, model, _tolerance(entry.inner("golden"), logit_scale)))
        entry.finish()
    return tuple(found)


def _engines(fields: Fields, variants: Sequence[str]) -> tuple[PrebuiltEngine, ...]:
    inner = fields.inner("engines")
    found = []
    for name in _names(inner, MOST_ENGINES):
        entry = inner.inner(name)
        engine = PrebuiltEngine(
            name,
            entry.text("variant", longest=64),
            entry.text("kind", longest=64),
            entry.text("version", longest=64),
        )
        if engine.variant and engine.variant not in variants:
            entry.note("variant", f"must be one of {', '.join(variants)}, found {engine.variant!r}")
        entry.finish()
        found.append(engine)
    return tuple(found)


def _names(fields: Fields, most: int) -> tuple[str, ...]:
    """Give the keys of an object that become parts of file names; what cannot be one is noted."""
    names = fields.left()
    if len(names) > most:
        fields.note("*", f"has {len(names)} entries, at most {most} are read")
        return ()
    for name in names:
        if not VARIANT_NAME.fullmatch(name):
            fields.note(name[:80], "must be up to 32 lower-case letters, digits, _ and -")
    return tuple(sorted(name for name in names if VARIANT_NAME.fullmatch(name)))


def _model(fields: Fields, preprocess: PreprocessSpec, classes: int, *, planned: bool) -> ModelSpec:
    precision, dialect = fields.text("precision", longest=64), fields.text("dialect", longest=64)
    opset = fields.integer("opset", 1, 1000)
    plan = _plan(fields.inner("plan")) if planned else Plan()
    inputs, outputs = fields.inner("inputs"), fields.inner("outputs")
    image = _shape(inputs, "image", "uint8", 4)
    embedding = _shape(outputs, "embedding", "float32", 2)
    logits = _shape(outputs, "logits", "float32", 2)
    for part in (inputs, outputs, fields):
        part.finish()
    expected = (image[0], preprocess.height, preprocess.width, 3)
    if not fields.problems and image != expected:
        inputs.note("image", f"must have the shape {expected} that preprocess gives, found {image}")
    if not fields.problems and (embedding[0] != image[0] or logits != (image[0], classes)):
        outputs.note(
            "logits",
            f"must be ({image[0]}, {classes}) and embedding ({image[0]}, D), found {logits}, {embedding}",
        )
    return ModelSpec(
        precision,
        dialect,
        opset,
        (image[0], image[1], image[2], image[3]),
        (embedding[0], embedding[1]),
        (logits[0], logits[1]),
        plan,
    )


def _shape(tensors: Fields, name: str, dtype: str, rank: int) -> tuple[int, ...]:
    fields = tensors.inner(name)
    found, shape = fields.text("dtype"), fields.take("shape")
    if found != dtype:
        fields.note("dtype", f"must be {dtype!r}, found {found!r}")
    fields.finish()
    if (
        not isinstance(shape, list)
        or len(shape) != rank
        or not all(type(size) is int and 0 < size < 1 << 31 for size in shape)
    ):
        fields.note("shape", f"must be {rank} sizes above 0, found {str(shape)[:80]}")
        return (1,) * rank
    return tuple(shape)


def _provenance(fields: Fields) -> Mapping[str, str]:
    inner = fields.inner("provenance")
    return MappingProxyType({key: inner.text(key, longest=65536) for key in inner.left()})


def _files(
    fields: Fields, further: Sequence[Variant], engines: Sequence[PrebuiltEngine]
) -> Mapping[str, FileEntry]:
    entries = {}
    more = [*(variant_file(v.name) for v in further), *(engine_file(e.name) for e in engines)]
    for name in sorted([*CONTENT_NAMES, *more]):
        entry = fields.inner(name)
        limit = LIMITS.get(name, LIMITS[MODEL_NAME])
        entries[name] = FileEntry(_hash(entry, "sha256"), entry.integer("bytes", 1, limit))
        entry.finish()
    fields.finish()
    return MappingProxyType(entries)


def _hash(fields: Fields, key: str) -> str:
    value = fields.text(key)
    if value and not _HASH.fullmatch(value):
        fields.note(key, f"must be 64 hex digits in lower case, found {value[:80]!r}")
    return value


def _check_digest(data: bytes, value: object, where: str) -> None:
    """Hold every byte of the file: the text without the digest line by the digest, that line by its form."""
    lines = _DIGEST_LINE.findall(data)
    found = hashlib.sha256(_DIGEST_LINE.sub(b"", data)).hexdigest().encode()
    # `parse` gives plain JSON values only.
    if len(lines) != 1 or canonical(value) != data:  # type: ignore[arg-type]
        _refuse(where, ["it is not in canonical form, so it was edited or re-formatted"])
    if lines != [found]:
        _refuse(
            where,
            [f"its digest says {lines[0].decode()}, its content gives {found.decode()}, so it was altered"],
        )


def _message(where: str, problems: list[str]) -> str:
    return (
        f"{where}: not a manifest this reader can use: {'; '.join(problems)}; build or copy the bundle again"
    )


def _refuse(where: str, problems: list[str]) -> NoReturn:
    raise BundleError(_message(where, problems))
