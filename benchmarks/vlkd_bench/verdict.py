"""The guard's values: what may be lost, what was found, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from vlkd_runtime.errors import ConfigError

from .discordance import DropBound

Verdict = Literal["pass", "fail", "inconclusive"]


@dataclass(frozen=True, slots=True)
class GuardBudget:
    """How much a candidate may lose. Points are hundredths: 1.0 is one image in a hundred.

    Attributes:
        worst_points: Most any single domain's accuracy may drop.
        mean_points: Most the mean accuracy over domains may drop.
        flip_points: Most images that may get another answer, right or wrong; None shows it without judging.
        ece_points: Most the expected calibration error may grow; None shows it without judging.
        rejection_points: Most the AUROC of telling known from absent classes may drop; None shows it
            without judging.
        confidence: One-sided confidence with which everything judged must be within budget.
        share: Share of the risk, 1 - confidence, that this judgement may spend; see `spending`.
    """

    worst_points: float = 1.0
    mean_points: float = 0.5
    flip_points: float | None = None
    ece_points: float | None = None
    rejection_points: float | None = None
    confidence: float = 0.95
    share: float = 1.0

    def __post_init__(self) -> None:
        for name in ("worst_points", "mean_points", "flip_points", "ece_points", "rejection_points"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 100:
                msg = f"Expected the guard's {name} between 0 and 100 points, found {value}."
                raise ConfigError(msg)
        if not 0.5 < self.confidence < 1:
            msg = (
                f"Expected the guard's confidence between 0.5 and 1, found {self.confidence}; usual is 0.95."
            )
            raise ConfigError(msg)
        if not 0 < self.share <= 1:
            msg = f"Expected the guard's share of the risk above 0 and at most 1, found {self.share}."
            raise ConfigError(msg)

    @property
    def risk(self) -> float:
        """Probability of a false pass that this judgement may spend."""
        return (1 - self.confidence) * self.share

    @property
    def upper_confidence(self) -> float:
        """Confidence of each upper bound."""
        return 1 - self.risk

    def criteria(self, domains: int) -> int:
        """How many drops are judged on that many domains: each is one more chance for a false fail."""
        extra = (self.flip_points, self.ece_points, self.rejection_points)
        return domains + (domains > 1) + sum(points is not None for points in extra)

    def lower_confidence(self, domains: int) -> float:
        """Confidence of each lower bound, the risk shared among the criteria as well."""
        return 1 - self.risk / self.criteria(domains)


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
class Criterion:
    """One number the guard looks at.

    Attributes:
        label: Its name in tables: "sketch", "mean".
        claim: What it says, as the beginning of a sentence: "sketch drops", "the mean over domains drops".
        bound: Its value with bounds, in points; higher is worse.
        budget: What is allowed; None if it is shown without being judged.
        images: Images it rests on.
    """

    label: str
    claim: str
    bound: DropBound
    budget: float | None
    images: int

    def over(self, which: Literal["drop", "lower", "upper"], slack: float = 1e-9) -> bool:
        """Whether the value or one of its bounds exceeds the budget; a negative slack counts reaching it."""
        return self.budget is not None and getattr(self.bound, which) > self.budget + slack


@dataclass(frozen=True, slots=True)
class PairedComparison:
    """Two models on the same images.

    Attributes:
        domains: Comparison per domain, by name.
        mean: The plain mean over domains.
        worst: Drop and bounds of `worst_domain`; its upper bound covers the worst of all domains.
        worst_domain: The domain with the highest upper bound, the one a verdict turns on.
        flip_rate: Share of all images with different predictions, in [0, 1].
        flips: The same in points, with bounds.
        ece_change: Candidate minus reference expected calibration error, in [-1, 1]; NaN without probabilities.
        ece: The same in points, with bounds; None without probabilities.
        rejection: Drop of the AUROC of telling known from absent classes, in points with bounds; None without
            images of absent classes.
        unknowns: Images of absent classes.
        virtual: Whether the domains are views made from other images.
        upper_confidence: One-sided confidence of the upper bounds.
        lower_confidence: One-sided confidence of the lower bounds.
        seed: Seed of the bootstrap.
    """

    domains: Mapping[str, DomainDrop]
    mean: DropBound
    worst: DropBound
    worst_domain: str
    flip_rate: float
    flips: DropBound
    ece: DropBound | None
    rejection: DropBound | None
    unknowns: int
    virtual: bool
    upper_confidence: float
    lower_confidence: float
    seed: int

    @property
    def ece_change(self) -> float:
        """Candidate minus reference expected calibration error, in [-1, 1]; NaN without probabilities."""
        return math.nan if self.ece is None else self.ece.drop / 100

    @property
    def images(self) -> int:
        """Images of known classes, over all domains."""
        return sum(item.n for item in self.domains.values())


@dataclass(frozen=True, slots=True)
class GuardVerdict:
    """Whether a candidate keeps its accuracy, with everything the answer rests on.

    Attributes:
        verdict: "pass", "fail" or "inconclusive"; only a pass may ship.
        comparison: The numbers.
        criteria: What was judged or shown, in the order of the budget.
        images_needed: Images per domain that would probably turn "inconclusive" into a decision; None for the other
            verdicts, and where no practical number would.
        reason: The verdict in words.
        budget: What was allowed.
    """

    verdict: Verdict
    comparison: PairedComparison
    criteria: tuple[Criterion, ...]
    images_needed: int | None
    reason: str
    budget: GuardBudget

    @property
    def passed(self) -> bool:
        """Whether the candidate may ship."""
        return self.verdict == "pass"

    @property
    def domains(self) -> Mapping[str, DomainDrop]:
        """Comparison per domain, by name."""
        return self.comparison.domains

    @property
    def mean(self) -> DropBound:
        """The mean over domains, in points."""
        return self.comparison.mean

    @property
    def worst(self) -> DropBound:
        """The domain the verdict turns on, in points."""
        return self.comparison.worst

    @property
    def worst_domain(self) -> str:
        """Its name."""
        return self.comparison.worst_domain

    @property
    def flip_rate(self) -> float:
        """Share of all images with different predictions, in [0, 1]."""
        return self.comparison.flip_rate

    @property
    def ece_change(self) -> float:
        """Candidate minus reference expected calibration error, in [-1, 1]."""
        return self.comparison.ece_change

    @property
    def seed(self) -> int:
        """Seed of the bootstrap."""
        return self.comparison.seed
