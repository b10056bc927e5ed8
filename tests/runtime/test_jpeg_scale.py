"""JPEGs decoded at a fraction of their size: the rule, the pixels, and what it leaves alone."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image

from vlkd_runtime import Bundle, Classifier
from vlkd_runtime.bundle import write_bundle
from vlkd_runtime.errors import ConfigError, ImageError
from vlkd_runtime.preprocess import PreprocessSpec, decode, jpeg_denominator, prepare

RNG = np.random.default_rng(8)
PLAIN = {"height": 8, "width": 8, "resize": "squash", "crop_fraction": 1.0, "interpolation": "bilinear"}


def drawing(width: int, height: int, mode: str = "RGB") -> Image.Image:
    bands = len(Image.new(mode, (1, 1)).getbands())
    rough = RNG.integers(0, 256, (height // 6 + 2, width // 6 + 2, bands)).astype(np.uint8)
    parts = [Image.fromarray(np.array(rough[:, :, band])) for band in range(bands)]
    whole = Image.merge(mode, parts) if bands > 1 else parts[0]
    return whole.resize((width, height), Image.Resampling.BICUBIC)


def saved(path: Path, image: Image.Image, orientation: int = 1, **options: Any) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif, **options)
    return path


def drafted(path: Path, by: int, orientation: int = 1) -> np.ndarray:
    """Decode with Pillow's draft alone, and turn with numpy."""
    with Image.open(path) as image:
        width, height = image.size
        image.draft("RGB", (width // by, height // by))
        assert image.size == (-(-width // by), -(-height // by))
        pixels = np.asarray(image.convert("RGB"))
    turned = {1: pixels, 3: pixels[::-1, ::-1], 6: np.rot90(pixels, -1), 8: np.rot90(pixels)}
    return np.ascontiguousarray(turned[orientation])


def largest(width: int, height: int, least_width: int, least_height: int) -> int:
    """Halve as long as enough is left of both sides, with exact quotients."""
    by = 1
    while by < 8 and width / (2 * by) >= least_width and height / (2 * by) >= least_height:
        by *= 2
    return by


@pytest.mark.parametrize("scale", [1, 2, 3])
@pytest.mark.parametrize("size", [(31, 40), (32, 32), (63, 64), (64, 64), (65, 200), (200, 65), (255, 300)])
def test_the_rule(size: tuple[int, int], scale: int) -> None:
    assert jpeg_denominator(*size, PreprocessSpec(8, 8)) == 1
    spec = PreprocessSpec(16, 12, jpeg_scale=scale)
    assert jpeg_denominator(*size, spec) == largest(*size, 12 * scale, 16 * scale)
    width, height = size
    # The shorter side is brought to 10 / 0.5 = 20 pixels, the other in proportion.
    short = min(size)
    crop = PreprocessSpec(10, 10, "crop", 0.5, jpeg_scale=scale)
    assert jpeg_denominator(*size, crop) == largest(
        width, height, scale * (width * 20 // short), scale * (height * 20 // short)
    )


def test_a_pixel_less_than_a_multiple_is_decoded_larger() -> None:
    spec = PreprocessSpec(16, 16, jpeg_scale=2)
    assert [jpeg_denominator(side, 999, spec) for side in (63, 64, 127, 128, 255, 256, 9999)] == [
        1, 2, 2, 4, 4, 8, 8,
    ]  # fmt: skip


@pytest.mark.parametrize("lent", [False, True], ids=["file", "opened"])
@pytest.mark.parametrize("resize", ["squash", "crop"])
@pytest.mark.parametrize(
    ("mode", "options"),
    [
        pytest.param("RGB", {}, id="colour"),
        pytest.param("RGB", {"subsampling": 0}, id="full-chroma"),
        pytest.param("RGB", {"progressive": True}, id="progressive"),
        pytest.param("L", {}, id="gray"),
        pytest.param("CMYK", {}, id="ink"),
    ],
)
@pytest.mark.parametrize(("size", "by"), [((131, 70), 2), ((133, 149), 4), ((300, 260), 8), ((40, 63), 1)])
def test_pixels_are_those_of_draft(
    tmp_path: Path,
    size: tuple[int, int],
    by: int,
    mode: str,
    options: dict[str, Any],
    resize: Literal["squash", "crop"],
    lent: bool,
) -> None:
    path = saved(tmp_path / "x.jpg", drawing(*size, mode), **options)
    spec = PreprocessSpec(16, 16, resize, jpeg_scale=2)
    small = drafted(path, by)
    expected = prepare(small, PreprocessSpec(16, 16, resize))
    if not lent:
        assert np.array_equal(prepare(path, spec), expected)
        return
    with Image.open(path) as image:
        assert np.array_equal(prepare(image, spec), expected)
        assert image.size == size, "the caller's image keeps its size"
        assert np.array_equal(np.asarray(decode(image)), np.asarray(decode(path)))


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_sides_count_as_they_are_seen(tmp_path: Path, orientation: int) -> None:
    spec = PreprocessSpec(12, 24, jpeg_scale=1)
    # 200 x 100 lying, 100 x 200 standing: an eighth is 25 x 12, but 12 is too little for 24 columns.
    by = 8 if orientation in (1, 3) else 4
    path = saved(tmp_path / "x.jpg", drawing(200, 100), orientation)
    expected = prepare(drafted(path, by, orientation), PreprocessSpec(12, 24))
    assert np.array_equal(prepare(path, spec), expected)


def test_an_eighth_is_the_mean_of_each_block(tmp_path: Path) -> None:
    """Only the first coefficient of a block is left, which is its mean: what needs no decoder to compute."""
    gray = drawing(128, 128, "L")
    gray.save(tmp_path / "x.jpg", quality=100)
    means = np.asarray(gray).astype(float).reshape(16, 8, 16, 8).mean((1, 3))
    result = prepare(tmp_path / "x.jpg", PreprocessSpec(16, 16, jpeg_scale=1))
    assert np.abs(result[:, :, 0] - means).max() <= 0.6


def test_the_first_of_several_views_is_reduced(tmp_path: Path) -> None:
    views = [drawing(128, 128), Image.new("RGB", (128, 128), "blue")]
    views[0].save(tmp_path / "x.jpg", "MPO", save_all=True, append_images=views[1:])
    result = prepare(tmp_path / "x.jpg", PreprocessSpec(16, 16, jpeg_scale=1))
    assert np.array_equal(result, drafted(tmp_path / "x.jpg", 8))


def test_other_sources_are_left_alone(tmp_path: Path) -> None:
    image = drawing(200, 200)
    spec, whole = PreprocessSpec(16, 16, jpeg_scale=1), PreprocessSpec(16, 16)
    expected = prepare(np.asarray(image), whole)
    for name in ("x.png", "x.tif", "x.bmp"):
        image.save(tmp_path / name)
        assert np.array_equal(prepare(tmp_path / name, spec), expected), name
    assert np.array_equal(prepare(image, spec), expected)
    assert np.array_equal(prepare(np.asarray(image), spec), expected)
    image.save(tmp_path / "x.jpg")
    with Image.open(tmp_path / "x.jpg") as decoded:
        decoded.load()
        assert np.array_equal(prepare(decoded, spec), prepare(tmp_path / "x.jpg", whole))
    with Image.open(tmp_path / "x.jpg") as own:
        own.draft("RGB", (100, 100))
        assert np.array_equal(prepare(own, spec), prepare(drafted(tmp_path / "x.jpg", 2), whole))
    assert not np.array_equal(prepare(tmp_path / "x.jpg", spec), prepare(tmp_path / "x.jpg", whole))


def test_limits_hold_for_the_whole_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "x.jpg", drawing(200, 100))
    spec = PreprocessSpec(8, 8, jpeg_scale=1)
    assert prepare(path, spec, max_pixels=20_000).shape == (8, 8, 3)
    with pytest.raises(ImageError, match="200x100 is more than the 19999 pixels"):
        prepare(path, spec, max_pixels=19_999)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9_000)
    with pytest.raises(ImageError, match=r"raise max_pixels and PIL\.Image.MAX_IMAGE_PIXELS"):
        prepare(path, spec)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    data = saved(tmp_path / "x.jpg", drawing(200, 200)).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    spec = PreprocessSpec(8, 8, jpeg_scale=1)
    with pytest.raises(ImageError, match=r"cut\.jpg: damaged or truncated"):
        prepare(tmp_path / "cut.jpg", spec)
    with (
        Image.open(BytesIO(data[: len(data) // 2])) as lent,
        pytest.raises(ImageError, match="image: damaged or truncated"),
    ):
        prepare(lent, spec)


def test_the_field_is_written_where_it_is_used_alone() -> None:
    assert PreprocessSpec(8, 8).to_json() == PLAIN
    assert PreprocessSpec.from_json(PLAIN) == PreprocessSpec(8, 8)
    assert PreprocessSpec.from_json({**PLAIN, "jpeg_scale": 0}) == PreprocessSpec(8, 8)
    spec = PreprocessSpec(8, 8, jpeg_scale=3)
    assert spec.to_json() == {**PLAIN, "jpeg_scale": 3}
    assert PreprocessSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize("value", [-1, 17, 1.5, True, "2", None, [2]], ids=repr)
def test_other_values_are_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"preprocess\.jpeg_scale must be an integer from 0 to 16, found"):
        PreprocessSpec.from_json({**PLAIN, "jpeg_scale": value})
    with pytest.raises(ConfigError, match="jpeg_scale must be an integer from 0 to 16, found"):
        PreprocessSpec(8, 8, jpeg_scale=value)


def test_a_bundle_says_so_and_its_classifier_does_it(tmp_path: Path, tiny: Any) -> None:
    from dataclasses import replace

    side = tiny.draft.preprocess.height
    spec = PreprocessSpec(side, side, jpeg_scale=1)
    folder = write_bundle(tmp_path / "scaled", replace(tiny.draft, preprocess=spec), tiny.files)
    assert json.loads((folder / "manifest.json").read_text())["preprocess"]["jpeg_scale"] == 1
    assert Bundle.open(folder).manifest.preprocess == spec
    plain = write_bundle(tmp_path / "plain", tiny.draft, tiny.files)
    assert b"jpeg_scale" not in (plain / "manifest.json").read_bytes()

    path = saved(tmp_path / "x.jpg", drawing(8 * side, 8 * side))
    with Classifier.load(folder, threads=1, cache=None) as classifier:
        whole, small = (
            classifier.embed(prepare(path, tiny.draft.preprocess)),
            classifier.embed(np.ascontiguousarray(drafted(path, 8))),
        )
        assert np.array_equal(classifier.embed(path), small)
        assert not np.array_equal(whole, small)
        answers = classifier.predict([path, path])
        assert [answer.similarity for answer in answers] == [classifier.predict(path).similarity] * 2
