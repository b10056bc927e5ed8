"""Styles drawn from one image alone: their filters against slow ones, and what each leaves of the image."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from vlkd_distill import stylise

SIZE = 24


def picture(seed: int = 0, size: int = SIZE) -> Tensor:
    """A disc on a ground with a little noise."""
    at = torch.arange(size) - size / 2
    disc = (at[:, None] ** 2 + at[None] ** 2 < (size / 4) ** 2).float()
    colours = torch.tensor([[0.9, 0.8, 0.2], [0.1, 0.2, 0.5]])
    image = disc[None] * colours[0].view(3, 1, 1) + (1 - disc[None]) * colours[1].view(3, 1, 1)
    return (image + 0.01 * torch.randn(3, size, size, generator=rng(seed))).clamp(0, 1)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def luma(image: Tensor) -> np.ndarray:
    red, green, blue = image.double().numpy()
    return 0.299 * red + 0.587 * green + 0.114 * blue


@pytest.mark.parametrize("name", sorted(stylise.STYLES))
def test_a_style_is_an_image_of_the_same_size_that_a_seed_decides(name: str) -> None:
    image = picture(size=64)
    before, drawn = image.clone(), [stylise.STYLES[name](image, rng(seed)) for seed in range(8)]
    assert torch.equal(image, before)
    assert all(view.shape == image.shape and view.dtype == torch.float32 for view in drawn)
    assert all(float(view.min()) >= 0 and float(view.max()) <= 1 for view in drawn)
    assert torch.equal(drawn[0], stylise.STYLES[name](image, rng(0)))
    assert all(not torch.equal(drawn[0], other) for other in drawn[1:])


@pytest.mark.parametrize("name", sorted(stylise.STYLES))
def test_the_shape_can_still_be_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The outline of the disc is where a view changes most, as it is where the image does.
    monkeypatch.setattr(stylise, "_smaller", lambda drawing, _: drawing)
    image = picture(size=64)
    at = torch.arange(64) - 32.0
    radius = (at[:, None] ** 2 + at[None] ** 2).sqrt()
    clearer = []
    for seed in range(9):
        view = stylise.STYLES[name](image, rng(seed)).mean(0)
        step = (view[1:, 1:] - view[:-1, 1:]).abs() + (view[1:, 1:] - view[1:, :-1]).abs()
        near = (radius[1:, 1:] - 16).abs() < 2.5
        clearer.append(float(step[near].mean() / step[~near].mean()))
    assert sorted(clearer)[4] > 1.1


@pytest.mark.parametrize("name", ["grey", "pencil", "edges", "contours"])
def test_drawings_have_no_colour(name: str) -> None:
    red, green, blue = stylise.STYLES[name](picture(), rng())
    assert torch.equal(red, green) and torch.equal(green, blue)


def test_grey_is_the_luma_on_a_curve() -> None:
    image, source = picture(), rng(3)
    curve = 0.6 + float(torch.rand(1, generator=source))
    assert np.abs(stylise.grey(image, rng(3))[0].numpy() - luma(image) ** curve).max() < 1e-5


@pytest.mark.parametrize("name", ["pencil", "edges", "contours"])
def test_nothing_to_outline_is_white_paper(name: str) -> None:
    assert float(stylise.STYLES[name](torch.full((3, SIZE, SIZE), 0.6), rng()).min()) > 0.99


def gaussian(plane: np.ndarray, sigma: float) -> np.ndarray:
    """Blur by one two-dimensional kernel, pixel by pixel, edges repeated."""
    radius = max(1, math.ceil(3 * sigma))
    offsets = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (offsets[:, None] ** 2 + offsets[None] ** 2) / sigma**2)
    kernel /= kernel.sum()
    padded, result = np.pad(plane, radius, mode="edge"), np.empty_like(plane)
    for y, x in np.ndindex(plane.shape):
        result[y, x] = (padded[y : y + 2 * radius + 1, x : x + 2 * radius + 1] * kernel).sum()
    return result


@pytest.mark.parametrize("sigma", [0.4, 1.0, 2.3])
def test_blur_is_a_gaussian_window(sigma: float) -> None:
    image = picture()
    found = stylise._blur(image, sigma).numpy()
    for plane, expected in zip(found, image.double().numpy(), strict=True):
        assert np.abs(plane - gaussian(expected, sigma)).max() < 1e-5


def test_edges_are_a_thresholded_difference_of_gaussians() -> None:
    image, source = picture(size=64), rng(5)

    def between(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand(1, generator=source))

    sigma, limit, sharpness = between(0.004, 0.01) * 64, between(-0.005, 0.008), between(40.0, 200.0)
    difference = gaussian(luma(image), sigma) - 0.98 * gaussian(luma(image), 1.6 * sigma)
    expected = np.where(difference >= limit, 1.0, 1.0 + np.tanh(sharpness * (difference - limit)))
    found = stylise.edges(image, rng(5))[0].numpy()
    assert np.abs(found - expected.clip(0, 1)).max() < 1e-2  # the threshold multiplies rounding by up to 200
    assert found.min() < 0.5 < found.mean()


def test_crests_are_where_no_neighbour_across_the_line_is_stronger() -> None:
    image = stylise._blur(picture(2), 1.2)
    found, padded = stylise._crests(image)[0].numpy(), np.pad(image.numpy(), ((0, 0), (1, 1), (1, 1)), "edge")
    sobel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    slopes = np.zeros((2, 3, SIZE, SIZE))
    for colour, y, x in np.ndindex(3, SIZE, SIZE):
        window = padded[colour, y : y + 3, x : x + 3]
        slopes[:, colour, y, x] = (window * sobel).sum(), (window * sobel.T).sum()
    strength = np.hypot(*slopes)
    most = strength.max(0)
    around, expected = np.pad(most, 1, "edge"), np.zeros_like(most)
    for y, x in np.ndindex(SIZE, SIZE):
        right, down = slopes[:, strength[:, y, x].argmax(), y, x]
        eighth = round(math.degrees(math.atan2(down, right)) / 45) % 4
        dy, dx = {0: (0, 1), 1: (1, 1), 2: (1, 0), 3: (1, -1)}[eighth]
        ahead, behind = around[y + 1 + dy, x + 1 + dx], around[y + 1 - dy, x + 1 - dx]
        expected[y, x] = most[y, x] if most[y, x] >= ahead and most[y, x] > behind else 0.0
    assert np.abs(found - expected).max() < 1e-4
    assert 0.05 < (found > 0.02).mean() < 0.4


def test_weak_lines_stay_where_they_go_on_from_strong_ones() -> None:
    weak = torch.zeros(1, 6, 12, dtype=torch.bool)
    weak[0, 1, 1:10] = weak[0, 2, 10] = weak[0, 4, 3:8] = True
    strong = torch.zeros_like(weak)
    strong[0, 1, 1] = True
    joined = stylise._joined(strong, weak)
    assert bool(joined[0, 2, 10]) and torch.equal(joined[0, :3], weak[0, :3])  # around a corner, to the end
    assert not joined[0, 4].any()


def test_a_drawing_is_put_smaller_somewhere_on_white_paper() -> None:
    drawn = [stylise._smaller(torch.zeros(1, 64, 64), rng(seed))[0] for seed in range(20)]
    sizes, places = set(), set()
    for paper in drawn:
        rows, columns = ((paper == 0).any(axis).nonzero().flatten() for axis in (1, 0))
        assert len(rows) == len(columns) and float(paper.sum()) == 64 * 64 - len(rows) ** 2
        sizes.add(len(rows))
        places.add((int(rows[0]), int(columns[0])))
    assert min(sizes) < 40 and max(sizes) == 64 and len(places) > 8


def test_kuwahara_takes_the_mean_of_the_calmest_window() -> None:
    image, radius = picture(1), 2
    grey, colours = np.pad(luma(image), radius, mode="edge"), [
        np.pad(plane, radius, mode="edge") for plane in image.double().numpy()
    ]  # fmt: skip
    found = stylise._kuwahara(image, radius).numpy()
    wrong = 0
    for y, x in np.ndindex(SIZE, SIZE):
        windows = [
            (slice(y + top, y + top + radius + 1), slice(x + left, x + left + radius + 1))
            for top in (0, radius)
            for left in (0, radius)
        ]
        calmest = min(windows, key=lambda window: grey[window].var())
        wrong += not np.allclose(found[:, y, x], [plane[calmest].mean() for plane in colours], atol=1e-4)
    assert wrong <= 2  # two windows may be equally calm within rounding


def test_a_poster_has_few_values_where_it_has_no_outline() -> None:
    image, source = picture(), rng(2)
    torch.rand(1, generator=source)
    levels = round(3.0 + 3.0 * float(torch.rand(1, generator=source)))
    values = stylise.poster(image, rng(2)) * (levels - 1)
    flat = (values - values.round()).abs() < 1e-3
    assert flat.float().mean() > 0.5
    assert len(torch.unique(values[flat].round())) <= levels


@pytest.mark.parametrize("slope", [0.5, 1.0, 2.0])
def test_texture_is_standard_and_its_amplitude_falls_with_frequency(slope: float) -> None:
    textures = torch.stack([stylise._noise(64, slope, rng(seed))[0] for seed in range(60)])
    assert torch.allclose(textures.mean((1, 2)), torch.zeros(60), atol=1e-4)
    assert torch.allclose(textures.std((1, 2)), torch.ones(60), atol=1e-4)
    power = torch.fft.fft2(textures).abs().square().mean(0)
    for low, high in ((2, 8), (4, 16)):
        fall = math.log(float(power[0, low] / power[0, high]))
        assert fall == pytest.approx(2 * slope * math.log(high / low), abs=0.7)
