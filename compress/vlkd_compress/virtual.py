"""Domains for the guard when the user held none out: seeded corruptions and styles of images that nothing learned from.

Each image is taken once a *family*: a corruption of the family and a severity are drawn for it, or it is drawn in
another style. So a virtual domain is as large as the set it is made from, its images are as independent as those,
and every family stands for one kind of change rather than for one parameter of it.

Corruptions are those of ImageNet-C, from the package ``imagecorruptions-imaug``; glass blur, which is a hundred times
slower than the rest, is left out. Styles are OpenCV's non-photorealistic rendering, which that package
brings along. None of them is what `vlkd_distill` draws for training, so a student that learned from drawn styles meets
other ones here.

References:
    D. Hendrycks and T. Dietterich, "Benchmarking neural network robustness to common corruptions and
    perturbations", ICLR 2019.
    E. S. L. Gastal and M. M. Oliveira, "Domain transform for edge-aware image and video processing", ACM
    Transactions on Graphics 30 (2011), for the painting and the pencil sketch.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
from PIL import Image

from vlkd_bench.samples import Sample
from vlkd_runtime.atomic import write_bytes
from vlkd_runtime.decoding import decode
from vlkd_runtime.errors import ConfigError, UnavailableError

CORRUPTIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
        "blur": ("defocus_blur", "motion_blur", "zoom_blur"),
        "weather": ("snow", "frost", "fog", "brightness"),
        "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
    }
)
STYLES = ("sketch", "painting", "grey")
FAMILIES = (*CORRUPTIONS, *STYLES)
PREFIX = "virtual-"
SEVERITIES = (1, 2, 3)
SIDE = 224
"""Pixels of the shorter side: what ImageNet-C's severities are made for."""

Pixels = npt.NDArray[np.uint8]


def require() -> None:
    """Refuse to go on without the packages that draw.

    Raises:
        UnavailableError: one is missing or does not load.
    """
    try:
        import cv2
        import imagecorruptions
    except ImportError as error:
        msg = (
            f"No domain is held out, so the guard needs virtual domains, and what draws them does not load ({error}): "
            "pip install 'vlkd-edge[corruptions]', or name a domain in data.held_out."
        )
        raise UnavailableError(msg) from error
    del cv2, imagecorruptions


def make(
    samples: Sequence[Sample],
    folder: Path,
    *,
    families: Sequence[str] = FAMILIES,
    severities: Sequence[int] = SEVERITIES,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> tuple[Sample, ...]:
    """Draw virtual domains of some images into a folder; what an interrupted call has drawn is kept.

    Args:
        samples: what to draw; images that neither training nor calibration sees.
        folder: where the pictures go, ``virtual-<family>/<image>.png``.
        families: which domains.
        severities: of the corruptions, 1 to 5, drawn evenly.
        seed: of what is drawn for which image; the result for an image depends on no other image.
        progress: called after each picture with the number done.

    Raises:
        ConfigError: an unknown family or an impossible severity.
        ImageError: an image cannot be decoded.
        UnavailableError: as `require`.
    """
    unknown = [name for name in families if name not in FAMILIES]
    if unknown or not families:
        msg = f"Expected virtual domains among {', '.join(FAMILIES)}, found {', '.join(unknown) or 'none'}."
        raise ConfigError(msg)
    if not severities or not set(severities) <= set(range(1, 6)):
        msg = f"Expected severities of virtual domains from 1 to 5, found {list(severities)}."
        raise ConfigError(msg)
    require()
    made = listed(samples, folder, families)
    for index, (sample, original) in enumerate(
        zip(made, [sample for _ in families for sample in samples], strict=True), start=1
    ):
        if not sample.path.exists():
            family = sample.domain.removeprefix(PREFIX)
            pixels = draw(_fitted(original.path), family, severities, _seed(seed, family, original.image))
            sample.path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(sample.path, _png(pixels))
        if progress is not None:
            progress(index)
    return made


def listed(samples: Sequence[Sample], folder: Path, families: Sequence[str]) -> tuple[Sample, ...]:
    """Return the samples that `make` draws, one family after another, without drawing."""
    return tuple(
        Sample(
            path=folder / f"{PREFIX}{family}" / f"{sample.image}.png",
            image=f"{PREFIX}{family}/{sample.image}",
            domain=f"{PREFIX}{family}",
            label=sample.label,
            source=sample.image,
        )
        for family in families
        for sample in samples
    )


def draw(image: Pixels, family: str, severities: Sequence[int], seed: int) -> Pixels:
    """Draw one view of an image ``(H, W, 3)``; the same seed gives the same view."""
    if family in STYLES:
        return _style(image, family)
    import imagecorruptions

    rng = np.random.default_rng(seed)
    name = str(rng.choice(CORRUPTIONS[family]))
    severity = int(rng.choice(np.asarray(severities)))
    more = {"seed": seed} if name == "impulse_noise" else {}
    # The package draws from numpy's global state, which belongs to others.
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # divisions by the zero contrast of a flat picture
            drawn = imagecorruptions.corrupt(image, severity=severity, corruption_name=name, **more)
    finally:
        np.random.set_state(before)
    return np.ascontiguousarray(drawn, dtype=np.uint8)


def _style(image: Pixels, family: str) -> Pixels:
    import cv2

    blue_first = np.ascontiguousarray(image[..., ::-1])
    if family == "sketch":
        lines = cv2.pencilSketch(blue_first, sigma_s=60, sigma_r=0.07, shade_factor=0.05)[0]
        return np.ascontiguousarray(np.repeat(lines[..., None], 3, axis=2), dtype=np.uint8)
    if family == "painting":
        painted = cv2.stylization(blue_first, sigma_s=60, sigma_r=0.45)
        return np.ascontiguousarray(painted[..., ::-1], dtype=np.uint8)
    grey = np.asarray(Image.fromarray(image).convert("L"))
    return np.ascontiguousarray(np.repeat(grey[..., None], 3, axis=2))


def _fitted(path: Path) -> Pixels:
    """Decode an image as the device does and bring its shorter side to `SIDE` pixels."""
    image = decode(path)
    factor = SIDE / min(image.size)
    size = tuple(max(SIDE, round(length * factor)) for length in image.size)
    return np.asarray(image.resize((size[0], size[1]), Image.Resampling.BICUBIC), dtype=np.uint8)


def _png(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _seed(seed: int, family: str, image: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}\0{family}\0{image}".encode()).digest()[:4], "big")
