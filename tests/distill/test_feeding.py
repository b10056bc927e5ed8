"""What a step shows the student: balanced batches, and views with the teacher's answer to those very views."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from vlkd_bench.samples import Sample
from vlkd_distill import compute
from vlkd_distill.augmentation import Augmentation
from vlkd_distill.feeding import Feed, TrainingData, epoch_rows, steps_of
from vlkd_distill.pixels import PixelStore
from vlkd_distill.specs import Settings
from vlkd_distill.styled import StyledStore
from vlkd_runtime.errors import ConfigError

COUNT = 12
SETTINGS = Settings(method="kd", batch=6, teacher_view="clean_cached", precision="float32")


@dataclasses.dataclass
class Asks:
    """As much of a method as feeding looks at."""

    needs_teacher: bool = True
    uses_styles: bool = True


class Watching:
    """Embeds views as their mean colour and remembers them."""

    name, fingerprint, dim, logit_scale = "watching", "0", 3, 1.0

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def embed_views(self, views: Tensor) -> Tensor:
        self.seen.append(views.clone())
        return views.mean((2, 3))


def data(styles: tuple[str, ...] = ("grey", "edges"), **more: object) -> TrainingData:
    """Flat images whose level tells row and style: 10 * row for the image, 128 + 10 * row + style for a view.

    The level of an image is its embedding, too.
    """
    samples = tuple(
        Sample(Path("none"), f"{'ab'[row % 3 == 0]}/c/{row}", "ab"[row % 3 == 0], row % 2)
        for row in range(COUNT)
    )
    levels = 10.0 * np.arange(COUNT)
    pixels = np.broadcast_to(levels[:, None, None, None], (COUNT, 8, 8, 3)).astype(np.uint8)
    drawn = 128 + levels[None] + np.arange(len(styles))[:, None]
    store = StyledStore(
        styles,
        np.broadcast_to(drawn[..., None, None, None], (len(styles), COUNT, 8, 8, 3)).astype(np.uint8),
        np.repeat(drawn[..., None], 3, axis=2).astype(np.float32),
    )
    embeddings = np.repeat(levels[:, None], 3, axis=1).astype(np.float32)
    values = {"store": PixelStore(samples, pixels, ()), "embeddings": embeddings, "teacher": None}
    return TrainingData(**(values | {"styled": store if styles else None} | more))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def calm() -> Augmentation:
    """Moves and mirrors, which a flat image does not show, and leaves colours alone."""
    return Augmentation(jitter=0.0, grayscale=0.0)


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0, 0), (1.0, 600, 600), (0.5, 230, 370)])
def test_a_view_comes_with_the_teachers_answer_to_it(share: float, low: int, high: int) -> None:
    feed = Feed(Asks(), dataclasses.replace(SETTINGS, style_share=share), data(), calm())
    generator, drawn, styles = rng(), 0, Counter[int]()
    for _ in range(50):
        rows = torch.arange(COUNT)
        views, batch = feed.views(rows, generator)
        level = (views * 255).mean((1, 2, 3))
        assert torch.allclose(level, batch.image_target[:, 0], atol=0.6)
        assert torch.equal(batch.labels, rows % 2)
        own = (level > 120.5) & ((level - 128 - 10 * rows).abs() < 2)
        plain = (level - 10 * rows).abs() < 0.6
        assert (own ^ plain).all()
        drawn += int(own.sum())
        styles.update((level - 128 - 10 * rows)[own].round().long().tolist())
    assert low <= drawn <= high
    assert set(styles) == (set() if share == 0 else {0, 1})


def test_a_method_without_styles_sees_the_images_only() -> None:
    feed = Feed(Asks(uses_styles=False), dataclasses.replace(SETTINGS, style_share=1.0), data(), calm())
    rows = torch.tensor([3, 7])
    views, batch = feed.views(rows, rng())
    assert torch.allclose((views * 255).mean((1, 2, 3)), torch.tensor([30.0, 70.0]), atol=0.6)
    without = Feed(Asks(), dataclasses.replace(SETTINGS, style_share=1.0), data(()), calm())
    assert torch.equal(without.views(rows, rng())[0], views)  # no styles: not even the random draws differ
    assert torch.equal(batch.image_target[:, 0], torch.tensor([30.0, 70.0]))


def test_same_aug_asks_about_the_very_views() -> None:
    teacher = Watching()
    settings = dataclasses.replace(SETTINGS, teacher_view="same_aug")
    views, batch = Feed(Asks(), settings, data(teacher=teacher)).views(torch.arange(6), rng())
    assert len(teacher.seen) == 1 and torch.equal(teacher.seen[0], views)
    assert torch.allclose(batch.image_target, views.mean((2, 3)))


def test_same_aug_needs_no_answers_to_whole_style_views() -> None:
    teacher, drawn = Watching(), data().styled
    silent = StyledStore(drawn.styles, drawn.pixels, None)
    settings = dataclasses.replace(SETTINGS, teacher_view="same_aug", style_share=1.0)
    feed = Feed(Asks(), settings, data(teacher=teacher, styled=silent, embeddings=None), calm())
    views, batch = feed.views(torch.arange(6), rng())
    assert (views.mean((1, 2, 3)) * 255 > 127).all()
    assert torch.allclose(batch.image_target, views.mean((2, 3)))
    kept = Feed(Asks(), dataclasses.replace(settings, teacher_view="clean_cached"), data(styled=silent))
    with pytest.raises(RuntimeError, match="without the teacher's answers"):
        kept.views(torch.arange(6), rng())


def test_a_method_without_a_teacher_asks_nothing() -> None:
    teacher = Watching()
    settings = dataclasses.replace(SETTINGS, teacher_view="same_aug")
    feed = Feed(Asks(needs_teacher=False), settings, data(teacher=teacher))
    assert feed.views(torch.arange(4), rng())[1].image_target is None
    assert feed.clean(torch.arange(4)).image_target is None
    assert not teacher.seen


def test_clean_features_go_with_the_clean_answers() -> None:
    rows = torch.tensor([5, 0, 5])
    batch = Feed(Asks(), SETTINGS, data()).clean(rows)
    assert torch.equal(batch.labels, torch.tensor([1, 0, 1]))
    assert torch.equal(batch.image_target[:, 0], torch.tensor([50.0, 0.0, 50.0]))


def test_drawing_changes_no_stored_pixel_or_answer() -> None:
    seen = data()
    before = np.array(seen.store.pixels), np.array(seen.embeddings)
    Feed(Asks(), dataclasses.replace(SETTINGS, style_share=1.0), seen).views(torch.arange(COUNT), rng())
    assert (seen.store.pixels == before[0]).all() and (seen.embeddings == before[1]).all()


def test_rows_that_select_do_not_train() -> None:
    seen = data(selection=(0, 5, 11))
    assert seen.rows.tolist() == [1, 2, 3, 4, 6, 7, 8, 9, 10]
    assert seen.domains == tuple(seen.store.domains[row] for row in seen.rows)
    assert data().rows.tolist() == list(range(COUNT))


@pytest.mark.parametrize(
    ("sizes", "batch"),
    [({"a": 20}, 6), ({"a": 30, "b": 4}, 8), ({"a": 7, "b": 7, "c": 7}, 8), ({"a": 3, "b": 3, "c": 3}, 3)],
    ids=["one domain", "a small one", "a remainder", "one each"],
)
def test_batches_are_drawn_evenly(sizes: dict[str, int], batch: int) -> None:
    domains = [name for name, count in sizes.items() for _ in range(count)]
    batches = list(epoch_rows(domains, batch, rng()))
    assert len(batches) == steps_of(len(domains), batch) == -(-len(domains) // batch)
    shares = [batch // len(sizes) + (k < batch % len(sizes)) for k in range(len(sizes))]
    for rows in batches:
        assert [Counter(domains[row] for row in rows.tolist())[name] for name in sizes] == shares
    for name in sizes:
        times = Counter(row for rows in batches for row in rows.tolist() if domains[row] == name)
        # Gone through in whole rounds: nothing is shown twice before everything was shown once.
        assert max(times.values()) - min(times.values() if len(times) == sizes[name] else [0]) <= 1
    assert [rows.tolist() for rows in epoch_rows(domains, batch, rng())] == [
        rows.tolist() for rows in batches
    ]
    assert [rows.tolist() for rows in epoch_rows(domains, batch, rng(1))] != [
        rows.tolist() for rows in batches
    ]


def test_a_batch_that_would_leave_a_domain_out_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"each of the 3 source domains \(a, b, c\), found 2.* Raise it to 3"
    ):
        next(epoch_rows(["c", "a", "a", "b"], 2, rng()))


def test_float32_is_never_cast_down() -> None:
    with compute.autocast(SETTINGS.precision, compute.CPU):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
        assert product.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
