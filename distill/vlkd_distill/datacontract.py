"""What a method may look at, in words before a run, and a guard that catches it looking elsewhere.

No shapes here; counts are of images.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vlkd_bench.samples import Sample
from vlkd_runtime.errors import ConfigError, DataError

from .specs import Rule

TeacherViews = Literal["none", "same_aug", "clean_cached"]


@dataclass(frozen=True, slots=True)
class Needs:
    """What a method asks for.

    Attributes:
        labels: the class of each training image, or of a few of them.
        source_images: images of the source domains.
        unlabelled_images: training images whose class is not looked at.
        teacher_images: the teacher's embeddings of training images.
        class_texts: the teacher's embeddings of the class names.
        white_box: the teacher's weights, not only its answers.
        text: the same as a sentence or two.
    """

    labels: bool
    source_images: bool
    unlabelled_images: bool
    teacher_images: bool
    class_texts: bool
    white_box: bool
    text: str


_COPIED = "The student starts as a copy of the teacher's image encoder."
_CAPTIONS = "Each training image's caption is embedded by the teacher and learned from, too."
_TAUGHT = "Learns from labelled images of the source domains and from the teacher's embeddings of them; "

NEEDS: dict[str, Needs] = {
    "erm": Needs(
        True, True, False, False, False, False,
        "Learns from labelled images of the source domains; never asks a teacher.",
    ),
    "kd": Needs(
        True, True, False, True, True, False,
        _TAUGHT + "the class texts turn these embeddings into soft labels.",
    ),
    "vl2v-adip": Needs(
        True, True, False, True, True, False,
        _TAUGHT + "the label picks the class text to move towards. Predicts by the class texts.",
    ),
    "vl2v-sd": Needs(
        True, True, False, True, True, True,
        _TAUGHT + "the student starts as a copy of the teacher's image encoder, so its weights are needed.",
    ),
    "promptkd": Needs(
        True, True, True, True, True, True,
        "Learns the teacher's prompts from a few labelled images of the source domains, which needs its weights; the "
        "student learns from images of these domains without their labels, by the prompt-tuned teacher's embeddings "
        "of them. All class names are known beforehand.",
    ),
    "vlm-ood": Needs(
        True, True, False, True, True, False,
        _TAUGHT + "seen classes only. Texts of unseen classes are used for prediction alone.",
    ),
    "data-free": Needs(
        False, False, False, True, True, False,
        "Learns from no real image: pictures are made from the class names, and the teacher embeds them. "
        "Making them by gradients through the teacher needs its weights; a generator of its own does not.",
    ),
    "vlkd": Needs(
        True, True, False, True, True, False,
        _TAUGHT + "the label picks the class text. Predicts by the class texts.",
    ),
}  # fmt: skip


def describe(method: str) -> Needs:
    """What a method asks for.

    Raises:
        ConfigError: unknown method.
    """
    if method not in NEEDS:
        msg = (
            f"Expected one of the methods {', '.join(NEEDS)}, found '{method}': its data contract is unknown."
        )
        raise ConfigError(msg)
    return NEEDS[method]


@dataclass(frozen=True, slots=True)
class Counts:
    """How many images each part of a run sees.

    Attributes:
        train: images learned from.
        selection: images that a checkpoint or a setting is chosen by; 0 where nothing is chosen.
        calibration: images that set quantization scales, out of the training images.
        test: images that are only measured on.
        bad: images left out because they cannot be decoded.
        guarded: images of the held-out domains by which the guard chooses among compressed candidates.
        bad_measured: those of the bad ones that would only have been measured on, or judged by.
    """

    train: int
    selection: int
    calibration: int
    test: int
    bad: int = 0
    guarded: int = 0
    bad_measured: int = 0


_ENDS_WITH: dict[Rule, str] = {
    "last": "the last one",
    "mean": "the mean over the second half of the steps",
    "source-best": "the one with the least loss on them",
    "swad": "the mean over the valley of the loss on them (SWAD)",
}


@dataclass(frozen=True, slots=True)
class DataContract:
    """Who sees what in one run.

    Attributes:
        method: key of `NEEDS`.
        sources: domains that are learned from.
        held_out: domains that nothing learns from or is selected by.
        labels: whether labels of training images are used, be it of a few.
        unlabelled: whether training images are used without their labels.
        teacher_views: what the teacher embeds: the student's augmented views, each clean image once, or none.
        counts: of images.
        unseen: classes whose images are only measured on.
        captions: whether captions of the training images are used.
        copied: whether the student starts as a copy of the teacher's image encoder, whatever the method.
        rule: which weights a training ends with.
        aligned: which ones its first stage of two ends with.
        redrawn: texts by which a synthesiser redraws training images.
        prompts: which labelled images teach the teacher's prompts, as a sentence; empty where none are learned.
    """

    method: str
    sources: tuple[str, ...]
    held_out: tuple[str, ...]
    labels: bool
    unlabelled: bool
    teacher_views: TeacherViews
    counts: Counts
    unseen: tuple[str, ...] = ()
    captions: bool = False
    copied: bool = False
    rule: Rule = "last"
    aligned: Rule = "last"
    prompts: str = ""
    redrawn: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        needs = describe(self.method)
        problems = [f"'{name}' is both source and held out" for name in self.sources if name in self.held_out]
        for part, count in dataclasses.asdict(self.counts).items():
            if count < 0:
                problems.append(f"{part} counts {count} images")
        if self.counts.bad_measured > self.counts.bad:
            problems.append(
                f"{self.counts.bad_measured} of {self.counts.bad} bad images were to be measured on"
            )
        if self.labels != needs.labels:
            problems.append(f"labels are {_used(self.labels)}, expected {_used(needs.labels)}")
        if self.unlabelled != needs.unlabelled_images:
            problems.append(
                f"unlabelled images are {_used(self.unlabelled)}, expected {_used(needs.unlabelled_images)}"
            )
        if self.teacher_views != "none" and not needs.teacher_images:
            problems.append(f"the teacher's views are '{self.teacher_views}', expected none")
        if problems:
            msg = f"The data contract of {self.method} does not hold: {'; '.join(problems)}."
            raise ConfigError(msg)

    @classmethod
    def of(
        cls,
        method: str,
        sources: Iterable[str],
        held_out: Iterable[str],
        teacher_views: TeacherViews,
        counts: Counts,
        unseen: Iterable[str] = (),
        captions: bool = False,
        copied: bool = False,
        rule: Rule = "last",
        aligned: Rule = "last",
        prompts: str = "",
        redrawn: Iterable[str] = (),
    ) -> DataContract:
        """The contract that a method asks for; one that asks no teacher has no views, whatever is given.

        Raises:
            ConfigError: unknown method, or domains or counts that cannot be.
        """
        needs = describe(method)
        views: TeacherViews = teacher_views if needs.teacher_images else "none"
        domains = tuple(sources), tuple(held_out)
        used = needs.labels, needs.unlabelled_images
        return cls(
            method,
            *domains,
            *used,
            teacher_views=views,
            counts=counts,
            unseen=tuple(unseen),
            captions=captions,
            copied=copied,
            rule=rule,
            aligned=aligned,
            prompts=prompts,
            redrawn=tuple(redrawn),
        )

    def as_json(self) -> dict[str, Any]:
        """Plain values, with what the method asks for in words."""
        plain = dataclasses.asdict(self)
        for name in ("captions", "copied", "prompts", "redrawn"):  # which earlier results do not have
            if not plain[name]:
                del plain[name]
        for name in ("rule", "aligned"):
            if plain[name] == "last":
                del plain[name]
        if not self.counts.bad_measured:
            del plain["counts"]["bad_measured"]
        return {"text": self.text} | plain

    @property
    def text(self) -> str:
        """What the method looks at, as a sentence or two."""
        needs = describe(self.method)
        more = f" {self.prompts}" if self.prompts else ""
        more += f" {_COPIED}" if self.copied and self.method != "vl2v-sd" else ""  # whose text says it
        more += f" {_CAPTIONS}" if self.captions else ""
        if self.redrawn:
            more += f" A synthesiser redraws these images as texts say: {'; '.join(self.redrawn)}."
        if needs.teacher_images and self.teacher_views == "none":
            text = "Learns from labelled images of the source domains and from the class texts; no image is embedded."
            return text + more
        return needs.text + more

    def banner(self) -> tuple[str, ...]:
        """The contract in lines for people, to show before any work."""
        views = {
            "none": "The teacher embeds no image.",
            "same_aug": "The teacher embeds the augmented views that the student sees, and each image once as it is "
            "where a stage trains on cached features.",
            "clean_cached": "The teacher embeds each image once, as it is.",
        }[self.teacher_views]
        counts, held_out = self.counts, ", ".join(self.held_out)
        judges = (
            f"{counts.selection} images of the same domains, kept back" if counts.selection else "no image"
        )
        bad = _left_out(counts.bad - counts.bad_measured, "more")
        measured = _left_out(counts.bad_measured, "more images to measure on or to judge by")
        lines = [
            f"{self.method}: {self.text}",
            f"Training: {counts.train} images, domains {', '.join(self.sources) or 'none'}; "
            f"labels {'used for the prompts alone' if self.prompts else _used(self.labels)}, "
            f"unlabelled images {_used(self.unlabelled)}.{bad}",
            views,
            f"Checkpoint chosen by {judges}: {_ENDS_WITH[self.rule]}."
            + (f" The first stage's: {_ENDS_WITH[self.aligned]}." if self.aligned != "last" else ""),
            f"Held out: {held_out}. Training, calibration and selection never open these images."
            if self.held_out
            else "Held out: no domain.",
        ]
        if counts.calibration:
            lines.append(
                f"Calibration: {counts.calibration} images, out of the training images, as are the golden samples."
            )
        if counts.guarded:
            lines.append(
                f"The guard chooses among compressed candidates on all {counts.guarded} images of the held-out domains."
            )
        if self.unseen:
            lines.append(f"Unseen classes: {', '.join(self.unseen)}. Their images are only measured on.")
        return (
            *lines,
            f"Accuracies: {counts.test} test images (one in five of each domain, by hash of the name)."
            + measured,
        )


def _left_out(count: int, what: str) -> str:
    return f" {count} {what} cannot be decoded and are left out." if count else ""


def _used(flag: bool) -> str:
    return "used" if flag else "not used"


@dataclass(slots=True)
class OpenedFiles:
    """Records which of some files this process opens; may refuse them.

    It hears every ``open`` that goes through Python, in any thread: worker threads do not inherit context
    variables, so a guard in one would miss those that decode. It does not hear other processes, native code
    that opens files itself, a second hard link to a watched file, or names relative to a folder descriptor.
    Where one file holds many images, who reads some of them says which: `announce`.

    Attributes:
        below: files and folders (with all in them) that are watched, links resolved.
        refuse: raise `DataError` in place of opening.
        paths: what was opened, or asked to be, in order, links resolved; of an announced image, its sample's path.
        images: domains, and classes as ``<domain>/<class>``, whose images are watched when they are announced.
    """

    below: frozenset[str]
    refuse: bool = False
    paths: list[Path] = field(default_factory=list)
    images: frozenset[str] = frozenset()

    def __enter__(self) -> OpenedFiles:
        _install()
        with _LOCK:
            _ACTIVE.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        with _LOCK:
            _ACTIVE[:] = [watch for watch in _ACTIVE if watch is not self]

    def covers(self, path: str) -> bool:
        """Whether a resolved path is one of the watched files or lies in a watched folder."""
        return path in self.below or any(str(parent) in self.below for parent in Path(path).parents)

    def covers_image(self, image: str) -> bool:
        """Whether an image, by its id ``<domain>/<class>/<file>``, is of a watched domain or class."""
        domain, _, rest = image.partition("/")
        return domain in self.images or f"{domain}/{rest.partition('/')[0]}" in self.images


_LOCK = threading.Lock()
_ACTIVE: list[OpenedFiles] = []
_INSTALLED: list[bool] = []


def _install() -> None:
    # An audit hook stays until the process ends, so there is one, and it is idle while nothing is watched.
    with _LOCK:
        if not _INSTALLED:
            sys.addaudithook(_on_event)
            _INSTALLED.append(True)


def _on_event(event: str, args: tuple[object, ...]) -> None:
    if event != "open" or not _ACTIVE:
        return
    name = args[0]
    if not isinstance(name, (str, bytes, os.PathLike)):  # a descriptor: its file was opened before
        return
    try:
        path = os.path.realpath(os.fsdecode(name))
    except (OSError, ValueError):  # open itself will say what is wrong with this name
        return
    for watch in tuple(_ACTIVE):
        if watch.covers(path):
            watch.paths.append(Path(path))
            if watch.refuse:
                raise DataError(_broken(path))


def announce(samples: Iterable[Sample]) -> None:
    """Say which images are about to be read out of a file that holds others, too.

    Opening such a file tells nothing: a store of many domains' rows, or a shard with images of every class. So
    whatever reads one calls this first.

    Args:
        samples: known by their ids; what domain or label they claim does not count.

    Raises:
        DataError: an image is of a domain or class that is closed at this moment.
    """
    watching = [watch for watch in tuple(_ACTIVE) if watch.images]
    for sample in samples if watching else ():
        for watch in watching:
            if watch.covers_image(sample.image):
                watch.paths.append(sample.path)
                if watch.refuse:
                    raise DataError(_broken(f"{sample.image} ({sample.path})"))


def watch_files(paths: Iterable[Path | str]) -> OpenedFiles:
    """A context manager that records which of these files are opened, and those in these folders.

    Raises:
        DataError: no path is given, or one does not exist: a watch over nothing proves nothing.
    """
    return OpenedFiles(_resolved(paths))


@contextlib.contextmanager
def forbid(paths: Iterable[Path | str], images: Iterable[str] = ()) -> Iterator[OpenedFiles]:
    """Refuse to open these files, and those in these folders, while the body runs.

    Args:
        paths: what must not be looked at, such as the images of held-out domains.
        images: domains, and classes as ``<domain>/<class>``, whose images may not be announced either.

    Raises:
        DataError: one was opened; raised where it was opened, and again at the end of a body that took the
            first error for a damaged image. Also where a path does not exist, or nothing is given.
    """
    named, given = frozenset(images), tuple(paths)
    below: frozenset[str] = _resolved(given) if given or not named else frozenset()
    with OpenedFiles(below, refuse=True, images=named) as watch:
        yield watch
    if watch.paths:
        raise DataError(_broken(str(watch.paths[0])))


def forbidden() -> tuple[Path, ...]:
    """What may not be opened at this moment, to tell a process that is started now."""
    with _LOCK:
        return tuple(
            Path(path) for path in sorted({p for watch in _ACTIVE if watch.refuse for p in watch.below})
        )


def _resolved(paths: Iterable[Path | str]) -> frozenset[str]:
    given = [Path(path) for path in paths]
    missing = [path for path in given if not path.exists()]
    if missing or not given:
        found = f"{missing[0]}, which does not exist" if missing else "none"
        msg = f"Expected files or folders that must not be opened, found {found}: name what is held out."
        raise DataError(msg)
    return frozenset(os.path.realpath(path) for path in given)


def _broken(path: str) -> str:
    return (
        f"Expected held-out files to stay closed, found {path} being opened: the data contract is broken. Take "
        "the file out of what is trained, calibrated or selected on."
    )
