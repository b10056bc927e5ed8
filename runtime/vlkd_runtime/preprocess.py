"""From any image to the exact pixels the network was measured on.

Every step is fixed to the bit given the decoded pixels (see "Preprocessing" in runtime/README.md), so that a
device, the desk and another implementation see the same uint8 values. Normalisation is inside the graph.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from .decoding import MAX_PIXELS, ImageSource, as_array, decode, decode_shared
from .errors import ConfigError, ImageError
from .strictjson import Fields

__all__ = ["MAX_PIXELS", "ImageSource", "PreprocessSpec", "decode", "prepare"]

_LARGEST_SIDE = 4096
_LARGEST_SCALE = 16
# What libjpeg's reduced inverse transforms divide by, the most saved first.
_DENOMINATORS = (8, 4, 2)


@dataclass(frozen=True, slots=True)
class PreprocessSpec:
    """How an image becomes the network's input.

    Attributes:
        height: Rows of the input, in pixels.
        width: Columns of the input, in pixels.
        resize: ``squash`` resizes to (height, width) and may change the aspect; ``crop`` keeps the aspect,
            resizes until the crop fits, and cuts the centre out.
        crop_fraction: Share of the resized image that the crop covers, for ``crop`` only.
        interpolation: Pillow's antialiased filter of that name.
        jpeg_scale: JPEG files are decoded at 1/2, 1/4 or 1/8 of their size, as far as this many times the resized
            size is left on both axes; 0 decodes them whole.
    """

    height: int
    width: int
    resize: Literal["squash", "crop"] = "squash"
    crop_fraction: float = 1.0
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    jpeg_scale: int = 0

    def __post_init__(self) -> None:
        problems: list[str] = []
        for name in ("height", "width"):
            size = getattr(self, name)
            if type(size) is not int or not 1 <= size <= _LARGEST_SIDE:
                problems.append(f"{name} must be an integer from 1 to {_LARGEST_SIDE}, found {size!r}")
        if self.resize not in ("squash", "crop"):
            problems.append(f"resize must be 'squash' or 'crop', found {self.resize!r}")
        if self.interpolation not in ("bilinear", "bicubic"):
            problems.append(f"interpolation must be 'bilinear' or 'bicubic', found {self.interpolation!r}")
        if not 0.1 <= self.crop_fraction <= 1.0:
            problems.append(f"crop_fraction must be from 0.1 to 1, found {self.crop_fraction!r}")
        elif self.resize == "squash" and self.crop_fraction != 1.0:
            problems.append(f"crop_fraction must be 1 with 'squash', found {self.crop_fraction!r}")
        if type(self.jpeg_scale) is not int or not 0 <= self.jpeg_scale <= _LARGEST_SCALE:
            problems.append(
                f"jpeg_scale must be an integer from 0 to {_LARGEST_SCALE}, found {self.jpeg_scale!r}"
            )
        if problems:
            msg = "preprocess: " + "; ".join(problems)
            raise ConfigError(msg)
        object.__setattr__(self, "crop_fraction", float(self.crop_fraction))

    def to_json(self) -> dict[str, str | int | float]:
        """Give the fields as a JSON object; ``jpeg_scale`` only where it is in use, as older readers refuse it."""
        fields: dict[str, str | int | float] = {
            "height": self.height,
            "width": self.width,
            "resize": self.resize,
            "crop_fraction": self.crop_fraction,
            "interpolation": self.interpolation,
        }
        return fields | ({"jpeg_scale": self.jpeg_scale} if self.jpeg_scale else {})

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> PreprocessSpec:
        """Read what `to_json` gave.

        Raises:
            ConfigError: A field is missing, unknown or impossible; all problems are listed.
        """
        problems: list[str] = []
        fields = Fields(value, "preprocess", problems)
        height = fields.integer("height", 1, _LARGEST_SIDE)
        width = fields.integer("width", 1, _LARGEST_SIDE)
        resize = fields.text("resize")
        crop_fraction = fields.number("crop_fraction", 0.1, 1.0)
        interpolation = fields.text("interpolation")
        reduced = "jpeg_scale" in fields.left()
        jpeg_scale = fields.integer("jpeg_scale", 0, _LARGEST_SCALE) if reduced else 0
        fields.finish()
        if problems:
            raise ConfigError("; ".join(problems))
        # The constructor refuses any other text.
        return cls(height, width, resize, crop_fraction, interpolation, jpeg_scale)  # type: ignore[arg-type]


_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def prepare(
    source: ImageSource, spec: PreprocessSpec, *, max_pixels: int = MAX_PIXELS
) -> npt.NDArray[np.uint8]:
    """Decode an image and bring it to the network's size.

    Args:
        source: A path, a Pillow image, or a uint8 array: (H, W), (H, W, 1), (H, W, 3) RGB, (H, W, 4) RGBA. A JPEG
            that Pillow has opened and not yet decoded counts as a file, and stays open.
        spec: The sizes and the way of resizing.
        max_pixels: The largest image to decode, against decompression bombs; of a JPEG, its whole size counts.

    Returns:
        A new (H, W, 3) uint8 array, RGB.

    Raises:
        ImageError: The source is no image that can be read whole; the message names it.
    """
    if not isinstance(source, np.ndarray) and hasattr(source, "__dlpack__"):
        lent = as_array(source)
        source = source if lent is None else lent
    if (
        isinstance(source, np.ndarray)
        and source.dtype == np.uint8
        and source.shape == (spec.height, spec.width, 3)
        and spec.crop_fraction == 1.0
    ):
        # Already the right size: Pillow's resize would return a copy, too.
        return np.array(source, order="C")
    image = decode_shared(
        source,
        max_pixels=max_pixels,
        denominator=(lambda width, height: jpeg_denominator(width, height, spec))
        if spec.jpeg_scale
        else None,
    )
    width, height = resized_size(image.width, image.height, spec)
    # Between the passes the image has its old height and its new width.
    if max(width * height, width * image.height) > max(max_pixels, spec.width * spec.height):
        msg = (
            f"{_describe(source)}: {image.width}x{image.height} is too long and thin: resizing it takes more than "
            f"the {max_pixels} pixels allowed; crop it first"
        )
        raise ImageError(msg)
    # Columns first, then rows: in one call, Pillow 13 swaps the passes where that is faster, and older ones
    # do not, so that desk and device would see different pixels (python-pillow/Pillow#9549).
    image = image.resize((width, image.height), _FILTERS[spec.interpolation])
    image = image.resize((width, height), _FILTERS[spec.interpolation])
    left, top = (width - spec.width) // 2, (height - spec.height) // 2
    if (left, top) != (0, 0) or image.size != (spec.width, spec.height):
        image = image.crop((left, top, left + spec.width, top + spec.height))
    return np.array(image, dtype=np.uint8)


def resized_size(width: int, height: int, spec: PreprocessSpec) -> tuple[int, int]:
    """Give the size, as (width, height), an image has after resizing and before the crop."""
    if spec.resize == "squash":
        return spec.width, spec.height
    least_width = math.floor(spec.width / spec.crop_fraction)
    least_height = math.floor(spec.height / spec.crop_fraction)
    if least_height * width >= least_width * height:
        return width * least_height // height, least_height
    return least_width, height * least_width // width


def jpeg_denominator(width: int, height: int, spec: PreprocessSpec) -> int:
    """Give what the sides of an upright JPEG of this size are divided by in decoding: 1, 2, 4 or 8."""
    if not spec.jpeg_scale:
        return 1
    least_width, least_height = (spec.jpeg_scale * side for side in resized_size(width, height, spec))
    fitting = (by for by in _DENOMINATORS if by * least_width <= width and by * least_height <= height)
    return next(fitting, 1)


def _describe(source: ImageSource) -> str:
    if isinstance(source, np.ndarray):
        return f"array {source.shape}"
    return "image" if isinstance(source, Image.Image) else str(source)
