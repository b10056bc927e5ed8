"""Images without labels, from a folder of their own: a method that reads no label learns from them, too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vlkd_bench.samples import Sample, same_content
from vlkd_distill.data import UNLABELLED, check_batch, scan_unlabelled
from vlkd_distill.datacontract import NEEDS, describe
from vlkd_distill.specs import Settings
from vlkd_runtime.errors import ConfigError, DataError

from .config import Config
from .sharded import lies_in_shards


def images_for(config: Config, method: str) -> tuple[Sample, ...]:
    """What a method learns from beside the train images; nothing for one that reads labels.

    Raises:
        DataError: the folder is missing or holds no image.
    """
    wanted = config.data.unlabelled and describe(method).unlabelled_images
    return scan_unlabelled(Path(config.data.unlabelled)) if wanted else ()


def check(config: Config, runs: Sequence[Settings], domains: Sequence[str]) -> None:
    """Refuse a folder that no planned method reads, or that cannot be read, before any work.

    Args:
        config: names the folder, or none.
        runs: every training that is planned.
        domains: those that are learned from.

    Raises:
        ConfigError: nobody reads it, the data lie in shards, a domain has the name that these images get, or a batch
            cannot hold one of each.
        DataError: as `images_for`.
    """
    if not config.data.unlabelled:
        return
    readers = [name for name, needs in NEEDS.items() if needs.unlabelled_images]
    if not any(how.method in readers for how in runs):
        planned = ", ".join(dict.fromkeys(how.method for how in runs))
        msg = f"data.unlabelled is read by {', '.join(readers)}, found {planned}: choose it, or leave the folder out."
        raise ConfigError(msg)
    if lies_in_shards(config):
        msg = (
            "data.unlabelled is a folder beside a folder of domains, found shards as data.root: unpack them."
        )
        raise ConfigError(msg)
    if UNLABELLED in domains:
        msg = f"A domain is called '{UNLABELLED}', as images of data.unlabelled are: give it another name."
        raise ConfigError(msg)
    scan_unlabelled(Path(config.data.unlabelled))
    check_batch((*domains, UNLABELLED), config.distill.batch)


def refuse_measured(extra: Sequence[Sample], measured: Sequence[Sample]) -> None:
    """Refuse images without labels that are measured on, or held out, by another name.

    Raises:
        DataError: names the first.
    """
    for sample, other in same_content(extra, measured):
        msg = (
            f"Expected no image in data.unlabelled that is measured on or held out, found {sample.path} with the same "
            f"content as {other.image}: remove one of them."
        )
        raise DataError(msg)
