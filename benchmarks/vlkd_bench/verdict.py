"""The guard's values: what may be lost, what was found, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from vlkd_runtime.errors import ConfigError

from .discordance import DropBound

Verdict = Literal["pass", "fail", "inconclusive"]


@dataclass(frozen=True, slots=True)
class GuardBudget:
    """How much accuracy a candidate may lose.

    Attributes:
        worst_points: Most any single domain may drop, in points.
        mean_points: Most the mean over domains may drop, in points.
        confidence: One-sided confidence with which the drop must be within budget.
        candidates: How many candidates will be judged on these images, fixed before the first is.
    """

    worst_points: float = 1.0
    mean_points: float = 0.5
    confidence: float = 0.95
    candidates: int = 1

    def __post_init__(self) -> None:
        for name in ("worst_points", "mean_points"):
            value = getattr(self, name)
            if not 0 <= value <= 100:
                msg = f"Expected the guard's {name} between 0 and 100 points, found {value}."
                raise ConfigError(msg)
        if not 0.5 < self.confidence < 1:
            msg = (
                f"Expected the guard's confidence between 0.5 and 1, found {self.confidence}; usual is 0.95."
            )
            raise ConfigError(msg)
        if self.candidates < 1:
            msg = f"Expected the guard's candidates to be 1 or more, found {self.candidates}."
            raise ConfigError(msg)

    @property
    def upper_confidence(self) -> float:
        """Confidence of each upper bound, after sharing the risk among candidates."""
        return 1 - (1 - self.confidence) / self.candidates

    def lower_confidence(self, domains: int) -> float:
        """Confidence of each lower bound, after sharing the risk among the criteria as well."""
        criteria = domains + 1 if domains > 1 else 1
        return 1 - (1 - self.confidence) / self.candidates / criteria


@dataclass(frozen=True, slots=True)
class DomainDrop:
    """One domain's paired comparison; drops in points (0..100), negative is a gain.

    Attributes:
        n: Images, the same for both models.
        lost: Images only the reference got right.
        won: Images only the candidate got right.
        flips: Images on which the two predict different classes.
        drop: Reference minus candidate accuracy.
        lower: One-sided lower confidence bound of the drop.
        upper: One-sided upper confidence bound of the drop.
        p_value: Exact two-sided McNemar p-value for "no difference".
    """

    n: int
    lost: int
    won: int
    flips: int
    drop: float
    lower: float
    upper: float
    p_value: float


@dataclass(frozen=True, slots=True)
class PairedComparison:
    """Two models on the same images.

    Attributes:
        domains: Comparison per domain, by name.
        mean: The plain mean over domains.
        worst: Drop and bounds of `worst_domain`; its upper bound covers the worst of all domains.
        worst_domain: The domain with the highest upper bound, the one a verdict turns on.
        flip_rate: Share of all images with different predictions, in [0, 1].
        ece_change: Candidate minus reference expected calibration error.
        upper_confidence: One-sided confidence of the upper bounds.
        lower_confidence: One-sided confidence of the lower bounds.
        seed: Seed of the bootstrap.
    """

    domains: Mapping[str, DomainDrop]
    mean: DropBound
    worst: DropBound
    worst_domain: str
    flip_rate: float
    ece_change: float
    upper_confidence: float
    lower_confidence: float
    seed: int


@dataclass(frozen=True, slots=True)
class GuardVerdict:
    """Whether a candidate keeps its accuracy, with everything the answer rests on.

    Attributes:
        verdict: "pass", "fail" or "inconclusive"; only a pass may ship.
        domains: Comparison per domain, by name.
        mean: The mean over domains, in points.
        worst: The domain the verdict turns on, in points.
        worst_domain: Its name.
        flip_rate: Share of all images with different predictions, in [0, 1].
        ece_change: Candidate minus reference expected calibration error.
        images_needed: Images per domain that would probably turn "inconclusive" into "pass"; None for the
            other verdicts, and where more images would not help because the drop is over budget already.
        reason: The verdict in words.
        seed: Seed of the bootstrap.
        budget: What was allowed.
    """

    verdict: Verdict
    domains: Mapping[str, DomainDrop]
    mean: DropBound
    worst: DropBound
    worst_domain: str
    flip_rate: float
    ece_change: float
    images_needed: int | None
    reason: str
    seed: int
    budget: GuardBudget

    @property
    def passed(self) -> bool:
        """Whether the candidate may ship."""
        return self.verdict == "pass"
