"""`vlkd-edge align`: how much of its teacher's space the student in a bundle kept, on labelled images.

Letters used in shapes: N images, D embedding size, C classes.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from rich.console import Console

from vlkd_bench.alignment import MOST_QUERIES, measure
from vlkd_bench.alignmentreport import AlignmentReport
from vlkd_bench.samples import Sample
from vlkd_distill import data as domain_data
from vlkd_distill.teacher_names import check_name
from vlkd_runtime import Classifier
from vlkd_runtime.atomic import write_bytes, write_text
from vlkd_runtime.bundle import Bundle
from vlkd_runtime.errors import ConfigError, DataError, UnavailableError
from vlkd_runtime.manifest import MANIFEST_NAME
from vlkd_runtime.preprocess import prepare

from . import learn, questions
from .config import Config, DataConfig
from .facts import DEMO_DATA, DEMO_TEACHER
from .progress import Live
from .readable import Readable, only_readable_once
from .stages import Workspace, locked

if TYPE_CHECKING:
    from vlkd_distill.querybudget import QueryReport
    from vlkd_distill.teachers import Teacher

DEMO = "demo"
SPLITS = ("test", "all")
_NEEDED = ("torch", "open_clip", "onnxruntime", "matplotlib")
_IMAGES_AT_ONCE = 32
# Another export of the same teacher puts a text within rounding of the stored vector; another teacher does not.
_SAME_SPACE_COSINE = 0.98


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """What to compare, on what.

    Attributes:
        bundle: bundle folder, ``.vlkd`` archive, or the output folder of a build.
        images: folder laid out as ``<domain>/<class>/<image>``, or ``demo``.
        teacher: by any name that `vlkd_distill.teacher_names` knows; the bundle's own when None.
        domains: take only these; all when empty.
        split: ``test`` for the images that no build trains on, ``all`` for every image.
        engine: what runs the student.
        threads: of the engine; None leaves it to the engine.
        most_queries: above it, neighbours are looked for a sample of images.
        seed: of that sample.
        demo_images: images of each class and style that the demo world renders.
    """

    bundle: Path
    images: str = DEMO
    teacher: str | None = None
    domains: tuple[str, ...] = ()
    split: str = "test"
    engine: str = "auto"
    threads: int | None = None
    most_queries: int = MOST_QUERIES
    seed: int = 0
    demo_images: int = 20


def run(
    request: Request, out: Path, cache: Path, console: Console, *, name: str = "align"
) -> AlignmentReport:
    """Measure, and write ``NAME.json``, ``NAME.md`` and ``NAME.png`` into the output folder.

    Args:
        request: what to compare.
        out: output folder; the demo world is rendered below it.
        cache: where the teacher's embeddings are kept.
        console: for people; progress is drawn only if it is a terminal.
        name: of the files.

    Raises:
        UsageError, RefusalError: as `report`.
    """
    made = report(request, out, cache, console)
    picture = made.picture()  # drawn first, so that a failure leaves no part of the three
    write_text(out / f"{name}.json", json.dumps(made.as_json(), indent=1) + "\n")
    write_text(out / f"{name}.md", made.markdown())
    write_bytes(out / f"{name}.png", picture)
    return made


def report(request: Request, out: Path, cache: Path, console: Console) -> AlignmentReport:
    """Run the shipped student and the teacher on the same images and compare their embeddings.

    Raises:
        BundleError: the bundle is damaged.
        ConfigError: a split or teacher name that cannot be meant.
        DataError: images are missing or damaged, or the teacher is not the one the student learned from.
        UnavailableError: a package, an engine or the teacher's weights cannot be had.
    """
    _check(request)
    bundle = Bundle.open(locate(request.bundle))
    vectors = bundle.vectors
    name = request.teacher or vectors.teacher
    check_name(name)
    with locked(out):
        live = Live(console)
        workspace = Workspace(out, cache)
        left = _samples(request, bundle, learn.Learning(_demo(request, bundle), workspace, live))
        samples = left.samples
        with live.task("loading the teacher", None):
            from vlkd_distill.teacher_loading import load

            teacher = load(name, cache)
        with questions.telling(live, lambda: questions.asked_of(teacher)):
            same_weights = check_same_space(bundle, teacher)
            student, engine = _embed_student(request, bundle, samples, live)
            with live.task("asking the teacher", len(samples)) as advance:
                from vlkd_distill.embeddings import embed

                taught = embed(teacher, samples, cache / "embeddings", advance)
            with live.task("comparing", None):
                measured = measure(
                    student,
                    taught,
                    [sample.label for sample in samples],
                    vectors.vectors,
                    [sample.domain for sample in samples],
                    most_queries=request.most_queries,
                    seed=request.seed,
                )
        queries = questions.asked_of(teacher)
    which = "test images" if request.split == "test" else "all images"
    manifest = bundle.manifest
    return dataclasses.replace(
        measured,
        student=f"{manifest.name} for {manifest.target} ({manifest.model.precision}, {engine})",
        teacher=_short(name),
        images=f"{len(samples)} {which} of {DEMO if request.images == DEMO else Path(request.images).name}",
        held_out=tuple(word for word in manifest.provenance.get("held out", "").split(", ") if word),
        notes=(*_notes(request, bundle, name, same_weights), *filter(None, [left.sentence, _asked(queries)])),
    )


def locate(path: Path) -> Path:
    """The bundle that a path means: the path itself, or the bundle in a build's output folder."""
    if path.is_dir() and not (path / MANIFEST_NAME).exists() and (path / "bundle" / MANIFEST_NAME).exists():
        return path / "bundle"
    return path


def check_same_space(bundle: Bundle, teacher: Teacher) -> bool:
    """Hold the teacher to the space the student was distilled into.

    A teacher with other weights or in another format passes if it says of the bundle's prompts what the
    bundle's class vectors say.

    Returns:
        Whether it is the bundle's teacher to the last bit.

    Raises:
        DataError: another embedding size, or other vectors for the same prompts.
    """
    vectors = bundle.vectors
    size = int(vectors.vectors.shape[1])
    if teacher.dim != size:
        msg = (
            f"Expected a teacher with embeddings of {size} numbers, as the student in {bundle.path} has, found "
            f"{teacher.dim} from '{teacher.name}'. The student learned from '{vectors.teacher}': give that one with "
            "--teacher."
        )
        raise DataError(msg)
    if teacher.fingerprint == vectors.teacher_fingerprint:
        return True
    if not all(vectors.prompts):
        msg = (
            f"The bundle {bundle.path} was made with '{vectors.teacher}' and stores no prompts, so nothing shows that "
            f"'{teacher.name}' has the same space. Give the very teacher it was made with to --teacher."
        )
        raise DataError(msg)
    from vlkd_distill.class_vectors import embed_prompts

    cosines = np.einsum("cd,cd->c", embed_prompts(teacher, vectors.prompts), vectors.vectors)
    worst = int(cosines.argmin())
    if not cosines[worst] >= _SAME_SPACE_COSINE:
        msg = (
            f"Expected the teacher that the student in {bundle.path} learned from, '{vectors.teacher}', found another: "
            f"'{teacher.name}' puts the prompts of '{vectors.names[worst]}' at a cosine of {cosines[worst]:.3f} to the "
            f"stored class vector, and at least {_SAME_SPACE_COSINE} is expected. Give the right one with --teacher."
        )
        raise DataError(msg)
    return False


def _check(request: Request) -> None:
    """Refuse what can be refused before anything is read."""
    if request.split not in SPLITS:
        msg = f"--split: expected one of {', '.join(SPLITS)}, found '{request.split}'."
        raise ConfigError(msg)
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        msg = (
            f"This verb needs packages that are not installed ({', '.join(missing)}): "
            "pip install 'vlkd-edge[build]'"
        )
        raise UnavailableError(msg)


def _demo(request: Request, bundle: Bundle) -> Config:
    """A configuration whose demo world has the bundle's classes; its seed is the one builds default to.

    The same seed means the same test images: what a build of the demo trained on stays out.
    """
    count = request.demo_images
    data = DataConfig(
        domains=request.domains,
        classes=bundle.manifest.classes,
        demo_images=count,
        demo_held_out_images=count,
    )
    return Config(data=data)


def _samples(request: Request, bundle: Bundle, learning: learn.Learning) -> Readable:
    """The images to look at that can be decoded, labelled in the order of the bundle's classes."""
    if request.images == DEMO:
        dataset = learn.dataset(learning)
    else:
        dataset = domain_data.scan(
            Path(request.images), domains=request.domains, classes=bundle.manifest.classes
        )
    every = dataset.of(dataset.domains, "test" if request.split == "test" else None)
    left = only_readable_once(every, learning.workspace, learning.live)
    samples = left.samples
    counts = {name: sum(sample.domain == name for sample in samples) for name in dataset.domains}
    few = [f"{name} ({count})" for name, count in counts.items() if count < 2]
    if few:
        msg = (
            f"Expected at least two {request.split} images in each domain of {dataset.root}, found too few in "
            f"{', '.join(few)}. One image in five, by the hash of its name, is for testing: add images, leave the "
            "domain out with --domains, or take every image with --split all."
        )
        raise DataError(msg)
    return left


def _embed_student(
    request: Request, bundle: Bundle, samples: Sequence[Sample], live: Live
) -> tuple[npt.NDArray[np.float32], str]:
    """Unit rows ``(N, D)`` from the artifact as a device runs it, and what ran it."""
    rows = []
    with (
        Classifier.load(
            bundle,
            engine=request.engine,
            threads=request.threads,
            variant=bundle.manifest.variants[0].name,
        ) as classifier,
        live.task("running the bundle", len(samples)) as advance,
    ):
        for start in range(0, len(samples), _IMAGES_AT_ONCE):
            some = samples[start : start + _IMAGES_AT_ONCE]
            prepared = np.stack([prepare(sample.path, classifier.preprocess) for sample in some])
            rows.append(classifier.infer(prepared).embedding)
            advance(len(some))
        info = classifier.info
    return np.concatenate(rows), f"{info.name} {info.version}"


def _notes(request: Request, bundle: Bundle, name: str, same_weights: bool) -> tuple[str, ...]:
    """Sentences to read beside the numbers."""
    notes = [bundle.manifest.stand_in or ""]
    notes += [
        sentence
        for sentence, applies in ((DEMO_DATA, request.images == DEMO), (DEMO_TEACHER, name == DEMO))
        if applies and sentence not in notes[0]
    ]
    if request.split == "all":
        notes.append("Every image was taken: the student may have been trained on some of them.")
    if not same_weights:
        notes.append(
            f"The teacher asked here, '{_short(name)}', is not the bundle's to the last bit; it gives the bundle's "
            f"prompts the same vectors (cosine {_SAME_SPACE_COSINE} or more)."
        )
    return tuple(note for note in notes if note)


def _asked(queries: QueryReport | None) -> str:
    return "" if queries is None else f"Questions to the teacher: {queries.text}."


def _short(name: str) -> str:
    """A teacher's name without the folders of one machine."""
    form, _, rest = name.partition(":")
    return f"{form}:{Path(rest).name}" if form in ("local-dir", "onnx-pair", "hf-dir", "store") else name
