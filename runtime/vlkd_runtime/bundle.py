"""A bundle: everything a device needs in one folder or one ``.vlkd`` file, checked before any of it is used.

The format is specified in runtime/README.md.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np

from . import atomic
from .archive import write_archive
from .contents import SUFFIX, Contents, open_contents
from .errors import BundleError, ConfigError, DataError
from .golden import Golden
from .manifest import CONTENT_NAMES, LIMITS, MANIFEST_NAME, Manifest, ManifestDraft
from .manifestfile import parse_manifest, render_manifest
from .onnxfile import check_model
from .strictjson import JsonProblems, parse
from .vectors import ClassVectors

__all__ = ["Bundle", "BundleReader", "pack", "write_bundle"]


@dataclass(frozen=True, slots=True, eq=False)
class Bundle:
    """A bundle whose every byte was checked.

    Attributes:
        path: Where it was read from.
        manifest: What is inside.
        vectors: The classifier's head.
        golden: Samples for the self-test.
        evidence: The numbers behind it, as parsed JSON.
        files: The verified bytes of all five files; engines load ``files["model.onnx"]``, never the disk.
    """

    path: Path
    manifest: Manifest
    vectors: ClassVectors = field(repr=False)
    golden: Golden = field(repr=False)
    evidence: Mapping[str, object] = field(repr=False)
    files: Mapping[str, bytes] = field(repr=False)

    @property
    def model(self) -> bytes:
        """The ONNX model's verified bytes."""
        return self.files["model.onnx"]

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, expected_digest: str | None = None) -> Bundle:
        """Read a bundle folder or archive and check all of it.

        Args:
            path: The folder or the ``.vlkd`` archive.
            expected_digest: The manifest's digest as known from elsewhere. Hashes inside a bundle show
                damage; only this shows that it is the bundle you mean.

        Raises:
            BundleError: Anything about it is not as it must be; the message names the file.
            DataError: Nothing is there to be read.
        """
        reader = BundleReader(path)
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

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = path
        self._files: dict[str, bytes] = {}
        self._contents: Contents
        self._manifest: Manifest
        self._vectors: ClassVectors
        self._golden: Golden
        self._evidence: Mapping[str, object]
        self.steps: tuple[tuple[str, Callable[[], str]], ...] = (
            ("container", self._check_container),
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

    def _check_manifest(self) -> str:
        data = self._contents.read(MANIFEST_NAME)
        self._manifest = parse_manifest(data, where=self._contents.where(MANIFEST_NAME))
        self._files[MANIFEST_NAME] = data
        return f"{self._manifest.name} for {self._manifest.target}, digest {self._manifest.digest}"

    def _check_files(self) -> str:
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
        where = self._contents.where("model.onnx")
        check_model(self._files["model.onnx"], self._manifest.model, where=where)
        return (
            f"opset {self._manifest.model.opset}, {self._manifest.model.precision}, tensors as in the "
            "manifest"
        )

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
        found = (golden.images.shape[1:], golden.embedding.shape[1:], golden.logits.shape[1:])
        expected = (model.image[1:], model.embedding[1:], model.logits[1:])
        if found != expected:
            msg = (
                f"{where}: expected samples of the model's shapes {expected}, found {found}; "
                "build the bundle again"
            )
            raise BundleError(msg)
        scale = self._manifest.logit_scale
        product = scale * (golden.embedding.astype(np.float64) @ self._vectors.vectors.T.astype(np.float64))
        gap = float(np.abs(product - golden.logits).max())
        # One hundredth of cosine is far above any rounding and far below what other vectors would give.
        if gap > max(0.01 * scale, self._manifest.golden.max_logit_gap):
            msg = (
                f"{where}: its logits are up to {gap:.4g} away from logit_scale * embedding @ "
                "class_vectors.T, "
                "so the model's head is not class_vectors.safetensors; build the bundle again"
            )
            raise BundleError(msg)
        self._golden = golden
        return f"{len(golden.images)} samples, consistent with the class vectors"

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
        files: The content, or where it is, of exactly model.onnx, class_vectors.safetensors,
            golden.safetensors and evidence.json.
        replace: Take the place of a bundle that is there already.

    Returns:
        The folder.

    Raises:
        BundleError: The files and the manifest do not make a bundle that `Bundle.open` would take.
        DataError: The destination is taken, or a file cannot be read.
    """
    final = Path(destination)
    if set(files) != set(CONTENT_NAMES):
        odd = ", ".join(sorted(set(files) ^ set(CONTENT_NAMES)))
        msg = f"{final}: expected the files {', '.join(CONTENT_NAMES)}; {odd} is missing or too much"
        raise BundleError(msg)
    if (
        replace
        and final.is_dir()
        and (strange := sorted(p.name for p in final.iterdir() if p.name not in LIMITS))
    ):
        msg = (
            f"{final}: will not replace this folder: {strange[0]!r} is no part of a bundle; "
            "choose another place"
        )
        raise DataError(msg)
    contents = {name: _bytes_of(files[name]) for name in CONTENT_NAMES}
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


def _bytes_of(source: bytes | Path) -> bytes:
    if isinstance(source, bytes):
        return source
    try:
        return Path(source).read_bytes()
    except OSError as error:
        msg = f"{source}: cannot read it for the bundle: {error.strerror}; check the path"
        raise DataError(msg) from error
