from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlkd_bench.samples import Sample
from vlkd_compress import virtual
from vlkd_runtime.errors import ConfigError, UnavailableError

pytest.importorskip("imagecorruptions", exc_type=ImportError)


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """Two pictures with edges, texture and colour, one of them small and wide."""
    rng = np.random.default_rng(0)
    found = []
    for index, (height, width) in enumerate(((120, 90), (40, 100))):
        picture = np.full((height, width, 3), (200, 160, 90), dtype=np.uint8)
        picture[height // 4 : height // 2, width // 4 : -width // 4] = (20, 40, 160)
        picture = np.clip(picture + rng.normal(0, 6, picture.shape), 0, 255).astype(np.uint8)
        path = tmp_path / f"{index}.png"
        Image.fromarray(picture).save(path)
        found.append(Sample(path, f"photo/dog/{index}.png", "photo", index))
    return found


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.png"))
    }


def test_every_family_draws_every_image_and_names_its_source(samples: list[Sample], tmp_path: Path) -> None:
    done: list[int] = []
    made = virtual.make(samples, tmp_path / "v", seed=3, progress=done.append)
    assert len(made) == len(samples) * len(virtual.FAMILIES) == len(digests(tmp_path / "v"))
    assert done == list(range(1, len(made) + 1))
    assert made == virtual.listed(samples, tmp_path / "v", virtual.FAMILIES)
    assert {sample.domain for sample in made} == {f"virtual-{family}" for family in virtual.FAMILIES}
    assert made[0] == Sample(
        tmp_path / "v" / "virtual-noise" / "photo" / "dog" / "0.png.png",
        "virtual-noise/photo/dog/0.png",
        "virtual-noise",
        0,
        "photo/dog/0.png",
    )
    for sample in made:
        with Image.open(sample.path) as picture:
            assert min(picture.size) == virtual.SIDE
            pixels = np.asarray(picture)
            assert pixels.ndim == 3 and pixels.std() > 1
            colourless = np.ptp(pixels.astype(int), axis=2).max() == 0
        assert colourless == (sample.domain in ("virtual-grey", "virtual-sketch"))


def test_the_same_seed_draws_the_same_whatever_else_is_drawn(samples: list[Sample], tmp_path: Path) -> None:
    families = ("noise", "blur", "weather", "digital")
    np.random.seed(5)
    virtual.make(samples, tmp_path / "a", families=families, seed=3)
    after = np.random.random()
    np.random.seed(5)
    assert np.random.random() == after  # the global state is left as it was
    virtual.make(samples[1:], tmp_path / "b", families=families[::-1], seed=3)
    first, second = digests(tmp_path / "a"), digests(tmp_path / "b")
    assert len(second) == 4 and all(first[name] == digest for name, digest in second.items())
    virtual.make(samples[1:], tmp_path / "c", families=families, seed=4)
    assert sum(first[name] == digest for name, digest in digests(tmp_path / "c").items()) == 0


@pytest.mark.parametrize("family", virtual.CORRUPTIONS)
def test_a_higher_severity_changes_more(samples: list[Sample], family: str) -> None:
    with Image.open(samples[0].path) as picture:
        image = np.asarray(picture.resize((224, 224)), dtype=np.uint8)
    changes = [
        np.mean(
            [np.abs(virtual.draw(image, family, (level,), s).astype(int) - image).mean() for s in range(12)]
        )
        for level in (1, 3, 5)
    ]
    assert 0 < changes[0] < changes[1] < changes[2]


def test_an_interrupted_drawing_goes_on(samples: list[Sample], tmp_path: Path) -> None:
    whole = virtual.make(samples, tmp_path / "v", families=("grey", "noise"))
    before = digests(tmp_path / "v")
    whole[1].path.unlink()
    kept = whole[0].path.stat().st_mtime_ns
    virtual.make(samples, tmp_path / "v", families=("grey", "noise"))
    assert digests(tmp_path / "v") == before and whole[0].path.stat().st_mtime_ns == kept


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"families": ("fog",)}, "among noise, blur, .* found fog"),
        ({"families": ()}, "found none"),
        ({"severities": (0, 2)}, r"from 1 to 5, found \[0, 2\]"),
    ],
    ids=["unknown family", "no family", "severity"],
)
def test_refusals(
    samples: list[Sample], tmp_path: Path, options: dict[str, tuple[str]], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        virtual.make(samples, tmp_path / "v", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "v").exists()


def test_without_the_package_it_says_what_to_install(
    samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "imagecorruptions", None)
    with pytest.raises(UnavailableError, match=r"pip install 'vlkd-edge\[corruptions\]', or name a domain"):
        virtual.make(samples, tmp_path / "v")
