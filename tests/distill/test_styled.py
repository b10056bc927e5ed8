"""Style views on disk: what the student sees is what the teacher was asked about, and asked about once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vlkd_bench.samples import Sample
from vlkd_distill import styled, stylise
from vlkd_distill.querybudget import BudgetedTeacher
from vlkd_distill.styled import StyledStore
from vlkd_runtime.errors import ConfigError, DataError, UnavailableError
from vlkd_runtime.preprocess import PreprocessSpec, prepare

SPEC = PreprocessSpec(height=24, width=24, resize="squash")
STYLES = ("pencil", "palette")


class Asked:
    """Embeds a view as its mean colours; counts the views, and may fail at one of them."""

    name, fingerprint, dim, logit_scale = "asked", "a" * 64, 3, 1.0

    def __init__(self, dies_after: int | None = None) -> None:
        self.views, self.dies_after = 0, dies_after

    def embed_views(self, views: Tensor) -> Tensor:
        if self.dies_after is not None and self.views >= self.dies_after:
            raise KeyboardInterrupt
        self.views += len(views)
        return views.mean((2, 3)) + 0.1


@pytest.fixture
def samples(tmp_path: Path) -> tuple[Sample, ...]:
    """Three images in one domain and two in another."""
    found = []
    for number in range(5):
        domain = "a" if number < 3 else "b"
        path = tmp_path / "data" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((90, 80)).save(path)
        found.append(Sample(path, f"{domain}/c/{number}.png", domain, 0))
    return tuple(found)


def built(
    tmp_path: Path, samples: tuple[Sample, ...], teacher: Asked | None, name: str = "out", styles=STYLES
) -> StyledStore:
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    return styled.build(folder, samples, SPEC, styles, teacher, tmp_path / "cache")


def test_each_view_is_the_image_in_a_style_with_the_teachers_answer_to_it(
    tmp_path: Path, samples: tuple[Sample, ...]
) -> None:
    teacher, finished = Asked(), []
    (tmp_path / "out").mkdir()
    store = styled.build(
        tmp_path / "out", samples, SPEC, STYLES, teacher, tmp_path / "cache", finished.append
    )
    assert store.styles == STYLES
    assert store.pixels.shape == (2, 5, 24, 24, 3) and store.pixels.dtype == np.uint8
    assert store.embeddings.shape == (2, 5, 3)
    assert teacher.views == sum(finished) == 10
    large = PreprocessSpec(192, 192, SPEC.resize, SPEC.crop_fraction, SPEC.interpolation)
    for row, sample in enumerate(samples):
        content = hashlib.sha256(sample.path.read_bytes()).digest()
        image = torch.from_numpy(prepare(sample.path, large)).permute(2, 0, 1) / 255
        for position, style in enumerate(STYLES):
            seed = hashlib.sha256(content + style.encode()).digest()[:7]
            generator = torch.Generator().manual_seed(int.from_bytes(seed, "big"))
            view = stylise.STYLES[style](image, generator)
            assert np.allclose(store.embeddings[position, row], view.mean((1, 2)) + 0.1, atol=1e-6)
            small = torch.nn.functional.interpolate(view[None], (24, 24), mode="bilinear", antialias=True)
            expected = (255 * small[0]).permute(1, 2, 0).numpy()
            assert np.abs(store.pixels[position, row] - expected).max() <= 0.51


def test_samples_that_are_no_files_are_drawn_from_their_pixels(
    tmp_path: Path, samples: tuple[Sample, ...]
) -> None:
    own = np.random.default_rng(5).integers(0, 256, (5, 24, 24, 3), dtype=np.uint8)
    bare = [Sample(Path("nowhere") / str(row), s.image, s.domain, s.label) for row, s in enumerate(samples)]
    teacher = Asked()
    (tmp_path / "out").mkdir()
    store = styled.build(tmp_path / "out", bare, SPEC, ("grey",), teacher, tmp_path / "cache", pixels_of=own)
    for row, pixels in enumerate(own):
        seed = hashlib.sha256(hashlib.sha256(pixels.tobytes()).digest() + b"grey").digest()[:7]
        generator = torch.Generator().manual_seed(int.from_bytes(seed, "big"))
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
        large = torch.nn.functional.interpolate(image, (192, 192), mode="bicubic", antialias=True)
        view = stylise.STYLES["grey"](large[0].clamp(0, 1), generator)
        assert np.allclose(store.embeddings[0, row], view.mean((1, 2)) + 0.1, atol=1e-6)
    again = Asked()
    (tmp_path / "again").mkdir()
    styled.build(tmp_path / "again", bare, SPEC, ("grey",), again, tmp_path / "cache", pixels_of=own)
    assert teacher.views == 5 and again.views == 0


def test_what_is_known_is_not_asked_again(tmp_path: Path, samples: tuple[Sample, ...]) -> None:
    first = built(tmp_path, samples, Asked())
    again = Asked()
    second = built(tmp_path, samples, again, "again")
    assert again.views == 0
    assert (second.pixels == first.pixels).all() and (second.embeddings == first.embeddings).all()
    fewer = Asked()  # the other domain held out: its shard is the same
    part = built(tmp_path, samples[:3], fewer, "part")
    assert fewer.views == 0 and (part.pixels == first.pixels[:, :3]).all()
    more = Asked()
    third = built(tmp_path, samples, more, "more", (*STYLES, "grey"))
    assert more.views == 5 and (third.pixels[:2] == first.pixels).all()


def test_views_are_drawn_without_a_teacher_where_training_asks_it(
    tmp_path: Path, samples: tuple[Sample, ...]
) -> None:
    answered = built(tmp_path, samples, Asked())
    drawn = built(tmp_path, samples, None, "drawn")
    assert drawn.embeddings is None and (drawn.pixels == answered.pixels).all()
    shards = sorted((tmp_path / "cache").glob("*.safetensors"))
    assert len(shards) == 8  # those with answers, and those without
    before = [shard.stat().st_mtime_ns for shard in shards]
    again = built(tmp_path, samples, None, "again")
    assert (again.pixels == drawn.pixels).all()
    assert [shard.stat().st_mtime_ns for shard in shards] == before
    asked = Asked()  # a shard without answers is not taken for one with them
    assert (built(tmp_path, samples, asked, "asked").embeddings == answered.embeddings).all()
    assert asked.views == 0


@pytest.mark.parametrize("dies_after", [0, 1, 3, 6, 8])
def test_an_interrupted_store_is_the_same_store(
    tmp_path: Path, samples: tuple[Sample, ...], dies_after: int
) -> None:
    (tmp_path / "whole").mkdir()
    whole = styled.build(tmp_path / "whole", samples, SPEC, STYLES, Asked(), tmp_path / "other-cache")
    with pytest.raises(KeyboardInterrupt):
        built(tmp_path, samples, Asked(dies_after))
    rest = Asked()
    resumed = built(tmp_path, samples, rest)
    assert rest.views == 10 - {0: 0, 1: 3, 3: 3, 6: 6, 8: 8}[dies_after]
    assert (resumed.pixels == whole.pixels).all() and (resumed.embeddings == whole.embeddings).all()


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def not_finite(path: Path) -> None:
    from vlkd_runtime.tensorfile import read_tensors, write_tensors

    tensors = {
        name: np.array(tensor) for name, tensor in read_tensors(path.read_bytes(), where="")[0].items()
    }
    tensors["embedding"][0, 0] = np.nan
    path.write_bytes(write_tensors(tensors, {}))


@pytest.mark.parametrize("damage", [truncated, not_finite])
def test_a_damaged_shard_is_drawn_again(
    tmp_path: Path, samples: tuple[Sample, ...], damage: Callable[[Path], None]
) -> None:
    first = built(tmp_path, samples, Asked())
    expected = np.array(first.embeddings)
    shards = sorted((tmp_path / "cache").glob("*.safetensors"))
    assert len(shards) == 4  # two domains in two styles
    damage(shards[0])
    teacher = Asked()
    assert (built(tmp_path, samples, teacher, "again").embeddings == expected).all()
    assert teacher.views in (2, 3)


def test_an_answer_that_is_not_finite_names_the_image(tmp_path: Path, samples: tuple[Sample, ...]) -> None:
    class Broken(Asked):
        def embed_views(self, views: Tensor) -> Tensor:
            rows = super().embed_views(views)
            rows[-1, 1] = torch.inf
            return rows

    with pytest.raises(DataError, match=r"not finite for the pencil view of .*2\.png"):
        built(tmp_path, samples, Broken())


@pytest.mark.parametrize(
    "styles", [(), ("pencil", "oil"), ("grey", "grey")], ids=["none", "unknown", "twice"]
)
def test_styles_that_do_not_exist_are_refused(styles: tuple[str, ...]) -> None:
    with pytest.raises(
        ConfigError, match=r"Expected different styles out of grey, pencil, .*distill\.styles"
    ):
        styled.check_styles(styles)


def test_a_store_of_other_styles_is_refused(tmp_path: Path, samples: tuple[Sample, ...]) -> None:
    built(tmp_path, samples, Asked())
    with pytest.raises(DataError, match=r"are \(2, 5\), expected 3 styles: delete"):
        StyledStore.open(tmp_path / "out", (*STYLES, "grey"))


class Mirrors:
    """Redraws by mirroring, and by as much red as the text is long; counts what it is asked."""

    fingerprint = "m"

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def restyle(
        self, images: Sequence[Image.Image], texts: Sequence[str], seeds: Sequence[int]
    ) -> Iterator[Image.Image]:
        for image, text, seed in zip(images, texts, seeds, strict=True):
            self.asked.append((text, seed))
            pixels = np.asarray(image)[:, ::-1].copy()
            pixels[..., 0] = len(text)
            yield Image.fromarray(pixels)


def test_styles_that_texts_name_stand_behind_those_that_are_drawn(
    tmp_path: Path, samples: tuple[Sample, ...]
) -> None:
    mirrors, loaded = Mirrors(), []

    def load() -> Mirrors:
        loaded.append(1)
        return mirrors

    def stored(name: str, identity: str = "one", texts: tuple[str, ...] = ("a toy {}",)) -> StyledStore:
        (tmp_path / name).mkdir()
        named = styled.Named(texts, identity, load)
        cache = tmp_path / "cache"
        return styled.build(tmp_path / name, samples, SPEC, STYLES, Asked(), cache, named=named)

    store = stored("out")
    assert store.styles == (*STYLES, "a toy {}")
    assert store.pixels.shape[:2] == store.embeddings.shape[:2] == (3, 5)  # type: ignore[union-attr]
    plain = built(tmp_path, samples, Asked(), "plain")
    assert np.array_equal(store.pixels[:2], plain.pixels)
    assert [text for text, _ in mirrors.asked] == ["a toy c"] * 5 and len(
        {seed for _, seed in mirrors.asked}
    ) == 5
    assert (store.pixels[2, :, :, :, 0] == len("a toy c")).all()
    whole = np.asarray(prepare(samples[0].path, SPEC), float)[:, ::-1, 1:]
    assert np.abs(np.asarray(store.pixels[2, 0], float)[..., 1:] - whole).mean() < 12
    assert np.abs(store.embeddings[2, :, 0] - len("a toy c") / 255 - 0.1).max() < 1e-3  # type: ignore[index]

    again = stored("again")
    assert np.array_equal(again.pixels, store.pixels) and len(loaded) == 1 and len(mirrors.asked) == 5
    stored("others", texts=("a toy {}", "a clay {}"))
    assert len(mirrors.asked) == 10
    stored("other", identity="two")
    assert len(mirrors.asked) == 15


class Billed(Asked):
    """Embeds an image as its mean colours, and one of them as NaN."""

    def __init__(self, broken: int = -1) -> None:
        super().__init__()
        self.broken = broken

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        return np.ones((len(texts), 3), np.float32)

    def embed_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        rows = np.stack([np.asarray(image).mean((0, 1)) / 255 + 0.1 for image in images]).astype(np.float32)
        if self.views <= self.broken < self.views + len(images):
            rows[self.broken - self.views] = np.nan
        self.views += len(images)
        return rows


def test_no_answer_of_a_counted_teacher_about_a_view_is_paid_for_twice(tmp_path: Path) -> None:
    count, found = 40, []
    for number in range(count):
        path = tmp_path / f"{number}.png"
        pixels = np.random.default_rng(number).integers(0, 256, (9, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        found.append(Sample(path, f"a/c/{number}.png", "a", 0))
    samples, vendor = tuple(found), Billed(broken=35)
    scarce = BudgetedTeacher(vendor, 36, tmp_path / "queries")
    with pytest.raises(UnavailableError, match="8 more images, but 33 of the 36 questions"):
        built(tmp_path, samples, scarce, styles=("poster",))
    enough = BudgetedTeacher(vendor, count + 2, tmp_path / "queries")
    with pytest.raises(DataError, match=r"not finite for the poster view of .*35\.png"):
        built(tmp_path, samples, enough, styles=("poster",))
    assert vendor.views == count
    store = built(
        tmp_path, samples, BudgetedTeacher(vendor, count + 2, tmp_path / "queries"), styles=("poster",)
    )
    assert vendor.views == count + 1  # the broken answer alone was asked for again
    plain = built(tmp_path, samples, Asked(), "plain", styles=("poster",))
    np.testing.assert_allclose(store.embeddings, plain.embeddings, atol=3e-3)
