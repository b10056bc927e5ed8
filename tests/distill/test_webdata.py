"""Shards give the very store that their folder gives, and a damaged or hostile shard gives a clear error."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlkd_distill import closing, data, pixels, webdata
from vlkd_distill import shards as shards_module
from vlkd_runtime.errors import ConfigError, DataError, UnavailableError, UsageError
from vlkd_runtime.preprocess import PreprocessSpec, prepare

SPEC = PreprocessSpec(6, 5)
CLASSES = ("cat", "dog")


def picture(seed: int, suffix: str = "png", size: tuple[int, int] = (9, 11)) -> bytes:
    file = io.BytesIO()
    values = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(values).save(file, {"png": "PNG", "jpg": "JPEG"}[suffix])
    return file.getvalue()


def world(root: Path, count: int = 12) -> data.DomainDataset:
    for place, (domain, name) in enumerate((d, n) for d in ("photo", "sketch") for n in CLASSES):
        (root / domain / name).mkdir(parents=True)
        for index in range(count):
            suffix = ("png", "jpg")[index % 2]
            file = root / domain / name / f"shot.{index}.{suffix}"
            file.write_bytes(picture(100 * place + index, suffix))
    return data.scan(root)


def pack(path: Path, *members: tuple[str, bytes] | tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            tar.addfile(info, io.BytesIO(member[1]))
    return path


def good(key: str, name: str = "cat", seed: int = 0) -> tuple[tuple[str, bytes], tuple[str, bytes]]:
    return (f"{key}.cls", name.encode()), (f"{key}.png", picture(seed))


def same(store: pixels.PixelStore, other: pixels.PixelStore) -> None:
    assert sorted(sample.image for sample in store.samples) == sorted(
        sample.image for sample in other.samples
    )
    row_of = {sample.image: row for row, sample in enumerate(other.samples)}
    for row, sample in enumerate(store.samples):
        twin = other.samples[row_of[sample.image]]
        assert (sample.domain, sample.label) == (twin.domain, twin.label)
        np.testing.assert_array_equal(store.pixels[row], other.pixels[row_of[sample.image]])


def test_jpegs_in_shards_and_in_folders_are_reduced_alike(tmp_path: Path) -> None:
    spec = PreprocessSpec(6, 5, jpeg_scale=1)
    for seed, name in enumerate(CLASSES):
        (tmp_path / "data" / "photo" / name).mkdir(parents=True)
        (tmp_path / "data" / "photo" / name / "0.jpg").write_bytes(picture(seed, "jpg", (60, 70)))
    found = data.scan(tmp_path / "data")
    (tmp_path / "store").mkdir()
    folder = pixels.build(tmp_path / "store", found.samples, spec, lambda _: None)
    shards = webdata.write_shards(found.samples, found.classes, tmp_path / "shards", 2)
    same(webdata.import_shards(shards, spec, tmp_path / "imported").store, folder)
    for sample, row in zip(folder.samples, folder.pixels, strict=True):
        np.testing.assert_array_equal(row, prepare(sample.path, spec))
        assert not np.array_equal(row, prepare(sample.path, SPEC))


@pytest.mark.parametrize("per_shard", [1, 7, 1000])
@pytest.mark.parametrize("packed", [False, True], ids=["tar", "gz"])
def test_shards_give_the_store_of_their_folder(tmp_path: Path, per_shard: int, packed: bool) -> None:
    found = world(tmp_path / "data")
    shards: Sequence[Path] = webdata.write_shards(
        found.samples, found.classes, tmp_path / "shards", per_shard
    )
    assert len(shards) == 2 * -(-24 // per_shard) and not list((tmp_path / "shards").glob("*.part"))
    if packed:
        for shard in shards:
            shard.with_suffix(".tar.gz").write_bytes(gzip.compress(shard.read_bytes()))
        shards = [shard.with_suffix(".tar.gz") for shard in shards]
    counted: list[int] = []
    imported = webdata.import_shards(shards, SPEC, tmp_path / "import", progress=counted.append)
    (tmp_path / "folder").mkdir()
    same(imported.store, pixels.build(tmp_path / "folder", found.samples, SPEC, lambda _: None))
    assert (imported.classes, imported.domains, sum(counted)) == (CLASSES, ("photo", "sketch"), 48)
    again = webdata.open_import(tmp_path / "import")
    assert again.store.samples == imported.store.samples and isinstance(again.store.pixels, np.memmap)


def test_held_out_shards_are_not_opened_and_splits_are_by_name(tmp_path: Path) -> None:
    found = world(tmp_path / "data")
    shards = webdata.write_shards(found.samples, found.classes, tmp_path / "shards", 10)
    held_out = [shard for shard in shards if shard.name.startswith("sketch")]
    with closing.forbid(held_out):
        imported = webdata.import_shards(shards, SPEC, tmp_path / "import", domains=["photo"], split="train")
    wanted = [sample.image for sample in found.of(["photo"], "train")]
    assert [sample.image for sample in imported.store.samples] == wanted and 0 < len(wanted) < 24


def test_the_same_samples_give_the_same_shards(tmp_path: Path) -> None:
    found = world(tmp_path / "data", 3)
    first = webdata.write_shards(found.samples, found.classes, tmp_path / "a")
    second = webdata.write_shards(found.samples, found.classes, tmp_path / "b")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_the_originals_come_in_row_order_and_damaged_images_are_left_out(tmp_path: Path) -> None:
    found = world(tmp_path / "data")
    damaged = found.samples[5].path
    damaged.write_bytes(damaged.read_bytes()[:40])
    listed = webdata.write_shards(found.samples, found.classes, tmp_path / "shards")
    imported = webdata.import_shards(listed, SPEC, tmp_path / "import")
    assert [image for image, _ in imported.store.bad] == [found.samples[5].image]
    assert "photo-000000.tar/00000005" in imported.store.bad[0][1]
    samples = imported.store.samples
    path_of = {sample.image: sample.path for sample in found.samples}
    read = list(webdata.originals(listed, samples))
    assert len(read) == 47
    assert read == [path_of[sample.image].read_bytes() for sample in samples]
    assert list(webdata.originals(listed, samples[30:40:3])) == read[30:40:3]
    with pytest.raises(DataError, match=r"shot\.0\.png in the shards it was imported from, found none"):
        list(webdata.originals(listed, samples[1::-1]))


def test_some_rows_in_another_order_with_other_labels(tmp_path: Path) -> None:
    found = world(tmp_path / "data", 4)
    listed = webdata.write_shards(found.samples, found.classes, tmp_path / "shards")
    imported = webdata.import_shards(listed, SPEC, tmp_path / "import")
    wanted = tuple(dataclasses.replace(one, label=7) for one in imported.store.samples[9:2:-2])
    (tmp_path / "some").mkdir()
    store = webdata.take_rows(imported, wanted, tmp_path / "some")
    assert store.samples == wanted and not store.bad and isinstance(store.pixels, np.memmap)
    np.testing.assert_array_equal(store.pixels, imported.store.pixels[9:2:-2])


def test_images_of_one_split_become_the_files_they_were(tmp_path: Path) -> None:
    found = world(tmp_path / "data")
    listed = webdata.write_shards(found.samples, found.classes, tmp_path / "shards")
    count = webdata.unpack(listed, tmp_path / "files", classes=CLASSES, split="test")
    wanted = found.of(found.domains, "test")
    written = sorted(path for path in (tmp_path / "files").rglob("*") if path.is_file())
    assert len(written) == count == len(wanted) > 0
    for sample in wanted:
        assert (tmp_path / "files" / sample.image).read_bytes() == sample.path.read_bytes()


def test_a_test_image_that_is_too_large_is_passed_over_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = len(picture(0))
    monkeypatch.setattr(shards_module, "_LARGEST_IMAGE_BYTES", most)
    members = (*good("a"), ("b.cls", b"cat"), ("b.png", bytes(most + 1)))
    shard = pack(tmp_path / "photo-0.tar", *members)
    assert webdata.unpack([shard], tmp_path / "files", classes=["cat"]) == 1
    ((image, reason),) = json.loads((tmp_path / "files" / webdata.BAD).read_text())
    assert image == "photo/cat/b.png" and reason == f"{shard}/b: {most + 1} bytes, expected at most {most}"


def test_rows_become_files_that_prepare_to_the_same_rows(tmp_path: Path) -> None:
    found = world(tmp_path / "data", 4)
    shards = webdata.write_shards(found.samples, found.classes, tmp_path / "shards")
    store = webdata.import_shards(shards, SPEC, tmp_path / "import").store
    some = webdata.write_images(store, tmp_path / "files", store.samples[3:9])
    assert [sample.image for sample in some] == [sample.image for sample in store.samples[3:9]]
    for row, sample in enumerate(some, 3):
        np.testing.assert_array_equal(prepare(sample.path, SPEC), store.pixels[row])


def test_classes_by_index_domains_by_json_and_strange_members(tmp_path: Path) -> None:
    def about(domain: str) -> bytes:
        return json.dumps({"domain": domain, "anything": 1}).encode()

    shard = pack(
        tmp_path / "train-000000.tar",
        tarfile.TarInfo("__meta__"),
        ("set/a.cls", b"1\n"),
        ("set/a.json", about("photo")),
        ("set/a.PNG", picture(1)),
        ("set/a.npy", b"never decoded"),
        ("set/a.txt", b"a caption"),
        ("set/b.json", about("sketch")),
        ("set/b.jpg", picture(2, "jpg")),
        ("set/b.cls", b"cat"),
    )
    imported = webdata.import_shards([shard], SPEC, tmp_path / "out", classes=CLASSES, domain_from="json")
    assert [(s.image, s.label) for s in imported.store.samples] == [
        ("photo/dog/a.png", 1),
        ("sketch/cat/b.jpg", 0),
    ]
    np.testing.assert_array_equal(imported.store.pixels[0], prepare(Image.open(io.BytesIO(picture(1))), SPEC))


def test_classes_not_asked_for_are_left_out(tmp_path: Path) -> None:
    shard = pack(tmp_path / "photo-0.tar", *good("a"), *good("b", "elk"), *good("c", "dog"))
    imported = webdata.import_shards([shard], SPEC, tmp_path / "out", classes=("dog", "cat"))
    assert [(s.image, s.label) for s in imported.store.samples] == [
        ("photo/cat/a.png", 1),
        ("photo/dog/c.png", 0),
    ]


def test_a_shard_cut_anywhere_is_named(tmp_path: Path) -> None:
    shard = pack(tmp_path / "photo-0.tar", *good("a"), *good("b", "dog"))
    whole = shard.read_bytes()
    with tarfile.open(shard) as tar:
        last = tar.getmembers()[-1]
    end = last.offset_data + -(-last.size // 512) * 512
    cuts = [*range(0, end + 1, 512), 700, end + 100]
    assert len(cuts) > 8
    for cut in cuts:
        shard.write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"photo-0\.tar: the shard is cut short or damaged"):
            webdata.import_shards([shard], SPEC, tmp_path / "out")
    assert not (tmp_path / "out" / "samples.json").exists()
    with pytest.raises(DataError, match="finished import"):
        webdata.open_import(tmp_path / "out")
    shard.write_bytes(whole[: end + 512])  # one block of zeros is an end
    assert len(webdata.import_shards([shard], SPEC, tmp_path / "out").store.samples) == 2


def test_a_shard_larger_than_the_window_and_damaged_in_the_middle(tmp_path: Path) -> None:
    large = picture(1, size=(300, 300))
    members = [one for key in "abc" for one in ((f"{key}.cls", b"cat"), (f"{key}.png", large))]
    shard = pack(tmp_path / "photo-0.tar", *members)
    assert shard.stat().st_size > 5 * shards_module._Tail.READ
    assert len(webdata.import_shards([shard], SPEC, tmp_path / "out").store.samples) == 3
    with tarfile.open(shard) as tar:
        header = tar.getmember("b.cls").offset
    broken = bytearray(shard.read_bytes())
    broken[header + 3] ^= 0xFF  # tarfile alone would end here without a word
    shard.write_bytes(broken)
    with pytest.raises(DataError, match="cut short or damaged"):
        webdata.import_shards([shard], SPEC, tmp_path / "out")


@pytest.mark.parametrize("cut", [-1, -6, -40], ids=["size", "checksum", "data"])
def test_a_compressed_shard_cut_short_is_named(tmp_path: Path, cut: int) -> None:
    whole = gzip.compress(pack(tmp_path / "photo-0.tar", *good("a")).read_bytes())
    shard = tmp_path / "photo-0.tar.gz"
    shard.write_bytes(whole[:cut])
    with pytest.raises(DataError, match=r"photo-0\.tar\.gz: the shard is cut short"):
        webdata.import_shards([shard], SPEC, tmp_path / "out")


def link(name: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


BAD: dict[str, tuple[tuple[tuple[str, bytes] | tarfile.TarInfo, ...], str]] = {
    "absolute": (good("/a"), "leads out of the shard"),
    "dots": (good("x/../../a"), "leads out of the shard"),
    "backslash": (good("..\\a"), "leads out of the shard"),
    "symbolic": ((link("a.png", tarfile.SYMTYPE),), "found a link"),
    "hard": ((link("a.png", tarfile.LNKTYPE),), "found a link"),
    "device": ((link("a.png", tarfile.CHRTYPE),), "a device"),
    "pyd": ((*good("a"), ("a.pyd", b"x")), r"a\.pyd: a pickle"),
    "pth": ((*good("a"), ("a.feature.PTH", b"x")), r"PTH: a pickle"),
    "class-path": (good("a", "../../dog"), "a plain name.*'../../dog'"),
    "class-empty": (good("a", " "), "a plain name.*''"),
    "class-index": (good("a", "0"), "an index below 0, found 0; set data.classes"),
    "class-binary": ((("a.cls", b"\xff"), good("a")[1]), "UTF-8 text in its .cls"),
    "no-class": (good("a")[1:], "one image and one .cls, found png"),
    "no-image": (good("a")[:1], "one image and one .cls, found cls"),
    "two-images": ((*good("a"), ("a.jpg", picture(0, "jpg"))), "found cls, jpg, png"),
    "twice": ((*good("a"), good("a")[1]), r"found \.png twice"),
    "again": ((*good("a"), *good("b"), *good("x/a")), "photo/cat/a.png is there twice"),
    "no-json": ((*good("a"), ("a.json", b"{")), "its .json cannot be read"),
    "json-list": ((*good("a"), ("a.json", b"[]")), "expected an object"),
    "json-number": ((*good("a"), ("a.json", b'{"domain": 1}')), "expected texts"),
    "json-file": ((*good("a"), ("a.json", b'{"file": "../a.png"}')), "a plain name.*'../a.png'"),
    "domain": ((*good("a"), ("a.json", b'{"domain": "art"}')), "'photo' of the shard's name, found 'art'"),
    "empty": ((), "found none of the domains"),
    "no-picture": ((("a.cls", b"cat"), ("a.png", b"no picture")), "1 of 1 images cannot be decoded"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_unsafe_or_unreadable_shards(tmp_path: Path, case: str) -> None:
    members, message = BAD[case]
    shard = pack(tmp_path / "photo-0.tar", *members)
    with pytest.raises(DataError, match=message):
        webdata.import_shards([shard], SPEC, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} <= {"photo-0.tar", "out"}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        pytest.param(lambda p: shards_module.find_shards(f"wds:{p}/*.tar"), DataError, "found none", id="glob"),
        pytest.param(
            lambda p: webdata.import_shards(["pipe:touch x"], SPEC, p, domain_from="json"),
            DataError,
            "shell command",
            id="pipe",
        ),
        pytest.param(lambda p: webdata.import_shards([p / "a-0.tar"], SPEC, p), DataError, "cannot open", id="missing"),
        pytest.param(lambda p: webdata.import_shards([p / "a.tar"], SPEC, p), DataError, "<domain>-<num", id="name"),
        pytest.param(
            lambda p: webdata.import_shards([], SPEC, p, classes=("a", "a")), ConfigError, "different", id="classes"
        ),
        pytest.param(lambda p: webdata.write_shards([], CLASSES, p, 0), ConfigError, "per_shard = 0", id="per-shard"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_said(
    tmp_path: Path, call: Callable[[Path], object], error: type[UsageError], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(tmp_path)


def test_shards_by_pattern_and_their_key(tmp_path: Path) -> None:
    for name in ("b-1.tar", "b-0.tar", "a-0.tar", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    found = shards_module.find_shards(f"wds:{tmp_path}/*.tar")
    assert [Path(shard).name for shard in found] == ["a-0.tar", "b-0.tar", "b-1.tar"]
    before = shards_module.shards_key(found)
    assert before == shards_module.shards_key(found) != shards_module.shards_key(found[:2])
    (tmp_path / "a-0.tar").write_bytes(b"xx")
    assert shards_module.shards_key(found) != before


def test_addresses_are_opened_by_the_library(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    shard = pack(tmp_path / "photo-0.tar", *good("a"), *good("b", "dog"))
    pack(tmp_path / "photo-1.tar", *good("c", "dog"))
    addresses = shards_module.find_shards(f"wds:{tmp_path.as_uri()}/photo-{{0..1}}.tar")
    assert addresses[0] == shard.as_uri() and len(addresses) == 2
    assert len(webdata.import_shards(addresses, SPEC, tmp_path / "out").store.samples) == 3
    with pytest.raises(UnavailableError, match="cannot open the address"):
        webdata.import_shards([f"{tmp_path.as_uri()}/photo-9.tar"], SPEC, tmp_path / "out")


def test_the_library_is_asked_for_only_for_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(shards_module.importlib, "import_module", missing)
    webdata.import_shards([pack(tmp_path / "photo-0.tar", *good("a"))], SPEC, tmp_path / "out")
    with pytest.raises(UnavailableError, match=r"pip install 'vlkd-edge\[shards\]'"):
        shards_module.find_shards("wds:https://example.org/photo-{000000..000001}.tar")
