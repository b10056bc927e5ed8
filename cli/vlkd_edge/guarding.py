"""The ``guard`` verb: judge two files of stored predictions."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path

from rich.console import Console

from vlkd_bench.paired import judge
from vlkd_bench.predictions import read_pair
from vlkd_bench.report.machine_json import guard_json
from vlkd_bench.report.terminal import render_guard
from vlkd_bench.verdict import GuardBudget
from vlkd_runtime.atomic import write_bytes
from vlkd_runtime.errors import UnavailableError


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """What is to be judged.

    Attributes:
        reference: predictions of the model before compression.
        candidate: predictions of the model after it.
        budget: what may be lost.
        partial: leave out images that the candidate was not asked about, as after a verdict that came early.
        seed: of the bootstrap.
        png: where a picture goes; none if None.
    """

    reference: Path
    candidate: Path
    budget: GuardBudget
    partial: bool = False
    seed: int = 0
    png: Path | None = None


def run(request: Request, as_json: bool, console: Console) -> int:
    """Judge and print; the exit code is 0 for a pass and 1 for "fail" and "inconclusive".

    Raises:
        DataError: a file is missing or damaged, or the two do not belong together.
        UnavailableError: a picture was asked for and matplotlib is not installed.
    """
    if request.png is not None and importlib.util.find_spec("matplotlib") is None:
        msg = "A picture needs matplotlib, which is not installed: pip install 'vlkd-edge[build]'"
        raise UnavailableError(msg)
    reference, candidate, names = read_pair(request.reference, request.candidate)
    if request.partial:
        answered = {row.image for row in candidate}
        reference = tuple(row for row in reference if row.image in answered)
    verdict = judge(reference, candidate, request.budget, seed=request.seed, names=names)
    if request.png is not None:
        from vlkd_bench.report.guard_picture import draw_guard

        title = f"{request.candidate.stem} against {request.reference.stem}: {verdict.verdict}"
        write_bytes(request.png, draw_guard(verdict, title))
    if as_json:
        print(json.dumps(guard_json(verdict), allow_nan=False))
    else:
        console.print(render_guard(verdict))
        if request.png is not None:
            console.print(f"Picture  {request.png}", markup=False, highlight=False, soft_wrap=True)
    return 0 if verdict.passed else 1
