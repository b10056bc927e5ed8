"""Drawing outlines into pixels: canvases three times too large, reduced for smooth edges, and noise fields.

Letters in shapes: S side of the finished picture in pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from .shapes.geometry import Outline, Part

Pixels = npt.NDArray[np.floating[Any]]
"""(S, S, 3) colours or an (S, S) field, 0..1."""

OVERSAMPLING = 3


class Canvas:
    """A picture under way at `OVERSAMPLING` times its size, addressed in picture coordinates (0..1).

    Args:
        size: Side of the finished picture in pixels.
        mode: "RGB" or "L".
        ground: What it is filled with at first.
    """

    def __init__(self, size: int, mode: str, ground: Image.Image | int | tuple[int, int, int]) -> None:
        self.side = size * OVERSAMPLING
        if isinstance(ground, Image.Image):
            self.image = ground.resize((self.side, self.side), Image.Resampling.BILINEAR)
        else:
            self.image = Image.new(mode, (self.side, self.side), ground)
        self._draw = ImageDraw.Draw(self.image)

    def fill(self, outline: Outline, ink: int | tuple[int, ...]) -> None:
        """Fill the area inside an outline."""
        self._draw.polygon((outline * self.side).ravel().tolist(), fill=ink)

    def stroke(self, outline: Outline, ink: int | tuple[int, ...], width: float, closed: bool) -> None:
        """Draw a line along an outline; `width` in picture coordinates."""
        pixels = outline * self.side
        if closed:
            pixels = np.concatenate([pixels, pixels[:1]])
        thick = max(1, round(width * self.side))
        self._draw.line(pixels.ravel().tolist(), fill=ink, width=thick)
        if thick >= 4:
            self._round_off(pixels, ink, thick, closed)

    def _round_off(self, pixels: Outline, ink: int | tuple[int, ...], thick: int, closed: bool) -> None:
        """Round the corners and ends that wide straight pieces leave open by more than about a pixel."""
        r = thick / 2 - 0.5
        steps = np.diff(pixels, axis=0)
        norms = np.maximum(np.hypot(steps[:, 0], steps[:, 1]), 1e-9)
        steps = steps / norms[:, None]
        following = np.roll(steps, -1, axis=0) if closed else steps[1:]
        ahead = steps if closed else steps[:-1]
        sharp = np.flatnonzero((ahead * following).sum(axis=1) < 1 - 2 / thick**2) + 1
        corners = [pixels[k] for k in sharp]
        if not closed:
            corners += [pixels[0], pixels[-1]]
        for x, y in corners:
            self._draw.ellipse((x - r, y - r, x + r, y + r), fill=ink)

    def part(self, part: Part, ink: int | tuple[int, ...]) -> None:
        """Draw a part the way it is meant: an area, or a line of its own width."""
        if part.stroke:
            self.stroke(part.outline, ink, part.stroke, part.closed)
        else:
            self.fill(part.outline, ink)

    def reduced(self) -> Image.Image:
        """The finished picture: each pixel the mean of `OVERSAMPLING` squared."""
        return self.image.reduce(OVERSAMPLING)

    def pixels(self) -> Pixels:
        """The finished picture as an array."""
        return to_pixels(self.reduced())


def to_pixels(image: Image.Image) -> Pixels:
    """An 8-bit picture as float32 0..1."""
    return np.asarray(image, dtype=np.float32) * np.float32(1 / 255)


def to_image(pixels: Pixels) -> Image.Image:
    """Float 0..1 as an 8-bit picture, clipped."""
    return Image.fromarray((np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8))


def blurred(pixels: Pixels, radius: float) -> Pixels:
    """A Gaussian blur; `radius` in picture coordinates, so that every size blurs alike."""
    image = to_image(pixels)
    return to_pixels(image.filter(ImageFilter.GaussianBlur(radius * image.width)))


def ink(colour: npt.NDArray[np.floating[Any]]) -> tuple[int, int, int]:
    """A float colour as the integers PIL draws with."""
    r, g, b = (np.clip(colour, 0, 1) * 255 + 0.5).astype(int).tolist()
    return r, g, b


def noise(rng: np.random.Generator, size: int, cells: int, octaves: int = 1) -> Pixels:
    """A smooth random field (S, S) of mean 0, roughly -1..1: `cells` bumps across, finer in each octave."""
    total = np.zeros((size, size), dtype=np.float32)
    for k in range(octaves):
        count = min(cells * 2**k, size) + 1
        grid = Image.fromarray(rng.random((count, count), dtype=np.float32) * 2 - 1)
        total += np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC)) * np.float32(0.5**k)
    return total


def grain(rng: np.random.Generator, size: int) -> Pixels:
    """Independent noise of mean 0 and deviation 1 for each pixel (S, S)."""
    return rng.standard_normal((size, size), dtype=np.float32)


def coordinates(size: int) -> tuple[Pixels, Pixels]:
    """Picture coordinates of the pixel centres: x (1, S) and y (S, 1)."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    return axis[None, :], axis[:, None]
