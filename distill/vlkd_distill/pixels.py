"""Decoded images on disk, so that no image is decoded twice and memory does not grow with the data set.

Letters used in shapes: N images, H and W pixels.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from numpy.lib.format import open_memmap

from vlkd_bench.samples import Sample
from vlkd_runtime.atomic import write_text
from vlkd_runtime.errors import DataError, ImageError
from vlkd_runtime.preprocess import PreprocessSpec, prepare

from .decodable import refuse_too_many
from .mapped import Ebb

_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class PixelStore:
    """The training images, prepared exactly as the device prepares them.

    Attributes:
        samples: the images that could be decoded, in row order.
        pixels: ``(N, H, W, 3)`` uint8, mapped from disk.
        bad: id and reason of each image that could not be decoded and was left out.
    """

    samples: tuple[Sample, ...]
    pixels: npt.NDArray[np.uint8]
    bad: tuple[tuple[str, str], ...]

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """Class indices, ``(N,)``."""
        return np.array([sample.label for sample in self.samples], dtype=np.int64)

    @property
    def domains(self) -> tuple[str, ...]:
        """Domain of each row."""
        return tuple(sample.domain for sample in self.samples)

    @classmethod
    def open(cls, folder: Path, samples: Sequence[Sample]) -> PixelStore:
        """Open a store that `build` wrote for these samples."""
        bad = tuple((image, reason) for image, reason in json.loads((folder / "bad.json").read_text()))
        skipped = {image for image, _ in bad}
        kept = tuple(sample for sample in samples if sample.image not in skipped)
        pixels = np.load(folder / "pixels.npy", mmap_mode="r", allow_pickle=False)
        if len(pixels) != len(kept):
            msg = f"The pixel store in {folder} holds {len(pixels)} images, expected {len(kept)}: delete the folder."
            raise DataError(msg)
        return cls(kept, pixels, bad)


def _reserve(path: Path) -> None:
    """Claim a mapped file's space at once: a full disk is then an error here and not a crash later."""
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def build(
    folder: Path, samples: Sequence[Sample], spec: PreprocessSpec, progress: Callable[[int], None]
) -> PixelStore:
    """Decode images into ``folder/pixels.npy``.

    Images that cannot be decoded are left out and named.

    Raises:
        DataError: more than one image in a hundred is bad.
    """

    def decode(sample: Sample) -> npt.NDArray[np.uint8] | str:
        try:
            return prepare(sample.path, spec)
        except ImageError as error:
            return str(error)

    bad: list[tuple[str, str]] = []
    pixels = open_memmap(
        folder / "pixels.part.npy",
        mode="w+",
        dtype=np.uint8,
        shape=(len(samples), spec.height, spec.width, 3),
    )
    _reserve(folder / "pixels.part.npy")
    row, ebb = 0, Ebb(pixels)
    with ThreadPoolExecutor(2) as pool:
        # A few at a time: the pool would decode ahead of the disk without end.
        for start in range(0, len(samples), _AT_ONCE):
            chunk = samples[start : start + _AT_ONCE]
            for sample, result in zip(chunk, pool.map(decode, chunk), strict=True):
                if isinstance(result, str):
                    bad.append((sample.image, result))
                else:
                    pixels[row] = result
                    row += 1
                    ebb.touch(result.nbytes)
                progress(1)
    refuse_too_many(bad, len(samples), "training images")
    pixels.flush()
    if bad:
        np.save(folder / "pixels.npy", pixels[:row])
        (folder / "pixels.part.npy").unlink()
    else:
        (folder / "pixels.part.npy").rename(folder / "pixels.npy")
    write_text(folder / "bad.json", json.dumps(bad))
    return PixelStore.open(folder, samples)
