"""What a build knows while it runs: which images are for what, what was found, where the bundle is."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlkd_bench.machine import Machine
from vlkd_bench.predictions import PredictionRow
from vlkd_bench.samples import Sample
from vlkd_distill.closing import forbid
from vlkd_distill.data import NO_LABEL, UNLABELLED, DomainDataset
from vlkd_distill.datacontract import Counts, DataContract, TeacherViews
from vlkd_distill.specs import TEACHER, MethodName
from vlkd_distill.splits import source_holdout
from vlkd_runtime.errors import DataError
from vlkd_runtime.vectors import ClassVectors

from . import planned, sharded
from .config import Config
from .further import Further
from .readable import refuse_lost_domains
from .ship import Compressed
from .synthesising import DEMO_SYNTHESISER, METHOD
from .targets import Target

if TYPE_CHECKING:
    from vlkd_distill.querybudget import QueryReport

DEMO_DATA = "The images are the embedded demo world: scenes drawn by a program, not photographs."
DEMO_TEACHER = "The teacher is the demo's tiny CLIP, trained on such scenes; it stands in for a real one."


@dataclass(frozen=True, slots=True)
class Images:
    """Which images which part of the build may see.

    Attributes:
        train: train images of the source domains, or made ones: training, calibration, golden samples.
        test: test images of every domain: accuracies.
        guarded: every image of the held-out domains: the guard's choice among candidates.
        absent: images that show none of the classes, which the guard sees, too.
        left_out: ids of those of the three parts above that are left out, as they cannot be decoded.
        not_imported: ids of train images that were left out when shards were read, likewise.
    """

    train: tuple[Sample, ...]
    test: tuple[Sample, ...]
    guarded: tuple[Sample, ...]
    absent: tuple[Sample, ...] = ()
    left_out: tuple[str, ...] = ()
    not_imported: tuple[str, ...] = ()

    @classmethod
    def split(
        cls, dataset: DomainDataset, held_out: Sequence[str], made: Sequence[Sample] | None = None
    ) -> Images:
        """Divide a data set; an image is never in ``train`` and in another part.

        Args:
            dataset: real images.
            held_out: domains that nothing may learn from.
            made: synthetic images to learn from; then no real one is in ``train``.

        Raises:
            DataError: a domain has no test image, or a class no train image, in some source domain.
        """
        sources = dataset.sources(held_out) if made is None else ()
        train = dataset.of(sources, "train") if made is None else tuple(made)
        parts = cls(train, dataset.of(dataset.domains, "test"), dataset.of(held_out))
        tested = {sample.domain for sample in parts.test}
        trained = {(sample.domain, sample.label) for sample in parts.train}
        problems = [f"no test image in {domain}" for domain in dataset.domains if domain not in tested]
        problems += [
            f"no train image in {domain}/{name}"
            for domain in sources
            for label, name in enumerate(dataset.classes)
            if (domain, label) not in trained
        ]
        if problems:
            msg = (
                f"One image in five, by the hash of its name, is for testing; that leaves {'; '.join(problems[:5])}. "
                f"Add images to {dataset.root}: some tens a class and domain are the least that says anything."
            )
            raise DataError(msg)
        return parts

    def without(self, bad: Mapping[str, str]) -> Images:
        """The same without some images that are not learned from.

        Args:
            bad: why each cannot be decoded, by id.

        Raises:
            DataError: no test image of a domain is left.
        """
        test, guarded, absent = (
            tuple(sample for sample in part if sample.image not in bad)
            for part in (self.test, self.guarded, self.absent)
        )
        advice = "or add images: some tens a class and domain are the least that says anything"
        refuse_lost_domains(self.test, test, bad, "test images", advice)
        return dataclasses.replace(self, test=test, guarded=guarded, absent=absent, left_out=tuple(bad))


def closed(
    config: Config, dataset: DomainDataset, unseen: Sequence[str] = ()
) -> contextlib.AbstractContextManager[object]:
    """While this is entered, no image of a held-out domain or an unseen class can be opened.

    Of shards, that is: no such row of what was read from them, no shard of a held-out domain, and no file that was
    written of one.

    Raises:
        DataError: one was opened all the same: a mistake of ours, and better found than measured.
    """
    held_out = config.data.held_out
    places = [dataset.root / name for name in held_out]
    places += [dataset.root / domain / name for domain in dataset.domains for name in unseen]
    places = [path for path in places if path.exists()]
    images = [*held_out, *(f"{domain}/{name}" for domain in dataset.domains for name in unseen)]
    if sharded.lies_in_shards(config):
        places += sharded.files_of(config, dataset, held_out)
    return forbid(places, images) if places or images else contextlib.nullcontext()


def contract(
    config: Config,
    method: MethodName,
    sources: Sequence[str],
    images: Images,
    usable: Sequence[Sample] | None = None,
    unseen: Sequence[str] = (),
    prompted: str = "each class",
) -> DataContract:
    """What a method may look at in one run.

    Args:
        config: domains and training.
        method: who learns.
        sources: domains that are learned from.
        images: those of the run.
        usable: the train images that could be decoded; None before that is known.
        unseen: classes whose images are only measured on.
        prompted: classes whose labelled images teach promptkd's prompts, in words.
    """
    how = dataclasses.replace(config.distill, method=method)
    readable = images.train if usable is None else usable
    labelled = [sample for sample in readable if sample.label != NO_LABEL]
    judges = source_holdout(labelled, how.kept_back, how.seed)[1] if how.judges else ()
    counts = Counts(
        train=len(readable) - len(judges),
        selection=len(judges),
        calibration=0,
        test=len(images.test),
        bad=len(images.train) - len(readable) + len(images.not_imported) + len(images.left_out),
        bad_measured=len(images.left_out),
    )
    views: TeacherViews = how.teacher_view if planned.shows_images(how) else "none"
    copied = config.student.arch == TEACHER
    return DataContract.of(
        method,
        sources,
        config.data.held_out,
        views,
        counts,
        unseen,
        captions=how.reads_captions,
        copied=copied,
        rule=how.weights,
        aligned=how.align_weights if "align_weights" in how.used() else "last",
        prompts=_prompts(config, prompted, readable) if method == "promptkd" else "",
        redrawn=how.prompted_styles if "prompted_styles" in how.used() else (),
    )


def _prompts(config: Config, classes: str, images: Sequence[Sample]) -> str:
    """Which labelled images teach the prompts, and which ones nobody has labelled, as a sentence or two."""
    shots, extra = config.prompts.shots, sum(sample.domain == UNLABELLED for sample in images)
    told = f"The prompts are learned from {shots or 'all'} labelled images of {classes}."
    where = Path(config.data.unlabelled).name
    return told + (
        f" {extra} images of the student's are from '{where}', which has no labels." if extra else ""
    )


@dataclass(frozen=True, slots=True)
class Facts:
    """What a build found out.

    Attributes:
        config: what was built.
        target: for which device.
        dataset: from which images.
        contract: who saw what, a sentence each.
        accuracy: predictions on test images of every domain, by role.
        reference: the float graph's predictions on the guarded images.
        paths: where the images of both lie, by name.
        compressed: the guard's trials.
        preflight: TensorRT's answer; None when no candidate reached it.
        machine: where this ran.
        vectors: the class vectors.
        further: what ships beside the candidate, and what was left out.
        queries: what the teacher was asked; None where its questions are not counted.
    """

    config: Config
    target: Target
    dataset: DomainDataset
    contract: tuple[str, ...]
    accuracy: Mapping[str, Sequence[PredictionRow]]
    reference: Sequence[PredictionRow]
    paths: Mapping[str, Path]
    compressed: Compressed
    preflight: Mapping[str, Any] | None
    machine: Machine
    vectors: ClassVectors
    further: tuple[Further, ...] = ()
    queries: QueryReport | None = None

    @property
    def stand_ins(self) -> tuple[str, ...]:
        """Sentences on what stands in for the real thing."""
        return stand_ins(self.config)


def stand_ins(config: Config, methods: Sequence[str] = ()) -> tuple[str, ...]:
    """What in a configuration stands in for the real thing, a sentence each; ``methods`` are run besides its own."""
    data = DEMO_DATA if config.data.root == "demo" else config.data.stand_in
    teacher = DEMO_TEACHER if config.teacher.model == "demo" else config.teacher.stand_in
    drawn = METHOD in (config.distill.method, *methods) and config.synthesis.synthesiser == "demo"
    return tuple(sentence for sentence in (data, teacher, DEMO_SYNTHESISER if drawn else "") if sentence)


@dataclass(frozen=True, slots=True)
class Written:
    """A finished bundle.

    Attributes:
        folder: as a folder.
        archive: as one file.
        digest: names the bundle as a whole.
        size_bytes: of all files in the folder.
        variants: bytes of each graph, the first one first.
    """

    folder: Path
    archive: Path
    digest: str
    size_bytes: int
    variants: Mapping[str, int]
