"""Images from class names alone: the stage that a data-free build learns from, and `vlkd-edge synth`."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console

from vlkd_bench.samples import Sample
from vlkd_distill import data as domain_data
from vlkd_distill import wording
from vlkd_distill.teacher_names import DEMO
from vlkd_runtime.atomic import write_bytes, write_text
from vlkd_runtime.errors import DataError
from vlkd_runtime.vectors import ClassVectors

from . import classvectors, learn, questions
from .config import Config
from .progress import Live
from .stages import StageResult, Workspace, locked, versions

if TYPE_CHECKING:
    from vlkd_distill.specs import Settings
    from vlkd_distill.styled import Named
    from vlkd_distill.synthcheck import SyntheticReport
    from vlkd_distill.synthesis import Restyler, Synthesiser
    from vlkd_distill.teachers import Teacher
    from vlkd_distill.wording import Prompt

METHOD: Final = "data-free"
IMAGES = "images"
REPORT = "report"
SHEET = "contact.png"
DEMO_SYNTHESISER = (
    "The synthesiser is the demo world's renderer: it stands in for a text-to-image model, and that it repeats "
    "itself where a prompt leaves something open is built in."
)
_SHOWN = 12


def excluded(config: Config) -> tuple[str, ...]:
    """Words that no prompt of this configuration says."""
    asked = config.synthesis
    held_out = wording.words_for(config.data.held_out) if asked.exclude_held_out else ()
    return tuple(dict.fromkeys((*asked.exclude, *held_out)))


def vocabulary(config: Config) -> wording.Vocabulary:
    """The words that prompts are drawn from."""
    asked = config.synthesis
    small = asked.vocabulary == "demo" or (
        asked.vocabulary == "auto" and (asked.synthesiser == "demo" or config.teacher.model == DEMO)
    )
    return (wording.DEMO if small else wording.GENERAL).without(excluded(config))


def stage(learning: learn.Learning, vectors: StageResult) -> StageResult:
    """Make the images that a data-free build learns from; an interrupted stage goes on where it was."""
    config = learning.config

    def work(folder: Path) -> None:
        stored = ClassVectors.load(vectors.folder / "class_vectors.safetensors")
        make(folder, config, stored, learning.teacher(), learning.live)

    words = dataclasses.asdict(vocabulary(config)) if config.synthesis.rule != "single" else {}
    inputs = {
        "settings": config.synthesis.used(),
        "vocabulary": words,
        "vectors": vectors.key,
        "synthesiser": _identity(config),
    }
    return learning.workspace.stage("synthesis", inputs | versions("torch", "vlkd-edge"), work)


def samples(made: StageResult, classes: Sequence[str]) -> tuple[Sample, ...]:
    """The images of a finished stage, in label order."""
    return domain_data.scan(made.folder / IMAGES, classes=classes).samples


def make(
    folder: Path, config: Config, vectors: ClassVectors, teacher: Teacher, live: Live
) -> SyntheticReport:
    """Write the images, what the teacher says of them, and a sheet to look at.

    Raises:
        ConfigError: prompts that cannot be made, or that the synthesiser cannot read.
        DataError: the judge refused every image of a class.
        UnavailableError: the synthesiser or its weights cannot be had.
    """
    from vlkd_distill.diversify import diversify
    from vlkd_distill.synthcheck import ConsistencyJudge, check
    from vlkd_distill.synthesis import write_synthetic

    asked = config.synthesis
    synthesiser = _synthesiser(config, teacher)
    with live.task("writing prompts", None):
        prompts = diversify(
            asked.rule,
            asked.space,
            vectors.names,
            min(asked.prompts_per_class, asked.images_per_class),
            seed=asked.seed,
            vocabulary=vocabulary(config),
            teacher=teacher,
        )
    judge = ConsistencyJudge(teacher, vectors) if asked.judge else None
    with live.task("making images", asked.images_per_class * len(vectors.names)) as advance:
        made = write_synthetic(
            folder / IMAGES, synthesiser, prompts, asked.images_per_class, asked.seed, advance, judge=judge
        )
    _check_whole(made.folder / made.domain, vectors.names, made.dropped)
    found = domain_data.scan(made.folder, domains=(made.domain,), classes=vectors.names).samples
    with live.task("looking at the images", None):
        report = check(teacher, vectors, found, regenerated=made.regenerated, dropped=len(made.dropped))
    write_bytes(folder / SHEET, _sheet(found, vectors.names))
    write_text(folder / f"{REPORT}.md", _markdown(config, prompts, report))
    how = {"rule": asked.rule, "space": asked.space, "judge": asked.judge, "excluded": list(excluded(config))}
    plain = how | report.as_json()
    write_text(folder / f"{REPORT}.json", json.dumps(plain, indent=1) + "\n")
    return report


def run(names: Sequence[str], config: Config, out: Path, cache: Path, console: Console) -> dict[str, Any]:
    """Make the images of a configuration in a folder of their own; the same call goes on with what is there.

    Returns:
        The report as JSON values, with the places of images, sheet and report.
    """
    from vlkd_distill.class_vectors import compute

    with locked(out):
        live = Live(console)
        learning = learn.Learning(config, Workspace(out, cache, live.say), live)
        with questions.counting(learning):
            with live.task("asking the teacher", None):
                vectors = compute(learning.teacher(), names, classvectors.chosen_templates(config))
            report = make(out, config, vectors, learning.teacher(), live)
        queries = questions.queries(learning)
    places = {
        "images_folder": out / IMAGES / report.domain,
        "sheet": out / SHEET,
        "report": out / f"{REPORT}.md",
    }
    told = {} if queries is None else {"queries": queries.as_json()}
    return report.as_json() | told | {name: str(place) for name, place in places.items()}


def domains(made: Sequence[Sample]) -> tuple[str, ...]:
    """The domains of made images, for a data contract."""
    return tuple(dict.fromkeys(sample.domain for sample in made))


def contract(config: Config) -> str:
    """How the images of a data-free student come about, as a sentence."""
    asked = config.synthesis
    unsaid = f"; no prompt says {', '.join(excluded(config))}" if excluded(config) else ""
    rule = (
        "one plain prompt a class"
        if asked.rule == "single"
        else f"{asked.rule} prompts ({asked.space} space{unsaid})"
    )
    return (
        f"The images are made from the class names alone by the synthesiser '{asked.synthesiser}' from {rule}; the "
        "label of an image is the class that was asked for."
    )


def _synthesiser(config: Config, teacher: Teacher) -> Synthesiser:
    asked = config.synthesis
    if asked.synthesiser == "demo":
        from vlkd_distill.demo_synthesis import DemoSynthesiser

        return DemoSynthesiser()
    if asked.synthesiser == "inversion":
        from vlkd_distill.inversion import Inversion

        return Inversion(teacher, asked.inversion)
    from vlkd_distill.diffusion import Diffusers

    return Diffusers.load(asked.diffusion)


def restyler_key(config: Config) -> str:
    """Hash of who redraws images and how; the teacher is part of it where it is looked at.

    Raises:
        UnavailableError: the weights cannot be found.
    """
    asked = config.synthesis
    how = asked.diffusion if asked.synthesiser == "diffusion" else asked.inversion
    seen = learn.teacher_key(config) if asked.synthesiser == "inversion" else ""
    told = json.dumps([_identity(config), seen, dataclasses.asdict(how)], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()


def named_styles(learning: learn.Learning, settings: Settings) -> Named:
    """The styles that texts name, and who redraws images in them; nobody is loaded yet."""
    from vlkd_distill.styled import Named

    config = learning.config

    def load() -> Restyler:
        if config.synthesis.synthesiser == "inversion":
            from vlkd_distill.inversion import Inversion

            return Inversion(learning.teacher(), config.synthesis.inversion)
        from vlkd_distill.diffusion import Diffusers

        return Diffusers.load(config.synthesis.diffusion, redraws=True)

    texts = settings.prompted_styles
    return Named(texts, restyler_key(config) if texts else "", load)


def _identity(config: Config) -> str:
    """What the synthesiser depends on besides settings and teacher."""
    asked = config.synthesis
    if asked.synthesiser == "demo":
        from vlkd_distill.demo_synthesis import DemoSynthesiser

        return DemoSynthesiser().fingerprint
    if asked.synthesiser == "diffusion":
        from vlkd_distill.diffusion import identity

        return identity(asked.diffusion)
    return asked.synthesiser


def _check_whole(domain: Path, names: Sequence[str], dropped: Sequence[str]) -> None:
    empty = [name for name in names if not any((domain / name).glob("*.png"))]
    if empty:
        msg = (
            f"Expected images of every class, but the teacher took none of those made for {', '.join(empty[:5])} for "
            f"what they should show ({len(dropped)} images dropped in all). Look at them with "
            "synthesis.judge = false, and rename the class or choose another synthesiser."
        )
        raise DataError(msg)


def _sheet(found: Sequence[Sample], names: Sequence[str]) -> bytes:
    from vlkd_distill.synthcheck import contact_sheet
    from vlkd_runtime.preprocess import decode

    rows = {}
    for label, name in enumerate(names):
        own = [sample for sample in found if sample.label == label]
        rows[name] = [decode(sample.path) for sample in own[:: max(1, len(own) // _SHOWN)][:_SHOWN]]
    data = io.BytesIO()
    contact_sheet(rows).save(data, "png")
    return data.getvalue()


def _markdown(config: Config, prompts: Sequence[Prompt], report: SyntheticReport) -> str:
    asked = config.synthesis
    lines = [f"# Made from class names: {asked.rule} prompts, synthesiser {asked.synthesiser}", ""]
    if asked.synthesiser == "demo":
        lines += [f"> {DEMO_SYNTHESISER}", ""]
    if excluded(config) and asked.rule != "single":
        lines += [f"No prompt says: {', '.join(excluded(config))}.", ""]
    first = [prompt.text for prompt in prompts if prompt.class_name == prompts[0].class_name and prompt.text]
    if first:
        shown = "; ".join(f"“{text}”" for text in first[:8])
        lines += [f"Prompts of {prompts[0].class_name}, the first of {len(first)}: {shown}.", ""]
    return "\n".join(lines) + "\n" + report.markdown()
