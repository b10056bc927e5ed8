"""Which images set the scales of a build: spread evenly, or chosen to cover the teacher's space, styles included."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vlkd_bench.samples import Sample
from vlkd_compress.calibration import select_by_coverage, select_calibration
from vlkd_distill.data import content_key
from vlkd_runtime.atomic import write_bytes, write_text

from .config import Config
from .progress import Live
from .stages import Workspace, versions
from .trainingdata import style_renderer

STYLED_IMAGES = 240
"""How many train images are drawn, each in one style: a few times what a calibration takes in all."""
SIDE = 224
STYLES = ("pencil", "edges", "poster", "grey", "paint", "palette")

Embed = Callable[[Sequence[Sample]], npt.NDArray[np.float32]]


def choose(
    config: Config, workspace: Workspace, live: Live, samples: Sequence[Sample], teacher: str, embed: Embed
) -> tuple[Sample, ...]:
    """Choose the images that set the scales.

    Args:
        config: how and how many.
        workspace: where stages lie.
        live: progress.
        samples: train images of the source domains.
        teacher: its fingerprint.
        embed: its embeddings of some images.

    Raises:
        CalibrationError: as `vlkd_compress.calibration.select_calibration`.
    """
    settings, seed, held_out = config.compress, config.distill.seed, config.data.held_out
    count = settings.calibration_images
    if settings.calibration == "even":
        return select_calibration(samples, count, seed=seed, forbidden_domains=held_out)
    if settings.calibration == "styles":
        samples = (*samples, *style_views(workspace, live, samples, seed=seed, held_out=held_out))

    def work(folder: Path) -> None:
        chosen = select_by_coverage(samples, embed(samples), count, seed=seed, forbidden_domains=held_out)
        write_text(folder / "images.json", json.dumps([sample.image for sample in chosen]))

    inputs = {"images": content_key(samples), "teacher": teacher, "count": count, "seed": seed}
    stage = workspace.stage("calibration", inputs | versions("vlkd-edge"), work)
    by_name = {sample.image: sample for sample in samples}
    return tuple(by_name[image] for image in json.loads((stage.folder / "images.json").read_text()))


def style_views(
    workspace: Workspace, live: Live, samples: Sequence[Sample], *, seed: int, held_out: Sequence[str]
) -> tuple[Sample, ...]:
    """Draw some train images in other styles; no further data are needed for it.

    Args:
        workspace: where the stage lies.
        live: progress.
        samples: train images of the source domains.
        seed: of the choice of images.
        held_out: domains they may not be of.
    """
    chosen = select_calibration(samples, STYLED_IMAGES, seed=seed, forbidden_domains=held_out)

    def work(folder: Path) -> None:
        with live.task("drawing style views", len(chosen)) as advance:
            for number, (sample, style) in enumerate(_drawn(chosen)):
                write_bytes(folder / f"{number:04}.png", _view(sample, style))
                advance(1)

    inputs = {"images": content_key(chosen), "styles": list(STYLES), "renderer": style_renderer()}
    stage = workspace.stage("style-views", inputs | versions("torch", "pillow"), work)
    return tuple(
        Sample(
            path=stage.folder / f"{number:04}.png",
            image=f"{sample.image}/{style}",
            domain=sample.domain,
            label=sample.label,
            source=sample.image,
        )
        for number, (sample, style) in enumerate(_drawn(chosen))
    )


def _drawn(chosen: Sequence[Sample]) -> list[tuple[Sample, str]]:
    return [(sample, STYLES[index % len(STYLES)]) for index, sample in enumerate(chosen)]


def _view(sample: Sample, style: str) -> bytes:
    import torch
    from PIL import Image

    from vlkd_distill.styled import view
    from vlkd_runtime.preprocess import PreprocessSpec, prepare

    pixels = prepare(sample.path, PreprocessSpec(SIDE, SIDE))
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255.0
    with torch.inference_mode():
        made = view(image, style, sample.image.encode())
    levels = (255.0 * made.clamp(0, 1)).round().to(torch.uint8).permute(1, 2, 0).contiguous()
    buffer = io.BytesIO()
    Image.fromarray(levels.numpy()).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
