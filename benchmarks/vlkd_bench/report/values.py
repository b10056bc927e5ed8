"""The values a report is made of; every renderer shows the same ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ..accuracy import AccuracySummary
from ..latency import LatencyStats
from ..machine import Machine
from ..verdict import GuardBudget, GuardVerdict, Verdict
from .flips import DomainFlips
from .history import Point
from .similarity import ClassSimilarity

ModelKey = Literal["teacher", "erm", "student", "shipped"]
Outcome = Literal["pass", "fail", "inconclusive", "not judged"]


@dataclass(frozen=True, slots=True)
class ModelAccuracy:
    """One model's accuracy.

    Attributes:
        key: Its role: "teacher", "erm" (plain training), "student" (before compression) or "shipped".
        name: What it is, for people.
        measured_on: What was run, for example "torch" or "float ONNX through vlkd_runtime".
        summary: The numbers.
    """

    key: ModelKey
    name: str
    measured_on: str
    summary: AccuracySummary


@dataclass(frozen=True, slots=True)
class CandidateRow:
    """One compressed candidate the guard judged.

    Attributes:
        name: What it is called in messages.
        steps: What was done to it, in order.
        verdict: The guard's.
        worst_drop: Observed drop of the domain the verdict turned on, in points.
        worst_upper: Upper confidence bound of that drop, in points.
        p50_ms: Median latency of the bundle it became; None where it did not.
        size_bytes: Size of the model file.
        call_ms: Median of its calls in turns with the float graph; None where the target's engine does not run.
        speed: How many times the float graph's speed that is, with the ends of its 95 % interval.
    """

    name: str
    steps: tuple[str, ...]
    verdict: Verdict
    worst_drop: float
    worst_upper: float
    p50_ms: float | None
    size_bytes: int
    call_ms: float | None = None
    speed: tuple[float, float, float] | None = None


@dataclass(frozen=True, slots=True)
class RefusedRow:
    """A candidate that the guard never saw, and why."""

    name: str
    steps: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class FloatRow:
    """The graph before compression: its size, and the median of its calls where the candidates were timed beside it."""

    size_bytes: int
    call_ms: float | None


@dataclass(frozen=True, slots=True)
class PreflightRow:
    """Whether the device's own compiler accepts the graph; `engine` names it, `detail` says what it said."""

    verdict: Literal["pass", "fail", "not run"]
    engine: str
    detail: str


@dataclass(frozen=True, slots=True)
class LatencyRow:
    """One model's latency; `label` says where and how, for example "this CPU, 1 thread; not the Jetson"."""

    name: str
    stats: LatencyStats
    label: str


@dataclass(frozen=True, slots=True)
class StageRow:
    """One stage of the build: its wall time, and whether an earlier build's result was taken instead."""

    name: str
    seconds: float
    cached: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildReport:
    """Everything a build has to say for itself.

    Attributes:
        title: Headline.
        target: The device built for.
        dataset: The data it was built from.
        teacher: The teacher.
        student: The student.
        method: How it was distilled.
        held_out: Domains that training, calibration and the choice of a checkpoint never saw; the guard did.
        stand_ins: Sentences naming what stands in for the real thing; shown wherever numbers are.
        accuracy: Accuracy of the models, teacher first, shipped last.
        guard: The verdict on the shipped model, None if no guard ran.
        budget: What the guard allows.
        candidates: The candidates judged, in order.
        preflight: Whether the device's compiler accepts the graph.
        latency: Latency; the first row is the shipped model's.
        machine: Where all this was measured.
        stages: The build's stages in order.
        size_bytes: Size of the bundle.
        bundle: Where the bundle is.
        report: Where the HTML report is, "" if none was written.
        contract: The data contract, one sentence a stage: which domains, labels and images it saw.
        provenance: Versions, seeds and fingerprints, by name.
        command: The command that repeats the build.
        floating: The graph before compression, None where nothing was compressed.
        refused: Candidates that were refused before the guard saw them.
        flips: Images whose answer compression changed, by domain.
        classes: How near the class vectors lie to each other.
        history: Earlier builds of this folder and this one, oldest first.
    """

    title: str
    target: str
    dataset: str
    teacher: str
    student: str
    method: str
    held_out: tuple[str, ...]
    stand_ins: tuple[str, ...]
    accuracy: tuple[ModelAccuracy, ...]
    guard: GuardVerdict | None
    budget: GuardBudget
    candidates: tuple[CandidateRow, ...]
    preflight: PreflightRow
    latency: tuple[LatencyRow, ...]
    machine: Machine
    stages: tuple[StageRow, ...]
    size_bytes: int
    bundle: str
    report: str = ""
    contract: tuple[str, ...] = ()
    provenance: Mapping[str, str]
    command: str
    floating: FloatRow | None = None
    refused: tuple[RefusedRow, ...] = ()
    flips: tuple[DomainFlips, ...] = ()
    classes: ClassSimilarity | None = None
    history: tuple[Point, ...] = ()

    @property
    def outcome(self) -> Outcome:
        """The report in one word: a preflight that failed outweighs a guard that passed."""
        if self.preflight.verdict == "fail":
            return "fail"
        return "not judged" if self.guard is None else self.guard.verdict

    @property
    def domains(self) -> tuple[str, ...]:
        """All domains any model was measured on, held-out ones first, each group by name."""
        seen = {name for model in self.accuracy for name in model.summary.domains}
        held_out = [name for name in sorted(seen) if name in self.held_out]
        return (*held_out, *(name for name in sorted(seen) if name not in self.held_out))

    def model(self, key: ModelKey) -> ModelAccuracy | None:
        """Return the accuracy of the model in this role, if it was measured."""
        return next((model for model in self.accuracy if model.key == key), None)
