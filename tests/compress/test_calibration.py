from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlkd_bench.samples import Sample
from vlkd_compress.calibration import (
    CalibrationImages,
    refuse_held_out,
    select_by_coverage,
    select_calibration,
)
from vlkd_runtime.errors import CalibrationError, ImageError
from vlkd_runtime.preprocess import PreprocessSpec, prepare

SPEC = PreprocessSpec(height=8, width=8, resize="squash")
SPEC_AS_IS = PreprocessSpec(height=12, width=10)


def samples(counts: dict[tuple[str, int], int]) -> list[Sample]:
    """Give so many samples per domain and class."""
    return [
        Sample(
            Path(f"/data/{domain}/{label}/{index:04}.png"), f"{domain}/{label}/{index:04}.png", domain, label
        )
        for (domain, label), count in counts.items()
        for index in range(count)
    ]


UNEVEN = samples(
    {("photo", 0): 200, ("photo", 1): 20, ("photo", 2): 20, ("art", 0): 30, ("art", 1): 30, ("art", 2): 30}
)


def test_domains_and_classes_are_balanced() -> None:
    chosen = select_calibration(UNEVEN, 48, seed=0, forbidden_domains=["sketch"])
    assert len(chosen) == len({sample.image for sample in chosen}) == 48
    assert Counter(sample.domain for sample in chosen) == {"photo": 24, "art": 24}
    assert set(Counter((sample.domain, sample.label) for sample in chosen).values()) == {8}


def test_small_groups_are_used_up_and_others_fill_in() -> None:
    few = samples({("photo", 0): 100, ("photo", 1): 2, ("art", 0): 5})
    counts = Counter(
        (sample.domain, sample.label) for sample in select_calibration(few, 60, seed=0, forbidden_domains=[])
    )
    assert counts == {("art", 0): 5, ("photo", 1): 2, ("photo", 0): 53}


def test_the_seed_alone_decides() -> None:
    first = select_calibration(UNEVEN, 40, seed=3, forbidden_domains=[])
    assert select_calibration(UNEVEN[::-1], 40, seed=3, forbidden_domains=[]) == first
    assert select_calibration(UNEVEN, 40, seed=4, forbidden_domains=[]) != first


def test_all_are_taken_when_there_are_fewer() -> None:
    chosen = select_calibration(UNEVEN, 10_000, seed=0, forbidden_domains=[])
    assert sorted(sample.image for sample in chosen) == sorted(sample.image for sample in UNEVEN)


@pytest.mark.parametrize(
    ("given", "count", "forbidden", "match"),
    [
        pytest.param([], 64, (), "at least 32 samples to choose from, found 0", id="empty"),
        pytest.param(UNEVEN[:31], 64, (), "at least 32 samples to choose from, found 31", id="too few"),
        pytest.param(
            UNEVEN, 8, (), "at least 32 calibration images asked for, found 8", id="too few asked for"
        ),
        pytest.param(
            UNEVEN, 64, ("art",), r"found the held-out \['art'\] \(such as art/0/0000.png\)", id="held out"
        ),
        pytest.param(
            [*UNEVEN, *samples({("sketch", 0): 1})],
            64,
            ("sketch",),
            r"the held-out \['sketch'\]",
            id="one held out",
        ),
    ],
)
def test_refusals(given: list[Sample], count: int, forbidden: tuple[str, ...], match: str) -> None:
    with pytest.raises(CalibrationError, match=match):
        select_calibration(given, count, seed=0, forbidden_domains=forbidden)


def write(folder: Path, arrays: list[np.ndarray]) -> list[Sample]:
    result = []
    for index, array in enumerate(arrays):
        path = folder / f"{index}.png"
        Image.fromarray(array).save(path)
        result.append(Sample(path, f"photo/0/{index}.png", "photo", 0))
    return result


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (12, 10, 3), dtype=np.uint8)


def picture(seed: int) -> np.ndarray:
    """Smooth patches of colour."""
    return np.kron(noise(seed)[:3, :2], np.ones((4, 5, 1))).astype(np.uint8)


def test_random_noise_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="found random noise: the median correlation"):
        CalibrationImages.load(write(tmp_path, [noise(seed) for seed in range(8)]), SPEC_AS_IS)


def test_coverage_takes_the_rare_style_that_an_even_choice_would_miss() -> None:
    given = samples({("photo", 0): 60, ("photo", 1): 4})
    rows = np.zeros((64, 8), dtype=np.float32)
    rows[:60, 0], rows[60:, 1] = 1.0, 1.0
    chosen = select_by_coverage(given, rows, 32, seed=0, forbidden_domains=())
    assert len({sample.image for sample in chosen}) == 32
    assert any(sample.label == 1 for sample in chosen[:2])
    backwards = select_by_coverage(given[::-1], rows[::-1], 32, seed=0, forbidden_domains=())
    assert backwards == chosen  # the order in which samples are given does not matter
    with pytest.raises(CalibrationError, match="one embedding for each of 64 samples, found 3"):
        select_by_coverage(given, rows[:3], 32, seed=0, forbidden_domains=())


def test_each_further_choice_is_the_farthest_from_all_before() -> None:
    rows = np.random.default_rng(2).normal(size=(40, 3)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    given = samples({("photo", 0): 40})
    place = {sample.image: index for index, sample in enumerate(given)}
    chosen = [place[s.image] for s in select_by_coverage(given, rows, 32, seed=1, forbidden_domains=())]
    for step in range(1, 32):
        left = [index for index in range(40) if index not in chosen[:step]]
        nearest = {index: max(float(rows[index] @ rows[taken]) for taken in chosen[:step]) for index in left}
        assert nearest[chosen[step]] == pytest.approx(min(nearest.values()), abs=1e-6)


def test_a_held_out_image_by_another_name_is_found(tmp_path: Path) -> None:
    sources = write(tmp_path, [picture(seed) for seed in range(3)])
    (tmp_path / "held").mkdir()
    held_out = write(tmp_path / "held", [picture(seed) for seed in (7, 1)])
    refuse_held_out(sources[:1], held_out)
    with pytest.raises(
        CalibrationError, match=r"found photo/0/1\.png with the same content as photo/0/1\.png"
    ):
        refuse_held_out(sources, held_out)


def test_images_are_prepared_as_the_device_prepares_them(tmp_path: Path) -> None:
    chosen = write(tmp_path, [picture(0), picture(1), picture(2)])
    loaded = CalibrationImages.load(chosen, SPEC)
    assert len(loaded) == 3
    assert loaded.samples == tuple(chosen)
    for sample, image in zip(chosen, loaded, strict=True):
        assert image.shape == (1, 8, 8, 3)
        assert np.array_equal(image[0], prepare(sample.path, SPEC))


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        pytest.param([], "found none", id="none"),
        pytest.param(
            [np.full((9, 9, 3), value, np.uint8) for value in (0, 90, 255)],
            "each of them one flat colour",
            id="flat",
        ),
        pytest.param([noise(5)] * 3, "all of them the same picture", id="all the same"),
    ],
)
def test_images_without_variation_are_refused(arrays: list[np.ndarray], match: str, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=match):
        CalibrationImages.load(write(tmp_path, arrays), SPEC)


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    chosen = write(tmp_path, [noise(0), noise(1)])
    chosen[1].path.write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"1\.png"):
        CalibrationImages.load(chosen, SPEC)
