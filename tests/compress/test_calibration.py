from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlkd_bench.samples import Sample
from vlkd_compress.calibration import CalibrationImages, select_calibration
from vlkd_runtime.errors import CalibrationError, ImageError
from vlkd_runtime.preprocess import PreprocessSpec, prepare

SPEC = PreprocessSpec(height=8, width=8, resize="squash")


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


def test_images_are_prepared_as_the_device_prepares_them(tmp_path: Path) -> None:
    chosen = write(tmp_path, [noise(0), noise(1), noise(2)])
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
