"""How often a JPEG makes a decoder go over its pixels is counted before it is let to."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlkd_runtime import decoding
from vlkd_runtime.errors import ImageError
from vlkd_runtime.jpegscans import MOST_SCANS, count_scans
from vlkd_runtime.preprocess import PreprocessSpec, prepare

SPEC = PreprocessSpec(16, 16)
PIXELS = np.random.default_rng(5).integers(0, 256, (64, 80, 3)).astype(np.uint8)
SOS, EOI, COMMENT = b"\xff\xda", b"\xff\xd9", b"\xff\xfe"


def jpeg(mode: str = "RGB", **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(stream, "JPEG", **options)
    return stream.getvalue()


def with_scans(data: bytes, more: int) -> bytes:
    """Repeat the last scan."""
    last, end = data.rindex(SOS), data.rindex(EOI)
    return data[:end] + more * data[last:end] + data[end:]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(jpeg(), 1, id="baseline"),
        pytest.param(jpeg(restart_marker_rows=1), 1, id="restarts"),
        pytest.param(jpeg("L"), 1, id="gray"),
        pytest.param(jpeg(progressive=True), jpeg(progressive=True).count(SOS), id="progressive"),
        pytest.param(with_scans(jpeg(progressive=True), 7), jpeg(progressive=True).count(SOS) + 7, id="more"),
        pytest.param(
            jpeg(progressive=True) + 200 * SOS, jpeg(progressive=True).count(SOS), id="behind-the-end"
        ),
        pytest.param(
            jpeg(progressive=True, comment=500 * SOS), jpeg(progressive=True).count(SOS), id="comment"
        ),
        pytest.param(jpeg(progressive=True)[:300], 1, id="cut"),
        pytest.param(b"", 0, id="nothing"),
    ],
)
def test_scans_are_counted(data: bytes, expected: int) -> None:
    assert count_scans(io.BytesIO(data)) == expected


def test_a_comment_does_not_hide_the_scans_behind_it() -> None:
    data = jpeg(progressive=True)
    last = data.rindex(SOS)
    hidden = data[:last] + COMMENT + b"\x00\x04" + EOI + data[last:]
    assert count_scans(io.BytesIO(hidden)) == data.count(SOS)
    assert prepare(io_file(hidden), SPEC).tolist() == prepare(io_file(data), SPEC).tolist()


def io_file(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def test_a_long_header_is_read_to_its_end() -> None:
    segments = 3 * (COMMENT + b"\xff\xff" + 65533 * b"c")
    data = jpeg(progressive=True)
    assert count_scans(io.BytesIO(data[:2] + segments + data[2:])) == data.count(SOS)
    assert count_scans(io.BytesIO(jpeg()[:2] + segments + jpeg()[2:])) == 1


@pytest.mark.parametrize("way", ["file", "opened"])
def test_too_many_scans_are_refused_before_decoding(way: str, tmp_path: Path) -> None:
    usual = jpeg(progressive=True)
    allowed = with_scans(usual, MOST_SCANS - usual.count(SOS))
    path = tmp_path / "scans.jpg"
    path.write_bytes(allowed)
    assert prepare(path, SPEC).shape == (16, 16, 3)
    path.write_bytes(with_scans(allowed, 1))
    with pytest.raises(
        ImageError, match=r"expected at most 100 scans, found more, .*save it again as a JPEG"
    ):
        if way == "file":
            prepare(path, SPEC)
        with Image.open(path) as image:
            prepare(image, SPEC)


def test_an_opened_image_is_decoded_from_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "usual.jpg"
    path.write_bytes(jpeg(progressive=True))
    with Image.open(path) as image:
        assert prepare(image, SPEC).tolist() == prepare(path, SPEC).tolist()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa", "P", "I;16", "I"])
def test_strips_give_the_same_pixels(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    if mode.startswith("I"):
        image = Image.fromarray(rng.integers(0, 65536, (40, 30)).astype(np.uint16))
        image = image if mode == "I;16" else image.convert("I")
        image.info["transparency"] = int(np.asarray(image)[3, 4])
    elif mode == "P":
        image = Image.fromarray(PIXELS).quantize(64)
        image.info["transparency"] = 7
    else:
        image = Image.fromarray(rng.integers(0, 256, (40, 30, 4)).astype(np.uint8), "RGBA")
        image = image.convert(mode) if mode != "RGBA" else image
    whole = np.asarray(decoding.decode(image))
    monkeypatch.setattr(decoding, "_STRIP_PIXELS", 100)
    assert np.array_equal(np.asarray(decoding.decode(image)), whole)
    assert len(np.unique(whole)) > 20


def test_strips_of_an_array(monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.random.default_rng(7).integers(0, 256, (40, 30, 4)).astype(np.uint8)
    whole = np.asarray(decoding.decode(array))
    monkeypatch.setattr(decoding, "_STRIP_PIXELS", 100)
    assert np.array_equal(np.asarray(decoding.decode(array)), whole)
