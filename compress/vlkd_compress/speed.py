"""Races a candidate against the float graph: both take turns in one run, so that a busy machine slows both.

Letters used in shapes: H and W pixels.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vlkd_bench.latency import percentile, percentile_interval
from vlkd_runtime.engines import open_engine

WARMUP = 5
LEAST_ROUNDS, MOST_ROUNDS = 30, 400


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast a candidate is beside the float graph.

    Attributes:
        engine: what ran both.
        threads: with how many threads.
        rounds: how many pairs of calls.
        float_ms: median of the float graph's calls.
        candidate_ms: median of the candidate's calls.
        ratio: median over rounds of float time by candidate time; above 1 the candidate is faster.
        ratio_low: lower end of that median's 95 % interval.
        ratio_high: upper end.
    """

    engine: str
    threads: int
    rounds: int
    float_ms: float
    candidate_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float

    @property
    def slower(self) -> bool:
        """Whether the candidate loses against the float graph."""
        return self.ratio < 1.0

    def describe(self) -> str:
        """The figures in words."""
        return (
            f"{self.ratio:.2f} times the float graph's speed (95 % interval {self.ratio_low:.2f} to "
            f"{self.ratio_high:.2f}; {self.candidate_ms:.2f} against {self.float_ms:.2f} ms, {self.rounds} rounds "
            f"in turns, {self.engine}, {self.threads} thread{'s' * (self.threads > 1)})"
        )


def race(
    floating: Path,
    candidate: Path,
    image: npt.NDArray[np.uint8],
    *,
    engine: str = "ort-cpu",
    threads: int = 1,
    seconds: float = 2.0,
) -> Speed:
    """Time one call of each graph in turn until there are enough rounds.

    Args:
        floating: the float graph.
        candidate: the graph to compare.
        image: ``(1, H, W, 3)`` uint8.
        engine: which engine of the runtime.
        threads: its number of threads.
        seconds: how long to go on, within 30 to 400 rounds.
    """
    first = open_engine(floating, engine=engine, threads=threads)
    try:
        second = open_engine(candidate, engine=engine, threads=threads)
        try:
            pairs = take_turns(lambda: first.run(image), lambda: second.run(image), seconds=seconds)
            info = second.info
        finally:
            second.close()
    finally:
        first.close()
    return summarise(pairs, f"{info.name} {info.version}", threads)


def take_turns(
    first: Callable[[], object],
    second: Callable[[], object],
    *,
    seconds: float,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> npt.NDArray[np.float64]:
    """Call two things in turn, the other one first in every second round; durations in ms, ``(rounds, 2)``."""
    for _ in range(WARMUP):
        first()
        second()
    calls = (first, second)
    rounds: list[tuple[float, float]] = []
    started = clock()
    while len(rounds) < LEAST_ROUNDS or (clock() - started < seconds * 1e9 and len(rounds) < MOST_ROUNDS):
        taken = [0.0, 0.0]
        for which in (0, 1) if len(rounds) % 2 == 0 else (1, 0):
            before = clock()
            calls[which]()
            taken[which] = (clock() - before) / 1e6
        rounds.append((taken[0], taken[1]))
    return np.asarray(rounds)


def summarise(pairs: npt.NDArray[np.float64], engine: str, threads: int) -> Speed:
    """Turn durations, ``(rounds, 2)``, into a comparison."""
    ratios = np.sort(pairs[:, 0] / pairs[:, 1])
    low, high = percentile_interval(ratios, 0.5)
    return Speed(
        engine=engine,
        threads=threads,
        rounds=len(pairs),
        float_ms=float(np.median(pairs[:, 0])),
        candidate_ms=float(np.median(pairs[:, 1])),
        ratio=percentile(ratios, 0.5),
        ratio_low=low,
        ratio_high=high,
    )
