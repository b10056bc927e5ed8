"""One number of a baseline against the same number now, and how much worse it may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vlkd_runtime.errors import ConfigError

MetricVerdict = Literal["ok", "improvement", "regression", "inconclusive", "incomparable", "not judged"]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What counts as a regression.

    Attributes:
        relative: Relative floor of latencies; cold start and memory have twice this.
        latency_ms: Absolute floor of latencies.
        cold_start_ms: Absolute floor of the cold start.
        memory_bytes: Absolute floor of the peak memory.
        accuracy_points: Floor of a drop in accuracy.
        confidence: One-sided confidence of everything together: with no change, at most 1 - confidence of
            comparisons call a latency worse, and at most as many an accuracy.
    """

    relative: float = 0.05
    latency_ms: float = 0.01
    cold_start_ms: float = 20.0
    memory_bytes: float = 4e6
    accuracy_points: float = 0.5
    confidence: float = 0.95

    def __post_init__(self) -> None:
        for name in ("relative", "latency_ms", "cold_start_ms", "memory_bytes", "accuracy_points"):
            if getattr(self, name) < 0:
                msg = f"Expected the tolerance {name} to be 0 or more, found {getattr(self, name)}."
                raise ConfigError(msg)
        if not 0.5 < self.confidence < 1:
            msg = f"Expected a confidence between 0.5 and 1, found {self.confidence}; usual is 0.95."
            raise ConfigError(msg)


@dataclass(frozen=True, slots=True)
class Metric:
    """One number of the baseline against the same number now.

    Attributes:
        name: What it is, for example "latency call p50" or "accuracy sketch".
        unit: Of `baseline` and `now`: "ms", "MB", "J", or "share" for accuracies in [0, 1].
        baseline: The baseline's value; None where it has none.
        now: This run's value; None where it has none.
        change: Now over baseline for what is measured in time, memory or energy; for accuracies the
            difference now minus baseline, in points.
        interval: Confidence interval of `change`; None where there is none.
        verdict: What follows.
        reason: Why, in words.
    """

    name: str
    unit: str
    baseline: float | None
    now: float | None
    change: float | None
    interval: tuple[float, float] | None
    verdict: MetricVerdict
    reason: str
