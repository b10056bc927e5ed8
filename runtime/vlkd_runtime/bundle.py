"""A bundle: everything a device needs in one folder or one ``.vlkd`` file, checked before any of it is used.

The format is specified in runtime/README.md.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np

from . import atomic
from .archive import write_archive
from .contents import SUFFIX, Contents, open_contents
from .errors import BundleError, ConfigError, DataError
from .golden import Golden
from .manifest import (
    MANIFEST_NAME,
    MODEL_NAME,
    SIGNATURE_NAME,
    Manifest,
    ManifestDraft,
    Variant,
    file_limit,
)
from .manifestfile import parse_manifest, render_manifest
from .onnxfile import check_model
from .signing import check_signature, sign
from .strictjson import JsonProblems, parse
from .vectors import ClassVectors

__all__ = ["Bundle", "BundleReader", "pack", "sign_bundle", "write_bundle"]


@dataclass(frozen=True, slots=True, eq=False)
class Bundle:
    """A bundle whose every byte was checked.

    Attributes:
        path: Where it was read from.
        manifest: What is inside.
        vectors: The classifier's head.
        golden: Samples for the self-test.
        evidence: The numbers behind it, as parsed JSON.
        files: The verified bytes of all files; engines load these, never the disk.
    """

    path: Path
    manifest: Manifest
    vectors: ClassVectors = field(repr=False)
    golden: Golden = field(repr=False)
    evidence: Mapping[str, object] = field(repr=False)
    files: Mapping[str, bytes] = field(repr=False)

    @property
    def model(self) -> bytes:
        """The verified bytes of the first variant, the one that was measured."""
        return self.files[MODEL_NAME]

    def golden_of(self, variant: Variant) -> Golden:
        """Give the samples with one variant's answers."""
        return self.golden if variant.file == MODEL_NAME else self.golden.of(variant.name)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        expected_digest: str | None = None,
        public_keys: Sequence[bytes | Path] = (),
    ) -> Bundle:
        """Read a bundle folder or archive and check all of it.

        Args:
            path: The folder or the ``.vlkd`` archive.
            expected_digest: The manifest's digest as known from elsewhere. Hashes inside a bundle show
                damage; only this or a signature shows that it is the bundle you mean.
            public_keys: Keys in PEM, or the files that hold them; given any, one of them must have signed
                the bundle, which is checked before anything is parsed.

        Raises:
            BundleError: Anything about it is not as it must be; the message names the file.
            ConfigError: A key is no Ed25519 public key.
            DataError: Nothing is there to be read.
            UnavailableError: Signatures need the package ``cryptography``.
        """
        reader = BundleReader(path, public_keys=public_keys)
        for _, check in reader.steps:
            check()
        bundle = reader.bundle()
        if expected_digest is not None and bundle.manifest.digest != expected_digest:
            msg = (
                f"{bundle.path}: expected the bundle with digest {expected_digest}, found "
                f"{bundle.manifest.digest}; get the right one"
            )
            raise BundleError(msg)
        return bundle


class BundleReader:
    """Opens a bundle one check at a time; each step needs the ones before it to have passed.

    Attributes:
        steps: Name and function of each check, in order; a function returns a line on what it found.
    """

    def __init__(self, path: str | os.PathLike[str], *, public_keys: Sequence[bytes | Path] = ()) -> None:
        self._path = path
        self._public_keys = tuple(public_keys)
        self._files: dict[str, bytes] = {}
        self._contents: Contents
        self._manifest: Manifest
        self._vectors: ClassVectors
        self._golden: Golden
        self._evidence: Mapping[str, object]
        self.steps: tuple[tuple[str, Callable[[], str]], ...] = (
            ("container", self._check_container),
            ("signature", self._check_signature),
            ("manifest", self._check_manifest),
            ("files", self._check_files),
            ("model", self._check_model),
            ("class-vectors", self._check_vectors),
            ("golden", self._check_golden),
            ("evidence", self._check_evidence),
        )

    def bundle(self) -> Bundle:
        """Give the bundle after all steps passed."""
        return Bundle(
            path=self._contents.path,
            manifest=self._manifest,
            vectors=self._vectors,
            golden=self._golden,
            evidence=self._evidence,
            files=MappingProxyType(self._files),
        )

    def _check_container(self) -> str:
        self._contents = open_contents(self._path)
        kind = "folder" if self._contents.path.is_dir() else "archive"
        return f"{kind} with {len(self._contents.sizes)} files, {sum(self._contents.sizes.values())} bytes"

    def _check_signature(self) -> str:
        self._files[MANIFEST_NAME] = self._contents.read(MANIFEST_NAME)
        if SIGNATURE_NAME in self._contents.sizes:
            self._files[SIGNATURE_NAME] = self._contents.read(SIGNATURE_NAME)
        signature = self._files.get(SIGNATURE_NAME)
        if self._public_keys:
            where = self._contents.where(MANIFEST_NAME)
            return check_signature(self._files[MANIFEST_NAME], signature, self._public_keys, where=where)
        return "none" if signature is None else "there, not checked because no public key was given"

    def _check_manifest(self) -> str:
        data = self._files[MANIFEST_NAME]
        self._manifest = parse_manifest(data, where=self._contents.where(MANIFEST_NAME))
        return f"{self._manifest.name} for {self._manifest.target}, digest {self._manifest.digest}"

    def _check_files(self) -> str:
        expected = {MANIFEST_NAME, SIGNATURE_NAME, *self._manifest.files}
        odd = sorted((set(self._contents.sizes) | {SIGNATURE_NAME}) ^ expected)
        if odd:
            msg = (
                f"{self._contents.path}: expected the files of its manifest, {odd[0]!r} is missing or too much; "
                "build or copy the bundle again"
            )
            raise BundleError(msg)
        for name, entry in self._manifest.files.items():
            where = self._contents.where(name)
            if self._contents.sizes[name] != entry.size_bytes:
                msg = (
                    f"{where}: expected {entry.size_bytes} bytes, found {self._contents.sizes[name]}; "
                    "build or copy the bundle again"
                )
                raise BundleError(msg)
            data = self._contents.read(name)
            found = hashlib.sha256(data).hexdigest()
            if found != entry.sha256:
                msg = (
                    f"{where}: expected SHA-256 {entry.sha256}, found {found}; build or copy the bundle again"
                )
                raise BundleError(msg)
            self._files[name] = data
        return f"{len(self._manifest.files)} files have the sizes and SHA-256 hashes of the manifest"

    def _check_model(self) -> str:
        variants = self._manifest.variants
        for variant in variants:
            where = self._contents.where(variant.file)
            check_model(self._files[variant.file], variant.model, where=where)
        found = ", ".join(f"{variant.name} (opset {variant.model.opset})" for variant in variants)
        return f"{found}, tensors as in the manifest"

    def _check_vectors(self) -> str:
        name = "class_vectors.safetensors"
        where = self._contents.where(name)
        try:
            self._vectors = ClassVectors.from_bytes(self._files[name], where=where)
        except DataError as error:
            raise BundleError(str(error)) from error
        manifest, (rows, columns) = self._manifest, self._vectors.vectors.shape
        if (rows, columns) != (len(manifest.classes), manifest.model.embedding[1]):
            msg = (
                f"{where}: expected ({len(manifest.classes)}, {manifest.model.embedding[1]}) for the "
                "manifest's "
                f"classes and embedding, found ({rows}, {columns}); build the bundle again"
            )
            raise BundleError(msg)
        if self._vectors.names != manifest.classes or self._vectors.logit_scale != manifest.logit_scale:
            msg = (
                f"{where}: its class names or its logit scale are not the manifest's; build the bundle again"
            )
            raise BundleError(msg)
        return f"{rows} classes of {columns} from {self._vectors.teacher}"

    def _check_golden(self) -> str:
        name = "golden.safetensors"
        where = self._contents.where(name)
        try:
            golden = Golden.from_bytes(self._files[name], where=where)
        except DataError as error:
            raise BundleError(str(error)) from error
        model = self._manifest.model
        shapes = {tuple(array.shape[1:] for array in pair) for pair in golden.further.values()}
        shapes.add((golden.embedding.shape[1:], golden.logits.shape[1:]))
        found = (golden.images.shape[1:], *sorted(shapes))
        expected = (model.image[1:], (model.embedding[1:], model.logits[1:]))
        if found != expected:
            msg = (
                f"{where}: expected samples of the model's shapes {expected}, found {found}; "
                "build the bundle again"
            )
            raise BundleError(msg)
        further = {variant.name for variant in self._manifest.further}
        if set(golden.further) != further:
            msg = (
                f"{where}: expected answers of the variants {sorted(further)} beside the first, found "
                f"{sorted(golden.further)}; build the bundle again"
            )
            raise BundleError(msg)
        for variant in self._manifest.variants:
            answers = golden if variant.file == MODEL_NAME else golden.of(variant.name)
            self._check_head(answers, variant, where)
        self._golden = golden
        return f"{len(golden.images)} samples, consistent with the class vectors"

    def _check_head(self, golden: Golden, variant: Variant, where: str) -> None:
        scale = self._manifest.logit_scale
        product = scale * (golden.embedding.astype(np.float64) @ self._vectors.vectors.T.astype(np.float64))
        gap = float(np.abs(product - golden.logits).max())
        # One hundredth of cosine is far above any rounding and far below what other vectors would give.
        if gap > max(0.01 * scale, variant.golden.max_logit_gap):
            msg = (
                f"{where}: the logits of {variant.name} are up to {gap:.4g} away from logit_scale * embedding @ "
                "class_vectors.T, so the model's head is not class_vectors.safetensors; build the bundle again"
            )
            raise BundleError(msg)

    def _check_evidence(self) -> str:
        where = self._contents.where("evidence.json")
        try:
            evidence = parse(self._files["evidence.json"])
        except JsonProblems as error:
            msg = f"{where}: {error}; build the bundle again"
            raise BundleError(msg) from error
        if not isinstance(evidence, dict):
            msg = f"{where}: expected a JSON object, found {type(evidence).__name__}; build the bundle again"
            raise BundleError(msg)
        self._evidence = MappingProxyType(evidence)
        return f"{len(evidence)} entries"


def write_bundle(
    destination: str | os.PathLike[str],
    manifest: ManifestDraft,
    files: Mapping[str, bytes | Path],
    *,
    replace: bool = False,
) -> Path:
    """Write a bundle folder, whole and checked or not at all; the same inputs always give the same bytes.

    Args:
        destination: The folder to make.
        manifest: What to say of it.
        files: The content, or where it is, of exactly ``manifest.content_names``: model.onnx,
            class_vectors.safetensors, golden.safetensors, evidence.json, and what further variants and
            engines add.
        replace: Take the place of a bundle that is there already.

    Returns:
        The folder.

    Raises:
        BundleError: The files and the manifest do not make a bundle that `Bundle.open` would take.
        DataError: The destination is taken, or a file cannot be read.
    """
    final = Path(destination)
    names = manifest.content_names
    if set(files) != set(names):
        odd = ", ".join(sorted(set(files) ^ set(names)))
        msg = f"{final}: expected the files {', '.join(names)}; {odd} is missing or too much"
        raise BundleError(msg)
    if (
        replace
        and final.is_dir()
        and (strange := sorted(p.name for p in final.iterdir() if file_limit(p.name) is None))
    ):
        msg = (
            f"{final}: will not replace this folder: {strange[0]!r} is no part of a bundle; "
            "choose another place"
        )
        raise DataError(msg)
    contents = {name: _bytes_of(files[name]) for name in names}
    with atomic.atomic_folder(final, replace=replace) as folder:
        for name, data in {MANIFEST_NAME: render_manifest(manifest, contents), **contents}.items():
            (folder / name).write_bytes(data)
        Bundle.open(folder)
    return final


def pack(folder: str | os.PathLike[str], archive: str | os.PathLike[str]) -> Path:
    """Check a bundle and write it as one ``.vlkd`` archive; the same bundle always gives the same bytes.

    Raises:
        BundleError: The bundle is damaged.
        ConfigError: The archive's name does not end in ``.vlkd``.
    """
    final = Path(archive)
    if final.suffix != SUFFIX:
        msg = f"{final}: expected a name that ends in {SUFFIX}; rename it"
        raise ConfigError(msg)
    atomic.write_bytes(final, write_archive(Bundle.open(folder).files))
    return final


def sign_bundle(path: str | os.PathLike[str], private_key: bytes | Path) -> Path:
    """Check a bundle and put a signature of its manifest into it, in place of an earlier one.

    Args:
        path: The folder or the archive; it is changed whole or not at all.
        private_key: An Ed25519 key in PEM, or the file that holds it.

    Raises:
        BundleError: The bundle is damaged.
        ConfigError: The key is no such key.
        UnavailableError: Signatures need the package ``cryptography``.
    """
    bundle = Bundle.open(path)
    signature = sign(bundle.files[MANIFEST_NAME], private_key)
    if bundle.path.is_dir():
        atomic.write_bytes(bundle.path / SIGNATURE_NAME, signature)
    else:
        atomic.write_bytes(bundle.path, write_archive({**bundle.files, SIGNATURE_NAME: signature}))
    return bundle.path


def _bytes_of(source: bytes | Path) -> bytes:
    if isinstance(source, bytes):
        return source
    try:
        return Path(source).read_bytes()
    except OSError as error:
        msg = f"{source}: cannot read it for the bundle: {error.strerror}; check the path"
        raise DataError(msg) from error
