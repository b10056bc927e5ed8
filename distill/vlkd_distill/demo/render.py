"""From a scene to pixels: one drawing function for each style."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from PIL import Image

from vlkd_runtime.errors import ConfigError

from .scene import CLASSES, STYLES, Scene, sample_scene
from .styles import cartoon, neon, painting, photo, sketch

_DRAW: Mapping[str, Callable[[Scene, int], Image.Image]] = MappingProxyType(
    {
        "photo": photo.draw,
        "painting": painting.draw,
        "cartoon": cartoon.draw,
        "sketch": sketch.draw,
        "neon": neon.draw,
    }
)
_SMALLEST, _LARGEST = 16, 2048


def require_size(size: int) -> None:
    """Refuse a picture size that cannot be meant.

    Raises:
        ConfigError: `size` is outside 16..2048.
    """
    if not _SMALLEST <= size <= _LARGEST:
        msg = (
            f"Expected a picture size of {_SMALLEST} to {_LARGEST} pixels, found {size}: choose one between."
        )
        raise ConfigError(msg)


def render(scene: Scene, size: int = 96) -> Image.Image:
    """Draw a scene as an RGB picture of `size` by `size` pixels; the same scene gives the same pixels.

    Raises:
        ConfigError: `size` is outside 16..2048.
    """
    require_size(size)
    return _DRAW[scene.style](scene, size)


def contact_sheet(seed: int = 0, size: int = 96, columns_per_style: int = 1) -> Image.Image:
    """Draw every class (rows) in every style (columns) on one sheet, to look at the demo world.

    Args:
        seed: Which world.
        size: Side of one picture in pixels.
        columns_per_style: How many examples of each class and style.
    """
    gap = max(2, size // 24)
    pitch = size + gap
    columns = len(STYLES) * columns_per_style
    sheet = Image.new("RGB", (columns * pitch + gap, len(CLASSES) * pitch + gap), (250, 250, 250))
    for row, class_name in enumerate(CLASSES):
        for column in range(columns):
            style, index = STYLES[column // columns_per_style], column % columns_per_style
            picture = render(sample_scene(seed, style, class_name, index), size)
            sheet.paste(picture, (gap + column * pitch, gap + row * pitch))
    return sheet
