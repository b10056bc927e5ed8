"""Images of WebDataset shards: at the student's size in a pixel store, or as files where a stage opens files.

Letters used in shapes: N images, H and W pixels.

How shards are read, and what they must hold, is in `vlkd_distill.shards`.
"""

from __future__ import annotations

import io
import itertools
import json
import tarfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
import numpy.typing as npt
from numpy.lib.format import open_memmap
from PIL import Image

from vlkd_bench.samples import Sample
from vlkd_runtime.atomic import write_bytes, write_text
from vlkd_runtime.errors import ConfigError, DataError, ImageError
from vlkd_runtime.preprocess import PreprocessSpec, prepare

from .closing import announce
from .data import Split
from .decodable import refuse_too_many
from .mapped import Ebb
from .pixels import PixelStore
from .shards import DomainFrom, Entry, entries_of

_FORMATS = ("JPEG", "PNG", "BMP", "PPM", "WEBP", "TIFF")
_BATCH = 16
BAD = "bad.json"


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


def import_shards(
    shards: Sequence[Path | str],
    spec: PreprocessSpec,
    folder: Path,
    *,
    classes: Sequence[str] = (),
    domains: Sequence[str] = (),
    split: Split | None = None,
    domain_from: DomainFrom = "name",
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
        progress: called with the number of images just read.

    Raises:
        DataError: a shard is cut short, unsafe or not laid out as above; two images have one name; no image
            is left; or more than one image in a hundred cannot be decoded.
        UnavailableError: a URL cannot be had.
    """
    if len(set(classes)) != len(classes):
        msg = f"Expected different class names, found {', '.join(classes)}."
        raise ConfigError(msg)
    entries = entries_of(shards, classes, domains, split, domain_from)
    rows: list[Entry] = []
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
            opened = [_open(entry) for entry in batch]
            for entry, result in zip(batch, pool.map(lambda one: _pixels(one, spec), opened), strict=True):
                if isinstance(result, str):
                    name = f"{entry.shard}/{entry.key}"
                    bad.append((entry.sample(0).image, f"{name}: {result}"))
                    continue
                file.write(result.tobytes())
                rows.append(_bare(entry))
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


def take_rows(imported: Imported, samples: Sequence[Sample], folder: Path) -> PixelStore:
    """Copy some rows into a store of their own, a few at a time.

    Args:
        imported: where the rows are.
        samples: which images, in the order of the new rows; their labels may be other ones.
        folder: gets ``pixels.npy`` and ``bad.json``.

    Raises:
        DataError: one of them is closed, see `closing.announce`.
    """
    announce(samples)
    row_of = {sample.image: row for row, sample in enumerate(imported.store.samples)}
    rows = np.array([row_of[sample.image] for sample in samples], dtype=np.int64)
    pixels = imported.store.pixels
    part = folder / "pixels.part.npy"
    target = open_memmap(part, mode="w+", dtype=np.uint8, shape=(len(rows), *pixels.shape[1:]))
    ebb = Ebb(target, pixels)
    for start in range(0, len(rows), 64):
        target[start : start + 64] = pixels[rows[start : start + 64]]
        ebb.touch(2 * target[start : start + 64].nbytes)
    target.flush()
    part.replace(folder / "pixels.npy")
    write_text(folder / "bad.json", "[]")
    return PixelStore.open(folder, samples)


def originals(
    shards: Sequence[Path | str], samples: Sequence[Sample], domain_from: DomainFrom = "name"
) -> Iterator[bytes]:
    """The files of imported images, as they are in the shards.

    Args:
        shards: as given to `import_shards`.
        samples: imported images, in the order in which they were imported.
        domain_from: as given to `import_shards`.

    Raises:
        DataError: an image is not there, or not in this order: the shards have changed; or one is closed, see
            `closing.announce`.
    """
    announce(samples)
    domains = sorted({sample.domain for sample in samples})
    entries = entries_of(shards, (), domains, None, domain_from)
    for sample in samples:
        found = next((entry for entry in entries if entry.sample(0).image == sample.image), None)
        if found is None or isinstance(found.image, str):
            msg = (
                f"Expected the image {sample.image} in the shards it was imported from, found none: delete the "
                "import and run again."
            )
            raise DataError(msg)
        yield found.image


def unpack(
    shards: Sequence[Path | str],
    folder: Path,
    *,
    classes: Sequence[str],
    domains: Sequence[str] = (),
    split: Split | None = None,
    domain_from: DomainFrom = "name",
) -> int:
    """Write images as the files that they were, for stages that open files.

    Args:
        shards: as for `import_shards`, as are the others.
        folder: gets ``<domain>/<class>/<file>``, and in ``bad.json`` id and reason of each image that is too large
            to be one.
        classes: class names in label order (C,).
        domains: take only these.
        split: take only train or test images.
        domain_from: where the domain is said.

    Returns:
        How many images were written.

    Raises:
        DataError: as `import_shards`, but for images that cannot be decoded: nothing is decoded.
    """
    count = 0
    bad: list[tuple[str, str]] = []
    for entry in entries_of(shards, classes, domains, split, domain_from):
        if isinstance(entry.image, str):
            bad.append((entry.sample(0).image, f"{entry.shard}/{entry.key}: {entry.image}"))
            continue
        path = folder / entry.sample(0).image
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, entry.image)
        count += 1
    if bad:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / BAD, json.dumps(bad))
    return count


def write_images(store: PixelStore, folder: Path, samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """Write some rows as PNG files at the student's size, for stages that open files: tests, calibration.

    Without a crop, preparing such a file gives the row again, bit for bit.

    Args:
        store: an import's.
        folder: gets ``<domain>/<class>/<file>.png``.
        samples: which rows.

    Returns:
        The same samples with paths that can be opened.

    Raises:
        DataError: one of them is closed, see `closing.announce`.
    """
    announce(samples)
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


def _open(entry: Entry) -> Image.Image | str:
    if isinstance(entry.image, str):
        return entry.image
    try:
        # Only the header is read here; the pixels are decoded, and judged, by the runtime's own decoder.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Image.open(io.BytesIO(entry.image), formats=_FORMATS)
    except Exception as error:  # Pillow's readers raise OSError, SyntaxError, struct.error and more
        return f"no image of a known format: {type(error).__name__}"


def _pixels(image: Image.Image | str, spec: PreprocessSpec) -> npt.NDArray[np.uint8] | str:
    if isinstance(image, str):
        return image
    try:
        return prepare(image, spec)
    except ImageError as error:
        return str(error)


def _bare(entry: Entry) -> Entry:
    return Entry(entry.shard, entry.key, entry.domain, entry.name, entry.file, "")


def _labelled(entry: Entry, classes: Sequence[str]) -> Sample:
    return entry.sample(classes.index(entry.name) if classes else -1)


def _check_bad(bad: Sequence[tuple[str, str]], count: int, shards: Sequence[Path | str]) -> None:
    if count == len(bad) == 0:
        msg = f"Expected images in {len(shards)} shards, found none of the domains, classes and split asked for."
        raise DataError(msg)
    if len(bad) == count:
        msg = f"{len(bad)} of {count} images cannot be decoded: {bad[0][1]}. Replace them."
        raise DataError(msg)
    refuse_too_many(bad, count, "images")


def _write_header(file: IO[bytes], rows: int, spec: PreprocessSpec) -> int:
    """Write the array's header at the start; it has the same length for any number of rows."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (rows, spec.height, spec.width, 3)}
    file.seek(0)
    np.lib.format.write_array_header_1_0(file, header)
    return file.tell()
