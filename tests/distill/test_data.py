"""Domain folders: the split, the domains that may be trained on, and one clear message for each mistake."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlkd_bench.samples import ABSENT
from vlkd_distill import data
from vlkd_runtime.errors import ConfigError, DataError


def world(root: Path, domains: tuple[str, ...] = ("photo", "sketch"), count: int = 3) -> Path:
    for domain in domains:
        for name in ("cat", "dog"):
            (root / domain / name).mkdir(parents=True)
            for index in range(count):
                Image.fromarray(np.full((8, 8, 3), index * 20, np.uint8)).save(
                    root / domain / name / f"{index}.png"
                )
    return root


def test_scan_orders_and_labels(tmp_path: Path) -> None:
    found = data.scan(world(tmp_path))
    assert found.classes == ("cat", "dog") and found.domains == ("photo", "sketch")
    assert [sample.image for sample in found.samples[:4]] == [
        "photo/cat/0.png",
        "photo/cat/1.png",
        "photo/cat/2.png",
        "photo/dog/0.png",
    ]
    assert {sample.label for sample in found.samples if "/dog/" in sample.image} == {1}


def test_split_is_the_hash_of_the_name_alone() -> None:
    ids = [f"art/dog/{index}.jpg" for index in range(2000)]
    by_hand = ["test" if int(hashlib.sha1(i.encode()).hexdigest(), 16) % 5 == 0 else "train" for i in ids]
    assert [data.split_of(image) for image in ids] == by_hand
    assert 0.17 < by_hand.count("test") / len(by_hand) < 0.23


def test_no_held_out_image_is_in_any_source_split(tmp_path: Path) -> None:
    found = data.scan(world(tmp_path, ("a", "b", "c"), count=12))
    train = found.of(found.sources(["b"]), "train")
    assert train and not {s.image for s in train} & {s.image for s in found.of(["b"])}
    assert not {s.image for s in train} & {s.image for s in found.of(found.domains, "test")}


@pytest.mark.parametrize(
    ("held_out", "message"),
    [
        pytest.param(["sketchy"], "names the domain 'sketchy'.*Did you mean 'sketch'", id="typo"),
        pytest.param(["photo", "sketch"], "leave at least one to train on", id="all"),
    ],
)
def test_impossible_held_out_domains(tmp_path: Path, held_out: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        data.scan(world(tmp_path)).sources(held_out)


def test_no_held_out_domain_leaves_every_one_to_learn_from(tmp_path: Path) -> None:
    assert data.scan(world(tmp_path)).sources([]) == ("photo", "sketch")


def test_a_folder_of_classes_is_one_domain(tmp_path: Path) -> None:
    world(tmp_path, ("photo",), count=3)
    flat = data.scan(tmp_path / "photo")
    assert flat.domains == (data.ONE_DOMAIN,) and flat.sources([]) == (data.ONE_DOMAIN,)
    nested = data.scan(tmp_path)
    assert flat.classes == nested.classes
    assert [s.path for s in flat.samples] == [s.path for s in nested.samples]
    assert all(s.image.startswith(f"{data.ONE_DOMAIN}/") for s in flat.samples)
    with pytest.raises(
        ConfigError, match=r"'sketch'.*With one domain, hold none out: data.held_out = \[\], or no --held-out"
    ):
        flat.sources(["sketch"])
    with pytest.raises(DataError, match="its one domain is 'images'"):
        data.scan(tmp_path / "photo", domains=["photo"])


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Expected a data folder at .*found nothing"):
        data.scan(tmp_path / "nowhere")


def test_missing_domain(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Expected the domains photo, art as folders"):
        data.scan(world(tmp_path), domains=["photo", "art"])


def test_class_without_images_is_named(tmp_path: Path) -> None:
    root = world(tmp_path)
    for path in (root / "sketch" / "dog").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="found none in sketch/dog"):
        data.scan(root)


def test_one_class_is_no_classification(tmp_path: Path) -> None:
    (tmp_path / "photo" / "cat").mkdir(parents=True)
    with pytest.raises(DataError, match="at least two class folders"):
        data.scan(tmp_path)


def test_images_of_absent_classes_are_read_from_a_folder_and_below(tmp_path: Path) -> None:
    world(tmp_path / "other")
    found = data.scan_absent(tmp_path)
    assert {sample.label for sample in found} == {ABSENT} and {sample.domain for sample in found} == {
        "unknown"
    }
    assert found[0].image == "unknown/other/photo/cat/0.png" and found[0].path.is_file()
    assert len(found) == len(data.scan(tmp_path / "other").samples) == len({s.image for s in found})
    (tmp_path / "empty").mkdir()
    for missing in ("empty", "nowhere"):
        with pytest.raises(DataError, match=r"show none of the classes at .*found none"):
            data.scan_absent(tmp_path / missing)


def test_images_without_labels_are_read_from_a_folder_and_below(tmp_path: Path) -> None:
    world(tmp_path / "other")
    found = data.scan_unlabelled(tmp_path)
    assert {(sample.label, sample.domain) for sample in found} == {(data.NO_LABEL, "unlabelled")}
    assert found[0].image == "unlabelled/other/photo/cat/0.png" and found[0].path.is_file()
    with pytest.raises(DataError, match=r"images without labels at .*\(data.unlabelled\), found none"):
        data.scan_unlabelled(tmp_path / "nowhere")


def test_a_few_images_of_each_class_in_each_source_domain(tmp_path: Path) -> None:
    whole = data.scan(world(tmp_path, ("photo", "painting", "sketch"), count=12))
    few = data.with_shots(whole, 2, ["sketch"])
    for domain in ("photo", "painting"):
        shown = [sample.label for sample in few.of((domain,), "train")]
        assert sorted(shown) == [0, 0, 1, 1]
        assert few.of((domain,), "test") == whole.of((domain,), "test")
    assert few.of(("sketch",)) == whole.of(("sketch",))
    # Whatever is held out, the images of a domain that teaches are the same.
    other = data.with_shots(whole, 2, ["painting"])
    assert other.of(("photo",)) == few.of(("photo",))
    assert data.with_shots(whole, 1000, ["sketch"]).samples == whole.samples
