from __future__ import annotations

import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from vlkd_runtime import Bundle, Classifier
from vlkd_runtime import manifestfile as manifestfile_module
from vlkd_runtime.bundle import pack, sign_bundle
from vlkd_runtime.errors import BundleError, ConfigError, DataError, UnavailableError
from vlkd_runtime.signing import PREFIX, generate_keys, sign, write_keys
from vlkd_runtime.verify import verify

PRIVATE, PUBLIC = generate_keys()
OTHER_PRIVATE, OTHER_PUBLIC = generate_keys()


@pytest.mark.parametrize("kind", ["folder", "archive"])
def test_signed_bundles(kind: str, folder: Path, archive: Path) -> None:
    place = folder if kind == "folder" else archive
    digest = Bundle.open(place).manifest.digest
    assert sign_bundle(place, PRIVATE) == place
    assert Bundle.open(place).manifest.digest == digest
    assert Bundle.open(place, public_keys=[OTHER_PUBLIC, PUBLIC]).manifest.digest == digest
    with pytest.raises(BundleError, match="was not made for these bytes by the key given; do not use it"):
        Bundle.open(place, public_keys=[OTHER_PUBLIC])
    Classifier.load(place, public_keys=[PUBLIC], require_signature=True, threads=1).close()
    # Ed25519 is deterministic: signing again gives the same bytes.
    before = {path: path.read_bytes() for path in place.parent.rglob("*") if path.is_file()}
    sign_bundle(place, PRIVATE)
    assert {path: path.read_bytes() for path in before} == before


def test_a_signature_survives_packing(folder: Path, tmp_path: Path) -> None:
    sign_bundle(folder, PRIVATE)
    archive = pack(folder, tmp_path / "x.vlkd")
    assert (
        Bundle.open(archive, public_keys=[PUBLIC]).files["manifest.sig"]
        == (folder / "manifest.sig").read_bytes()
    )


def test_the_signature_is_plain_ed25519_over_prefix_and_manifest(folder: Path) -> None:
    """As another implementation would check it; the key in PEM, as OpenSSL reads it."""
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    sign_bundle(folder, PRIVATE)
    key: Any = load_pem_public_key(PUBLIC)
    manifest, signature = (folder / "manifest.json").read_bytes(), (folder / "manifest.sig").read_bytes()
    assert len(signature) == 64
    key.verify(signature, PREFIX + manifest)
    assert PREFIX == b"vlkd-bundle manifest\n"


def test_nothing_is_parsed_before_the_signature_holds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sign_bundle(folder, OTHER_PRIVATE)

    def never(*_: object, **__: object) -> object:
        pytest.fail("parsed")

    monkeypatch.setattr(manifestfile_module, "parse", never)
    with pytest.raises(BundleError, match="was not made for these bytes"):
        Bundle.open(folder, public_keys=[PUBLIC])


def damage_signature(folder: Path) -> None:
    data = bytearray((folder / "manifest.sig").read_bytes())
    data[10] ^= 1
    (folder / "manifest.sig").write_bytes(data)


def damage_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b"tiny", b"tinx", 1))


@pytest.mark.parametrize(
    ("harm", "match"),
    [
        pytest.param(
            lambda f: (f / "manifest.sig").unlink(), "expected a signature in manifest.sig", id="none"
        ),
        pytest.param(
            lambda f: (f / "manifest.sig").write_bytes(b"x" * 63),
            "64 bytes in manifest.sig, found 63",
            id="short",
        ),
        pytest.param(
            lambda f: (f / "manifest.sig").write_bytes(b"x" * 65),
            "'manifest.sig' has 65 bytes, at most 64",
            id="long",
        ),
        pytest.param(damage_signature, "was not made for these bytes", id="damaged"),
        pytest.param(damage_manifest, "was not made for these bytes", id="manifest"),
        pytest.param(lambda f: (f / "evidence.json").write_text("{}"), "evidence.json", id="file"),
    ],
)
def test_unsigned_or_altered(harm: Any, match: str, folder: Path) -> None:
    sign_bundle(folder, PRIVATE)
    harm(folder)
    with pytest.raises(BundleError, match=match):
        Bundle.open(folder, public_keys=[PUBLIC])


def test_verify_reports_the_signature(folder: Path) -> None:
    def detail(**options: Any) -> str:
        return verify(folder, engine="none", **options).checks[1].detail

    assert detail() == "none"
    assert "expected a signature" in detail(public_keys=[PUBLIC])
    sign_bundle(folder, PRIVATE)
    assert detail() == "there, not checked because no public key was given"
    assert detail(public_keys=[PUBLIC]) == "signed with the key given"


@pytest.mark.parametrize(
    ("key", "match"),
    [
        pytest.param(b"", "expected an Ed25519 public key in PEM", id="empty"),
        pytest.param(PRIVATE, "expected an Ed25519 public key", id="private"),
        pytest.param(Path("/nowhere/x.pub"), "cannot read the key: No such file", id="missing"),
    ],
)
def test_impossible_public_keys(key: Any, match: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=match):
        Bundle.open(folder, public_keys=[key])


def test_other_kinds_of_keys_are_refused() -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519, x25519

    other = x25519.X25519PrivateKey.generate()
    locked = ed25519.Ed25519PrivateKey.generate()
    formats = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
    for key, lock in (
        (other, serialization.NoEncryption()),
        (locked, serialization.BestAvailableEncryption(b"x")),
    ):
        with pytest.raises(ConfigError, match="an Ed25519 private key in PEM without a password"):
            sign(b"{}", key.private_bytes(*formats, lock))  # type: ignore[attr-defined]


def test_a_required_signature_needs_a_key(folder: Path) -> None:
    with pytest.raises(ConfigError, match="expected a public key to check it with"):
        Classifier.load(folder, require_signature=True)
    with pytest.raises(ConfigError, match="expected a path, found a bundle that is open already"):
        Classifier.load(Bundle.open(folder), public_keys=[PUBLIC])


def test_keys_are_never_replaced_and_private_ones_are_private(tmp_path: Path) -> None:
    private, public = tmp_path / "a.key", tmp_path / "a.pub"
    write_keys(private, public)
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    with pytest.raises(DataError, match="found a file; keep it"):
        write_keys(private, public)
    sign(b"{}", private)


def test_without_cryptography(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sign_bundle(folder, PRIVATE)
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric", None)
    with pytest.raises(UnavailableError, match=r"pip install 'vlkd-edge\[sign\]'"):
        Bundle.open(folder, public_keys=[PUBLIC])
    Bundle.open(folder)
