"""WebDataset shards as images to learn from, streamed into a pixel store without unpacking them.

Letters used in shapes: N images, H and W pixels.

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
import io
import itertools
import json
import re
import tarfile
import warnings
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, NoReturn, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from vlkd_bench.samples import Sample
from vlkd_runtime.atomic import write_text
from vlkd_runtime.errors import ConfigError, DataError, ImageError, UnavailableError
from vlkd_runtime.preprocess import PreprocessSpec, decode, prepare
from vlkd_runtime.strictjson import JsonProblems, parse

from .data import IMAGE_SUFFIXES, Split, split_of
from .pixels import PixelStore

PREFIX = "wds:"
Look = Callable[[Sequence[Sample], Sequence[Image.Image]], None]
DomainFrom = Literal["name", "json"]

_FORMATS = ("JPEG", "PNG", "BMP", "PPM", "WEBP", "TIFF")
_PICKLES = frozenset({"pyd", "pkl", "pickle", "pth", "pt", "ckpt", "joblib"})
_SHARD_NAME = re.compile(r"(?P<domain>.+)-\d+\.(tar|tar\.gz|tgz)")
_URL = re.compile(r"[a-z][a-z0-9+.-]*://|pipe:", re.IGNORECASE)
_LARGEST_IMAGE_BYTES = 128 << 20
_LARGEST_TEXT_BYTES = 1 << 20
_BLOCK = 512
_BATCH = 16
_MOST_BAD = 0.01  # as for folders, see `pixels.build`


@dataclass(frozen=True, slots=True)
class Imported:
    """What came out of shards.

    Attributes:
        classes: class names in label order (C,).
        domains: domains of the images, sorted.
        store: the images at the student's size. A sample's path is its shard and member: a name to show,
            nothing to open.
    """

    classes: tuple[str, ...]
    domains: tuple[str, ...]
    store: PixelStore


@dataclass(frozen=True, slots=True)
class _Entry:
    shard: str
    key: str
    domain: str
    name: str
    file: str
    image: bytes | str  # a string is why there are no bytes

    def sample(self, label: int) -> Sample:
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


def import_shards(
    shards: Sequence[Path | str],
    spec: PreprocessSpec,
    folder: Path,
    *,
    classes: Sequence[str] = (),
    domains: Sequence[str] = (),
    split: Split | None = None,
    domain_from: DomainFrom = "name",
    look: Look | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Imported:
    """Stream shards into a pixel store; memory holds a few images and the list of names.

    Args:
        shards: files, or URLs that the webdataset library opens.
        spec: how student and device prepare an image.
        folder: gets ``pixels.npy``, ``bad.json`` and, last, ``samples.json``.
        classes: class names in label order; found in the shards and sorted when empty.
        domains: take only these; shards whose names say another domain are not opened.
        split: take only train or test images.
        domain_from: ``name`` takes the domain from the shard's name, and an image that says another is
            refused; ``json`` takes it from each image, for shards that mix domains, and opens all shards.
        look: called with samples and their decoded originals, in row order, so that a teacher can embed them
            in the same pass.
        progress: called with the number of images just read.

    Raises:
        DataError: a shard is cut short, unsafe or not laid out as above; two images have one name; no image
            is left; or more than one image in a hundred cannot be decoded.
        UnavailableError: a URL cannot be had.
    """
    if len(set(classes)) != len(classes):
        msg = f"Expected different class names, found {', '.join(classes)}."
        raise ConfigError(msg)
    entries = _wanted(shards, classes, domains, split, domain_from)
    rows: list[_Entry] = []
    bad: list[tuple[str, str]] = []
    seen: set[str] = set()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "samples.json").unlink(missing_ok=True)  # an import cut off here must not look finished
    part = folder / "pixels.part.npy"
    with part.open("wb") as file, ThreadPoolExecutor(2) as pool:
        offset = _write_header(file, 0, spec)
        while batch := list(itertools.islice(entries, _BATCH)):
            for entry in batch:
                name = entry.sample(0).image
                if name in seen:
                    msg = f"{entry.shard}: the image {name} is there twice; give each image of a class its own key."
                    raise DataError(msg)
                seen.add(name)
            kept: list[tuple[_Entry, Image.Image]] = []
            opened = [_open(entry) for entry in batch]
            for entry, result in zip(batch, pool.map(lambda one: _pixels(one, spec), opened), strict=True):
                if isinstance(result, str):
                    name = f"{entry.shard}/{entry.key}"
                    bad.append((entry.sample(0).image, f"{name}: {result}"))
                    continue
                file.write(result[0].tobytes())
                kept.append((_bare(entry), result[1]))
            rows += [entry for entry, _ in kept]
            if look is not None and kept:
                look([_labelled(entry, classes) for entry, _ in kept], [image for _, image in kept])
            progress(len(batch))
        _check_bad(bad, len(seen), shards)
        if _write_header(file, len(rows), spec) != offset:
            msg = f"{part}: the header of an array of {len(rows)} images does not fit the room left for it."
            raise RuntimeError(msg)
    names = tuple(classes) or tuple(sorted({entry.name for entry in rows}))
    samples = tuple(_labelled(entry, names) for entry in rows)
    part.replace(folder / "pixels.npy")
    write_text(folder / "bad.json", json.dumps(bad))
    listed = [[str(sample.path), sample.image, sample.domain, sample.label] for sample in samples]
    write_text(folder / "samples.json", json.dumps({"classes": names, "samples": listed}))
    return open_import(folder)


def open_import(folder: Path) -> Imported:
    """Open what `import_shards` wrote.

    Raises:
        DataError: the import was not finished, or the store has another length.
    """
    listed = folder / "samples.json"
    if not listed.exists():
        msg = f"Expected a finished import in {folder}, found no samples.json: delete the folder and import again."
        raise DataError(msg)
    stored = json.loads(listed.read_text())
    samples = tuple(
        Sample(Path(path), image, domain, label) for path, image, domain, label in stored["samples"]
    )
    domains = tuple(sorted({sample.domain for sample in samples}))
    return Imported(tuple(stored["classes"]), domains, PixelStore.open(folder, samples))


def write_images(store: PixelStore, folder: Path, samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """Write some rows as PNG files at the student's size, for stages that open files: tests, calibration.

    Without a crop, preparing such a file gives the row again, bit for bit.

    Args:
        store: an import's.
        folder: gets ``<domain>/<class>/<file>.png``.
        samples: which rows.

    Returns:
        The same samples with paths that can be opened.
    """
    row_of = {sample.image: row for row, sample in enumerate(store.samples)}
    written: list[Sample] = []
    for sample in samples:
        path = folder / f"{sample.image}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.array(store.pixels[row_of[sample.image]])).save(path)
        written.append(Sample(path, sample.image, sample.domain, sample.label))
    return tuple(written)


def write_shards(
    samples: Sequence[Sample], classes: Sequence[str], folder: Path, per_shard: int = 1000
) -> tuple[Path, ...]:
    """Pack image files into shards that `import_shards` reads back with the same ids and labels.

    The same samples always give the same bytes.

    Args:
        samples: images on disk.
        classes: class names in label order (C,).
        folder: gets ``<domain>-<number>.tar``.
        per_shard: most images a shard.

    Raises:
        ConfigError: ``per_shard`` is below one.
    """
    if per_shard < 1:
        msg = f"Expected at least one image a shard, found per_shard = {per_shard}."
        raise ConfigError(msg)
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[Path] = []
    by_domain = sorted(samples, key=lambda sample: sample.domain)
    for domain, group in itertools.groupby(by_domain, key=lambda sample: sample.domain):
        members = tuple(group)
        for number, start in enumerate(range(0, len(members), per_shard)):
            final = folder / f"{domain}-{number:06d}.tar"
            part = final.with_suffix(".part")
            with tarfile.open(part, "w", format=tarfile.PAX_FORMAT) as tar:
                for index, sample in enumerate(members[start : start + per_shard], start):
                    _pack(tar, index, sample, classes[sample.label])
            part.replace(final)
            shards.append(final)
    return tuple(shards)


def _pack(tar: tarfile.TarFile, index: int, sample: Sample, name: str) -> None:
    # A number, because what follows a key's first dot is its suffix and file names may have several dots.
    about = json.dumps({"domain": sample.domain, "file": PurePosixPath(sample.image).name})
    image = sample.path.read_bytes()
    for suffix, data in (("cls", name.encode()), ("json", about.encode()), (sample.path.suffix[1:], image)):
        info = tarfile.TarInfo(f"{index:08d}.{suffix.lower()}")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))


def _wanted(
    shards: Sequence[Path | str],
    classes: Sequence[str],
    domains: Sequence[str],
    split: Split | None,
    domain_from: DomainFrom,
) -> Iterator[_Entry]:
    for shard in map(str, shards):
        match = _SHARD_NAME.fullmatch(PurePosixPath(shard).name)
        named = match["domain"] if match and domain_from == "name" else None
        if named is None and domain_from == "name":
            msg = f"{shard}: expected a shard named <domain>-<number>.tar. Rename it, or read domains from each .json."
            raise DataError(msg)
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
) -> _Entry | None:
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
    return _Entry(shard, key, domain, name, file, members[images[0]])


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
        msg = "Shards at an address need the package webdataset, which is not installed: pip install webdataset."
        raise UnavailableError(msg) from error


def _open(entry: _Entry) -> Image.Image | str:
    if isinstance(entry.image, str):
        return entry.image
    try:
        # Only the header is read here; the pixels are decoded, and judged, by the runtime's own decoder.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Image.open(io.BytesIO(entry.image), formats=_FORMATS)
    except Exception as error:  # Pillow's readers raise OSError, SyntaxError, struct.error and more
        return f"no image of a known format: {type(error).__name__}"


def _pixels(
    image: Image.Image | str, spec: PreprocessSpec
) -> tuple[npt.NDArray[np.uint8], Image.Image] | str:
    if isinstance(image, str):
        return image
    try:
        upright = decode(image)
        return prepare(upright, spec), upright
    except ImageError as error:
        return str(error)


def _bare(entry: _Entry) -> _Entry:
    return _Entry(entry.shard, entry.key, entry.domain, entry.name, entry.file, "")


def _labelled(entry: _Entry, classes: Sequence[str]) -> Sample:
    return entry.sample(classes.index(entry.name) if classes else -1)


def _check_bad(bad: Sequence[tuple[str, str]], count: int, shards: Sequence[Path | str]) -> None:
    if count == len(bad) == 0:
        msg = f"Expected images in {len(shards)} shards, found none of the domains, classes and split asked for."
        raise DataError(msg)
    if len(bad) > max(1, int(_MOST_BAD * count)) or len(bad) == count:
        listed = "\n".join(f"  {reason}" for _, reason in bad[:5])
        msg = (
            f"{len(bad)} of {count} images cannot be decoded; at most {_MOST_BAD:.0%} may be. "
            f"Replace or remove them. The first ones:\n{listed}"
        )
        raise DataError(msg)


def _write_header(file: IO[bytes], rows: int, spec: PreprocessSpec) -> int:
    """Write the array's header at the start; it has the same length for any number of rows."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (rows, spec.height, spec.width, 3)}
    file.seek(0)
    np.lib.format.write_array_header_1_0(file, header)
    return file.tell()


def _refuse(where: str, problem: str) -> NoReturn:
    msg = f"{where}: {problem}. Pack the shard anew or leave it out."
    raise DataError(msg)
