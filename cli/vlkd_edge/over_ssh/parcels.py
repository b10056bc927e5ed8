"""What is copied to a device: files under names, known together by the hash of their content."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import vlkd_bench
import vlkd_distill
import vlkd_runtime
from vlkd_distill.data import scan
from vlkd_runtime.errors import DataError

Kind = Literal["code", "bundle", "data", "image"]
BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class File:
    """One file.

    Attributes:
        name: its path on the device, below the parcel's folder.
        path: where it lies here.
        size: bytes.
        digest: SHA-256.
    """

    name: str
    path: Path
    size: int
    digest: str


@dataclass(frozen=True, slots=True)
class Parcel:
    """Files that belong together.

    Attributes:
        kind: what it is, which is also the folder that it goes to.
        name: what is given to the bench, below the parcel's folder; "" for the folder itself.
        files: sorted by name.
    """

    kind: Kind
    name: str
    files: tuple[File, ...]

    @property
    def digest(self) -> str:
        """The hash of all names and contents."""
        return hashlib.sha256(json.dumps([[f.name, f.digest] for f in self.files]).encode()).hexdigest()

    @property
    def request(self) -> dict[str, Any]:
        """What the agent needs to know of it."""
        files = [[file.name, file.size, file.digest] for file in self.files]
        return {"kind": self.kind, "digest": self.digest, "files": files}

    def stream(self, names: Collection[str]) -> Callable[[IO[bytes]], None]:
        """Return a function that writes these files as a tar stream; code is compressed, images already are."""
        chosen = [file for file in self.files if file.name in names]

        def write(pipe: IO[bytes]) -> None:
            mode: Literal["w|gz", "w|"] = "w|gz" if self.kind == "code" else "w|"
            with tarfile.open(fileobj=pipe, mode=mode) as stream:
                for file in chosen:
                    entry = tarfile.TarInfo(file.name)
                    entry.size = file.size
                    with file.path.open("rb") as source:
                        stream.addfile(entry, source)

        return write


def code() -> Parcel:
    """Our packages, as far as a bench needs them."""
    found = []
    others = [Path(str(package.__file__)).parent for package in (vlkd_runtime, vlkd_bench)]
    for root in (*others, Path(__file__).parents[1]):
        found += [(path.relative_to(root.parent).as_posix(), path) for path in root.rglob("*.py")]
    root = Path(str(vlkd_distill.__file__)).parent
    found += [(f"{root.name}/{name}", root / name) for name in ("__init__.py", "data.py", "decodable.py")]
    return pack("code", "", found)


def bundle(path: Path) -> Parcel:
    """A bundle's folder or archive, under its own name."""
    name = path.resolve().name
    if path.is_dir():
        return pack(
            "bundle",
            name,
            [
                (f"{name}/{item.relative_to(path).as_posix()}", item)
                for item in path.rglob("*")
                if item.is_file()
            ],
        )
    return pack("bundle", name, [(name, path)])


def data(root: Path, domains: Sequence[str], classes: Sequence[str]) -> Parcel:
    """The images of a folder of domains that the bench will ask for, under the folder's name.

    Raises:
        DataError: the folder, a domain or a class is missing or empty.
    """
    name = root.resolve().name or "data"
    samples = scan(root, domains=domains, classes=classes).samples
    return pack("data", name, [(f"{name}/{sample.image}", sample.path) for sample in samples])


def image(path: Path) -> Parcel:
    """One image file."""
    return pack("image", path.name, [(path.name, path)])


def pack(kind: Kind, name: str, found: Sequence[tuple[str, Path]]) -> Parcel:
    """Put files together under their names, and read each once for its hash.

    Raises:
        DataError: one cannot be read.
    """
    return Parcel(kind, name, tuple(_file(name, path) for name, path in sorted(found)))


def _file(name: str, path: Path) -> File:
    digest, size = hashlib.sha256(), 0
    try:
        with path.open("rb") as source:
            while block := source.read(BLOCK):
                digest.update(block)
                size += len(block)
    except OSError as error:
        msg = f"Expected to read {path}, found: {error.strerror}. Check the path and its access."
        raise DataError(msg) from error
    return File(name, path, size, digest.hexdigest())


def size_of(parcel: Parcel, names: Collection[str]) -> int:
    """Bytes of some of a parcel's files."""
    return sum(file.size for file in parcel.files if file.name in names)
