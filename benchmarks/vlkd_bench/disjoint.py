"""Class-disjoint tables: methods measured on classes that training never saw, beside those that it did.

A *cell* is one method trained with one seed on the images of some classes while one domain is held out. Its
accuracies are means over classes of the share of right answers, on test images, among the vectors of the seen
or of the unseen classes alone.

References:
    Li et al., "Distilling Large Vision-Language Model with Out-of-Distribution Generalizability", ICCV 2023
    (disjoint classes, mean per-class accuracy); Zhou et al., "Conditional Prompt Learning for Vision-Language
    Models", CVPR 2022 (base and novel classes, harmonic mean).
"""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from vlkd_runtime.errors import DataError

from .leaveout import TEACHER
from .predictions import PredictionRow
from .tablenotes import beside_it, how_it_was_made, what_was_asked, who_saw_what

CE_ONLY: Final = "ce-only"


def per_class_accuracy(rows: Sequence[PredictionRow]) -> float:
    """Mean over the classes that occur of the share of right answers, so that a large class counts as any.

    Raises:
        DataError: there are no rows.
    """
    right: dict[int, list[bool]] = {}
    for row in rows:
        right.setdefault(row.label, []).append(row.correct)
    if not right:
        msg = "Expected at least one prediction to average, found none: evaluate the model first."
        raise DataError(msg)
    return statistics.fmean(statistics.fmean(answers) for answers in right.values())


@dataclass(frozen=True, slots=True)
class DisjointCell:
    """One measured cell; accuracies are shares in [0, 1].

    Attributes:
        dataset: name of the data set.
        method: what trained the model; ``teacher`` for the teacher's zero-shot answers.
        held_out: the domain that training did not see.
        seed: of weights, batches and views and, where classes are drawn, of the draw.
        accuracy: on unseen classes in the held-out domain.
        source_accuracy: on unseen classes, plain mean over the source domains.
        seen_accuracy: on seen classes in the held-out domain.
        seen_source_accuracy: on seen classes, plain mean over the source domains.
        harmonic_mean: of ``accuracy`` and ``seen_accuracy``; with base and novel classes, PromptKD's H.
        source_harmonic_mean: of the two source accuracies.
        unseen: names of the unseen classes.
    """

    dataset: str
    method: str
    held_out: str
    seed: int
    accuracy: float
    source_accuracy: float
    seen_accuracy: float
    seen_source_accuracy: float
    harmonic_mean: float
    source_harmonic_mean: float
    unseen: tuple[str, ...]

    @classmethod
    def measure(
        cls,
        where: tuple[str, str, str, int],
        unseen: Sequence[str],
        on_unseen: Sequence[PredictionRow],
        on_seen: Sequence[PredictionRow],
    ) -> DisjointCell:
        """Count predictions.

        Args:
            where: data set, method, held-out domain and seed.
            unseen: names of the unseen classes.
            on_unseen: predictions on test images of these classes, among these.
            on_seen: predictions on test images of the other classes, among those.

        Raises:
            DataError: the held-out domain or every source domain is without predictions.
        """
        held_out = where[2]
        target, source = _by_domain(on_unseen, held_out)
        seen_target, seen_source = _by_domain(on_seen, held_out)
        means = _harmonic(target, seen_target), _harmonic(source, seen_source)
        return cls(*where, target, source, seen_target, seen_source, *means, tuple(unseen))


def _harmonic(one: float, other: float) -> float:
    return 2 * one * other / (one + other) if one + other > 0 else 0.0


def _by_domain(rows: Sequence[PredictionRow], held_out: str) -> tuple[float, float]:
    """Accuracy in the held-out domain, and its mean over the others."""
    others = sorted({row.domain for row in rows} - {held_out})
    if not others:
        msg = f"Expected predictions in a source domain besides '{held_out}', found none: evaluate again."
        raise DataError(msg)
    target = per_class_accuracy([row for row in rows if row.domain == held_out])
    return target, statistics.fmean(
        per_class_accuracy([row for row in rows if row.domain == name]) for name in others
    )


_COLUMNS: Mapping[str, str] = {
    "accuracy": "unseen, held out",
    "source_accuracy": "unseen, sources",
    "seen_accuracy": "seen, held out",
    "seen_source_accuracy": "seen, sources",
    "harmonic_mean": "H, held out",
    "source_harmonic_mean": "H, sources",
}


@dataclass(frozen=True, slots=True)
class DisjointTable:
    """A table with everything needed to make it again.

    Attributes:
        cells: its rows.
        command: what was run.
        machine: where, in words.
        teacher: who taught.
        student: what was trained.
        settings: how every method was trained.
        stand_ins: sentences on what stands in for the real thing.
        contract: who saw what, for each method, held-out domain and seed; ``text`` says it in words.
        queries: what a teacher whose questions are counted was asked; ``text`` says it in words.
        notes: what the reader must know beside it, such as why a number is what it is.
    """

    cells: tuple[DisjointCell, ...]
    command: str
    machine: str
    teacher: str
    student: str
    settings: Mapping[str, Any]
    stand_ins: tuple[str, ...]
    contract: tuple[Mapping[str, Any], ...]
    queries: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        found = {(cell.method, cell.held_out, cell.seed) for cell in self.cells}
        seeds, held_out = {cell.seed for cell in self.cells}, {cell.held_out for cell in self.cells}
        expected = {(m, h, s) for m in self.methods for h in held_out for s in seeds}
        if not self.cells or found != expected or len(found) != len(self.cells):
            msg = (
                f"Expected one cell for each method, held-out domain and seed ({len(expected)}), found "
                f"{len(self.cells)} cells of which {len(found)} differ: run the table again."
            )
            raise DataError(msg)

    @property
    def methods(self) -> tuple[str, ...]:
        """Methods in the order of their cells."""
        return tuple(dict.fromkeys(cell.method for cell in self.cells))

    def values(self, method: str, name: str) -> tuple[float, ...]:
        """One value a seed: the mean over the held-out domains."""
        seeds = sorted({cell.seed for cell in self.cells})
        return tuple(
            statistics.fmean(
                getattr(cell, name) for cell in self.cells if cell.method == method and cell.seed == seed
            )
            for seed in seeds
        )

    def gains(self, method: str) -> tuple[float, ...] | None:
        """What the method adds to cross-entropy alone on unseen classes of the held-out domain, seed by seed.

        None for the teacher, for cross-entropy alone, and where that was not measured.
        """
        if method in (TEACHER, CE_ONLY) or CE_ONLY not in self.methods:
            return None
        pairs = zip(self.values(method, "accuracy"), self.values(CE_ONLY, "accuracy"), strict=True)
        return tuple(one - base for one, base in pairs)

    def as_json(self) -> dict[str, Any]:
        """Plain values; ``rows`` are the cells."""
        summary = []
        for method in self.methods:
            row: dict[str, Any] = {"method": method}
            for name in _COLUMNS:
                row[name] = statistics.fmean(self.values(method, name))
                row[f"{name}_error"] = _standard_error(self.values(method, name))
            gains = self.gains(method)
            row["gain"] = None if gains is None else statistics.fmean(gains)
            row["gain_error"] = None if gains is None else _standard_error(gains)
            summary.append(row)
        return {
            "command": self.command,
            "machine": self.machine,
            "teacher": self.teacher,
            "student": self.student,
            "settings": dict(self.settings),
            "stand_ins": list(self.stand_ins),
            "contract": [dict(one) for one in self.contract],
            "queries": None if self.queries is None else dict(self.queries),
            "notes": list(self.notes),
            "rows": [asdict(cell) | {"unseen": list(cell.unseen)} for cell in self.cells],
            "summary": summary,
        }

    def markdown(self) -> str:
        """The table for people, in percent."""
        lines = [f"# {self.cells[0].dataset}: classes that training never saw", ""]
        lines += [f"> {sentence}" for sentence in self.stand_ins]
        held_out = ", ".join(dict.fromkeys(cell.held_out for cell in self.cells))
        lines += [
            "",
            f"Teacher {self.teacher}; student {self.student}. Held out: {held_out}. Mean per-class accuracy in",
            "percent on test images, among the vectors of the unseen or of the seen classes alone, measured on the",
            "exported float graph through the device library. Mean over seeds, ± its standard error; the *gain* is",
            f"over {CE_ONLY}, cross-entropy on the class vectors alone, paired by seed, on unseen classes of the",
            "held-out domain; H is the harmonic mean of unseen and seen classes.",
            "",
            "| method | " + " | ".join(_COLUMNS.values()) + " | gain |",
            "|---" * (len(_COLUMNS) + 2) + "|",
        ]
        for method in self.methods:
            texts = [_percent(self.values(method, name)) for name in _COLUMNS]
            gains = self.gains(method)
            texts.append("" if gains is None else _percent(gains, sign="+"))
            lines.append(f"| {method} | " + " | ".join(texts) + " |")
        drawn = {cell.seed: cell.unseen for cell in self.cells}
        lines += ["", "Unseen classes:", ""]
        lines += [f"- seed {seed}: {', '.join(names)}" for seed, names in sorted(drawn.items())]
        lines += beside_it(self.notes)
        lines += who_saw_what(self.contract)
        lines += how_it_was_made(self.command, self.machine, self.settings)
        lines += what_was_asked(self.queries)
        return "\n".join(lines) + "\n"

    def picture(self) -> bytes:
        """Accuracy on unseen and on seen classes of the held-out domains, as a PNG: a dot a seed, a bar the mean."""
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8.0, 1.6 + 0.55 * len(self.methods)), layout="constrained")
        axes = figure.subplots()
        shown = (("accuracy", "unseen classes", -0.12), ("seen_accuracy", "seen classes", 0.12))
        for color, (name, label, offset) in enumerate(shown):
            for row, method in enumerate(self.methods):
                values = [100 * value for value in self.values(method, name)]
                height = [row + offset] * len(values)
                axes.plot(values, height, "o", ms=4, color=f"C{color}", label=label if row == 0 else None)
                mean = statistics.fmean(values)
                axes.plot([mean], [row + offset], "|", ms=14, mew=2, color=f"C{color}")
        axes.set_yticks(range(len(self.methods)), self.methods, fontsize=8)
        axes.invert_yaxis()
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.set_xlabel(
            "mean per-class accuracy in the held-out domain, percent; a dot is a seed, the bar their mean"
        )
        axes.legend(fontsize=8, frameon=False)
        axes.set_title("\n".join((self.cells[0].dataset, *self.stand_ins)), fontsize=8, loc="left")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150)
        return buffer.getvalue()


def _standard_error(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None


def _percent(values: Sequence[float], sign: str = "") -> str:
    error = _standard_error(values)
    text = f"{100 * statistics.fmean(values):{sign}.1f}"
    return text if error is None else f"{text} ± {100 * error:.1f}"
