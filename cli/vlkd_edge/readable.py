"""Images that cannot be decoded, among those a verb is about to look at: named and left out, or too many.

What learns has rules of its own (`measurable`, and the pixel stores); these are for verbs that take all images alike.
A device that is measured on needs no package for them but ours.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from vlkd_bench.samples import Sample
from vlkd_distill.data import content_key
from vlkd_distill.decodable import find_bad, refuse_too_many
from vlkd_runtime.atomic import write_text
from vlkd_runtime.errors import DataError
from vlkd_runtime.preprocess import PreprocessSpec

if TYPE_CHECKING:
    from .progress import Live
    from .stages import Workspace

SHOWN = 10
_BAD = "bad.json"
# Which images can be decoded does not hang on the size that they are brought to.
_ANY_SIZE = PreprocessSpec(32, 32)


class Show(Protocol):
    """Where the looking is shown."""

    def task(self, title: str, total: int | None) -> AbstractContextManager[Callable[..., None]]:
        """Show one piece of work; the value is called as ``advance(count)``."""
        ...


@dataclass(frozen=True, slots=True)
class Readable:
    """What is left of the images.

    Attributes:
        samples: those that can be decoded.
        bad: why each of the others cannot be, by id.
    """

    samples: tuple[Sample, ...]
    bad: Mapping[str, str]

    @property
    def sentence(self) -> str:
        """What was left out, in one sentence; "" if nothing was."""
        if not self.bad:
            return ""
        more = f" and {len(self.bad) - SHOWN} more" * (len(self.bad) > SHOWN)
        count = f"{len(self.bad)} images are" if len(self.bad) > 1 else "1 image is"
        return f"{count} left out and cannot be decoded: {', '.join(list(self.bad)[:SHOWN])}{more}."


def only_readable(samples: Sequence[Sample], show: Show) -> Readable:
    """Decode every image once, and keep those with which that works.

    Raises:
        DataError: more than one image in a hundred is bad, or none of a domain is left.
    """
    with show.task("decoding", len(samples)) as advance:
        found = find_bad(samples, _ANY_SIZE, advance)
    refuse_too_many(found, len(samples), "images")
    return _without(samples, dict(found))


def only_readable_once(samples: Sequence[Sample], workspace: Workspace, live: Live) -> Readable:
    """The same, where the next run finds what this one has looked at; and named before any work.

    Raises:
        DataError: as `only_readable`.
    """
    bad = look(samples, _ANY_SIZE, workspace, live)
    name_them("Left out, as they cannot be decoded", bad, live)
    return _without(samples, bad)


def look(
    samples: Sequence[Sample],
    spec: PreprocessSpec,
    workspace: Workspace,
    live: Live,
    *,
    known: Mapping[str, str] | None = None,
    kind: str = "images",
) -> dict[str, str]:
    """Why images cannot be decoded, by id: looked through once.

    Args:
        samples: images on disk.
        spec: how they are prepared.
        workspace: keeps what was found.
        live: where the looking is shown.
        known: bad images that were found before, which count among the too many.
        kind: what all of them are.

    Raises:
        DataError: more than one image in a hundred is bad.
    """
    from .stages import versions

    before = dict(known or {})

    def work(folder: Path) -> None:
        with live.task(f"decoding {kind}", len(samples)) as advance:
            found = find_bad(samples, spec, advance)
        refuse_too_many([*before.items(), *found], len(samples) + len(before), kind)
        write_text(folder / _BAD, json.dumps(found))

    inputs = {
        "images": content_key(samples),
        "known": list(before),
        "preprocess": spec.to_json(),
        **versions("pillow", "vlkd-edge"),
    }
    stage = workspace.stage("decodable", inputs, work)
    return dict(json.loads((stage.folder / _BAD).read_text()))


def name_them(title: str, bad: Mapping[str, str], live: Live) -> None:
    """Say which images are left out, and why, before any work."""
    if bad:
        more = [f"and {len(bad) - SHOWN} more"] * (len(bad) > SHOWN)
        live.banner(f"{title}: {len(bad)}", [*list(bad.values())[:SHOWN], *more])


def refuse_lost_domains(
    before: Sequence[Sample], after: Sequence[Sample], bad: Mapping[str, str], kind: str, advice: str
) -> None:
    """Refuse a domain of which no image is left.

    Args:
        before: all images.
        after: those that can be decoded.
        bad: why each of the others cannot be, by id.
        kind: what they are.
        advice: what else to do than to replace the first.

    Raises:
        DataError: names the domains and the first bad image.
    """
    lost = sorted({sample.domain for sample in before} - {sample.domain for sample in after})
    if lost:
        reason = next(reason for image, reason in bad.items() if image.startswith(f"{lost[0]}/"))
        msg = f"Expected {kind} of {', '.join(lost)}, found none that can be decoded: {reason}. Replace it, {advice}."
        raise DataError(msg)


def _without(samples: Sequence[Sample], bad: Mapping[str, str]) -> Readable:
    kept = tuple(sample for sample in samples if sample.image not in bad)
    refuse_lost_domains(samples, kept, bad, "images", "add images, or leave the domain out")
    return Readable(kept, bad)
