"""Images that lie in WebDataset shards: what `learn` does for a folder, without unpacking what is learned from.

Train images go into one store at the student's size; the teacher reads the originals in the shards. Test images
become the files that they were, as the device and the teacher open files; other rows become files at the
student's size where a stage asks for some (`files`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlkd_bench.samples import Sample
from vlkd_distill.closing import announce
from vlkd_distill.data import DomainDataset, content_key, split_of
from vlkd_distill.shards import PREFIX, domains_of, find_shards, shards_key

from .config import Config
from .stages import StageResult

if TYPE_CHECKING:
    from .learn import Learning

_CHOICE = 4
_WRITTEN = "train-images"


def lies_in_shards(config: Config) -> bool:
    """Whether the configured data are shards."""
    return config.data.root.startswith(PREFIX)


def learns_from_shards(config: Config, samples: Sequence[Sample]) -> bool:
    """Whether images that a student learns from are those of the shards; data-free makes its own, as files."""
    if not lies_in_shards(config):
        return False
    shards = {Path(shard) for shard in find_shards(config.data.root)}
    return any(not shards.isdisjoint(sample.path.parents) for sample in samples)


def told(root: str) -> str:
    """How a command that others may run names these data: without the folders of one machine."""
    return f"{PREFIX if root.startswith(PREFIX) else ''}{Path(root).name}"


def domains(config: Config) -> tuple[str, ...]:
    """The domains that the shards' names say.

    Raises:
        DataError: there are no shards, one has another name, or a domain that was asked for has none.
    """
    return domains_of(find_shards(config.data.root), config.data.domains)


def dataset(learning: Learning) -> DomainDataset:
    """Every image: test images as files, train images by name.

    Raises:
        DataError: as `vlkd_distill.webdata.import_shards`.
    """
    from vlkd_distill import webdata
    from vlkd_distill.data import scan

    data = learning.config.data
    imported = webdata.open_import(_imported(learning).folder)

    def unpack(folder: Path) -> None:
        with learning.live.task("unpacking test images", None):
            shards = find_shards(data.root)
            chosen: Mapping[str, Any] = {"classes": imported.classes, "domains": data.domains}
            webdata.unpack(shards, folder / "images", **chosen, split="test")

    inputs = {"shards": _key(learning.config), "classes": imported.classes, "domains": data.domains}
    files = learning.workspace.stage("test-images", inputs, unpack)
    tests = scan(files.folder / "images", domains=imported.domains, classes=imported.classes)
    samples = (*imported.store.samples, *tests.samples)  # as they lie in the shards, which `contents` needs
    return DomainDataset(files.folder / "images", imported.classes, imported.domains, samples)


def files_of(config: Config, dataset: DomainDataset, wanted: Sequence[str]) -> list[Path]:
    """The shards of some domains, as far as they are files here, and the folders of what `files` wrote of them."""
    shards = [Path(shard) for shard in find_shards(config.data.root)]
    held = [path for path in shards if path.is_file() and domains_of([path])[0] in wanted]
    stages = dataset.root.parents[1]  # where `dataset` unpacked the test images, as a stage among the others
    written = [folder / name for folder in stages.glob(f"{_WRITTEN}-*") for name in wanted]
    return held + [path for path in written if path.exists()]


def pixels(learning: Learning, samples: Sequence[Sample]) -> StageResult:
    """The store of some train images.

    Raises:
        DataError: one of them is closed; also where the store is found done.
    """
    from vlkd_distill import webdata

    announce(samples)
    stage = _imported(learning)

    def work(folder: Path) -> None:
        with learning.live.task("taking images", None):
            webdata.take_rows(webdata.open_import(stage.folder), samples, folder)

    rows = [[sample.image, sample.label] for sample in samples]
    return learning.workspace.stage("pixels", {"import": stage.key, "rows": rows}, work)


def files(learning: Learning, samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """The same images with paths that can be opened; train images at the student's size."""
    from vlkd_distill import webdata

    stage = _imported(learning)
    train = [sample for sample in samples if split_of(sample.image) == "train"]
    if not train:
        return tuple(samples)

    def work(folder: Path) -> None:
        webdata.write_images(webdata.open_import(stage.folder).store, folder, train)

    images = [sample.image for sample in train]
    written = learning.workspace.stage(_WRITTEN, {"import": stage.key, "images": images}, work).folder
    names = set(images)
    return tuple(
        dataclasses.replace(sample, path=written / f"{sample.image}.png") if sample.image in names else sample
        for sample in samples
    )


def to_calibrate_with(learning: Learning, samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """Some train images as files, spread evenly: enough for calibration to choose from and for golden samples."""
    from vlkd_compress.calibration import select_calibration

    config = learning.config
    count = _CHOICE * config.compress.calibration_images
    held_out = config.data.held_out
    chosen = select_calibration(samples, count, seed=config.distill.seed, forbidden_domains=held_out)
    return files(learning, chosen)


def left_out(learning: Learning, unpacked: Path) -> dict[str, str]:
    """Why images of any domain were left out when the shards were read, by id.

    Args:
        learning: what the stages share.
        unpacked: root of `dataset`, with the test images.
    """
    from vlkd_distill import webdata

    too_large = unpacked / webdata.BAD
    listed = json.loads(too_large.read_text()) if too_large.exists() else []
    return dict((*webdata.open_import(_imported(learning).folder).store.bad, *listed))


def contents(config: Config, samples: Sequence[Sample]) -> Iterator[bytes]:
    """The original files of train images, for the teacher."""
    from vlkd_distill import webdata

    return webdata.originals(find_shards(config.data.root), samples)


def _imported(learning: Learning) -> StageResult:
    """The stage that brings the train images of every domain to the student's size, once for all tables."""
    from vlkd_distill import webdata

    config = learning.config.data

    def work(folder: Path) -> None:
        with learning.live.task("reading shards", None) as advance:
            chosen: Mapping[str, Any] = {"classes": config.classes, "domains": config.domains}
            shards = find_shards(config.root)
            made = webdata.import_shards(
                shards, learning.spec, folder, **chosen, split="train", progress=advance
            )
        for _, reason in made.store.bad:
            learning.live.say(f"left out: {reason}")

    inputs = {
        "shards": _key(learning.config),
        "classes": config.classes,
        "domains": config.domains,
        "preprocess": learning.spec.to_json(),
    }
    return learning.workspace.stage("import", inputs, work)


def train_key(config: Config, samples: Sequence[Sample]) -> str:
    """Hash of train images' content: of their files, or of the shards and the names that they are picked by."""
    if not learns_from_shards(config, samples):
        return content_key(samples)
    names = "\n".join(f"{sample.image} {sample.label}" for sample in samples)
    return hashlib.sha256(f"{_key(config)}\n{names}".encode()).hexdigest()


def _key(config: Config) -> str:
    return shards_key(find_shards(config.data.root))
