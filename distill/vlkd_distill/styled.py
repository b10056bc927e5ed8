"""Style views of the training images with the teacher's embedding of each: made once, kept in shards.

The teacher is asked about the very view that the student will see, so what it says of a pencil drawing is
what it sees in a pencil drawing, not what it saw in the photograph. Where training asks about each crop of a view
(``same_aug``), the views are drawn only.

Letters used in shapes: V styles, N images, H and W pixels, D embedding size.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from numpy.lib.format import open_memmap
from PIL import Image
from torch import Tensor

from vlkd_bench.samples import Sample
from vlkd_runtime.atomic import write_bytes
from vlkd_runtime.errors import ConfigError, DataError
from vlkd_runtime.preprocess import PreprocessSpec, prepare
from vlkd_runtime.tensorfile import read_tensors, write_tensors

from . import stylise
from .mapped import Ebb
from .querybudget import counted
from .synthesis import Restyler
from .teachers import Teacher, device_for

_SHARD = 128
_SIDE = 192
"""Pixels a side at which a style is drawn; lines drawn at the student's size would be too coarse."""


@dataclass(frozen=True, slots=True)
class StyledStore:
    """What a student sees besides the clean images.

    Attributes:
        styles: names, in the order of the first axis.
        pixels: ``(V, N, H, W, 3)`` uint8, mapped from disk.
        embeddings: the teacher's unit embedding of each view, ``(V, N, D)`` float32, mapped from disk; None where
            it was not asked, because training asks about what becomes of the views.
    """

    styles: tuple[str, ...]
    pixels: npt.NDArray[np.uint8]
    embeddings: npt.NDArray[np.float32] | None

    @classmethod
    def open(cls, folder: Path, styles: Sequence[str]) -> StyledStore:
        """Open what `build` wrote."""
        pixels = np.load(folder / "pixels.npy", mmap_mode="r", allow_pickle=False)
        answers = folder / "embeddings.npy"
        embeddings = np.load(answers, mmap_mode="r", allow_pickle=False) if answers.exists() else None
        paired = embeddings is None or pixels.shape[:2] == embeddings.shape[:2]
        if len(pixels) != len(styles) or not paired:
            msg = (
                f"The style views in {folder} are {pixels.shape[:2]}, expected {len(styles)} styles: delete the "
                "folder."
            )
            raise DataError(msg)
        return cls(tuple(styles), pixels, embeddings)


@dataclass(frozen=True, slots=True)
class Named:
    """Styles that texts name, and who redraws images in them.

    Attributes:
        texts: with one ``{}`` for the class name.
        identity: changes whenever a redrawn image could.
        load: gives who redraws; called where a view is not in the cache.
    """

    texts: tuple[str, ...] = ()
    identity: str = ""
    load: Callable[[], Restyler] | None = None


NOTHING_NAMED = Named()


def check_styles(styles: Sequence[str]) -> None:
    """Refuse styles that do not exist.

    Raises:
        ConfigError: names the ones there are.
    """
    unknown = [name for name in styles if name not in stylise.STYLES]
    if unknown or not styles or len(set(styles)) != len(styles):
        msg = (
            f"Expected different styles out of {', '.join(stylise.STYLES)} (distill.styles), found "
            f"{', '.join(styles) or 'none'}."
        )
        raise ConfigError(msg)


def build(
    folder: Path,
    samples: Sequence[Sample],
    spec: PreprocessSpec,
    styles: Sequence[str],
    teacher: Teacher | None,
    cache: Path,
    progress: Callable[[int], None] = lambda _: None,
    *,
    pixels_of: npt.NDArray[np.uint8] | None = None,
    named: Named = NOTHING_NAMED,
) -> StyledStore:
    """Draw every image in every style and have it embedded, taking from the cache what is there.

    A view depends on the image's bytes and the style alone: runs that hold out different domains share their
    shards, and an interrupted run loses at most one. A teacher whose questions are counted is asked nothing twice.

    Args:
        folder: where the store goes.
        samples: readable images in row order.
        spec: the student's preprocessing; each view is drawn larger and then resized.
        styles: names of `stylise.STYLES`.
        teacher: whom to ask about each view; None to draw only.
        cache: where shards lie.
        progress: called with the number of views just finished.
        pixels_of: the images as the student sees them, ``(N, H, W, 3)``, for samples that are no files, as those of
            shards; lines are then as coarse as these.
        named: further styles; the class name is the part of an image's id between its slashes.

    Raises:
        ConfigError: unknown style.
        DataError: the teacher gave an embedding that is not finite.
    """
    check_styles(styles)
    cache.mkdir(parents=True, exist_ok=True)
    everything = (*styles, *named.texts)
    redrawing = _Redrawing(named)
    shape = (len(everything), len(samples))
    pixels = open_memmap(
        folder / "pixels.npy", mode="w+", dtype=np.uint8, shape=(*shape, spec.height, spec.width, 3)
    )
    embeddings = None
    if teacher is not None:
        embeddings = open_memmap(
            folder / "embeddings.npy", mode="w+", dtype=np.float32, shape=(*shape, teacher.dim)
        )
    ebb = Ebb(pixels, embeddings, pixels_of)
    for start, chunk in _shards(samples):
        own = None if pixels_of is None else pixels_of[start : start + len(chunk)]
        contents = _contents(chunk, own)
        for position, style in enumerate(everything):
            redrawn = position >= len(styles)
            told = redrawing.key(style, chunk) if redrawn else style
            path = cache / f"{_key(teacher, told, spec, contents)}.safetensors"
            stored = _stored(path, len(chunk), spec, teacher)
            if stored is None:
                draw = redrawing.views if redrawn else _views
                stored = _draw(chunk, contents, style, spec, teacher, own, draw)
                write_bytes(path, write_tensors(stored, {}))
            elif asked := counted(teacher):
                asked.count_kept(len(chunk))
            rows = slice(start, start + len(chunk))
            pixels[position, rows] = stored["pixels"]
            if embeddings is not None:
                embeddings[position, rows] = stored["embedding"]
            ebb.touch(stored["pixels"].nbytes)
            progress(len(chunk))
    pixels.flush()
    if embeddings is not None:
        embeddings.flush()
    return StyledStore.open(folder, everything)


class _Redrawing:
    """Views in styles that texts name; who redraws is loaded when the first is needed."""

    def __init__(self, named: Named) -> None:
        self._named = named
        self._restyler: Restyler | None = None

    def key(self, text: str, samples: Sequence[Sample]) -> str:
        """All that a view depends on besides the image."""
        return "\0".join((self._named.identity, *self._texts(text, samples)))

    def views(
        self, images: Sequence[Tensor], text: str, contents: Sequence[bytes], samples: Sequence[Sample]
    ) -> Tensor:
        """One view of each image ``(3, S, S)``: ``(B, 3, S, S)``."""
        if self._restyler is None:
            assert self._named.load is not None  # texts come with it
            self._restyler = self._named.load()
        given = [Image.fromarray((image * 255.0).round().byte().permute(1, 2, 0).numpy()) for image in images]
        seeds = [int.from_bytes(content[:7], "big") for content in contents]
        drawn = self._restyler.restyle(given, self._texts(text, samples), seeds)
        whole = [image.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BICUBIC) for image in drawn]
        return torch.stack([_tensor(np.array(image)) for image in whole])

    def _texts(self, text: str, samples: Sequence[Sample]) -> list[str]:
        return [text.format(sample.image.split("/")[1].replace("_", " ")) for sample in samples]


def _views(
    images: Sequence[Tensor], style: str, contents: Sequence[bytes], samples: Sequence[Sample]
) -> Tensor:
    del samples
    return torch.stack([view(image, style, content) for image, content in zip(images, contents, strict=True)])


def view(image: Tensor, style: str, seed: bytes) -> Tensor:
    """One style view of an image ``(3, S, S)`` in 0 to 1; the same seed draws the same view."""
    digest = hashlib.sha256(seed + style.encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return stylise.STYLES[style](image, generator)


def _shards(samples: Sequence[Sample]) -> list[tuple[int, Sequence[Sample]]]:
    """Consecutive images of one domain, each with the row it starts at."""
    shards: list[tuple[int, Sequence[Sample]]] = []
    start = 0
    for row in range(1, len(samples) + 1):
        full = row - start == _SHARD
        if row == len(samples) or full or samples[row].domain != samples[start].domain:
            shards.append((start, samples[start:row]))
            start = row
    return shards


def _contents(samples: Sequence[Sample], own: npt.NDArray[np.uint8] | None) -> list[bytes]:
    """Hash of each image: of its file, or of its pixels where it has none."""
    if own is not None:
        return [hashlib.sha256(np.ascontiguousarray(row).tobytes()).digest() for row in own]
    return [hashlib.sha256(sample.path.read_bytes()).digest() for sample in samples]


def _draw(
    samples: Sequence[Sample],
    contents: Sequence[bytes],
    style: str,
    spec: PreprocessSpec,
    teacher: Teacher | None,
    own: npt.NDArray[np.uint8] | None,
    draw: Callable[[Sequence[Tensor], str, Sequence[bytes], Sequence[Sample]], Tensor],
) -> dict[str, npt.NDArray[Any]]:
    """The views of a shard, and what the teacher says of them."""
    large = dataclasses.replace(spec, height=_SIDE, width=_SIDE)
    pixels: list[npt.NDArray[np.uint8]] = []
    rows: list[npt.NDArray[np.float32]] = []
    for start in range(0, len(samples), 32):
        part = slice(start, start + 32)
        images = (
            [_tensor(prepare(sample.path, large)) for sample in samples[part]]
            if own is None
            else [_enlarged(row) for row in own[part]]
        )
        views = draw(images, style, contents[part], samples[part])
        if teacher is not None:
            rows.append(_embedded(teacher, views))
        small = F.interpolate(views, (spec.height, spec.width), mode="bilinear", antialias=True)
        pixels.append((small * 255.0).round_().clamp_(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy())
    if teacher is None:
        return {"pixels": np.concatenate(pixels)}
    embedding = np.concatenate(rows).astype(np.float32)
    if not np.isfinite(embedding).all():
        bad = samples[int(np.flatnonzero(~np.isfinite(embedding).all(axis=1))[0])]
        msg = f"The teacher '{teacher.name}' gave an embedding that is not finite for the {style} view of {bad.path}."
        raise DataError(msg)
    return {"pixels": np.concatenate(pixels), "embedding": embedding}


def _embedded(teacher: Teacher, views: Tensor) -> npt.NDArray[np.float32]:
    """The teacher's answers ``(B, D)``. One whose questions are counted is shown images: these answers are kept."""
    if counted(teacher) is None:
        return teacher.embed_views(views.to(device_for(teacher))).cpu().numpy()
    pixels = (views.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return teacher.embed_images([Image.fromarray(each) for each in pixels])


def _tensor(pixels: npt.NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255.0


def _enlarged(pixels: npt.NDArray[np.uint8]) -> Tensor:
    image = _tensor(np.array(pixels))[None]
    return F.interpolate(image, (_SIDE, _SIDE), mode="bicubic", antialias=True)[0].clamp(0, 1)


def _stored(
    path: Path, count: int, spec: PreprocessSpec, teacher: Teacher | None
) -> dict[str, npt.NDArray[Any]] | None:
    """A shard as stored; None if there is none, or none that can be trusted."""
    if not path.exists():
        return None
    expected: dict[str, tuple[Any, tuple[int, ...]]] = {
        "pixels": (np.uint8, (count, spec.height, spec.width, 3))
    }
    if teacher is not None:
        expected["embedding"] = (np.float32, (count, teacher.dim))
    try:
        tensors = read_tensors(path.read_bytes(), where=str(path))[0]
    except DataError:
        return None
    found = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    if found != expected or not all(np.isfinite(tensor).all() for tensor in tensors.values()):
        return None
    return dict(tensors)


def _key(teacher: Teacher | None, style: str, spec: PreprocessSpec, contents: Sequence[bytes]) -> str:
    asked = "" if teacher is None else teacher.fingerprint
    digest = hashlib.sha256(f"{asked} {style} {_SIDE} {spec.to_json()} {renderer()}".encode())
    for content in contents:
        digest.update(content)
    return digest.hexdigest()[:32]


def renderer() -> str:
    """Hash of the styles' source: another renderer draws other views."""
    return hashlib.sha256(Path(stylise.__file__).read_bytes()).hexdigest()[:16]
