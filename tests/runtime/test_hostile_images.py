from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlkd_runtime.errors import ImageError
from vlkd_runtime.preprocess import PreprocessSpec, decode, prepare

PIXELS = np.random.default_rng(5).integers(0, 256, (40, 50, 3)).astype(np.uint8)
SPEC = PreprocessSpec(16, 16)


def encoded(kind: str, image: Image.Image | None = None, **options: object) -> bytes:
    file = BytesIO()
    (image or Image.fromarray(PIXELS)).save(file, kind, **options)
    return file.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of_size(width: int, height: int) -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + png_chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + png_chunk(b"IEND", b"")
    )


FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "the file is empty"),
    "text": (lambda: b"this is no image", "no image of a known format"),
    "html": (lambda: b"<html>404 not found</html>", "no image of a known format"),
    "zeros": (lambda: bytes(5000), "no image of a known format"),
    "postscript": (
        lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
        "no image of a known format",
    ),
    "jpeg-half": (lambda: encoded("JPEG")[:1500], "truncated"),
    "jpeg-header-only": (lambda: encoded("JPEG")[:30], r"damaged|truncated|cannot read|no image"),
    "jpeg-magic-only": (lambda: b"\xff\xd8\xff", r"damaged|truncated|cannot read|no image"),
    "png-half": (lambda: encoded("PNG")[:2000], "truncated|damaged"),
    "png-bad-checksum": (lambda: encoded("PNG").replace(b"IDAT", b"IDAX"), "damaged|truncated|cannot"),
    "png-no-pixels": (lambda: png_of_size(100, 100), "truncated|damaged"),
    "webp-half": (lambda: encoded("WEBP", lossless=True)[:1000], "damaged|truncated|cannot"),
    "tiff-half": (lambda: encoded("TIFF")[:1000], "damaged|truncated|no image|cannot"),
    "gif-half": (lambda: encoded("GIF")[:500], "truncated|damaged"),
    "bmp-half": (lambda: encoded("BMP")[:500], "truncated|damaged"),
    "over-the-limit": (lambda: png_of_size(8001, 8000), "8001x8000 is more than the 64000000 pixels"),
    "pillow-warns": (lambda: png_of_size(10000, 10000), r"exceeds limit .* raise max_pixels"),
    "pillow-refuses": (lambda: png_of_size(60000, 60000), "decompression bomb|more than"),
    "float-tiff": (
        lambda: encoded("TIFF", Image.fromarray(np.zeros((4, 4), np.float32))),
        "float pixels have no known range",
    ),
    "int-tiff": (
        lambda: encoded("TIFF", Image.fromarray(np.full((4, 4), 1 << 20, np.int32))),
        "expected 16-bit gray, found values from 1048576",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_files(name: str, tmp_path: Path) -> None:
    content, match = FILES[name]
    path = tmp_path / "strange.jpg"
    path.write_bytes(content())
    for source in (path, str(path)):
        with pytest.raises(ImageError, match=match) as caught:
            prepare(source, SPEC)
        assert str(path) in str(caught.value)
        assert "; " in str(caught.value)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        pytest.param("missing.png", "No such file", id="missing"),
        pytest.param("folder", "Is a directory", id="directory"),
        pytest.param("nul\0.png", "null", id="nul-in-name"),
        pytest.param("x" * 5000, "too long", id="name-too-long"),
    ],
)
def test_paths(name: str, match: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ImageError, match=match):
        decode(f"{tmp_path}/{name}")


def test_a_file_that_must_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mode of a file would not stop root, as whom containers often run this."""

    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", forbidden)
    with pytest.raises(ImageError, match=r"x\.png: cannot read the image: Permission denied"):
        decode(tmp_path / "x.png")


@pytest.mark.parametrize(
    ("source", "match"),
    [
        pytest.param(
            np.zeros((4, 4, 3), np.float32), r"found|expected uint8; pass uint8: multiply by 255", id="float"
        ),
        pytest.param(np.full((4, 4, 3), np.nan), "pass uint8", id="nan"),
        pytest.param(np.zeros((4, 4, 3), np.int64), "array of int64 .*expected uint8", id="int64"),
        pytest.param(np.zeros((4, 4, 3), bool), "array of bool .*expected uint8", id="bool"),
        pytest.param(np.zeros((4, 4), np.uint16), "array of uint16 .*expected uint8", id="uint16"),
        pytest.param(np.zeros((4, 4), object), "array of object", id="object"),
        pytest.param(np.zeros((3, 8, 8), np.uint8), r"transpose\(1, 2, 0\)", id="channels-first"),
        pytest.param(np.zeros((4, 4, 2), np.uint8), r"expected \(H, W\)", id="two-channels"),
        pytest.param(np.zeros(4, np.uint8), r"expected \(H, W\)", id="rank-1"),
        pytest.param(np.zeros((1, 4, 4, 3), np.uint8), "whole batch to predict", id="rank-4"),
        pytest.param(np.array(3, np.uint8), r"expected \(H, W\)", id="scalar"),
        pytest.param(np.zeros((0, 4, 3), np.uint8), "the image is empty", id="no-rows"),
        pytest.param(np.zeros((4, 0), np.uint8), "the image is empty", id="no-columns"),
        pytest.param(
            np.broadcast_to(np.uint8(0), (9000, 9000, 3)), "at most 64000000 pixels", id="bomb-by-broadcast"
        ),
        pytest.param(Image.new("RGB", (0, 5)), "the image is empty", id="pillow-empty"),
        pytest.param(Image.new("F", (4, 4)), "float pixels", id="pillow-float"),
        pytest.param(Image.new("I", (4, 4), -1), "values from -1", id="pillow-negative"),
        pytest.param(None, "found NoneType", id="none"),
        pytest.param(3, "found int", id="number"),
        pytest.param(b"\xff\xd8", "found bytes", id="bytes"),
        pytest.param([[1, 2]], "found list", id="list"),
    ],
)
def test_other_sources(source: object, match: str) -> None:
    with pytest.raises(ImageError, match=match):
        decode(source)  # type: ignore[arg-type]


def test_a_lazy_image_that_is_truncated(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(encoded("JPEG")[:1500])
    with Image.open(path) as lazy, pytest.raises(ImageError, match="truncated"):
        decode(lazy)


def test_the_pixel_limit_can_be_moved() -> None:
    image = np.zeros((10, 10, 3), np.uint8)
    assert decode(image, max_pixels=100).size == (10, 10)
    with pytest.raises(ImageError, match="at most 99 pixels"):
        decode(image, max_pixels=99)
    with pytest.raises(ImageError, match="10x10 is more than the 99 pixels"):
        decode(Image.fromarray(image), max_pixels=99)
    bomb = BytesIO(png_of_size(8001, 8000))
    with Image.open(bomb) as trusted, pytest.raises(ImageError, match="truncated"):
        decode(trusted, max_pixels=10**9)


def test_a_sliver_does_not_blow_up_in_the_resize() -> None:
    sliver = np.zeros((1, 2_000_000, 3), np.uint8)
    with pytest.raises(ImageError, match="too long and thin"):
        prepare(sliver, PreprocessSpec(224, 224, "crop"))
    with pytest.raises(ImageError, match="1x2000000 is too long and thin"):
        prepare(np.zeros((2_000_000, 1, 3), np.uint8), PreprocessSpec(224, 224))
    assert prepare(sliver, PreprocessSpec(8, 8)).shape == (8, 8, 3)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP", "PPM"])
def test_random_damage_gives_pixels_or_an_image_error(kind: str, tmp_path: Path) -> None:
    """Warnings are errors in this run, so one that leaks fails here, too."""
    rng = np.random.default_rng(11)
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a description"
    options = {"exif": exif} if kind in ("PNG", "JPEG", "TIFF", "WEBP") else {}
    whole = encoded(kind, Image.fromarray(PIXELS[:12, :12]), **options)
    path = tmp_path / "x"
    outcomes = set()
    for _ in range(120):
        damaged = bytearray(whole)
        # Mostly the first bytes: headers are where decoders trust.
        for position in rng.integers(0, min(len(whole), 200), rng.integers(1, 4)):
            damaged[position] = rng.integers(0, 256)
        path.write_bytes(bytes(damaged[: rng.integers(len(whole) // 2, len(whole) + 200)]))
        try:
            assert prepare(path, SPEC, max_pixels=1_000_000).shape == (16, 16, 3)
            outcomes.add("pixels")
        except ImageError as error:
            assert str(path) in str(error)
            outcomes.add("refused")
    assert "refused" in outcomes


def test_broken_exif_says_nothing_about_the_pixels(tmp_path: Path) -> None:
    """Pillow warns of it, and what becomes of a warning is the application's to say."""
    path = tmp_path / "x.jpg"
    path.write_bytes(encoded("JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01\x03\0garbage"))
    plain = tmp_path / "plain.jpg"
    plain.write_bytes(encoded("JPEG"))
    with pytest.warns(UserWarning, match="Corrupt EXIF data"):
        assert np.array_equal(np.asarray(decode(path)), np.asarray(decode(plain)))
    with pytest.raises(ImageError, match="damaged image: Corrupt EXIF data"):
        decode(path)
