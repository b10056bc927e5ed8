"""Signs a bundle's manifest with Ed25519 and checks such signatures, so that a device knows where a bundle is from.

The manifest holds the hash of every other file, so a signature over its bytes covers the whole bundle. It is
checked before the manifest is parsed.

References:
    RFC 8032 (Ed25519); RFC 8410 (its keys in PEM, as OpenSSL reads and writes them).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import atomic
from .errors import BundleError, ConfigError, DataError, UnavailableError
from .manifest import SIGNATURE_BYTES

# Put before the signed bytes, so that a signature for anything else never fits a manifest.
PREFIX = b"vlkd-bundle manifest\n"
_LARGEST_KEY = 1 << 16


def generate_keys() -> tuple[bytes, bytes]:
    """Make a new private and public key, both in PEM.

    Raises:
        UnavailableError: The package ``cryptography`` is not installed.
    """
    ed25519, serialization = _import_cryptography()
    private = ed25519.Ed25519PrivateKey.generate()
    return (
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
        private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        ),
    )


def write_keys(private_path: Path, public_path: Path) -> None:
    """Make a pair of keys and write them; the private one is readable by its owner alone.

    Raises:
        DataError: One of the files is there already; a lost key cannot be made again.
        UnavailableError: The package ``cryptography`` is not installed.
    """
    for path in (private_path, public_path):
        if os.path.lexists(path):
            msg = f"{path}: expected nothing here, found a file; keep it, and choose another name"
            raise DataError(msg)
    private, public = generate_keys()
    private_path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(private_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(private)
    atomic.write_bytes(public_path, public)


def sign(manifest: bytes, private_key: bytes | Path) -> bytes:
    """Sign a manifest's bytes.

    Args:
        manifest: The bytes of ``manifest.json``.
        private_key: The key in PEM, or the file that holds it.

    Raises:
        ConfigError: It is no Ed25519 private key without a password.
        UnavailableError: The package ``cryptography`` is not installed.
    """
    ed25519, serialization = _import_cryptography()
    data, where = _key(private_key)
    key: Any = None
    cause: Exception | None = None
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except Exception as error:  # ValueError, TypeError for a password, UnsupportedAlgorithm.
        cause = error
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        msg = f"{where}: expected an Ed25519 private key in PEM without a password; make one with keygen"
        raise ConfigError(msg) from cause
    signature: bytes = key.sign(PREFIX + manifest)
    return signature


def check_signature(
    manifest: bytes, signature: bytes | None, public_keys: Sequence[bytes | Path], *, where: str
) -> str:
    """Hold a manifest to its signature.

    Args:
        manifest: The bytes of ``manifest.json``.
        signature: The bytes of ``manifest.sig``, or None where there are none.
        public_keys: The keys to trust, in PEM or as files; one of them must have signed.
        where: What to call the manifest in messages.

    Returns:
        A line on which key it was.

    Raises:
        BundleError: There is no signature, or no trusted key made it.
        ConfigError: A key is no Ed25519 public key.
        UnavailableError: The package ``cryptography`` is not installed.
    """
    keys = [_public_key(key) for key in public_keys]
    if signature is None:
        msg = f"{where}: expected a signature in manifest.sig, found none; sign it with `vlkd-edge sign`"
        raise BundleError(msg)
    if len(signature) != SIGNATURE_BYTES:
        msg = f"{where}: expected {SIGNATURE_BYTES} bytes in manifest.sig, found {len(signature)}; sign it again"
        raise BundleError(msg)
    for key, name in keys:
        if _fits(key, signature, manifest):
            return f"signed with {name}"
    names = ", ".join(name for _, name in keys)
    msg = (
        f"{where}: its signature was not made for these bytes by {names}; do not use it, get it again from its "
        "maker"
    )
    raise BundleError(msg)


def _fits(key: Any, signature: bytes, manifest: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(signature, PREFIX + manifest)
    except InvalidSignature:
        return False
    return True


def _public_key(source: bytes | Path) -> tuple[Any, str]:
    ed25519, serialization = _import_cryptography()
    data, where = _key(source)
    key: Any = None
    cause: Exception | None = None
    try:
        key = serialization.load_pem_public_key(data)
    except Exception as error:  # ValueError, UnsupportedAlgorithm.
        cause = error
    if not isinstance(key, ed25519.Ed25519PublicKey):
        msg = f"{where}: expected an Ed25519 public key in PEM; give the .pub file that keygen wrote"
        raise ConfigError(msg) from cause
    return key, where


def _key(source: bytes | Path) -> tuple[bytes, str]:
    if isinstance(source, bytes):
        return source, "the key given"
    try:
        with Path(source).open("rb") as file:
            return file.read(_LARGEST_KEY), str(source)
    except OSError as error:
        msg = f"{source}: cannot read the key: {error.strerror}; check the path"
        raise ConfigError(msg) from error


def _import_cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        msg = (
            "signatures: expected the package cryptography, found none that can be imported "
            f"({error}); run: pip install 'vlkd-edge[sign]'"
        )
        raise UnavailableError(msg) from error
    return ed25519, serialization
