"""Leave-one-domain-out tables: rows of measured cells, their summary, and how both are written down.

A *cell* is one method trained with one seed while one domain is held out.

References:
    Gulrajani and Lopez-Paz, "In Search of Lost Domain Generalization", ICLR 2021 (the protocol).
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from vlkd_runtime.errors import DataError

from .tablenotes import beside_it, how_it_was_made, what_was_asked, who_saw_what

TEACHER: Final = "teacher"
BASELINE: Final = "erm"


@dataclass(frozen=True, slots=True)
class Cell:
    """One measured cell; accuracies are shares in [0, 1] on test images.

    Attributes:
        dataset: name of the data set.
        method: what trained the model; ``teacher`` for the teacher's zero-shot answers.
        held_out: the domain that training did not see.
        seed: of weights, batches and views; 0 for the teacher, which has none.
        accuracy: on the held-out domain.
        source_accuracy: plain mean over the source domains.
        key: hash of all that the cell's result depends on; empty where nobody needs to know it again.
    """

    dataset: str
    method: str
    held_out: str
    seed: int
    accuracy: float
    source_accuracy: float
    key: str = ""


@dataclass(frozen=True, slots=True)
class MethodSummary:
    """What a method reached; accuracies are shares in [0, 1].

    Attributes:
        method: its name.
        seeds: how many seeds every held-out domain has.
        domains: mean over seeds, by held-out domain.
        mean: plain mean over the held-out domains.
        standard_error: of that mean, over seeds; None with one seed.
        worst: the lowest of ``domains``.
        worst_domain: its name.
        gap_closed: share of the gap between plain training and the teacher that the method closes in the
            mean; None without both rows, or where the teacher is not ahead.
    """

    method: str
    seeds: int
    domains: Mapping[str, float]
    mean: float
    standard_error: float | None
    worst: float
    worst_domain: str
    gap_closed: float | None


def summarise_cells(cells: Sequence[Cell]) -> tuple[MethodSummary, ...]:
    """Summarise every method over the held-out domains and seeds.

    Raises:
        DataError: there are no cells, one is there twice, or a method lacks one that its others need.
    """
    if not cells:
        msg = "Expected at least one cell to summarise, found none: run at least one method."
        raise DataError(msg)
    methods = list(dict.fromkeys(cell.method for cell in cells))
    held_out = list(dict.fromkeys(cell.held_out for cell in cells))
    summaries = [_summary(name, held_out, [c for c in cells if c.method == name]) for name in methods]
    means = {summary.method: summary.mean for summary in summaries}
    return tuple(_with_gap(summary, means) for summary in summaries)


def _summary(method: str, held_out: Sequence[str], cells: Sequence[Cell]) -> MethodSummary:
    found = {(cell.held_out, cell.seed): cell.accuracy for cell in cells}
    seeds = sorted({cell.seed for cell in cells})
    missing = [f"{name}, seed {seed}" for name in held_out for seed in seeds if (name, seed) not in found]
    if missing or len(found) != len(cells):
        problem = f"no cell for {'; '.join(missing)}" if missing else "a cell that is there twice"
        msg = f"Expected one cell of '{method}' for each held-out domain and seed, found {problem}."
        raise DataError(msg)
    domains = {name: sum(found[name, seed] for seed in seeds) / len(seeds) for name in held_out}
    by_seed = [sum(found[name, seed] for name in held_out) / len(held_out) for seed in seeds]
    worst = min(domains, key=lambda name: domains[name])
    return MethodSummary(
        method=method,
        seeds=len(seeds),
        domains=domains,
        mean=sum(by_seed) / len(by_seed),
        standard_error=_standard_error(by_seed),
        worst=domains[worst],
        worst_domain=worst,
        gap_closed=None,
    )


def _standard_error(values: Sequence[float]) -> float | None:
    if len(values) < 2:
        return None
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))


def _with_gap(summary: MethodSummary, means: Mapping[str, float]) -> MethodSummary:
    if summary.method in (TEACHER, BASELINE) or TEACHER not in means or BASELINE not in means:
        return summary
    gap = means[TEACHER] - means[BASELINE]
    closed = (summary.mean - means[BASELINE]) / gap if gap > 0 else None
    return MethodSummary(**(_fields(summary) | {"gap_closed": closed}))


def _fields(summary: MethodSummary) -> dict[str, Any]:
    return {name: getattr(summary, name) for name in MethodSummary.__slots__}


def _lines(first: str, second: str) -> str:
    """The lines of both texts, each once."""
    return "\n".join(dict.fromkeys((*first.splitlines(), *second.splitlines())))


def _difference(own: Any, other: Any) -> str:
    if not isinstance(own, Mapping):
        return f"'{own}' and '{other}'"
    names = [name for name in {**own, **other} if own.get(name) != other.get(name)]
    return ", ".join(f"{name} {own.get(name)!r} and {other.get(name)!r}" for name in names)


@dataclass(frozen=True, slots=True)
class LeaveOutTable:
    """A table with everything needed to make it again.

    Attributes:
        cells: its rows.
        command: what was run; a line for each run that added cells.
        machine: where, in words; likewise.
        teacher: who taught.
        student: what was trained.
        settings: how every method was trained.
        stand_ins: sentences on what stands in for the real thing.
        contract: who saw what, for each method and held-out domain; ``text`` says it in words.
        notes: what was tried and why a number is what it is, a paragraph each.
        queries: what the last run asked a teacher whose questions are counted; ``text`` says it in words.
    """

    cells: tuple[Cell, ...]
    command: str
    machine: str
    teacher: str
    student: str
    settings: Mapping[str, Any]
    stand_ins: tuple[str, ...]
    contract: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    queries: Mapping[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain values; ``rows`` are the cells."""
        return {
            "command": self.command,
            "machine": self.machine,
            "teacher": self.teacher,
            "student": self.student,
            "settings": json.loads(json.dumps(dict(self.settings))),
            "stand_ins": list(self.stand_ins),
            "contract": [dict(one) for one in self.contract],
            "notes": list(self.notes),
            "queries": None if self.queries is None else dict(self.queries),
            "rows": [asdict(cell) for cell in self.cells],
            "summary": [
                _fields(summary) | {"domains": dict(summary.domains)}
                for summary in summarise_cells(self.cells)
            ],
        }

    def markdown(self) -> str:
        """The table for people; percent, the best student of each column in bold."""
        summaries = summarise_cells(self.cells)
        held_out = list(summaries[0].domains)
        columns = [*held_out, "mean", "worst", "gap closed"]
        lines = [f"# {self.cells[0].dataset}: leave one domain out", ""]
        lines += [f"> {sentence}" for sentence in self.stand_ins]
        lines += [
            "",
            f"Teacher {self.teacher}; student {self.student}. Top-1 accuracy in percent on test images of the",
            "held-out domain, measured on the exported float graph through the device library; mean over seeds.",
            "± is the standard error of the mean over seeds; *gap closed* is the share of the gap between plain",
            "training (erm) and the teacher, in the mean.",
            "",
            "| method | seeds | " + " | ".join(columns) + " |",
            "|---" * (len(columns) + 2) + "|",
        ]
        students = [summary for summary in summaries if summary.method != TEACHER]
        for summary in summaries:
            values = [*(summary.domains[name] for name in held_out), summary.mean, summary.worst]
            best = [max((s.domains[n] for s in students), default=0.0) for n in held_out]
            best += [
                max((s.mean for s in students), default=0.0),
                max((s.worst for s in students), default=0.0),
            ]
            texts = [
                f"**{100 * value:.1f}**"
                if summary.method != TEACHER and value == top
                else f"{100 * value:.1f}"
                for value, top in zip(values, best, strict=True)
            ]
            if summary.standard_error is not None:
                texts[len(held_out)] += f" ± {100 * summary.standard_error:.1f}"
            texts[-1] += f" ({summary.worst_domain})"
            texts.append("" if summary.gap_closed is None else f"{100 * summary.gap_closed:.0f} %")
            seeds = "" if summary.method == TEACHER else str(summary.seeds)
            lines.append(f"| {summary.method} | {seeds} | " + " | ".join(texts) + " |")
        lines += beside_it(self.notes)
        lines += who_saw_what(self.contract)
        lines += how_it_was_made(self.command, self.machine, self.settings)
        lines += what_was_asked(self.queries)
        return "\n".join(lines) + "\n"

    def with_more(self, more: LeaveOutTable) -> LeaveOutTable:
        """This table and the cells that another run adds; a cell that both have is taken from the other run.

        So are notes, if it has any. Commands and machines are of runs that added a cell.

        Raises:
            DataError: teacher, student or settings differ, so that the cells do not belong in one table.
        """
        for name in ("teacher", "student", "settings"):
            own, other = (json.loads(json.dumps(getattr(table, name))) for table in (self, more))
            if own != other:
                msg = (
                    f"Expected a table of the same {name}, found {_difference(own, other)}: write these cells to a "
                    "table of another name."
                )
                raise DataError(msg)
        places = {(cell.method, cell.held_out, cell.seed): cell for cell in (*self.cells, *more.cells)}
        order = {TEACHER: -2, BASELINE: -1}
        methods = dict.fromkeys(cell.method for cell in places.values())
        ranked = sorted(methods, key=lambda name: order.get(name, 0))
        contracts = {(one["method"], str(one["held_out"])): one for one in (*self.contract, *more.contract)}
        made = more if set(more.cells) - set(self.cells) else self
        return LeaveOutTable(
            cells=tuple(sorted(places.values(), key=lambda cell: ranked.index(cell.method))),
            command=_lines(self.command, made.command),
            machine=_lines(self.machine, made.machine),
            teacher=more.teacher,
            student=more.student,
            settings=more.settings,
            stand_ins=tuple(dict.fromkeys((*self.stand_ins, *more.stand_ins))),
            contract=tuple(contracts.values()),
            notes=more.notes or self.notes,
            queries=more.queries,
        )

    @classmethod
    def read(cls, path: Path) -> LeaveOutTable:
        """Read what `as_json` gave.

        Raises:
            DataError: there is no such file, or it is no such table.
        """
        try:
            table = json.loads(path.read_text())
            plain = {name: str(table[name]) for name in ("command", "machine", "teacher", "student")}
            return cls(
                cells=tuple(Cell(**row) for row in table["rows"]),
                settings=dict(table["settings"]),
                stand_ins=tuple(table["stand_ins"]),
                contract=tuple(table["contract"]),
                notes=tuple(table.get("notes", ())),
                queries=dict(table["queries"]) if table.get("queries") else None,
                **plain,
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            msg = (
                f"Expected a leave-one-domain-out table at {path}, found {type(error).__name__}: {error}. Name a file "
                "that 'bench dg' wrote."
            )
            raise DataError(msg) from error

    def picture(self) -> bytes:
        """The table as a PNG: a row of dots per held-out domain, one dot a cell, the mean as a bar."""
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib.figure import Figure

        summaries = summarise_cells(self.cells)
        held_out = [*summaries[0].domains]
        figure = Figure(figsize=(8.0, 1.2 + 0.32 * len(held_out) * len(summaries)), layout="constrained")
        axes = figure.subplots()
        row, ticks = 0.0, []
        for name in held_out:
            for position, summary in enumerate(summaries):
                own = [c.accuracy for c in self.cells if (c.method, c.held_out) == (summary.method, name)]
                axes.plot([100 * value for value in own], [row] * len(own), "o", ms=4, color=f"C{position}")
                axes.plot([100 * summary.domains[name]], [row], "|", ms=14, mew=2, color=f"C{position}")
                ticks.append((row, f"{name}  {summary.method}" if position == 0 else summary.method))
                row += 1
            row += 0.7
        axes.set_yticks([place for place, _ in ticks], [text for _, text in ticks], fontsize=8)
        axes.invert_yaxis()
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.set_xlabel("top-1 on the held-out domain, percent; a dot is a seed, the bar their mean")
        axes.set_title("\n".join((self.cells[0].dataset, *self.stand_ins)), fontsize=8, loc="left")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150)
        return buffer.getvalue()
