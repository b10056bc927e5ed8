from __future__ import annotations

import struct
import warnings
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image

from vlkd_runtime.errors import ConfigError
from vlkd_runtime.orientation import read_orientation
from vlkd_runtime.preprocess import PreprocessSpec, decode, prepare, resized_size

RNG = np.random.default_rng(3)
RGB = RNG.integers(0, 256, (5, 7, 3)).astype(np.uint8)
GRAY = RNG.integers(0, 256, (5, 7)).astype(np.uint8)
RGBA = RNG.integers(0, 256, (5, 7, 4)).astype(np.uint8)
WIDE = RNG.integers(0, 65536, (5, 7)).astype(np.uint16)


def over_white(rgba: np.ndarray) -> np.ndarray:
    """Blend with exact fractions, one number at a time."""
    result = np.zeros((*rgba.shape[:2], 3), np.uint8)
    for y, x in np.ndindex(*rgba.shape[:2]):
        alpha = Fraction(int(rgba[y, x, 3]), 255)
        for channel in range(3):
            result[y, x, channel] = round(int(rgba[y, x, channel]) * alpha + 255 * (1 - alpha))
    return result


def stacked(gray: np.ndarray) -> np.ndarray:
    return np.stack([gray] * 3, axis=2)


def palette_image(transparency: bytes | int | None) -> tuple[Image.Image, np.ndarray]:
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([0, 1, 2])
    colors = np.array([[[10, 20, 30, 255], [40, 50, 60, 255], [70, 80, 90, 255]]], np.uint8)
    if transparency is not None:
        image.info["transparency"] = transparency
        alphas = (
            [0 if i == transparency else 255 for i in range(3)]
            if isinstance(transparency, int)
            else transparency
        )
        colors[0, :, 3] = list(alphas)
    return image, over_white(colors)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        pytest.param(RGB, RGB, id="rgb"),
        pytest.param(GRAY, stacked(GRAY), id="gray"),
        pytest.param(GRAY[:, :, None], stacked(GRAY), id="gray-1"),
        pytest.param(RGBA, over_white(RGBA), id="rgba"),
        pytest.param(RGB[:, ::-2], np.array(RGB[:, ::-2]), id="strided"),
        pytest.param(RGBA[:, :, 2::-1], np.array(RGBA[:, :, 2::-1]), id="channels-reversed"),
        pytest.param(np.asfortranarray(RGB), RGB, id="fortran"),
        pytest.param(RGB[:1, :1], RGB[:1, :1], id="one-pixel"),
    ],
)
def test_arrays(source: np.ndarray, expected: np.ndarray) -> None:
    before = source.copy()
    image = decode(source)
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), expected)
    assert np.array_equal(source, before)


@pytest.mark.parametrize("as_file", [False, True], ids=["in-memory", "png"])
@pytest.mark.parametrize(
    ("image", "expected"),
    [
        pytest.param(Image.fromarray(RGB), RGB, id="rgb"),
        pytest.param(Image.fromarray(GRAY), stacked(GRAY), id="gray"),
        pytest.param(Image.fromarray(RGBA), over_white(RGBA), id="rgba"),
        pytest.param(
            Image.merge(
                "LA", [Image.fromarray(np.array(RGBA[:, :, 0])), Image.fromarray(np.array(RGBA[:, :, 3]))]
            ),
            over_white(RGBA[:, :, [0, 0, 0, 3]]),
            id="gray-alpha",
        ),
        pytest.param(Image.fromarray(GRAY > 99), stacked(np.where(GRAY > 99, 255, 0)), id="one-bit"),
        pytest.param(Image.fromarray(WIDE), stacked(np.rint(WIDE / 257).astype(np.uint8)), id="gray-16"),
        pytest.param(*palette_image(None), id="palette"),
        pytest.param(*palette_image(1), id="palette-transparent-index"),
        pytest.param(*palette_image(bytes([0, 100, 255])), id="palette-alphas"),
    ],
)
def test_modes(image: Image.Image, expected: np.ndarray, as_file: bool, tmp_path: Path) -> None:
    source: Image.Image | Path = image
    if as_file:
        source = tmp_path / "x.png"
        image.save(source)
    assert np.array_equal(np.asarray(decode(source)), expected)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        pytest.param(
            Image.fromarray(WIDE.astype(np.int32)), stacked(np.rint(WIDE / 257).astype(np.uint8)), id="mode-I"
        ),
        pytest.param(Image.fromarray(RGB).convert("YCbCr"), None, id="ycbcr"),
        pytest.param(Image.fromarray(RGB).convert("HSV"), None, id="hsv"),
        pytest.param(Image.fromarray(RGB).convert("CMYK"), None, id="cmyk"),
    ],
)
def test_modes_in_memory(image: Image.Image, expected: np.ndarray | None) -> None:
    if expected is None:
        expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(np.asarray(decode(image)), expected)


def test_sixteen_bit_tiff_in_both_byte_orders(tmp_path: Path) -> None:
    for order, mode in (("<u2", "I;16"), (">u2", "I;16B")):
        raw = WIDE.astype(order).tobytes()
        path = tmp_path / f"{mode[-1]}.tif"
        Image.frombytes(mode, (7, 5), raw).save(path)
        assert np.array_equal(np.asarray(decode(path))[:, :, 0], np.rint(WIDE / 257))


def test_transparent_value_of_sixteen_bit_gray_is_white(tmp_path: Path) -> None:
    values = np.array([[0, 257, 30000]], np.uint16)
    path = tmp_path / "x.png"
    Image.fromarray(values).save(path, transparency=257)
    assert np.asarray(decode(path))[0, :, 0].tolist() == [0, 255, 117]


def test_inks_become_colours_as_the_specification_says() -> None:
    inks = RNG.integers(0, 256, (40, 30, 4)).astype(np.uint8)
    inks[:2, :2] = 0
    inks[2:4, :2] = 255
    image = Image.frombytes("CMYK", (30, 40), inks.tobytes())
    ink, black = inks[:, :, :3].astype(int), inks[:, :, 3:].astype(int)
    assert np.array_equal(np.asarray(decode(image)), ((255 - ink) * (255 - black) + 127) // 255)


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (4, 2), (6, 4)], ids=["rgb", "gray-alpha", "rgba"])
def test_of_colours_in_sixteen_bits_the_high_byte_counts(colour: int, channels: int, tmp_path: Path) -> None:
    values = RNG.integers(0, 65536, (5, 7, channels)).astype(">u2")
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 7, 5, 16, colour, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in values))),
        (b"IEND", b""),
    ]
    path = tmp_path / "x.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks
        )
    )
    high = (values >> 8).astype(np.uint8)
    colours = high if channels >= 3 else np.repeat(high, [3, 1], axis=2)
    expected = colours if channels == 3 else over_white(colours)
    assert np.array_equal(np.asarray(decode(path)), expected)


def test_cmyk_jpeg_comes_out_in_its_colors(tmp_path: Path) -> None:
    color = Image.new("RGB", (16, 16), (200, 40, 90))
    path = tmp_path / "cmyk.jpg"
    color.convert("CMYK").save(path, quality=100)
    with Image.open(path) as stored:
        assert stored.mode == "CMYK"
    assert np.abs(np.asarray(decode(path)).astype(int) - (200, 40, 90)).max() <= 3


def oriented(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn what a camera stored upright, as the table in the EXIF standard describes it."""
    return {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, -1),
        7: pixels[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(pixels, 1),
    }.get(orientation, pixels)


@pytest.mark.parametrize("kind", ["png", "tiff", "webp", "jpeg"])
@pytest.mark.parametrize("orientation", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 300])
def test_orientation(orientation: int, kind: str, tmp_path: Path) -> None:
    pixels = np.kron(RNG.integers(0, 256, (2, 3, 1)).repeat(3, 2), np.ones((8, 8, 1))).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"x.{kind}"
    Image.fromarray(pixels).save(path, exif=exif, **({"lossless": True} if kind == "webp" else {}))
    with Image.open(path) as stored:
        plain = np.asarray(Image.fromarray(np.asarray(stored)))
    decoded = decode(path)
    result = np.asarray(decoded)
    assert np.array_equal(np.asarray(decode(decoded)), result), "orientation must not be applied twice"
    spec = PreprocessSpec(24, 24)
    assert np.array_equal(prepare(path, spec), prepare(result, spec))
    if kind == "tiff":  # Pillow itself turns these, so compare with what was saved.
        plain = pixels
    assert np.array_equal(result, oriented(plain, orientation))
    with Image.open(path) as lazy:
        assert np.array_equal(np.asarray(decode(lazy)), result)


def test_a_callers_image_is_left_alone() -> None:
    image = Image.fromarray(RGB)
    decoded = decode(image)
    assert decoded is not image
    decoded.paste((0, 0, 0), (0, 0, 7, 5))
    assert np.array_equal(np.asarray(image), RGB)


def test_first_frame_of_animations(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    for name in ("a.gif", "a.png", "a.tif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert np.asarray(decode(tmp_path / name))[0, 0].tolist() == [255, 0, 0]


def test_pictures_of_several_views_from_phones(tmp_path: Path) -> None:
    views = [Image.new("RGB", (16, 16), color) for color in ("red", "blue")]
    views[0].save(tmp_path / "x.jpg", "MPO", save_all=True, append_images=views[1:])
    assert np.abs(np.asarray(decode(tmp_path / "x.jpg"))[0, 0].astype(int) - (255, 0, 0)).max() <= 3


def stretched(image: np.ndarray, width: int, height: int, method: Image.Resampling) -> np.ndarray:
    """Resize the width, then, lying on its side, the height."""
    for size in (width, height):
        image = np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((size, len(image)), method))
        image = image.transpose(1, 0, 2)
    return image


def second_prepare(source: np.ndarray, spec: PreprocessSpec) -> np.ndarray:
    """Resize and crop with exact fractions."""
    image = Image.fromarray(source)
    method = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[spec.interpolation]
    if spec.resize == "squash":
        return stretched(source, spec.width, spec.height, method)
    cover = (int(spec.width / spec.crop_fraction), int(spec.height / spec.crop_fraction))
    scale = max(Fraction(cover[0], image.width), Fraction(cover[1], image.height))
    resized = stretched(source, int(image.width * scale), int(image.height * scale), method)
    top, left = (resized.shape[0] - spec.height) // 2, (resized.shape[1] - spec.width) // 2
    return resized[top : top + spec.height, left : left + spec.width]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(12, 12), (31, 17), (17, 31), (64, 12), (3, 5), (1, 1), (16, 20)])
@pytest.mark.parametrize(
    ("resize", "crop_fraction"), [("squash", 1.0), ("crop", 1.0), ("crop", 0.875), ("crop", 0.33)]
)
@pytest.mark.parametrize("shape", [(12, 12), (10, 16)], ids=["square", "wide"])
def test_prepare(
    size: tuple[int, int],
    shape: tuple[int, int],
    resize: Literal["squash", "crop"],
    crop_fraction: float,
    interpolation: Literal["bilinear", "bicubic"],
) -> None:
    source = RNG.integers(0, 256, (*size, 3)).astype(np.uint8)
    spec = PreprocessSpec(*shape, resize, crop_fraction, interpolation)
    result = prepare(source, spec)
    assert result.dtype == np.uint8
    assert result.flags.c_contiguous
    assert result.flags.writeable
    assert np.array_equal(result, second_prepare(source, spec))
    assert np.array_equal(prepare(Image.fromarray(source), spec), result)


def test_short_side_is_resized_and_the_centre_kept() -> None:
    source = np.zeros((10, 30, 3), np.uint8)
    source[:, 10:20] = 255
    assert prepare(source, PreprocessSpec(10, 10, "crop")).min() == 255
    assert resized_size(30, 10, PreprocessSpec(20, 20, "crop")) == (60, 20)
    assert resized_size(10, 30, PreprocessSpec(20, 20, "crop", 0.8)) == (25, 75)


def test_an_array_of_the_right_size_is_copied() -> None:
    for resize in ("squash", "crop"):
        spec = PreprocessSpec(5, 7, resize)  # type: ignore[arg-type]
        result = prepare(RGB, spec)
        assert result is not RGB
        assert not np.shares_memory(result, RGB)
        assert np.array_equal(result, RGB)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        pytest.param({"height": 0}, "height must be an integer from 1", id="zero"),
        pytest.param({"width": 224.0}, r"width must be .* found 224\.0", id="float"),
        pytest.param({"width": True}, "width must be", id="bool"),
        pytest.param({"height": 5000}, "height must be", id="huge"),
        pytest.param({"resize": "pad"}, "'squash' or 'crop', found 'pad'", id="resize"),
        pytest.param({"interpolation": "nearest"}, "found 'nearest'", id="interpolation"),
        pytest.param({"crop_fraction": 0.0}, "crop_fraction must be from", id="fraction"),
        pytest.param({"crop_fraction": float("nan")}, "crop_fraction must be from", id="fraction-nan"),
        pytest.param({"resize": "squash", "crop_fraction": 0.9}, "must be 1 with 'squash'", id="squash-crop"),
        pytest.param({"height": -1, "resize": "x"}, "height must .*; resize must", id="both"),
    ],
)
def test_impossible_specs(change: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        PreprocessSpec(**{"height": 8, "width": 8, "resize": "crop", **change})


def test_spec_as_json() -> None:
    spec = PreprocessSpec(8, 9, "crop", 0.875, "bicubic")
    assert PreprocessSpec.from_json(spec.to_json()) == spec
    broken = {**spec.to_json(), "height": "8", "colour": "BGR"}
    del broken["width"]
    with pytest.raises(
        ConfigError, match=r"preprocess\.height must .*preprocess\.width is missing.*colour is not"
    ):
        PreprocessSpec.from_json(broken)


def test_the_filters_of_warnings_are_the_applications(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They belong to the whole process, so that no call may change them, not even for a while."""
    path = tmp_path / "x.jpg"
    Image.fromarray(np.tile(RGB, (20, 20, 1))).save(path)
    before, seen = list(warnings.filters), []
    whole = Image.open

    def watched(*arguments: Any, **options: Any) -> Image.Image:
        seen.append(list(warnings.filters))
        return whole(*arguments, **options)

    monkeypatch.setattr(Image, "open", watched)
    decode(path)
    assert seen == [before]


def exif(*entries: tuple[int, int, int, int], order: str = "<", mark: bytes = b"Exif\0\0") -> bytes:
    """One directory of entries: tag, type, number of values, value."""
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8)
    body = b"".join(
        struct.pack(
            f"{order}HHIHH" if kind == 3 else f"{order}HHII", tag, kind, count, value, *([0] * (kind == 3))
        )
        for tag, kind, count, value in entries
    )
    return mark + head + struct.pack(f"{order}H", len(entries)) + body + bytes(4)


TAG, OTHER = (0x0112, 3, 1, 6), (0x0128, 3, 1, 2)


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        pytest.param(exif(TAG), 6, id="little"),
        pytest.param(exif(TAG, order=">"), 6, id="big"),
        pytest.param(exif(TAG, mark=b""), 6, id="no mark, as in PNG"),
        pytest.param(exif(TAG, mark=b"Exif\0\0" * 2), 6, id="two marks"),
        pytest.param(exif(OTHER, TAG), 6, id="second entry"),
        pytest.param(exif(TAG)[:-4], 6, id="no next directory"),
        pytest.param(exif(OTHER, TAG)[:-8], 1, id="cut in the entry"),
        pytest.param(exif(OTHER)[:9], 1, id="cut in the header"),
        pytest.param(exif(OTHER), 1, id="not there"),
        pytest.param(exif((0x0112, 3, 1, 0)), 1, id="0"),
        pytest.param(exif((0x0112, 3, 1, 9)), 1, id="9"),
        pytest.param(exif((0x0112, 3, 2, 6)), 1, id="two values"),
        pytest.param(exif((0x0112, 4, 1, 6)), 1, id="another type"),
        pytest.param(exif(TAG, mark=b"Exif"), 1, id="half a mark"),
        pytest.param(b"", 1, id="nothing"),
        pytest.param(b"II*\0\xff\xff\xff\xff", 1, id="directory outside"),
        pytest.param(b"XX*\0" + bytes(20), 1, id="no byte order"),
    ],
)
def test_orientation_of_a_block(block: bytes, expected: int) -> None:
    assert read_orientation(block) == expected
