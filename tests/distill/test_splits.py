"""Splits by class and image: what is asked for, nothing twice, and little moves when images are added."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from vlkd_bench.samples import Sample
from vlkd_distill import splits
from vlkd_runtime.errors import ConfigError, DataError
from vlkd_runtime.vectors import ClassVectors

NAMES = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu")


def world(
    counts: Sequence[int] = (9, 9, 9), domains: Sequence[str] = ("photo", "sketch")
) -> tuple[Sample, ...]:
    return tuple(
        Sample(Path(f"{i}.png"), f"{domain}/{NAMES[label]}/{i}.png", domain, label)
        for domain in domains
        for label, count in enumerate(counts)
        for i in range(count)
    )


@pytest.mark.parametrize(
    ("unseen", "count"),
    [
        pytest.param(1, 1, id="one"),
        pytest.param(5, 5, id="most"),
        pytest.param(0.5, 4, id="half-up"),
        pytest.param(0.01, 1, id="at-least-one"),
        pytest.param(("gnu", "bee"), 2, id="names"),
    ],
)
def test_class_disjoint_divides_all_classes_in_label_order(
    unseen: int | float | Sequence[str], count: int
) -> None:
    seen, met = splits.class_disjoint(NAMES, unseen, seed=3)
    assert len(met) == count
    assert sorted(seen + met) == sorted(NAMES) and not set(seen) & set(met)
    assert list(seen) == [name for name in NAMES if name in seen]
    assert list(met) == [name for name in NAMES if name in met]
    if isinstance(unseen, tuple):
        assert set(met) == set(unseen)


def test_class_disjoint_depends_on_seed_and_names_not_on_order() -> None:
    chosen = {frozenset(splits.class_disjoint(NAMES, 3, seed)[1]) for seed in range(12)}
    assert len(chosen) > 4
    for seed in range(12):
        turned = splits.class_disjoint(NAMES[::-1], 3, seed)[1]
        assert set(turned) == set(splits.class_disjoint(NAMES, 3, seed)[1])


def test_each_class_is_unseen_about_as_often() -> None:
    counts = Counter(name for seed in range(700) for name in splits.class_disjoint(NAMES, 2, seed)[1])
    assert all(150 < counts[name] < 250 for name in NAMES)


@pytest.mark.parametrize(
    ("names", "base"),
    [
        pytest.param(NAMES, 4, id="odd"),
        pytest.param(NAMES[:6], 3, id="even"),
        pytest.param(NAMES[:2], 1, id="two"),
    ],
)
def test_base_novel(names: Sequence[str], base: int) -> None:
    assert splits.base_novel(names) == (tuple(names[:base]), tuple(names[base:]))


def test_restrict_relabels_in_the_order_asked_for() -> None:
    samples = world()
    kept = splits.restrict(samples, NAMES[:3], ("cat", "ant"))
    by_hand = []
    for sample in samples:
        name = sample.image.split("/")[1]
        if name in ("cat", "ant"):
            by_hand.append((sample.image, ("cat", "ant").index(name)))
    assert [(sample.image, sample.label) for sample in kept] == by_hand


@pytest.mark.parametrize("k", [1, 4, 18, 20])
def test_k_shot_takes_k_of_each_class_or_all_and_says_so(k: int) -> None:
    samples = world((9, 2, 9))
    shots = splits.k_shot(samples, NAMES[:3], k, seed=1)
    had = Counter(sample.label for sample in samples)
    assert Counter(sample.label for sample in shots.samples) == {label: min(k, n) for label, n in had.items()}
    assert shots.short == {NAMES[label]: n for label, n in had.items() if n < k}
    assert list(shots.samples) == [sample for sample in samples if sample in shots.samples]


def test_k_shot_changes_with_the_seed_and_by_at_most_one_for_an_added_image() -> None:
    many, more = world((40,)), world((41,), ("photo",))
    photo = tuple(sample for sample in many if sample.domain == "photo")
    assert len({splits.k_shot(many, NAMES[:1], 5, seed).samples for seed in range(5)}) == 5
    for seed in range(20):
        before = set(splits.k_shot(photo, NAMES[:1], 5, seed).samples)
        assert len(before - set(splits.k_shot(more, NAMES[:1], 5, seed).samples)) <= 1


def test_unlabelled_takes_the_labels_and_nothing_else() -> None:
    bare = splits.unlabelled(world())
    assert {sample.label for sample in bare} == {-1}
    assert [sample.image for sample in bare] == [sample.image for sample in world()]
    with pytest.raises(DataError, match="Expected labels from 0 to 2, found -1"):
        splits.k_shot(bare, NAMES[:3], 1)


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5])
def test_source_holdout_keeps_back_a_part_of_every_class_and_domain(share: float) -> None:
    samples = world((1, 2, 3, 10, 25))
    train, selection = splits.source_holdout(samples, share, seed=2)
    assert sorted(s.image for s in train + selection) == sorted(s.image for s in samples)
    kept = Counter((s.domain, s.label) for s in selection)
    for domain in ("photo", "sketch"):
        for label, count in enumerate((1, 2, 3, 10, 25)):
            rounded = int(share * count + 0.5)
            assert kept[domain, label] == (0 if count == 1 else min(count - 1, max(1, rounded)))


def test_source_holdout_moves_at_most_one_image_for_an_added_one() -> None:
    for count in range(2, 30):
        before = {s.image for s in splits.source_holdout(world((count,)), seed=count)[1]}
        after = {s.image for s in splits.source_holdout(world((count + 1,)), seed=count)[1]}
        for domain in ("photo", "sketch"):
            old = {image for image in before ^ after if image.startswith(domain)}
            assert len(old - {f"{domain}/ant/{count}.png"}) <= 1


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        pytest.param(lambda: splits.class_disjoint(NAMES, 6), ConfigError, "from 1 to 5 of the 7.*found 6", id="all"),
        pytest.param(lambda: splits.class_disjoint(NAMES, 0), ConfigError, "found 0", id="none-unseen"),
        pytest.param(lambda: splits.class_disjoint(NAMES, True), ConfigError, "found True", id="bool"),
        pytest.param(lambda: splits.class_disjoint(NAMES, 1.5), ConfigError, "found 1.5", id="share"),
        pytest.param(lambda: splits.class_disjoint(NAMES, "ant"), ConfigError, "found 'ant'", id="one-text"),
        pytest.param(lambda: splits.class_disjoint(NAMES, []), ConfigError, r"found \[\]", id="no-names"),
        pytest.param(lambda: splits.class_disjoint(NAMES, ["owl"]), ConfigError, "found 'owl'", id="unknown"),
        pytest.param(lambda: splits.class_disjoint(NAMES, NAMES[:6]), ConfigError, "found 6 unseen", id="six"),
        pytest.param(lambda: splits.class_disjoint(("a", "a", "b"), 1), ConfigError, "'a' twice", id="twice"),
        pytest.param(lambda: splits.base_novel(("a",)), ConfigError, "at least 2", id="one-class"),
        pytest.param(
            lambda: splits.restrict(world(), NAMES, ["gnu"]), DataError, "found none of gnu", id="no-image"
        ),
        pytest.param(
            lambda: splits.restrict(world(), NAMES[:2], ["ant"]), DataError, "found 2 for photo/cat", id="label"
        ),
        pytest.param(lambda: splits.k_shot(world(), NAMES[:3], 0), ConfigError, "found k = 0", id="no-shot"),
        pytest.param(lambda: splits.k_shot(world(), NAMES[:4], 1), DataError, "none of dog", id="empty-class"),
        pytest.param(lambda: splits.source_holdout(world(), 0.6), ConfigError, "found 0.6", id="large-share"),
        pytest.param(lambda: splits.source_holdout(world((1,))), DataError, "nothing to select by", id="singles"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_said(
    call: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()


def test_vectors_of_some_classes_keep_their_rows_and_prompts() -> None:
    rows = np.eye(3, 4, dtype=np.float32)
    every = ClassVectors(("a", "b", "c"), rows, (("A",), ("B",), ("C",)), ("{}",), "test", "0" * 64, 10.0)
    kept = splits.slice_vectors(every, ["c", "a"])
    assert kept.names == ("c", "a") and kept.prompts == (("C",), ("A",))
    assert (
        np.array_equal(kept.vectors, rows[[2, 0]]) and kept.teacher_fingerprint == every.teacher_fingerprint
    )
    with pytest.raises(ConfigError, match="found 'd'"):
        splits.slice_vectors(every, ["d"])
