"""How numbers and outcomes are put into words, the same in every renderer."""

from __future__ import annotations

from dataclasses import dataclass

from ..verdict import GuardVerdict
from .values import BuildReport, ModelAccuracy, ModelKey

DASH = "–"
ROLES: dict[ModelKey, str] = {
    "teacher": "teacher",
    "erm": "ERM",
    "student": "student",
    "shipped": "shipped",
}
_JOINERS = "\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"

# What each column means; shown beside the tables.
ACCURACY_TERMS = {
    "teacher, student, shipped": "the model learned from, the float network it taught, and what is in the bundle",
    "accuracy": "share of images whose first answer is the true class, per domain",
    "interval": "Wilson's 95 % interval; with few images it is wide, and should be",
    "ERM": "the same student trained plainly on the labels, without the teacher",
    "held out": "domain that training, calibration and checkpoint choice never saw; the guard alone did",
    "mean, worst": "plain mean over domains and the lowest domain, so that large domains hide nothing",
    "ECE": "expected calibration error, 15 bins: how far stated probabilities are from the share right",
}
GUARD_TERMS = {
    "images": "images that both models answered; fewer than there are where the answer was clear early",
    "drop": "reference minus candidate accuracy on the same images, in points; negative is a gain",
    "lower, upper bound": "one-sided confidence bounds of the drop; a pass needs the upper one within budget",
    "budget": "what may be lost, in points; without one a row is shown, not judged",
    "lost, won": "images only the reference, or only the candidate, got right",
    "flips": "images on which the two predict different classes; the row bounds their share",
    "calibration error": "growth of ECE, in points",
    "rejection of unknowns": "drop of the AUROC with which images of absent classes are told apart, in points",
    "p": "exact two-sided McNemar p-value for no difference; shown, not judged by",
}
LATENCY_TERMS = {
    "p50 to p99": "half, 90 %, 95 % and 99 % of calls are at most this long; p90 needs 100 calls, p95 200, p99 1000",
    "interval": "below a percentile: its 95 % interval, by order statistics",
    "fastest, slowest": "the shortest and the longest timed call; no outlier is removed",
    "spread": "standard deviation over mean; above 2.5 % the machine was not quiet",
    "calls": "timed calls, after warming up until the time settled",
}
CANDIDATE_TERMS = {
    "verdict": "the guard's: a pass, a fail, or too few images to tell",
    "worst drop": "observed drop of the domain the verdict turned on, in points",
    "upper bound": "its one-sided upper confidence bound, which must be within budget",
    "time": "median of calls in turns with the float graph; a dash where the target's engine does not run",
    "speed": "how many times the float graph's speed that is, with its 95 % interval",
    "size": "of the model file",
}
CLASS_TERMS = {
    "cosine": "between the two class vectors: 1 is the same direction, 0 none in common",
    "confused": "test images of the two classes that the shipped model took for the other",
}
FLIP_TERMS = {
    "lost": "only the float model is right; these come first, the surest wrong answers before the others",
    "won": "only the shipped model is right",
    "other": "both are wrong, in different ways",
}
HISTORY_TERMS = {
    "run": "number in the pictures above, oldest first",
    "p50": "median latency of a call on this machine",
    "mean": "plain mean of accuracy over the domains that count",
    "size": "of the bundle",
    "note": "why it was accepted and what was accepted as worse, or how the run ended",
}
STAGE_TERMS = {"time": "as long as the work took; a hollow bar was found done by an earlier build"}


@dataclass(frozen=True, slots=True)
class Fact:
    """One headline number: what it is, its value, and what to know about it."""

    name: str
    value: str
    note: str


def plain(text: str) -> str:
    """Return foreign text without what could steer a terminal or a reader's eye.

    Control characters (escape sequences) and direction overrides become a replacement mark; the joiners that
    Persian, Indic scripts and emoji need stay.
    """
    return "".join(ch if ch.isprintable() or ch in _JOINERS else "\N{REPLACEMENT CHARACTER}" for ch in text)


def bound(text: str) -> str:
    """Return text whose percent signs do not part from their numbers at a line's end; for text that is plain."""
    return text.replace(" %", "\N{NO-BREAK SPACE}%")


def percent(share: float) -> str:
    """Return a share as a percentage with one decimal."""
    return f"{100 * share:.1f} %"


def points(value: float) -> str:
    """Return points with an explicit sign where they are negative, never "-0.00"."""
    return f"{value + 0.0 if abs(value) >= 0.005 else 0.0:.2f}".replace("-", "\N{MINUS SIGN}")


def milliseconds(value: float | None) -> str:
    """Return milliseconds with three significant digits, or a dash."""
    if value is None:
        return DASH
    return f"{value:.0f} ms" if value >= 100 else f"{value:#.3g} ms"


def milliseconds_between(interval: tuple[float, float] | None) -> str:
    """Return an interval in milliseconds with three significant digits, its unit left to what it stands below."""
    return "" if interval is None else "–".join(milliseconds(end).removesuffix(" ms") for end in interval)


def seconds(value: float) -> str:
    """Return a duration in the unit people would say it in."""
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def size(count: int) -> str:
    """Return bytes in decimal units."""
    if count < 1000:
        return f"{count} B"
    value = float(count)
    for unit in ("kB", "MB", "GB"):
        value /= 1000
        if value < 999.5 or unit == "GB":
            break
    return f"{value:.0f} {unit}" if value >= 100 else f"{value:#.3g} {unit}"


def p_value(value: float) -> str:
    """Return a p-value without false precision."""
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def budget(guard: GuardVerdict) -> str:
    """Return what the guard allowed; the mean's budget only where it was judged."""
    text = f"{points(guard.budget.worst_points)} per domain"
    return f"{text} and {points(guard.budget.mean_points)} on average" if len(guard.domains) > 1 else text


def headline(report: BuildReport) -> str:
    """Return the report's one sentence."""
    *first, last = report.held_out or ("held-out data",)
    where = f"{', '.join(first)} and {last}" if first else last
    if report.guard is not None and report.guard.comparison.virtual:
        where = "virtual domains"
    if report.preflight.verdict == "fail":
        return f"{report.preflight.engine} refuses the graph; the bundle must not ship"
    if report.guard is None:
        return "No guard ran; nothing is known about what compression cost"
    return {
        "pass": f"Accuracy on {where} stays within budget",
        "fail": f"Accuracy on {where} drops beyond budget",
        "inconclusive": f"Too few images to tell whether accuracy on {where} stays within budget",
    }[report.guard.verdict]


def facts(report: BuildReport) -> tuple[Fact, ...]:
    """Return the numbers to read first."""
    result = []
    shipped = report.model("shipped")
    if shipped is not None:
        mean, _ = over_domains(report, shipped)
        held_out = ", ".join(report.held_out) or "all domains"
        result.append(Fact("Shipped accuracy", percent(mean), f"{held_out}; {shipped.measured_on}"))
    if report.guard is not None:
        note = f"{report.guard.worst_domain}, upper bound; budget {points(report.budget.worst_points)}"
        result.append(Fact("Worst drop at most", f"{points(report.guard.worst.upper)} points", note))
    if report.latency:
        row = report.latency[0]
        tail = f"p99 {milliseconds(row.stats.p99_ms)}; " if row.stats.p99_ms is not None else ""
        result.append(Fact("Latency, median", milliseconds(row.stats.p50_ms), tail + row.label))
    result.append(
        Fact("Bundle", size(report.size_bytes) if report.bundle else "none", f"for {report.target}")
    )
    result.append(Fact("Preflight", report.preflight.verdict, report.preflight.engine))
    return tuple(result)


def over_domains(report: BuildReport, model: ModelAccuracy) -> tuple[float, float]:
    """Return mean and worst accuracy over the held-out domains it was measured on, or over all."""
    held_out = [name for name in report.held_out if name in model.summary.domains]
    return model.summary.only(held_out) if held_out else (model.summary.mean, model.summary.worst)


def bundle(report: BuildReport) -> str:
    """Say where the bundle is and how large, or that there is none."""
    return f"{report.bundle}, {size(report.size_bytes)}" if report.bundle else "none was written"
