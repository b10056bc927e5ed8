"""Trains the demo world's tiny CLIP, or checks one: `python -m vlkd_distill.demo.train_teacher --help`.

Training renders its own scenes, of worlds no one else's seed reaches, and takes about half an hour on two
cores. It can be interrupted: the same command takes it up after the last whole epoch.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import open_clip
import timm
import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from vlkd_bench.machine import read_machine
from vlkd_runtime.atomic import write_text
from vlkd_runtime.errors import VlkdError

from .scene import CLASSES, STYLES
from .teacher_check import TEMPLATES, mean, zero_shot
from .teacher_data import render_all, training_scenes
from .teacher_model import save_model
from .teacher_training import Settings, Trainer, fast_bfloat16

_CHECKED_PER_CLASS = 50


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    console = Console()
    # open_clip warns that a network about to be trained has no weights yet.
    logging.getLogger().setLevel(logging.ERROR)
    try:
        if options.evaluate is not None:
            _print_accuracy(console, zero_shot(options.evaluate, per_class=options.check))
        else:
            torch.set_num_threads(options.processes)
            settings = Settings(options.seed, options.per_class, options.epochs, options.batch)
            train(options.out, settings, options.processes, options.check, console)
    except VlkdError as error:
        Console(stderr=True).print(f"error: {error}", style="red", highlight=False)
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m vlkd_distill.demo.train_teacher", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, help="train, and write the teacher into this folder")
    what.add_argument(
        "--evaluate", type=Path, metavar="DIR", help="print the zero-shot table of the teacher in DIR"
    )
    usual = Settings()
    parser.add_argument("--epochs", type=int, default=usual.epochs)
    parser.add_argument("--per-class", type=int, default=usual.per_class, help="scenes per class and style")
    parser.add_argument("--batch", type=int, default=usual.batch)
    parser.add_argument("--seed", type=int, default=usual.seed)
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count() or 1, help="processes that render, threads that train"
    )
    parser.add_argument(
        "--check", type=int, default=_CHECKED_PER_CLASS, help="held-out scenes per class and style"
    )
    return parser


def train(out: Path, settings: Settings, processes: int, check: int, console: Console) -> Mapping[str, float]:
    """Render, train, write the weights and check them; returns the zero-shot accuracy per style."""
    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    # Moments of rarely used weights fade into subnormal numbers, which slow a CPU down several times.
    torch.set_flush_denormal(True)
    scenes = training_scenes(settings.seed, settings.per_class)
    pictures = out / f"pictures-{settings.seed}-{settings.per_class}.npy"
    with _bar(console) as bar:
        if not pictures.is_file():
            task = bar.add_task("render", total=len(scenes), note="")
            render_all(pictures, scenes, processes, lambda count: bar.advance(task, count))
        trainer = Trainer(out, settings, np.load(pictures, mmap_mode="r", allow_pickle=False), scenes)
        if trainer.resume():
            console.print(f"taken up after epoch {trainer.epoch}", highlight=False)
        _train_epochs(trainer, bar, console)
    save_model(out, trainer.ema, trainer.used_tokens)
    seconds = time.monotonic() - started
    accuracy = zero_shot(out, per_class=check)
    _print_accuracy(console, accuracy)
    write_text(
        out / "training.json", json.dumps(_record(settings, seconds, accuracy, check), indent=1) + "\n"
    )
    trainer.finish()
    pictures.unlink()
    return accuracy


def _train_epochs(trainer: Trainer, bar: Progress, console: Console) -> None:
    settings = trainer.settings
    per_epoch = trainer.steps_per_epoch * settings.batch
    task = bar.add_task(
        "train", total=per_epoch * settings.epochs, completed=per_epoch * trainer.epoch, note=""
    )
    while trainer.epoch < settings.epochs:
        since = time.monotonic()
        loss = trainer.run_epoch(lambda count, loss: bar.update(task, advance=count, note=f"loss {loss:.3f}"))
        rate = per_epoch / (time.monotonic() - since)
        console.print(
            f"epoch {trainer.epoch}/{settings.epochs} loss {loss:.4f}, {rate:.0f} images/s", highlight=False
        )


def _bar(console: Console) -> Progress:
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(
        TextColumn("{task.description}"), *columns, TextColumn("{task.fields[note]}"), console=console
    )


def _print_accuracy(console: Console, accuracy: Mapping[str, float]) -> None:
    table = Table(title="zero-shot on held-out scenes")
    table.add_column("style")
    table.add_column("top-1 %", justify="right")
    for style, value in accuracy.items():
        table.add_row(style, f"{100 * value:.1f}")
    table.add_row("mean", f"{100 * mean(accuracy):.1f}", style="bold")
    console.print(table)


def _record(
    settings: Settings, seconds: float, accuracy: Mapping[str, float], check: int
) -> dict[str, object]:
    """How the weights came to be, for the file beside them; names no host and no folder."""
    chosen = f"--seed {settings.seed} --epochs {settings.epochs} --per-class {settings.per_class}"
    machine = read_machine()
    return {
        "command": f"python -m vlkd_distill.demo.train_teacher --out DIR {chosen} --batch {settings.batch}",
        "seconds": round(seconds),
        "machine": f"{machine.cpu_model}, {machine.usable_cores} cores, {machine.os}",
        "arithmetic": "bfloat16 image tower" if fast_bfloat16() else "float32",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "open_clip": open_clip.__version__,
            "timm": timm.__version__,
        },
        "seed": settings.seed,
        "images": settings.per_class * len(CLASSES) * len(STYLES),
        "epochs": settings.epochs,
        "zero_shot": {style: round(value, 4) for style, value in accuracy.items()},
        "zero_shot_mean": round(mean(accuracy), 4),
        "zero_shot_images_per_style": check * len(CLASSES),
        "templates": list(TEMPLATES),
    }


if __name__ == "__main__":
    raise SystemExit(main())
