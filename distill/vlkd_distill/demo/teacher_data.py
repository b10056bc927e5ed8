"""What the demo teacher learns from: rendered scenes as one memory-mapped array, and which captions fit them.

Letters in shapes: N scenes, S side of the stored pictures, F fields of a scene that captions speak of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from .captions import Caption
from .render import render
from .scene import BACKGROUNDS, CLASSES, COLOURS, FACINGS, SIZES, STYLES, Scene, sample_scene
from .world import rendering_pool

TRAINING_SEEDS = 1_000_000_000
"""The teacher trains on worlds with this seed and above; worlds below it it has never seen."""

RENDER_SIZE = 96
STORED_SIZE = 72
_CHUNK = 100
_FIELDS = (
    ("class_name", CLASSES),
    ("style", STYLES),
    ("colour", COLOURS),
    ("background", BACKGROUNDS),
    ("size_word", SIZES),
    ("facing", FACINGS),
)
_UNSAID, _NOTHING = -1, -2


@dataclass(frozen=True, slots=True)
class _Chunk:
    file: str
    first_row: int
    scenes: tuple[Scene, ...]


def training_scenes(seed: int, per_class: int) -> list[Scene]:
    """The N scenes of a training world, the same number of each class in each style."""
    world = TRAINING_SEEDS + seed
    return [
        sample_scene(world, style, class_name, index)
        for style in STYLES
        for class_name in CLASSES
        for index in range(per_class)
    ]


def render_all(file: Path, scenes: Sequence[Scene], processes: int, progress: Callable[[int], None]) -> None:
    """Render the scenes into a `.npy` file of (N, S, S, 3) uint8; renamed into place when whole."""
    partial = file.with_name(f".{file.name}.partial")
    shape = (len(scenes), STORED_SIZE, STORED_SIZE, 3)
    np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape).flush()
    starts = range(0, len(scenes), _CHUNK)
    chunks = [_Chunk(str(partial), first, tuple(scenes[first : first + _CHUNK])) for first in starts]
    pool = rendering_pool(processes)
    try:
        for future in as_completed([pool.submit(_render_chunk, chunk) for chunk in chunks]):
            progress(future.result())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    partial.replace(file)


def _render_chunk(chunk: _Chunk) -> int:
    pictures = np.lib.format.open_memmap(chunk.file, mode="r+")
    for row, scene in enumerate(chunk.scenes, start=chunk.first_row):
        small = render(scene, RENDER_SIZE).resize((STORED_SIZE, STORED_SIZE), Image.Resampling.BILINEAR)
        pictures[row] = np.asarray(small)
    return len(chunk.scenes)


def scene_codes(scenes: Sequence[Scene]) -> npt.NDArray[np.int64]:
    """The scenes' fields as numbers (N, F); a sketch's colour is a number no caption says."""
    codes = np.array([[known.index(getattr(s, field)) for field, known in _FIELDS] for s in scenes])
    colourless = np.array([s.style == "sketch" for s in scenes])
    codes[colourless, [field for field, _ in _FIELDS].index("colour")] = _NOTHING
    return codes


def fitting(codes: npt.NDArray[np.int64], captions: Sequence[Caption]) -> npt.NDArray[np.bool_]:
    """Which captions (columns) are true of which scenes (rows): (N, number of captions)."""
    said = np.full((len(captions), len(_FIELDS)), _UNSAID)
    places = {field: (k, known) for k, (field, known) in enumerate(_FIELDS)}
    for row, one in enumerate(captions):
        for field, value in one.claims:
            column, known = places[field]
            said[row, column] = known.index(value)
    true: npt.NDArray[np.bool_] = ((said[None] == _UNSAID) | (said[None] == codes[:, None])).all(axis=2)
    return true
