"""Folders and archives that were altered or made to harm."""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from vlkd_runtime import contents
from vlkd_runtime.archive import COMMENT_LENGTH, read_archive, write_archive
from vlkd_runtime.bundle import Bundle
from vlkd_runtime.errors import BundleError, DataError
from vlkd_runtime.manifest import LIMITS

NAMES = sorted(LIMITS)


def seal(body: bytes) -> bytes:
    """Put a comment of the right form and hash behind a zip, as a careful attacker would."""
    end = bytearray(body)
    end[-2:] = COMMENT_LENGTH.to_bytes(2, "little")
    return bytes(end) + b"vlkd-sha256:" + hashlib.sha256(end).hexdigest().encode()


def zipped(members: list[tuple[zipfile.ZipInfo | str, bytes]], kind: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of the duplicates that are meant here
        with zipfile.ZipFile(file, "w", kind) as opened:
            for info, data in members:
                opened.writestr(info, data)
    return seal(file.getvalue())


def info(name: str, mode: int = stat.S_IFREG | 0o644) -> zipfile.ZipInfo:
    made = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    made.external_attr = mode << 16
    made.create_system = 3
    return made


def assert_refused(path: Path, match: str, *, names: str | None = None) -> None:
    with pytest.raises(BundleError, match=match) as caught:
        Bundle.open(path)
    assert str(path) in str(caught.value) or (names and names in str(caught.value))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "manifest.json"])
def test_bytes_of_every_other_file_count(folder: Path, name: str) -> None:
    path = folder / name
    whole = path.read_bytes()
    for position in sorted({*range(0, len(whole), max(1, len(whole) // 60)), len(whole) - 1}):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(bytes(damaged))
        with pytest.raises(BundleError, match=rf"{re.escape(name)} in .*expected SHA-256"):
            Bundle.open(folder)
    for other in (whole[:-1], whole + b"\0", b""):
        path.write_bytes(other)
        with pytest.raises(BundleError, match=rf"{re.escape(name)} in .*expected {len(whole)} bytes"):
            Bundle.open(folder)


def header_positions(data: bytes) -> set[int]:
    """Every byte that is no member's content: local headers, names, the directory, the end, the comment."""
    positions = set(range(len(data)))
    with zipfile.ZipFile(io.BytesIO(data)) as opened:
        for member in opened.infolist():
            start = member.header_offset + 30 + len(member.filename)
            positions -= set(range(start, start + member.file_size))
    return positions


def test_every_byte_of_the_archive_counts(packed: bytes, archive: Path) -> None:
    positions = sorted(header_positions(packed) | set(range(0, len(packed), 7)))
    assert len(positions) > 1000
    for position in positions:
        damaged = bytearray(packed)
        damaged[position] ^= 1 << (position % 8)
        with pytest.raises(BundleError, match=r"tiny\.vlkd"):
            read_archive(bytes(damaged), where=str(archive))
    archive.write_bytes(packed)
    Bundle.open(archive)


def test_damage_in_an_archive_names_the_member(packed: bytes, archive: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(packed)) as opened:
        members = opened.infolist()
    for member in members:
        damaged = bytearray(packed)
        damaged[member.header_offset + 30 + len(member.filename) + 3] ^= 1
        archive.write_bytes(bytes(damaged))
        assert_refused(archive, f"the damage is in '{re.escape(member.filename)}'")


def test_truncated_archives(packed: bytes, archive: Path) -> None:
    for length in [*range(0, 200, 3), *range(200, len(packed), 97), *range(len(packed) - 200, len(packed))]:
        with pytest.raises(BundleError, match=r"no zip archive at all|truncated"):
            read_archive(packed[:length], where=str(archive))
    archive.write_bytes(packed + b"\0")
    assert_refused(archive, "truncated, altered")


def with_directory_changed(packed: bytes) -> bytes:
    """Let the directory promise a terabyte-like size where the file has a few bytes."""
    body = bytearray(packed[:-COMMENT_LENGTH])
    at = body.rindex(b"PK\x01\x02")
    body[at + 20 : at + 28] = b"\xff\xff\xff\x7f" * 2
    return seal(bytes(body))


ARCHIVES: dict[str, tuple[Callable[[dict[str, bytes], bytes], bytes], str]] = {
    "plain-zip": (
        lambda files, _: zipped(list(files.items()))[:-COMMENT_LENGTH],
        "instead of zip",
    ),
    "zip-of-the-files": (lambda files, _: zipped(list(files.items())), "not .*in the form that `pack` gives"),
    "compressed": (lambda files, _: zipped(list(files.items()), zipfile.ZIP_DEFLATED), "is compressed"),
    "bomb": (
        lambda files, _: zipped([*files.items(), ("model.onnx", bytes(50_000_000))], zipfile.ZIP_DEFLATED),
        "is compressed",
    ),
    "parent": (lambda files, _: zipped([*files.items(), ("../evil", b"x")]), "'../evil' points outside"),
    "deep-parent": (lambda files, _: zipped([*files.items(), ("a/../../evil", b"x")]), "points outside"),
    "absolute": (lambda files, _: zipped([*files.items(), ("/etc/cron.d/evil", b"x")]), "points outside"),
    "backslash-parent": (lambda files, _: zipped([*files.items(), ("..\\evil", b"x")]), "points outside"),
    "backslash": (lambda files, _: zipped([*files.items(), ("a\\evil", b"x")]), "has a folder in its name"),
    "drive": (lambda files, _: zipped([*files.items(), ("C:evil", b"x")]), "points outside"),
    "folder": (
        lambda files, _: zipped([*files.items(), ("sub/model.onnx", b"x")]),
        "has a folder in its name",
    ),
    "extra": (lambda files, _: zipped([*files.items(), ("run.sh", b"x")]), "'run.sh' does not belong"),
    "other-case": (lambda files, _: zipped([*files.items(), ("MODEL.ONNX", b"x")]), "does not belong"),
    "duplicate": (
        lambda files, _: zipped([*files.items(), ("model.onnx", b"x")]),
        "'model.onnx' is there more",
    ),
    "missing": (
        lambda files, _: zipped([item for item in files.items() if item[0] != "evidence.json"]),
        "evidence.json is missing",
    ),
    "nothing": (lambda files, _: zipped([]), "no zip archive|is missing"),
    "symlink": (
        lambda files, _: zipped(
            [
                *((n, d) for n, d in files.items() if n != "evidence.json"),
                (info("evidence.json", stat.S_IFLNK), b"/x"),
            ]
        ),
        "'evidence.json' is a symbolic link",
    ),
    "size-claimed": (
        lambda _, packed: with_directory_changed(packed),
        r"'model.onnx' claims 2147483647 bytes",
    ),
    "prefix": (lambda _, packed: seal(b"PK" + packed[:-COMMENT_LENGTH]), "directory is not where"),
    "between": (
        lambda files, _: seal(write_archive({"evidence.json": b"{}"})[:-COMMENT_LENGTH] + b"junk" * 6),
        "truncated|directory",
    ),
    "no-zip": (lambda _, __: b"\x7fELF" + bytes(300), "no zip archive at all"),
    "empty": (lambda _, __: b"", "no zip archive at all"),
    "json": (lambda files, _: files["manifest.json"], "no zip archive at all"),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_made_to_harm(name: str, folder: Path, packed: bytes, archive: Path) -> None:
    make, match = ARCHIVES[name]
    files = {member: (folder / member).read_bytes() for member in NAMES}
    archive.write_bytes(make(files, packed))
    before = sorted(archive.parent.rglob("*"))
    assert_refused(archive, match)
    assert sorted(archive.parent.rglob("*")) == before


def test_a_sealed_archive_of_a_damaged_bundle_is_refused(folder: Path, archive: Path) -> None:
    files = {name: (folder / name).read_bytes() for name in NAMES}
    archive.write_bytes(write_archive({**files, "evidence.json": b"{}"}))
    assert_refused(archive, r"evidence\.json in .*expected \d+ bytes, found 2")


def test_sizes_are_refused_before_reading(
    folder: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "golden.safetensors"
    with path.open("r+b") as file:
        file.truncate(LIMITS["golden.safetensors"] + 1)  # sparse: no disk is used

    def never(*_: object, **__: object) -> bytes:
        pytest.fail("nothing may be read")

    monkeypatch.setattr(contents, "_read_file", never)
    assert_refused(folder, r"'golden\.safetensors' has \d+ bytes, at most")


def test_a_file_that_grows_while_it_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = contents._read_file

    def late(path: Path, limit: int, *, follow: bool) -> bytes:
        with path.open("ab") as file:
            file.write(b"x")
        return read(path, limit, follow=follow)

    monkeypatch.setattr(contents, "_read_file", late)
    assert_refused(folder, r"expected a plain file of at most|changed while")


def replace_by_link(folder: Path) -> None:
    target = folder.parent / "elsewhere"
    (folder / "model.onnx").rename(target)
    (folder / "model.onnx").symlink_to(target)


def replace_by_pipe(folder: Path) -> None:
    (folder / "model.onnx").unlink()
    os.mkfifo(folder / "model.onnx")


def replace_by_folder(folder: Path) -> None:
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").mkdir()


@pytest.mark.parametrize(
    ("harm", "match"),
    [
        pytest.param(replace_by_link, "'model.onnx' is a link", id="symlink"),
        pytest.param(replace_by_pipe, "'model.onnx' is a link, a folder or a device", id="pipe"),
        pytest.param(replace_by_folder, "'model.onnx' is a link, a folder", id="folder"),
        pytest.param(lambda f: (f / ".DS_Store").write_text("x"), "'.DS_Store' does not belong", id="extra"),
        pytest.param(
            lambda f: (f / "golden.safetensors").unlink(), "golden.safetensors is missing", id="missing"
        ),
        pytest.param(lambda f: [p.unlink() for p in f.iterdir()], "class_vectors.* is missing", id="empty"),
    ],
)
def test_folders(harm: Callable[[Path], object], match: str, folder: Path) -> None:
    harm(folder)
    assert_refused(folder, match)


def test_a_link_put_in_after_the_look(folder: Path) -> None:
    opened = contents.open_contents(folder)
    replace_by_link(folder)
    with pytest.raises(BundleError, match=r"model\.onnx in .*cannot read it"):
        opened.read("model.onnx")


@pytest.mark.parametrize(
    ("path", "match"),
    [
        pytest.param("nowhere.vlkd", "cannot read the bundle: No such file", id="missing"),
        pytest.param("a\0b", "null", id="nul"),
    ],
)
def test_nothing_there(path: str, match: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=match):
        Bundle.open(f"{tmp_path}/{path}")


def test_a_device_is_no_bundle() -> None:
    with pytest.raises(BundleError, match="found neither"):
        Bundle.open("/dev/null")
