"""What is known of how a student lies beside its teacher, as values, as a table and as a picture.

Letters used in shapes: C classes, D embedding size.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Alignment:
    """How a student's embeddings of some images lie beside the teacher's.

    Attributes:
        images: how many there are: what neighbours and matches are looked for among.
        queries: of how many the neighbours and the match were looked for; fewer than ``images`` is a sample.
        squared_distance: mean of ``|s - t|^2 = 2 - 2 cos``, in [0, 4].
        angle_deg: mean angle between student and teacher, in degrees.
        m_rel: share of images whose own teacher embedding is the nearest of all to the student's; where m
            teacher embeddings are equally near, the hit counts 1/m.
        m_neigh: by k: the share of the teacher's k nearest images that the student has among its own k.
            An image is no neighbour of itself; among equally near ones those that come first are taken.
        m_vlalign: by k: mean number of pairs, out of ``k(k-1)/2``, that the student ranks the other way
            round than the teacher, among the teacher's k nearest classes.
        student_accuracy: share of images whose nearest class vector is the right one.
        teacher_accuracy: the same for the teacher's embedding.
        agreement: share of images where both have the same nearest class vector.
    """

    images: int
    queries: int
    squared_distance: float
    angle_deg: float
    m_rel: float
    m_neigh: Mapping[int, float]
    m_vlalign: Mapping[int, float]
    student_accuracy: float
    teacher_accuracy: float
    agreement: float

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        plain = {name: getattr(self, name) for name in self.__slots__}
        for name in ("m_neigh", "m_vlalign"):
            plain[name] = {str(k): value for k, value in plain[name].items()}
        return plain


@dataclass(frozen=True, slots=True)
class TextBank:
    """How well the class vectors are spread.

    Attributes:
        classes: C.
        mean_cosine: over all pairs of classes; lower is better.
        eigenvalues: of the mean outer product of the class vectors, largest first; they sum to one, and a
            slower decay is better.
        effective_rank: exponential of their entropy, between 1 (all classes alike) and min(C, D).
    """

    classes: int
    mean_cosine: float
    eigenvalues: tuple[float, ...]
    effective_rank: float


@dataclass(frozen=True, slots=True)
class AlignmentReport:
    """The measures over all images and by domain, with what they were made from.

    Attributes:
        overall: over all images.
        domains: by domain, each among its own images only.
        bank: the class vectors.
        seed: of the sample of queries.
        student: whose embeddings were measured, in words.
        teacher: against whose.
        images: on which images.
        held_out: the domains that training did not see, where known.
        notes: sentences to read beside the numbers: stand-ins first.
    """

    overall: Alignment
    domains: Mapping[str, Alignment]
    bank: TextBank
    seed: int
    student: str = "the student"
    teacher: str = "the teacher"
    images: str = "the images"
    held_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Plain values, sizes of neighbourhoods as text."""
        bank = {name: getattr(self.bank, name) for name in TextBank.__slots__}
        return {
            **{name: getattr(self, name) for name in ("student", "teacher", "images", "seed")},
            "held_out": list(self.held_out),
            "notes": list(self.notes),
            "overall": self.overall.as_json(),
            "domains": {name: part.as_json() for name, part in self.domains.items()},
            "text_bank": bank | {"eigenvalues": list(self.bank.eigenvalues)},
        }

    def markdown(self) -> str:
        """The measures for people: a row a measure, a column a domain."""
        columns = self._columns()
        lines = [f"# {self.student} beside its teacher", "", *(f"> {note}" for note in self.notes), ""]
        lines += [f"Student {self.student}; teacher {self.teacher}; images {self.images}.", ""]
        lines += ["| measure | better | by chance | " + " | ".join(columns) + " |"]
        lines += ["|---" * (len(columns) + 3) + "|"]
        for title, better, chance, cells in self._rows(tuple(columns.values())):
            lines.append(f"| {title} | {better} | {chance} | " + " | ".join(cells) + " |")
        bank = self.bank
        shown = ", ".join(f"{value:.4f}" for value in bank.eigenvalues[:10])
        lines += [
            "",
            "M_rel: the image's own teacher embedding is the nearest to the student's. M_neigh: share of the",
            "teacher's k nearest images kept. M_vlalign: pairs of the teacher's k nearest classes that the student",
            "ranks the other way round, at most k(k-1)/2. A domain is searched among its own images only, so fewer",
            "images make M_rel and M_neigh easier: compare students, not columns. *By chance* is for all images.",
            "",
            f"Text bank: {bank.classes} classes, mean cosine {bank.mean_cosine:.4f}, effective rank "
            f"{bank.effective_rank:.2f} of at most {len(bank.eigenvalues)}; largest eigenvalues {shown}.",
        ]
        if self.overall.queries < self.overall.images:
            lines += [
                "",
                f"M_rel and M_neigh of all images: {self.overall.queries} images drawn with seed {self.seed} were "
                f"asked about, among all {self.overall.images}.",
            ]
        return "\n".join(lines) + "\n"

    def _columns(self) -> dict[str, Alignment]:
        """All images and each domain, by the title people see."""
        titles = {name: f"{name} (held out)" if name in self.held_out else name for name in self.domains}
        return {"all": self.overall} | {titles[name]: part for name, part in self.domains.items()}

    def _rows(self, parts: Sequence[Alignment]) -> Iterator[tuple[str, str, str, list[str]]]:
        """Title, better direction, value by chance and cells of each row."""
        count, classes = self.overall.images, self.bank.classes
        yield "images", "", "", [str(part.images) for part in parts]
        yield "squared distance", "lower", "", [f"{part.squared_distance:.3f}" for part in parts]
        yield "mean angle, degrees", "lower", "", [f"{part.angle_deg:.1f}" for part in parts]
        yield "M_rel, percent", "higher", _percent(1 / count), [_percent(part.m_rel) for part in parts]
        for k in self.overall.m_neigh:
            cells = [_percent(part.m_neigh[k]) if k in part.m_neigh else "" for part in parts]
            yield f"M_neigh, k = {k}, percent", "higher", _percent(k / (count - 1)), cells
        for k in self.overall.m_vlalign:
            cells = [f"{part.m_vlalign[k]:.3f}" for part in parts]
            yield f"M_vlalign, k = {k}", "lower", f"{k * (k - 1) / 4:.1f}", cells
        for title, name in (("student", "student_accuracy"), ("teacher", "teacher_accuracy")):
            cells = [_percent(getattr(part, name)) for part in parts]
            yield f"top-1 of the {title}, percent", "higher", _percent(1 / classes), cells
        yield "same top-1, percent", "higher", "", [_percent(part.agreement) for part in parts]

    def picture(self) -> bytes:
        """A PNG: what was kept, the angles, and the text bank's spectrum."""
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib.figure import Figure

        parts = self._columns()
        figure = Figure(figsize=(11.0, 2.4 + 0.35 * len(parts)), layout="constrained")
        kept, angles, spectrum = figure.subplots(1, 3)
        bars = {"M_rel": [part.m_rel for part in parts.values()]}
        for k in self.overall.m_neigh:
            bars[f"M_neigh, k = {k}"] = [part.m_neigh.get(k, math.nan) for part in parts.values()]
        height = 0.8 / len(bars)
        for position, (title, values) in enumerate(bars.items()):
            places = [row - 0.4 + (position + 0.5) * height for row in range(len(parts))]
            kept.barh(places, [100 * value for value in values], height, label=title)
        kept.set_xlabel("percent; higher is better", fontsize=8)
        kept.legend(fontsize=7, frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
        angles.barh(range(len(parts)), [part.angle_deg for part in parts.values()], 0.6, color="C0")
        angles.set_xlabel("mean angle, degrees; lower is better", fontsize=8)
        for axes in (kept, angles):
            axes.set_yticks(range(len(parts)), list(parts), fontsize=8)
            axes.invert_yaxis()
        # A rank-deficient bank has zeros, which a logarithm cannot show.
        shown = [value for value in self.bank.eigenvalues if value > 1e-12]
        spectrum.semilogy(range(1, len(shown) + 1), shown, "o-", ms=3)
        rank = f"effective rank {self.bank.effective_rank:.1f} of {len(self.bank.eigenvalues)}"
        spectrum.set_xlabel(f"eigenvalues of the text bank\n{rank}", fontsize=8)
        for axes in (kept, angles, spectrum):
            axes.grid(alpha=0.3)
            axes.set_axisbelow(True)
            axes.tick_params(labelsize=8, which="both")
            axes.spines[["top", "right"]].set_visible(False)
        figure.suptitle("\n".join((self.student, *self.notes)), fontsize=8)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150)
        return buffer.getvalue()


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
