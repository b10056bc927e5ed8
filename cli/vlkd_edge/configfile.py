"""Reads ``vlkd.toml``: unknown keys are refused with the nearest known one, and all errors are told at once."""

from __future__ import annotations

import dataclasses
import operator
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlkd_bench.leaveout import BASELINE
from vlkd_compress.prune.settings import Goal, PruneSettings
from vlkd_distill.launched import launched
from vlkd_distill.synthspecs import SynthesisSettings
from vlkd_runtime.errors import ConfigError

from . import targets as devices
from .config import Config
from .parsing import overrides, parse, put, substitute

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEMO = Path(__file__).with_name("demo.toml")
"""The recipe of a build without a configuration."""


def load(path: Path | None, variables: Sequence[str] = (), settings: Sequence[str] = ()) -> Config:
    """Read a configuration.

    Args:
        path: a TOML file; every default when None.
        variables: ``name=value`` pairs that override the file's ``[vars]`` table.
        settings: ``section.key=value`` pairs that override anything; values are TOML, bare words are strings.

    Raises:
        ConfigError: names every problem found, not only the first.
    """
    table = _read(path) if path is not None else {}
    errors: list[str] = []
    declared = table.pop("vars", {})
    if not isinstance(declared, dict):
        errors.append(f"vars: expected a section, found {declared!r}.")
        declared = {}
    known = {str(key): str(value) for key, value in declared.items()}
    known |= overrides(variables, known, errors)
    table = substitute(table, known, errors, "")
    for setting in settings:
        put(table, setting, errors)
    config = parse(Config, table, "", errors)
    if config is not None:
        config = _with_launched(config, errors)
        errors += _check(config)
    if errors:
        where = str(path) if path is not None else "the command line"
        listed = "\n".join(f"  {error}" for error in errors)
        msg = f"{len(errors)} problem{'s' * (len(errors) > 1)} in {where}:\n{listed}"
        raise ConfigError(msg)
    assert config is not None
    return config


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        msg = f"Expected a configuration file at {path}, found nothing. Without --config the demo is built."
        raise ConfigError(msg) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        msg = f"Expected a TOML file at {path}: {error}"
        raise ConfigError(msg) from error


_RANGES: dict[str, tuple[float, float]] = {
    "data.shots": (0, 1_000_000),
    "data.demo_images": (20, 100_000),
    "data.demo_seed": (0, 999_999_999),  # the demo teacher learned from the seeds above
    "data.demo_held_out_images": (20, 100_000),
    "student.image_size": (32, 1024),
    "student.jpeg_scale": (0, 16),
    "distill.epochs": (1, 100_000),
    "distill.lr": (1e-8, 10),
    "distill.align_epochs": (0, 100_000),
    "distill.align_lr": (1e-8, 10),
    "distill.batch": (2, 65_536),
    "distill.weight_decay": (0, 10),
    "distill.image_weight": (0, 1),
    "distill.soft_weight": (0, 1),
    "distill.soft_temperature": (0.01, 100),
    "distill.prompt_weight": (0, 1000),
    "distill.embedding_weight": (0, 1000),
    "distill.text_temperature": (0.001, 10),
    "distill.nearest_texts": (1, 1_000_000),
    "distill.cls_weight": (0, 1000),
    "distill.distance_weight": (0, 1000),
    "distill.contrast_weight": (0, 1000),
    "distill.proximity_weight": (0, 1000),
    "distill.caption_weight": (0, 1000),
    "distill.divergence_weight": (0, 100_000),
    "distill.answers_weight": (0, 100_000),
    "distill.frozen_groups": (0, 1000),
    "distill.relation_weight": (0, 100_000),
    "distill.style_share": (0, 1),
    "distill.start_share": (0, 1),
    "distill.kept_back": (0.01, 0.5),
    "distill.judgements": (3, 100_000),
    "distill.seed": (0, 2**32 - 2),
    "distill.processes": (1, 256),
    "synthesis.images_per_class": (1, 1_000_000),
    "synthesis.prompts_per_class": (1, 1_000_000),
    "synthesis.seed": (0, 2**32 - 1),
    "synthesis.inversion.size": (16, 1024),
    "synthesis.inversion.steps": (1, 1_000_000),
    "synthesis.inversion.views": (1, 1024),
    "synthesis.inversion.batch": (1, 65_536),
    "synthesis.inversion.learning_rate": (1e-6, 10),
    "synthesis.inversion.decay": (0, 4),
    "synthesis.inversion.smoothness": (0, 1000),
    "synthesis.inversion.noise": (0, 1),
    "synthesis.diffusion.size": (0, 4096),
    "synthesis.diffusion.steps": (1, 1000),
    "synthesis.diffusion.strength": (0.01, 1),
    "synthesis.diffusion.guidance": (0, 100),
    "synthesis.diffusion.batch": (1, 1024),
    "compress.calibration_images": (32, 100_000),
    "compress.trials": (1, 1000),
    "compress.minutes": (0, 100_000),
    "compress.qat_epochs": (0, 1000),
    "compress.prune.epochs": (0, 100_000),
    "compress.prune.lr": (0, 10),
    "compress.prune.images": (1, 100_000),
    "compress.prune.rounds": (1, 1000),
    "compress.prune.round_to": (1, 1024),
    "compress.prune.least": (0, 1),
    "guard.worst_points": (0, 100),
    "guard.mean_points": (0, 100),
    "guard.flip_points": (0, 100),
    "guard.ece_points": (0, 100),
    "guard.rejection_points": (0, 100),
    "guard.confidence": (0.5, 0.9999),
    "bench.samples": (10, 10_000_000),
    "bench.threads": (1, 1024),
}


def _check(config: Config) -> list[str]:
    errors = []
    for key, (low, high) in _RANGES.items():
        value = operator.attrgetter(key)(config)
        if value is not None and not low <= value <= high:
            errors.append(f"{key}: expected {low:g} to {high:g}, found {value!r}.")
    if not config.name or not config.name.replace("-", "").replace("_", "").replace(".", "").isalnum():
        errors.append(f"name: expected letters, digits, '-', '_' and '.', found {config.name!r}.")
    if config.distill.method == BASELINE:
        errors.append(
            f"distill.method: expected a method that learns from the teacher, found '{BASELINE}', the baseline that "
            "every build trains beside it."
        )
    weights = ("cls_weight", "distance_weight", "contrast_weight", "proximity_weight", "caption_weight")
    if not any(getattr(config.distill, name) > 0 for name in weights):
        errors.append(
            f"distill: expected one of {', '.join(weights)} above 0, found none: vlm-ood needs a loss."
        )
    if config.distill.caption_weight > 0 and not config.data.captions:
        errors.append(
            "distill.caption_weight: expected a file of captions in data.captions, found none; name one, or set 0."
        )
    devices.from_tables(config.targets, errors)
    guard = config.guard
    if not guard.virtual or len(set(guard.virtual)) != len(guard.virtual):
        errors.append(f"guard.virtual: expected at least one, each once, found {list(guard.virtual)}.")
    if not guard.severities or not set(guard.severities) <= set(range(1, 6)):
        errors.append(f"guard.severities: expected numbers from 1 to 5, found {list(guard.severities)}.")
    if guard.rejection_points is not None and not config.data.unknown:
        errors.append(
            "guard.rejection_points: expected images of absent classes in data.unknown, found no folder."
        )
    errors += _check_processes(config)
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", config.distill.device):
        errors.append(
            f"distill.device: expected 'auto', 'cpu', 'cuda' or 'cuda:N', found '{config.distill.device}'."
        )
    candidates = config.compress.candidates
    if len(set(candidates)) != len(candidates):
        errors.append(f"compress.candidates: expected each once, found {list(candidates)}.")
    return errors + _check_pruning(config.compress.prune) + _check_synthesis(config.synthesis)


def _check_pruning(asked: PruneSettings) -> list[str]:
    errors = []
    if asked.target:
        try:
            Goal.parse(asked.target)
        except ConfigError as error:
            errors.append(f"compress.prune.target: {error}")
    steps = list(asked.steps)
    if not steps or steps != sorted(set(steps), reverse=True) or not 0 < steps[-1] <= steps[0] <= 1:
        errors.append(
            f"compress.prune.steps: expected parts of the cut above 0, falling from 1, found {steps}."
        )
    return errors


def _check_synthesis(asked: SynthesisSettings) -> list[str]:
    errors = []
    if asked.space == "token" and asked.rule != "single" and asked.synthesiser != "inversion":
        errors.append(
            f"synthesis.space: a prompt in token space has no words, and the synthesiser '{asked.synthesiser}' "
            "reads nothing else: expected 'sentence', or the synthesiser 'inversion'."
        )
    if asked.synthesiser == "diffusion" and not asked.diffusion.model:
        errors.append(
            "synthesis.diffusion.model: expected a diffusers folder or a hub id <owner>/<name>, found nothing."
        )
    return errors


def _with_launched(config: Config, errors: list[str]) -> Config:
    """The same configuration with as many processes as torchrun has started."""
    launch, asked = launched(), config.distill.processes
    if launch is None:
        return config
    if asked not in (1, launch.count):
        errors.append(
            f"distill.processes: expected {launch.count} or none, as torchrun has started so many, found {asked}."
        )
    return dataclasses.replace(config, distill=dataclasses.replace(config.distill, processes=launch.count))


def _check_processes(config: Config) -> list[str]:
    """What several processes cannot share, whatever the method; `planned` has what depends on it."""
    how = config.distill
    if how.processes == 1:
        return []
    errors = []
    if how.batch < how.processes:
        errors.append(f"distill.processes: expected at most the batch of {how.batch}, found {how.processes}.")
    if ":" in how.device:
        errors.append(
            f"distill.device: expected 'cuda', which gives each of {how.processes} processes a GPU of its own, found "
            f"'{how.device}', which is one for all."
        )
    if how.batch_norm == "train":
        errors.append(
            "distill.processes: expected 1 where distill.batch_norm = 'train', as batch statistics are of one "
            f"process's part of a batch, found {how.processes}. Use 'frozen', or one process."
        )
    return errors
