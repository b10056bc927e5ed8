"""Domain datasets on disk: who may see which image.

Letters used in shapes: N images, C classes, D embedding size, H and W pixels.

References:
    Gulrajani and Lopez-Paz, "In Search of Lost Domain Generalization", ICLR 2021 (folder layout and
    leave-one-domain-out protocol).
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vlkd_bench.samples import ABSENT, Sample
from vlkd_runtime.errors import ConfigError, DataError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm"})

ONE_DOMAIN = "images"
"""Name of the only domain of a folder that has none."""

UNKNOWN = "unknown"
"""Domain of images that show none of the classes."""

UNLABELLED = "unlabelled"
"""Domain of images that nobody has labelled."""

NO_LABEL = -1
"""Label of an image whose class is not looked at."""

Split = Literal["train", "test"]


def split_of(image: str) -> Split:
    """The split an image belongs to, by the hash of its id alone.

    One image in five is *test*. The rule has no seed and does not depend on the other images, so adding
    images never moves one from train to test.

    Args:
        image: id of the image, ``<domain>/<class>/<file>``.
    """
    digest = int(hashlib.sha1(image.encode(), usedforsecurity=False).hexdigest(), 16)
    return "test" if digest % 5 == 0 else "train"


@dataclass(frozen=True, slots=True)
class DomainDataset:
    """Labelled images of the same classes in several domains.

    Attributes:
        root: folder that holds one folder a domain, each with one folder a class.
        classes: class names in label order (C,).
        domains: domain names, sorted.
        samples: every image, ordered by domain, class and file name.
    """

    root: Path
    classes: tuple[str, ...]
    domains: tuple[str, ...]
    samples: tuple[Sample, ...]

    def of(self, domains: Iterable[str], split: Split | None = None) -> tuple[Sample, ...]:
        """The images of some domains, of one split or of both."""
        wanted = set(domains)
        return tuple(
            sample
            for sample in self.samples
            if sample.domain in wanted and (split is None or split_of(sample.image) == split)
        )

    def sources(self, held_out: Sequence[str]) -> tuple[str, ...]:
        """The domains that may be trained on when ``held_out`` may not; see `source_domains`."""
        return source_domains(self.domains, held_out, str(self.root))


def with_shots(dataset: DomainDataset, shots: int, held_out: Sequence[str]) -> DomainDataset:
    """The same data with a few train images of each class in each source domain, and everything else.

    Args:
        dataset: all images.
        shots: train images a class and domain; a class with fewer keeps those it has.
        held_out: domains that stay whole.
    """
    from .splits import k_shot, restrict  # a device that is measured on has this module and not that one

    kept: set[str] = set()
    for domain in dataset.sources(held_out):
        train = dataset.of((domain,), "train")
        # A class without any is refused where the data are divided.
        present = [dataset.classes[label] for label in sorted({sample.label for sample in train})]
        if present:
            few = k_shot(restrict(train, dataset.classes, present), present, shots)
            kept.update(sample.image for sample in few.samples)
    return dataclasses.replace(
        dataset,
        samples=tuple(
            sample
            for sample in dataset.samples
            if sample.domain in held_out or split_of(sample.image) == "test" or sample.image in kept
        ),
    )


def source_domains(
    domains: Sequence[str], held_out: Sequence[str], where: str, *, needed: bool = True
) -> tuple[str, ...]:
    """Every domain that is not held out.

    Args:
        domains: all there are.
        held_out: those that nothing may learn from; there may be none.
        where: what to call the data set in messages.
        needed: whether there must be one to train on.

    Raises:
        ConfigError: a held-out domain does not exist, or no source domain is left.
    """
    listed = ", ".join(domains)
    for name in held_out:
        if name not in domains:
            near = difflib.get_close_matches(name, domains, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            only = (
                " With one domain, hold none out: data.held_out = [], or no --held-out."
                if len(domains) == 1
                else ""
            )
            msg = f"data.held_out names the domain '{name}', but the domains in {where} are {listed}.{hint}{only}"
            raise ConfigError(msg)
    left = tuple(domain for domain in domains if domain not in held_out)
    if needed and not left:
        msg = f"Every domain of {where} is held out: leave at least one to train on."
        if len(domains) == 1:
            msg += (
                f" It has one domain only ('{domains[0]}'): add images of another, or build with data.held_out = [], "
                "where the guard judges on virtual domains."
            )
        raise ConfigError(msg)
    return left


def check_batch(domains: Sequence[str], batch: int) -> None:
    """Refuse batches that cannot hold an image of each domain: the others would never be learned from.

    Raises:
        ConfigError: says how large they must be.
    """
    if batch < len(domains):
        msg = (
            f"Expected batches (distill.batch) that hold an image of each of the {len(domains)} source domains "
            f"({', '.join(domains)}), found {batch}: some would never be learned from. Raise it to {len(domains)} "
            "at least, or take fewer domains with data.domains."
        )
        raise ConfigError(msg)


def content_key(samples: Iterable[Sample]) -> str:
    """Hash of the images' ids, labels and bytes: it changes whenever anything made from them could."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(f"{sample.image}\0{sample.label}\0".encode())
        digest.update(hashlib.sha256(sample.path.read_bytes()).digest())
    return digest.hexdigest()


def scan(root: Path, *, domains: Sequence[str] = (), classes: Sequence[str] = ()) -> DomainDataset:
    """Read a DomainBed folder ``root/<domain>/<class>/<file>``; no image is opened.

    A folder ``root/<class>/<file>`` is read as one domain, `ONE_DOMAIN`.

    Args:
        root: the folder.
        domains: take only these domains; all of them when empty.
        classes: class names in label order; sorted folder names when empty.

    Raises:
        DataError: the folder, a domain, a class or its images are missing.
    """
    if not root.is_dir():
        msg = (
            f"Expected a data folder at {root}, found {'a file' if root.exists() else 'nothing'}. Set data.root "
            "to a folder laid out as <domain>/<class>/<image>."
        )
        raise DataError(msg)
    found = _folders(root)
    if _is_flat(root, found):
        return _scan_flat(root, found, domains, classes)
    chosen = tuple(domains) or found
    missing = [name for name in chosen if name not in found]
    if missing or not chosen:
        msg = (
            f"Expected the domains {', '.join(chosen) or '(any)'} as folders in {root}, found "
            f"{', '.join(found) or 'no folder at all'}. The layout is <domain>/<class>/<image>."
        )
        raise DataError(msg)
    names = tuple(classes) or _class_names(root, chosen)
    samples: list[Sample] = []
    empty: list[str] = []
    for domain in chosen:
        for label, name in enumerate(names):
            files = _images(root / domain / name)
            if not files:
                empty.append(f"{domain}/{name}")
            samples += [Sample(path, f"{domain}/{name}/{path.name}", domain, label) for path in files]
    if empty:
        more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
        msg = (
            f"Expected images of every class in every domain of {root}, found none in "
            f"{', '.join(empty[:5])}{more}. Add images, or name the classes to use with data.classes."
        )
        raise DataError(msg)
    return DomainDataset(root, names, chosen, tuple(samples))


def scan_absent(root: Path) -> tuple[Sample, ...]:
    """Read images that show none of the classes, from a folder and all below it; no image is opened.

    Raises:
        DataError: the folder is missing or holds no image.
    """
    return _scan_all(root, UNKNOWN, ABSENT, "images that show none of the classes")


def scan_unlabelled(root: Path) -> tuple[Sample, ...]:
    """Read images whose class nobody knows, from a folder and all below it; no image is opened.

    Raises:
        DataError: the folder is missing or holds no image.
    """
    return _scan_all(root, UNLABELLED, NO_LABEL, "images without labels")


def _scan_all(root: Path, domain: str, label: int, what: str) -> tuple[Sample, ...]:
    folders = (root, *sorted(path for path in root.rglob("*") if path.is_dir())) if root.is_dir() else ()
    files = [path for folder in folders for path in _images(folder)]
    if not files:
        msg = f"Expected a folder with {what} at {root} (data.{domain}), found none."
        raise DataError(msg)
    return tuple(
        Sample(path, f"{domain}/{path.relative_to(root).as_posix()}", domain, label) for path in files
    )


def _folders(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != "."))


def _is_flat(root: Path, found: Sequence[str]) -> bool:
    """Whether the folders below hold images and no folders: classes then, and no domains."""
    return len(found) > 1 and all(_images(root / name) and not _folders(root / name) for name in found)


def _scan_flat(
    root: Path, found: Sequence[str], domains: Sequence[str], classes: Sequence[str]
) -> DomainDataset:
    names = tuple(classes) or tuple(found)
    missing = [name for name in names if name not in found]
    if missing or tuple(domains) not in ((), (ONE_DOMAIN,)):
        msg = (
            f"{root} is laid out as <class>/<image>, so its classes are {', '.join(found)} and its one domain is "
            f"'{ONE_DOMAIN}': found data.classes = {list(classes)} and data.domains = {list(domains)}."
        )
        raise DataError(msg)
    samples = [
        Sample(path, f"{ONE_DOMAIN}/{name}/{path.name}", ONE_DOMAIN, label)
        for label, name in enumerate(names)
        for path in _images(root / name)
    ]
    return DomainDataset(root, names, (ONE_DOMAIN,), tuple(samples))


def _class_names(root: Path, domains: Sequence[str]) -> tuple[str, ...]:
    names = {
        path.name
        for domain in domains
        for path in (root / domain).iterdir()
        if path.is_dir() and path.name[0] != "."
    }
    if len(names) < 2:
        msg = (
            f"Expected at least two class folders below {root}/<domain>, found {len(names)}. The layout is "
            "<domain>/<class>/<image>."
        )
        raise DataError(msg)
    return tuple(sorted(names))


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != "." and path.is_file()
    )
