"""The bytes of a ``.vlkd`` archive: a zip in the one form this project writes, and no other.

A zip leaves room for surprises: two names for one place, sizes that disagree, data between the members. All
of it is shut out by rebuilding the archive's skeleton from its members and asking for the same bytes. Nothing
is compressed, so nothing can blow up, and the comment at the end holds the hash of everything before it.

References:
    APPNOTE.TXT 6.3.3, https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT (sections 4.3.7, 4.3.12,
    4.3.16).
"""

from __future__ import annotations

import hashlib
import stat
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from .errors import BundleError
from .manifest import LIMITS, file_limit

COMMENT_PREFIX = b"vlkd-sha256:"
COMMENT_LENGTH = len(COMMENT_PREFIX) + 64

_LOCAL = struct.Struct("<IHHHHHIIIHH")
_CENTRAL = struct.Struct("<IHHHHHHIIIHHHHHII")
_END = struct.Struct("<IHHHHIIH")
_LOCAL_MAGIC, _CENTRAL_MAGIC, _END_MAGIC = 0x04034B50, 0x02014B50, 0x06054B50
_VERSION = 20
_UNIX = 3 << 8
_DATE = (1980 - 1980) << 9 | 1 << 5 | 1
_ATTRIBUTES = (stat.S_IFREG | 0o644) << 16


@dataclass(frozen=True, slots=True)
class _Member:
    """What the central directory says of one member."""

    name: str
    offset: int
    size: int
    method: int
    flags: int
    mode: int


def write_archive(files: Mapping[str, bytes]) -> bytes:
    """Pack files, in the order of their names; the same files always give the same bytes."""
    parts: list[bytes] = []
    directory: list[bytes] = []
    offset = 0
    for name in sorted(files):
        local, central = _headers(name, len(files[name]), zlib.crc32(files[name]), offset)
        parts += [local, files[name]]
        directory.append(central)
        offset += len(local) + len(files[name])
    body = b"".join([*parts, *directory, _end(len(files), sum(map(len, directory)), offset)])
    return body + COMMENT_PREFIX + hashlib.sha256(body).hexdigest().encode()


def read_archive(data: bytes, *, where: str) -> dict[str, memoryview]:
    """Take an archive apart after checking every byte of it.

    Args:
        data: The whole archive.
        where: What to call it in messages.

    Returns:
        The members' bytes by name, as views into ``data``.

    Raises:
        BundleError: Not such an archive, truncated, altered, or with members that a bundle cannot have.
    """
    if not data.startswith(b"PK"):
        _refuse(where, "it is no zip archive at all", "give a .vlkd archive or a bundle folder")
    _check_hash(data, where)
    members = _directory(data, where)
    for member in members:
        _check_member(member, where)
    names = [member.name for member in members]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        _refuse(where, f"the member {repeated[0]!r} is there more than once")
    missing = sorted(set(LIMITS) - set(names))
    if missing:
        _refuse(where, f"{', '.join(missing)} is missing")
    found = {member.name: _content(data, member, where) for member in members}
    _check_form(data, found, where)
    return found


def _headers(name: str, size: int, crc: int, offset: int) -> tuple[bytes, bytes]:
    encoded = name.encode("ascii")
    common = (_VERSION, 0, 0, 0, _DATE, crc, size, size, len(encoded), 0)
    local = _LOCAL.pack(_LOCAL_MAGIC, *common)
    central = _CENTRAL.pack(_CENTRAL_MAGIC, _UNIX | _VERSION, *common, 0, 0, 0, _ATTRIBUTES, offset)
    return local + encoded, central + encoded


def _end(count: int, directory_size: int, directory_start: int) -> bytes:
    return _END.pack(_END_MAGIC, 0, 0, count, count, directory_size, directory_start, COMMENT_LENGTH)


def _check_hash(data: bytes, where: str) -> None:
    body, comment = data[:-COMMENT_LENGTH], data[-COMMENT_LENGTH:]
    if not comment.startswith(COMMENT_PREFIX) or body[-_END.size :][:4] != _END_MAGIC.to_bytes(4, "little"):
        _refuse(
            where,
            f"it does not end in a {COMMENT_PREFIX.decode()} comment, so it is truncated, altered, or no "
            ".vlkd archive",
            "copy it again, or pack the folder with `vlkd_runtime.bundle.pack` instead of zip",
        )
    found = hashlib.sha256(body).hexdigest().encode()
    if comment[len(COMMENT_PREFIX) :] != found:
        damaged = _damaged_member(data)
        _refuse(where, f"its bytes are not the ones it was packed with{damaged}")


def _damaged_member(data: bytes) -> str:
    """Say which member was altered where checksums can still tell; a help for the reader and no check."""
    offset = 0
    while data[offset : offset + 4] == _LOCAL_MAGIC.to_bytes(4, "little"):
        if offset + _LOCAL.size > len(data):
            return ""
        header = _LOCAL.unpack_from(data, offset)
        name = data[offset + _LOCAL.size :][: header[9]].decode("ascii", "replace")
        start = offset + _LOCAL.size + len(name)
        if file_limit(name) is None:
            return ""
        content = data[start : start + header[7]]
        if zlib.crc32(content) != header[6] or (
            _headers(name, len(content), header[6], 0)[0] != data[offset:start]
        ):
            return f"; the damage is in {name!r}"
        offset = start + len(content)
    return ""


def _directory(data: bytes, where: str) -> list[_Member]:
    end = len(data) - COMMENT_LENGTH - _END.size
    _, _, _, _, count, size, start, length = _END.unpack_from(data, end)
    if start + size != end or length != COMMENT_LENGTH or count > 1000:
        _refuse(where, "its directory is not where its end record says")
    members: list[_Member] = []
    offset = start
    for _ in range(count):
        if offset + _CENTRAL.size > end:
            _refuse(where, "its directory is cut short")
        fields = _CENTRAL.unpack_from(data, offset)
        name_end = offset + _CENTRAL.size + fields[10]
        if fields[0] != _CENTRAL_MAGIC or name_end > end:
            _refuse(where, "its directory is damaged")
        try:
            name = data[offset + _CENTRAL.size : name_end].decode("utf-8")
        except UnicodeDecodeError:
            _refuse(where, "a member's name is no text")
        members.append(
            _Member(
                name,
                offset=fields[16],
                size=fields[9],
                method=fields[4],
                flags=fields[3],
                mode=fields[15] >> 16,
            )
        )
        offset = name_end + fields[11] + fields[12]
    return members


def _check_member(member: _Member, where: str) -> None:
    name = member.name
    label = f"the member {name[:200]!r}"
    if (
        name.startswith(("/", "\\"))
        or ".." in name.replace("\\", "/").split("/")
        or ":" in name
        or "\0" in name
    ):
        _refuse(where, f"{label} points outside the bundle")
    if "\\" in name or "/" in name:
        _refuse(where, f"{label} has a folder in its name, and bundles have none")
    limit = file_limit(name)
    if limit is None:
        _refuse(
            where,
            f"{label} does not belong in a bundle, which has {', '.join(LIMITS)} and what its manifest adds",
        )
    if stat.S_ISLNK(member.mode):
        _refuse(where, f"{label} is a symbolic link")
    if member.method != 0 or member.flags & 1:
        _refuse(where, f"{label} is compressed or encrypted, and bundles are stored as they are")
    if member.size > limit:
        _refuse(where, f"{label} claims {member.size} bytes, at most {limit} are read")


def _content(data: bytes, member: _Member, where: str) -> memoryview:
    start = member.offset + _LOCAL.size + len(member.name)
    if start + member.size > len(data):
        _refuse(where, f"the member {member.name!r} claims more bytes than there are")
    return memoryview(data)[start : start + member.size]


def _check_form(data: bytes, files: Mapping[str, memoryview], where: str) -> None:
    """Ask for the bytes that `write_archive` would give, without making a second copy of the contents."""
    whole = memoryview(data)
    offset = 0
    directory = b""
    for name in sorted(files):
        content = files[name]
        local, central = _headers(name, len(content), zlib.crc32(content), offset)
        content_start = offset + len(local)
        if (
            whole[offset:content_start] != local
            or whole[content_start : content_start + len(content)] != content
        ):
            _refuse(where, f"the member {name!r} is not stored in the form that `pack` gives")
        directory += central
        offset = content_start + len(content)
    tail = directory + _end(len(files), len(directory), offset)
    if whole[offset:-COMMENT_LENGTH] != tail:
        _refuse(where, "its directory is not in the form that `pack` gives")


def _refuse(where: str, problem: str, remedy: str = "build or copy it again") -> NoReturn:
    msg = f"{where}: not a whole .vlkd archive: {problem}; {remedy}"
    raise BundleError(msg)
