"""Images that are measured on or judged by, looked through before anything is trained.

One of them that cannot be decoded would end a run after hours. It is left out as a train image is, under the same rule.
Only evaluation's side looks: what learns finds held-out images closed, now as ever.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from vlkd_bench.samples import Sample
from vlkd_distill.data import DomainDataset, split_of

from . import readable, sharded
from .facts import Images
from .learn import Learning


def only_decodable(
    learning: Learning, dataset: DomainDataset, images: Images, *, guarded: bool = False
) -> Images:
    """Leave out what cannot be decoded, and name it.

    Args:
        learning: what the stages share.
        dataset: where the images are from.
        images: who may see which.
        guarded: look through what the guard judges by, too, and not through test images alone.

    Raises:
        DataError: more than one image in a hundred is bad, or no test image of a domain is left.
    """
    config = learning.config
    asked = (*images.test, *((*images.guarded, *images.absent) if guarded else ()))
    samples = tuple({sample.image: sample for sample in asked}.values())
    known: dict[str, str] = {}
    not_imported: tuple[str, ...] = ()
    if sharded.lies_in_shards(config):
        unread = sharded.left_out(learning, dataset.root)
        held_out = {image for image in unread if image.partition("/")[0] in config.data.held_out}
        tests = {image for image in unread if split_of(image) == "test"}
        known = {image: unread[image] for image in sorted(tests | held_out if guarded else tests)}
        if sharded.learns_from_shards(config, images.train):
            not_imported = tuple(sorted(unread.keys() - tests - held_out))
    bad = known | _look(learning, samples, known)
    readable.name_them("Left out of what is measured on, as they cannot be decoded", bad, learning.live)
    return dataclasses.replace(images.without(bad), not_imported=not_imported)


def _look(learning: Learning, samples: Sequence[Sample], known: Mapping[str, str]) -> dict[str, str]:
    """Why images cannot be decoded, by id; once, and refused where these and the known ones are too many."""
    # Rows of an import are no files; importing has decoded them.
    files = [
        sample for sample in samples if not sharded.lies_in_shards(learning.config) or sample.path.is_file()
    ]

    return readable.look(
        files, learning.spec, learning.workspace, learning.live, known=known, kind="images to measure on"
    )
