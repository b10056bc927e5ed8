"""Reads WebDataset shards one image at a time; nothing here decodes or unpickles.

A shard ``<domain>-000000.tar`` holds, side by side, ``<key>.jpg`` (or another image suffix), ``<key>.cls``
(class name or index) and optionally ``<key>.json`` with ``domain`` and ``file``. Archives are read here and
not by the webdataset library: Python's tarfile, which that builds upon, takes an archive cut between two
members, or damaged at a member's header, for one that ends there. The library opens URLs; its decoders,
which unpickle, are never used.

References:
    https://github.com/webdataset/webdataset (format of the shards); POSIX.1-2001, pax (end of archive).
"""

from __future__ import annotations

import contextlib
import glob
import gzip
import hashlib
import importlib
import itertools
import re
import tarfile
import zlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, NoReturn, cast

from vlkd_bench.samples import Sample
from vlkd_runtime.errors import DataError, UnavailableError
from vlkd_runtime.strictjson import JsonProblems, parse

from .data import IMAGE_SUFFIXES, Split, split_of

PREFIX = "wds:"
DomainFrom = Literal["name", "json"]

_PICKLES = frozenset({"pyd", "pkl", "pickle", "pth", "pt", "ckpt", "joblib"})
_SHARD_NAME = re.compile(r"(?P<domain>.+)-\d+\.(tar|tar\.gz|tgz)")
_URL = re.compile(r"[a-z][a-z0-9+.-]*://|pipe:", re.IGNORECASE)
_LARGEST_IMAGE_BYTES = 128 << 20
_LARGEST_TEXT_BYTES = 1 << 20
_BLOCK = 512


@dataclass(frozen=True, slots=True)
class Entry:
    """One image as it lies in a shard, and what is said of it there.

    Attributes:
        shard: the archive.
        key: what its members have in common.
        domain: where the image is from.
        name: of its class.
        file: the image's own name.
        image: its bytes; a text says why there are none.
    """

    shard: str
    key: str
    domain: str
    name: str
    file: str
    image: bytes | str

    def sample(self, label: int) -> Sample:
        """The image as a labelled sample; its path is a name to show, nothing to open."""
        path = Path(self.shard) / f"{self.key}{PurePosixPath(self.file).suffix}"
        return Sample(path, f"{self.domain}/{self.name}/{self.file}", self.domain, label)


def find_shards(pattern: str) -> tuple[str, ...]:
    """The shards that a pattern names, sorted.

    Args:
        pattern: with or without ``wds:``: a glob over files, or a URL that the webdataset library opens, in
            which ``{000..123}`` stands for a range.

    Raises:
        DataError: no file fits.
        UnavailableError: a URL, and the webdataset library is not installed.
    """
    text = pattern.removeprefix(PREFIX)
    if _URL.match(text):
        _library()
        return tuple(importlib.import_module("braceexpand").braceexpand(text))
    found = tuple(sorted(glob.glob(text, recursive=True)))  # noqa: PTH207 (may be absolute)
    if not found:
        msg = f"Expected shards named <domain>-<number>.tar at {text}, found none. Check data.root."
        raise DataError(msg)
    return found


def domains_of(shards: Sequence[Path | str], wanted: Sequence[str] = ()) -> tuple[str, ...]:
    """The domains that the shards' names say, sorted; nothing is opened.

    Args:
        shards: files or URLs.
        wanted: only these, in this order; all when empty.

    Raises:
        DataError: a shard has another name, or a wanted domain has no shard.
    """
    found = sorted({_named(str(shard)) for shard in shards})
    missing = [name for name in wanted if name not in found]
    if missing:
        msg = f"Expected shards of the domain '{missing[0]}', found those of {', '.join(found)}."
        raise DataError(msg)
    return tuple(wanted) or tuple(found)


def _named(shard: str) -> str:
    match = _SHARD_NAME.fullmatch(PurePosixPath(shard).name)
    if match is None:
        msg = f"{shard}: expected a shard named <domain>-<number>.tar. Rename it, or read domains from each .json."
        raise DataError(msg)
    return match["domain"]


def shards_key(shards: Sequence[Path | str]) -> str:
    """Hash of the shards' names, sizes and times of change, to know an import by; a URL stands for itself."""
    digest = hashlib.sha256()
    for shard in shards:
        text = str(shard)
        digest.update(text.encode() + b"\0")
        if not _URL.match(text):
            stat = Path(text).stat()
            digest.update(f"{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def entries_of(
    shards: Sequence[Path | str],
    classes: Sequence[str],
    domains: Sequence[str],
    split: Split | None,
    domain_from: DomainFrom,
) -> Iterator[Entry]:
    """The images of shards, in order.

    Args:
        shards: files, or URLs that the webdataset library opens.
        classes: class names in label order; images of others are passed over, of none when empty.
        domains: take only these; shards whose names say another domain are not opened.
        split: take only train or test images.
        domain_from: where the domain is said, see `webdata.import_shards`.

    Raises:
        DataError: a shard is cut short, unsafe or not laid out as above.
        UnavailableError: a URL cannot be had.
    """
    for shard in map(str, shards):
        named = _named(shard) if domain_from == "name" else None
        if named is not None and domains and named not in domains:
            continue
        for key, members in _groups(shard):
            entry = _entry(shard, key, members, classes, named)
            if (
                entry is not None
                and (not domains or entry.domain in domains)
                and (split is None or split_of(entry.sample(0).image) == split)
            ):
                yield entry


def _entry(
    shard: str, key: str, members: dict[str, bytes | str], classes: Sequence[str], named: str | None
) -> Entry | None:
    """Read one key; None if its class is none of those asked for."""
    where = f"{shard}/{key}"
    images = [suffix for suffix in members if f".{suffix}" in IMAGE_SUFFIXES]
    if len(images) != 1 or "cls" not in members:
        _refuse(where, f"expected one image and one .cls, found {', '.join(sorted(members)) or 'nothing'}")
    about = _about(where, members.get("json"))
    domain = about.get("domain", named)
    if domain is None or (named is not None and domain != named):
        expected = f"the domain '{named}' of the shard's name" if named else "a domain in its .json"
        _refuse(where, f"expected {expected}, found {'none' if domain is None else repr(domain)}")
    name = _class_name(where, members["cls"], classes)
    file = about.get("file", f"{PurePosixPath(key).name}.{images[0]}")
    for part in (domain, name, file):
        if part in ("", ".", "..") or any(char in "/\\\0" for char in part):
            _refuse(where, f"expected a plain name for its domain, class and file, found {part!r}")
    if classes and name not in classes:
        return None
    return Entry(shard, key, domain, name, file, members[images[0]])


def _class_name(where: str, text: bytes | str, classes: Sequence[str]) -> str:
    name = _text(where, ".cls", text).strip()
    if name in classes or not (name.isascii() and name.isdecimal()):
        return name
    if int(name) >= len(classes):
        _refuse(
            where, f"expected a class name or an index below {len(classes)}, found {name}; set data.classes"
        )
    return classes[int(name)]


def _about(where: str, text: bytes | str | None) -> dict[str, str]:
    if text is None:
        return {}
    try:
        value = parse(_text(where, ".json", text))
    except JsonProblems as error:
        _refuse(where, f"its .json cannot be read: {error}")
    if not isinstance(value, dict):
        _refuse(where, f"expected an object in its .json, found {type(value).__name__}")
    known = {name: value[name] for name in ("domain", "file") if name in value}
    if not all(isinstance(one, str) for one in known.values()):
        _refuse(where, "expected texts for domain and file in its .json")
    return known


def _text(where: str, suffix: str, data: bytes | str) -> str:
    if isinstance(data, str):
        _refuse(where, f"{suffix}: {data}")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        _refuse(where, f"expected UTF-8 text in its {suffix}")


def _groups(shard: str) -> Iterator[tuple[str, dict[str, bytes | str]]]:
    """The members of a shard by key: neighbours whose paths are the same up to the name's first dot."""
    with contextlib.closing(_members(shard)) as members:
        for key, group in itertools.groupby(members, key=lambda member: member[0]):
            found: dict[str, bytes | str] = {}
            for _, suffix, data in group:
                if suffix in found:
                    _refuse(f"{shard}/{key}", f"found .{suffix} twice; give each image its own key")
                found[suffix] = data
            yield key, found


def _members(shard: str) -> Generator[tuple[str, str, bytes | str], None, None]:
    """Key, suffix and content of each file in a shard that matters here."""
    stream = _stream(shard)
    try:
        tail = _Tail(stream)
        with tarfile.open(fileobj=cast("IO[bytes]", tail), mode="r|", bufsize=_Tail.READ) as tar:
            for info in tar:
                tar.members = []  # type: ignore[attr-defined]  # it would keep every header otherwise
                member = _member(shard, tar, info)
                if member is not None:
                    yield member
            tail.check_end(tar.offset)
        tail.drain()
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        msg = f"{shard}: the shard is cut short or damaged ({error}). Get it again or pack it anew."
        raise DataError(msg) from error
    finally:
        with contextlib.suppress(OSError):
            stream.close()


def _member(shard: str, tar: tarfile.TarFile, info: tarfile.TarInfo) -> tuple[str, str, bytes | str] | None:
    where = f"{shard}/{info.name}"
    parts = PurePosixPath(info.name).parts
    if info.name.startswith("/") or ".." in parts or "\\" in info.name or "\0" in info.name:
        _refuse(where, "a path that leads out of the shard")
    if info.isdir():
        return None
    if not info.isreg() or info.issparse():
        _refuse(where, "expected a plain file, found a link, a device or a file with holes")
    folder, _, name = info.name.rpartition("/")
    stem, _, suffix = name.partition(".")
    suffix = suffix.lower()
    if suffix.rpartition(".")[2] in _PICKLES:
        _refuse(where, "a pickle can run any program when it is read, so shards with one are refused")
    is_image = f".{suffix}" in IMAGE_SUFFIXES
    if not stem or not (is_image or suffix in ("cls", "json")):
        return None
    most = _LARGEST_IMAGE_BYTES if is_image else _LARGEST_TEXT_BYTES
    key = f"{folder}/{stem}" if folder else stem
    if info.size > most:
        return key, suffix, f"{info.size} bytes, expected at most {most}"
    content = tar.extractfile(info)
    return key, suffix, content.read() if content else b""


class _Tail:
    """A stream that remembers its last reads, so that the block where tarfile stopped can be looked at."""

    READ = 1 << 16

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._total = 0
        self._last = b""

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._total += len(data)
        self._last = (self._last + data)[-2 * self.READ - _BLOCK :]
        return data

    def check_end(self, offset: int) -> None:
        """Raise unless the archive ends at ``offset`` with a block of zeros, as each whole archive does."""
        start = offset - (self._total - len(self._last))
        if start < 0 or self._last[start : start + _BLOCK] != bytes(_BLOCK):
            msg = f"no end of archive at byte {offset}"
            raise tarfile.ReadError(msg)

    def drain(self) -> None:
        """Read to the end, where a compressed stream's checksum and a download's exit status are."""
        while self._stream.read(self.READ):
            pass


def _stream(shard: str) -> IO[bytes]:
    if _URL.match(shard):
        return _from_url(shard)
    try:
        return cast("IO[bytes]", gzip.open(shard)) if shard.endswith("gz") else Path(shard).open("rb")
    except OSError as error:
        msg = f"{shard}: expected a shard, cannot open it: {error.strerror}. Check data.root."
        raise DataError(msg) from error


def _from_url(shard: str) -> IO[bytes]:
    if shard.lower().startswith("pipe:"):
        msg = f"{shard}: expected a file or an address, found a shell command: these are never run. Download first."
        raise DataError(msg)
    gopen: Any = _library().gopen
    try:
        stream: IO[bytes] = gopen(shard)
    except Exception as error:  # each scheme has its own tool, and each tool its own errors
        msg = f"{shard}: cannot open the address: {error}. Check it, or download the shard and name the file."
        raise UnavailableError(msg) from error
    return cast("IO[bytes]", gzip.GzipFile(fileobj=stream)) if shard.endswith("gz") else stream


def _library() -> Any:
    try:
        return importlib.import_module("webdataset")
    except ImportError as error:
        msg = "Shards at an address need webdataset, which is not installed: pip install 'vlkd-edge[shards]'."
        raise UnavailableError(msg) from error


def _refuse(where: str, problem: str) -> NoReturn:
    msg = f"{where}: {problem}. Pack the shard anew or leave it out."
    raise DataError(msg)
