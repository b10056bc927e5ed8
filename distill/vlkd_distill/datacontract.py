"""What a method may look at, in words before a run; `closing` catches it looking elsewhere.

No shapes here; counts are of images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from vlkd_runtime.errors import ConfigError

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
