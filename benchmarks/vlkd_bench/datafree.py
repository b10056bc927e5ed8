"""What a student learns from images that nobody took, beside one that learned from real ones: rows and text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from vlkd_runtime.errors import DataError

from .leaveout import Cell, LeaveOutTable, MethodSummary, summarise_cells
from .tablenotes import how_it_was_made, what_was_asked, who_saw_what

REAL: Final = "real"
AIM: Final = 0.85
"""Share of the accuracy of the student distilled from real images that Contrastive-Prompt is to reach."""
ORDER: Final = ("single", "mix", "random", "contrastive")
"""As their authors find them: one prompt is worst, contrastive prompts are best."""


@dataclass(frozen=True, slots=True)
class MadeImages:
    """The images that a row learned from, as the teacher sees them; means over classes.

    Attributes:
        images: how many there are; for real rows the train images of the source domains.
        accepted: share of all images drawn that the teacher took for their class; None for real images, and
            where no judge looked.
        distance: mean cosine distance within a class; None for real images.
        vendi: Vendi score of a class; None for real images.
    """

    images: int
    accepted: float | None = None
    distance: float | None = None
    vendi: float | None = None


@dataclass(frozen=True, slots=True)
class DataFreeTable:
    """A table with everything needed to make it again.

    Attributes:
        cells: measured rows.
        made: what each of them learned from, in the same order; None for the teacher.
        meaning: row name to what it is, in words.
        command: what was run.
        machine: where, in words.
        teacher: who taught.
        student: what was trained.
        settings: how every student was trained, and how images were made.
        stand_ins: sentences on what stands in for the real thing.
        notes: what the reader must know beside it.
        contract: who saw what: an object for each row but the teacher's.
        queries: what a teacher whose questions are counted was asked; ``text`` says it in words.
    """

    cells: tuple[Cell, ...]
    made: tuple[MadeImages | None, ...]
    meaning: Mapping[str, str]
    command: str
    machine: str
    teacher: str
    student: str
    settings: Mapping[str, Any]
    stand_ins: tuple[str, ...]
    notes: tuple[str, ...] = ()
    contract: tuple[Mapping[str, Any], ...] = ()
    queries: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        unknown = {cell.method for cell in self.cells} - set(self.meaning)
        if len(self.made) != len(self.cells) or unknown:
            msg = (
                f"Expected the images of each of {len(self.cells)} rows and a meaning for each name, found "
                f"{len(self.made)} and none for {', '.join(sorted(unknown)) or 'none'}: give one of each."
            )
            raise DataError(msg)

    def summaries(self) -> tuple[MethodSummary, ...]:
        """Mean over seeds of each row."""
        return summarise_cells(self.cells)

    def share_of_real(self, method: str) -> float | None:
        """A row's accuracy over that of the student distilled from real images; None without the two."""
        means = {summary.method: summary.mean for summary in self.summaries()}
        return means[method] / means[REAL] if means.get(REAL) and method in means else None

    def findings(self) -> tuple[str, ...]:
        """Whether the aim is reached and the order is as expected, a sentence each, from the numbers alone."""
        means = {summary.method: summary.mean for summary in self.summaries()}
        found = []
        share = self.share_of_real("contrastive")
        if share is not None:
            word = "reaches" if share >= AIM else "misses"
            found.append(
                f"Contrastive-Prompt has {100 * share:.1f} % of the accuracy of the student distilled from real "
                f"images and so {word} the aim of {100 * AIM:.0f} %."
            )
        if all(name in means for name in ORDER):
            least, mix, random, best = (means[name] for name in ORDER)
            holds = least < min(mix, random) and max(mix, random) <= best
            texts = [f"{name} {100 * means[name]:.1f}" for name in ORDER]
            found.append(
                f"Expected single < mix, random <= contrastive; found {', '.join(texts)}: "
                + ("the order holds." if holds else "the order does not hold.")
            )
        return tuple(found)

    def as_json(self) -> dict[str, Any]:
        """Plain values; ``rows`` are the cells with what they learned from."""
        rows = [
            asdict(cell) | (asdict(made) if made is not None else {})
            for cell, made in zip(self.cells, self.made, strict=True)
        ]
        shares = {summary.method: self.share_of_real(summary.method) for summary in self.summaries()}
        return {
            "command": self.command,
            "machine": self.machine,
            "teacher": self.teacher,
            "student": self.student,
            "settings": dict(self.settings),
            "stand_ins": list(self.stand_ins),
            "meaning": dict(self.meaning),
            "rows": rows,
            "share_of_real": shares,
            "findings": list(self.findings()),
            "contract": list(self.contract),
            "notes": list(self.notes),
            "queries": None if self.queries is None else dict(self.queries),
        }

    def markdown(self) -> str:
        """The table for people."""
        held_out = self.cells[0].held_out
        lines = [f"# {self.cells[0].dataset}: distilled without images, held out {held_out}", ""]
        lines += [f"> {sentence}" for sentence in self.stand_ins]
        lines += [
            "",
            f"Teacher {self.teacher}; student {self.student}. Top-1 accuracy in percent on test images, mean over",
            "seeds with the standard error of that mean, measured on the exported float graph through the device",
            "library. *Of real* is the accuracy on the held-out domain over that of the row `real`. *Accepted*,",
            "*distance* and *Vendi* are what the teacher says of the images that were made: the share of all drawn",
            "images that it takes for their class, the mean cosine distance within a class, and the effective number",
            "of different images of a class.",
            "",
            f"| row | seeds | {held_out} | source domains | of real | images | accepted | distance | Vendi |",
            "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
        ]
        lines += [self._line(summary) for summary in self.summaries()]
        lines += ["", *(f"- {sentence}" for sentence in (*self.findings(), *self.notes))]
        lines += ["", "## The rows", ""]
        lines += [f"- `{name}`: {self.meaning[name]}" for name in dict.fromkeys(c.method for c in self.cells)]
        lines += who_saw_what(self.contract)
        lines += how_it_was_made(self.command, self.machine, self.settings)
        lines += what_was_asked(self.queries)
        return "\n".join(lines) + "\n"

    def _line(self, summary: MethodSummary) -> str:
        rows = [
            (cell, made)
            for cell, made in zip(self.cells, self.made, strict=True)
            if cell.method == summary.method
        ]
        spread = "" if summary.standard_error is None else f" ± {100 * summary.standard_error:.1f}"
        share = self.share_of_real(summary.method)
        sources = _mean([cell.source_accuracy for cell, _ in rows])
        made = [images for _, images in rows if images is not None]
        values = [
            summary.method,
            str(summary.seeds) if made else "",
            f"{100 * summary.mean:.1f}{spread}",
            f"{100 * sources:.1f}" if sources is not None else "",
            f"{100 * share:.0f} %" if share is not None else "",
            *_described(made),
        ]
        return f"| {' | '.join(values)} |"

    def picture(self) -> bytes:
        """The rows as a PNG: one dot a seed, their mean as a bar."""
        table = LeaveOutTable(
            self.cells, self.command, self.machine, self.teacher, self.student, self.settings, self.stand_ins
        )
        return table.picture()


def _described(made: Sequence[MadeImages]) -> list[str]:
    """The four cells of a row on its images."""
    images = _mean([one.images for one in made])
    accepted = _mean([one.accepted for one in made])
    distance, vendi = _mean([one.distance for one in made]), _mean([one.vendi for one in made])
    return [
        f"{images:.0f}" if images is not None else "",
        f"{100 * accepted:.0f} %" if accepted is not None else "",
        f"{distance:.3f}" if distance is not None else "",
        f"{vendi:.2f}" if vendi is not None else "",
    ]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
