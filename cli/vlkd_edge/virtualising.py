"""Virtual domains as a stage: what the guard judges on when no domain is held out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vlkd_bench.samples import Sample
from vlkd_compress import virtual
from vlkd_distill.data import content_key

from .config import Config, GuardConfig
from .progress import Live
from .stages import Workspace, versions


def check(config: Config) -> None:
    """Refuse a build that needs virtual domains and cannot draw them.

    Raises:
        UnavailableError: a package is missing.
    """
    if not config.data.held_out:
        virtual.require()


def samples(
    guard: GuardConfig, seed: int, workspace: Workspace, live: Live, tests: Sequence[Sample]
) -> tuple[Sample, ...]:
    """Draw virtual domains of the source domains' test images, unless that is done.

    Args:
        guard: the families and severities.
        seed: of what is drawn.
        workspace: where the stage lies.
        live: progress.
        tests: test images; nothing learns or calibrates on them.
    """

    def work(folder: Path) -> None:
        with live.task("drawing virtual domains", len(tests) * len(guard.virtual)) as advance:
            virtual.make(
                tests,
                folder / "images",
                families=guard.virtual,
                severities=guard.severities,
                seed=seed,
                progress=lambda _: advance(1),
            )

    inputs = {
        "images": content_key(tests),
        "families": list(guard.virtual),
        "severities": list(guard.severities),
        "seed": seed,
        **versions("imagecorruptions-imaug", "opencv-python", "numpy", "pillow", "vlkd-edge"),
    }
    stage = workspace.stage("virtual-domains", inputs, work)
    return virtual.listed(tests, stage.folder / "images", guard.virtual)


def contract(guard: GuardConfig, tests: int) -> str:
    """What the guard sees, as a sentence of the data contract."""
    kinds = ", ".join(guard.virtual)
    return (
        f"No domain is held out: the guard judges on virtual domains ({kinds}) drawn from the {tests} test images of "
        "the source domains, which training and calibration never open."
    )
