"""What a build leaves of its guard: the predictions each verdict rests on, and the command that judges them again."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlkd_bench.predictions import PredictionRow, write_predictions
from vlkd_bench.report.machine_json import guard_json
from vlkd_bench.verdict import GuardBudget
from vlkd_compress.guard import Trial
from vlkd_runtime.atomic import write_text

_OPTIONS = {
    "worst_points": "--budget-worst",
    "mean_points": "--budget-mean",
    "flip_points": "--budget-flips",
    "ece_points": "--budget-ece",
    "rejection_points": "--budget-rejection",
    "confidence": "--confidence",
    "share": "--share",
}


def write(
    folder: Path, reference: Sequence[PredictionRow], trials: Sequence[Trial], names: Sequence[str]
) -> None:
    """Write ``reference.jsonl``, ``<candidate>.jsonl`` and ``verdicts.json``, replacing an earlier build's.

    Args:
        folder: where they go.
        reference: the float graph's predictions.
        trials: every candidate that was judged.
        names: class names.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_predictions(folder / "reference.jsonl", reference, names)
    verdicts = []
    for trial in trials:
        write_predictions(folder / f"{trial.candidate.name}.jsonl", trial.rows, names)
        verdicts.append(_plain(trial))
    write_text(folder / "verdicts.json", json.dumps(verdicts, indent=1, allow_nan=False) + "\n")


def _plain(trial: Trial) -> dict[str, Any]:
    return {
        "candidate": trial.candidate.name,
        "steps": list(trial.candidate.steps),
        "answered": len(trial.rows),
        "available": trial.images,
        "saved": round(trial.saved, 4),
        "looks": [
            {"images": look.images, "share": look.share, "verdict": look.verdict} for look in trial.looks
        ],
        "command": command(trial.candidate.name, trial.verdict.budget, trial.verdict.seed),
        **guard_json(trial.verdict),
    }


def command(name: str, budget: GuardBudget, seed: int = 0) -> str:
    """Return what judges a candidate's stored predictions again, to be run in their folder."""
    words = ["vlkd-edge", "guard", "reference.jsonl", f"{name}.jsonl", "--partial", "--seed", str(seed)]
    for field, option in _OPTIONS.items():
        value = getattr(budget, field)
        if value is not None:
            words += [option, repr(value)]
    return shlex.join(words)
