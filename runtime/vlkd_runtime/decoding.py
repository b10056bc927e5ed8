"""Decodes whatever calls itself an image to plain 8-bit RGB, or says what is wrong with it.

Files come from cameras, phones and strangers. Pillow's own exceptions never get out of here. Its warnings are
left to the application's filters, which belong to the whole process: where they are errors, such a file is refused.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from .errors import ImageError
from .jpegscans import MOST_SCANS, count_scans
from .orientation import read_orientation


class DLPackArray(Protocol):
    """An array of another library that can lend its memory."""

    def __dlpack__(self, *, stream: Any = None) -> Any:
        """Give the capsule."""
        ...

    def __dlpack_device__(self) -> tuple[int, int]:
        """Say where the memory is."""
        ...


ImageSource: TypeAlias = "str | os.PathLike[str] | Image.Image | npt.NDArray[Any] | DLPackArray"

Denominator: TypeAlias = "Callable[[int, int], int]"
"""Gives what the sides of an upright JPEG, width and height, are divided by in decoding."""

MAX_PIXELS = 64_000_000
_STRIP_PIXELS = 1 << 20

# Only what photographs and datasets come in: every further decoder is one more way in for a hostile file.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "WEBP", "TIFF")
# DLPack's kDLCPU, kDLCUDAHost and kDLROCMHost.
_CPU_MEMORY = frozenset({1, 3, 11})
_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode to an upright 8-bit RGB image.

    EXIF orientation is applied, 16-bit gray is scaled (never clipped), transparency is laid over white, CMYK
    and palettes are converted. Of animations and multi-page files the first frame is taken.

    Args:
        source: A path, a Pillow image, or a uint8 array: (H, W), (H, W, 1), (H, W, 3) RGB, (H, W, 4) RGBA.
        max_pixels: The largest image to decode. Pillow's own ``Image.MAX_IMAGE_PIXELS`` (twice of it) holds
            beside this one.

    Returns:
        An image of mode RGB, never the caller's own object.

    Raises:
        ImageError: Missing, unreadable, truncated, too large, empty, or no image at all.
    """
    image = decode_shared(source, max_pixels=max_pixels).copy()
    # An orientation left in here would be applied again by whoever decodes the result.
    image.info = {}
    return image


def decode_shared(
    source: ImageSource, *, max_pixels: int = MAX_PIXELS, denominator: Denominator | None = None
) -> Image.Image:
    """Decode like `decode` without a last copy: for reading only, as it may be the caller's own image.

    With a ``denominator``, JPEGs come out smaller by it; ``max_pixels`` holds for their whole size.
    """
    if (array := as_array(source)) is not None:
        return _from_array(array, max_pixels)
    if isinstance(source, Image.Image):
        return _from_pillow(source, "image", max_pixels, denominator, lent=True)
    where = _path_of(source)
    if where is None:
        msg = (
            f"expected a path, a Pillow image or a uint8 array, found {type(source).__name__}; "
            "convert it first"
        )
        raise ImageError(msg)
    return _from_file(where, max_pixels, denominator)


def as_array(source: object) -> npt.NDArray[Any] | None:
    """Give a numpy array, or another library's through DLPack without a copy; None for anything else.

    Raises:
        ImageError: Its memory is not the CPU's, or it cannot be lent.
    """
    if isinstance(source, np.ndarray):
        return source
    if not hasattr(source, "__dlpack__") or not hasattr(source, "__dlpack_device__"):
        return None
    kind = f"{type(source).__module__}.{type(source).__name__}"
    device = int(source.__dlpack_device__()[0])
    if device not in _CPU_MEMORY:
        _refuse(
            f"{kind} on device type {device}",
            "expected an array in the CPU's memory",
            "copy it there first, as tensor.cpu() does",
        )
    try:
        return np.from_dlpack(source)
    except Exception as error:  # BufferError, RuntimeError and whatever else the other library raises.
        msg = f"{kind}: its memory cannot be lent: {error}; convert it to a numpy array first"
        raise ImageError(msg) from error


def _from_file(where: str, max_pixels: int, denominator: Denominator | None) -> Image.Image:
    _register_formats()
    try:
        with Path(where).open("rb") as file:
            if not file.peek(1):
                _refuse(where, "the file is empty", "get it again")
            with Image.open(file, formats=_FORMATS) as image:
                return _from_pillow(image, where, max_pixels, denominator, lent=False)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        msg = (
            f"{where}: no image of a known format ({', '.join(_FORMATS)}), or damaged from its start; "
            "get it again, convert or remove it"
        )
        raise ImageError(msg) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        msg = f"{where}: {error}; if you trust it, raise max_pixels and PIL.Image.MAX_IMAGE_PIXELS"
        raise ImageError(msg) from error
    except MemoryError as error:
        msg = f"{where}: decoding needs more memory than there is; make the image smaller"
        raise ImageError(msg) from error
    except OSError as error:
        # strerror is there when the file system said no, and not when Pillow did.
        msg = f"{where}: cannot read the image: {error.strerror or error}; check the path and the file"
        raise ImageError(msg) from error
    except Exception as error:  # Pillow's decoders raise SyntaxError, struct.error, EOFError and more.
        msg = f"{where}: damaged image: {error}; get it again"
        raise ImageError(msg) from error


def _path_of(source: object) -> str | None:
    """Give the path, or None for what is none; bytes would be taken for a path by some functions."""
    path = os.fspath(source) if isinstance(source, (str, os.PathLike)) else None
    return path if isinstance(path, str) else None


def _refuse(where: str, problem: str, remedy: str) -> NoReturn:
    msg = f"{where}: {problem}; {remedy}"
    raise ImageError(msg)


@functools.cache
def _register_formats() -> None:
    """Load the decoders in use, and not the forty others that Pillow would load for an unknown file."""
    from PIL import (  # noqa: F401  (importing registers them)
        BmpImagePlugin,
        GifImagePlugin,
        JpegImagePlugin,
        PngImagePlugin,
        PpmImagePlugin,
        TiffImagePlugin,
        WebPImagePlugin,
    )


def _from_array(array: npt.NDArray[Any], max_pixels: int) -> Image.Image:
    where = f"array of {array.dtype} {array.shape}"
    if array.dtype != np.uint8:
        remedy = "convert it first"
        if array.dtype.kind == "f":
            remedy = (
                "pass uint8: multiply by 255 if the values are from 0 to 1, round, then astype(numpy.uint8)"
            )
        _refuse(where, "expected uint8", remedy)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        remedy = "pass channels last"
        if array.ndim == 3 and array.shape[0] in (1, 3, 4):
            remedy = "channels come last: use array.transpose(1, 2, 0)"
        elif array.ndim == 4:
            remedy = "pass one image, or the whole batch to predict"
        _refuse(where, "expected (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)", remedy)
    if 0 in array.shape:
        _refuse(where, "the image is empty", "check where it came from")
    if array.shape[0] * array.shape[1] > max_pixels:
        _refuse(where, f"expected at most {max_pixels} pixels", "make it smaller or raise max_pixels")
    if array.ndim == 3 and array.shape[2] == 4:
        return _in_strips(array.shape[1], array.shape[0], "RGB", lambda top, end: _over_white(array[top:end]))
    return Image.fromarray(np.ascontiguousarray(array)).convert("RGB")


def _from_pillow(
    image: Image.Image, where: str, max_pixels: int, denominator: Denominator | None, *, lent: bool
) -> Image.Image:
    if image.width * image.height > max_pixels:
        _refuse(
            where,
            f"{image.width}x{image.height} is more than the {max_pixels} pixels allowed",
            "make it smaller, or raise max_pixels if you trust it",
        )
    if image.width == 0 or image.height == 0:
        _refuse(where, "the image is empty", "check where it came from")
    try:
        _check_scans(image, where)
        if denominator is not None:
            image = _reduced(image, denominator, lent=lent)
        image.load()
        # After load: a PNG may have its EXIF block behind the pixels.
        return _upright(_to_rgb(image, where), _orientation(image))
    except ImageError:
        raise
    except MemoryError as error:
        msg = f"{where}: decoding needs more memory than there is; make the image smaller"
        raise ImageError(msg) from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error and more.
        msg = f"{where}: damaged or truncated image: {error}; get it again"
        raise ImageError(msg) from error


def _check_scans(image: Image.Image, where: str) -> None:
    """Refuse a JPEG that would take very long, before it is decoded."""
    from PIL.JpegImagePlugin import JpegImageFile

    if not isinstance(image, JpegImageFile) or not image.tile or image.fp is None:
        return
    place = image.fp.tell()
    image.fp.seek(0)
    scans = count_scans(image.fp)  # type: ignore[arg-type]
    image.fp.seek(place)
    if scans > MOST_SCANS:
        _refuse(
            where,
            f"expected at most {MOST_SCANS} scans, found more, and decoding takes as long for each of them",
            "save it again as a JPEG, or remove it",
        )


def _reduced(image: Image.Image, denominator: Denominator, *, lent: bool) -> Image.Image:
    """Let libjpeg decode a JPEG at a fraction of its size; anything else, and what is decoded, is left as it is."""
    from PIL.JpegImagePlugin import JpegImageFile

    if not isinstance(image, JpegImageFile) or not image.tile or image.decoderconfig or image.tell():
        return image
    width, height = image.size
    lying = _orientation(image) >= 5
    by = denominator(height, width) if lying else denominator(width, height)
    if by == 1:
        return image
    if lent:
        # Reducing would change the size of the caller's own image.
        assert image.fp is not None
        image = Image.open(image.fp, formats=("JPEG",))
    # Pillow takes the largest power of two by which both quotients fit: this one, as it is below twice of it.
    image.draft(None, (width // by, height // by))
    return image


def _orientation(image: Image.Image) -> int:
    """Read the EXIF block that came with the pixels; a TIFF was turned upright by Pillow when it was loaded."""
    exif = image.info.get("exif")
    return read_orientation(exif) if isinstance(exif, bytes) else 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    transpose = _TRANSPOSES.get(orientation)
    return image if transpose is None else image.transpose(transpose)


def _to_rgb(image: Image.Image, where: str) -> Image.Image:
    mode = image.mode
    if mode.startswith("I"):
        return _from_wide_gray(image, where)
    if mode == "F":
        _refuse(where, "float pixels have no known range", "save it with 8 or 16 bits per channel")
    transparent = "transparency" in image.info and mode in ("1", "L", "RGB", "P")
    if transparent or mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        return _in_strips(
            image.width,
            image.height,
            "RGB",
            lambda top, end: _over_white(np.asarray(_rows(image, top, end).convert("RGBA"))),
        )
    return image if mode == "RGB" else image.convert("RGB")


def _from_wide_gray(image: Image.Image, where: str) -> Image.Image:
    """Scale 16-bit gray to 8 bits; clipping, which Pillow's convert does, would leave nearly all white."""
    transparent = image.info.get("transparency")

    def scaled(top: int, end: int) -> npt.NDArray[np.uint8]:
        values = np.asarray(_rows(image, top, end)).astype(np.int64)
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > 65535:
            problem = f"expected 16-bit gray, found values from {low} to {high}"
            _refuse(where, problem, "save it with 8 or 16 bits")
        if isinstance(transparent, int):
            values[values == transparent] = 65535
        return ((values + 128) // 257).astype(np.uint8)

    return _in_strips(image.width, image.height, "L", scaled).convert("RGB")


def _rows(image: Image.Image, top: int, end: int) -> Image.Image:
    """Cut some rows out; an image of no more than these as it is."""
    return image if end - top == image.height else image.crop((0, top, image.width, end))


def _in_strips(
    width: int, height: int, mode: str, strip: Callable[[int, int], npt.NDArray[np.uint8]]
) -> Image.Image:
    """Compute pixels so many rows at a time that what is wider than 8 bits in between stays small."""
    rows = max(1, _STRIP_PIXELS // width)
    if rows >= height:
        return Image.fromarray(strip(0, height))
    whole = Image.new(mode, (width, height))
    for top in range(0, height, rows):
        whole.paste(Image.fromarray(strip(top, min(top + rows, height))), (0, top))
    return whole


def _over_white(rgba: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Blend (H, W, 4) over white, rounded to nearest; the largest sum, 255 * 255 + 127, fits 16 bits."""
    alpha = rgba[:, :, 3:].astype(np.uint16)
    color = rgba[:, :, :3].astype(np.uint16)
    return ((color * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
