from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlkd_runtime.bundle import Bundle, pack, write_bundle
from vlkd_runtime.errors import BundleError, ConfigError, DataError
from vlkd_runtime.golden import Golden
from vlkd_runtime.manifest import GoldenTolerance


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("kind", ["folder", "archive"])
def test_what_was_written_is_read(kind: str, folder: Path, archive: Path, tiny: Any) -> None:
    path = folder if kind == "folder" else archive
    bundle = Bundle.open(path)
    assert bundle.path == path
    assert bundle.manifest.classes == tiny.draft.classes
    assert bundle.manifest.stand_in == "numbers out of a hat"
    for field in dataclasses.fields(tiny.draft):
        assert getattr(bundle.manifest, field.name) == getattr(tiny.draft, field.name)
    assert bundle.model == tiny.files["model.onnx"]
    assert np.array_equal(bundle.golden.images, tiny.golden.images)
    assert np.array_equal(bundle.vectors.vectors, tiny.vectors.vectors)
    assert bundle.evidence == {"accuracy": {"mean": 0.5}}
    assert Bundle.open(str(path), expected_digest=bundle.manifest.digest).manifest == bundle.manifest
    with pytest.raises(BundleError, match=r"expected the bundle with digest 00, found [0-9a-f]{64}"):
        Bundle.open(path, expected_digest="00")


def test_manifest_as_another_reader_would_check_it(folder: Path) -> None:
    data = (folder / "manifest.json").read_bytes()
    value = json.loads(data)
    canonical = json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False) + "\n"
    assert data == canonical.encode()
    without_the_line = re.sub(rb'^  "digest": "[0-9a-f]{64}",\n', b"", data, flags=re.MULTILINE)
    assert hashlib.sha256(without_the_line).hexdigest() == value.pop("digest")
    assert (
        without_the_line == (json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False) + "\n").encode()
    )
    for name, entry in value["files"].items():
        assert entry["sha256"] == hashlib.sha256((folder / name).read_bytes()).hexdigest()
        assert entry["bytes"] == (folder / name).stat().st_size


def test_same_inputs_same_bytes(folder: Path, tiny: Any, tmp_path: Path) -> None:
    for name, data in tiny.files.items():
        (tmp_path / name).write_bytes(data)
    paths = {name: tmp_path / name for name in reversed(tiny.files)}
    draft = dataclasses.replace(tiny.draft, provenance=dict(reversed(list(tiny.draft.provenance.items()))))
    again = write_bundle(tmp_path / "again", draft, paths)
    assert contents(again) == contents(folder)
    first, second = pack(folder, tmp_path / "a.vlkd"), pack(again, tmp_path / "b.vlkd")
    assert first.read_bytes() == second.read_bytes()
    assert pack(first, tmp_path / "c.vlkd").read_bytes() == first.read_bytes()


def test_archive_is_a_zip_for_everyone_else(folder: Path, archive: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        assert opened.testzip() is None
        assert opened.namelist() == sorted(contents(folder))
        assert {name: opened.read(name) for name in opened.namelist()} == contents(folder)
        assert {info.date_time for info in opened.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert {info.compress_type for info in opened.infolist()} == {zipfile.ZIP_STORED}
        comment = opened.comment.decode()
    body = archive.read_bytes()[: -len(comment)]
    assert comment == f"vlkd-sha256:{hashlib.sha256(body).hexdigest()}"


def test_links_to_a_bundle_are_followed(folder: Path, archive: Path, tmp_path: Path) -> None:
    for place in (folder, archive):
        link = tmp_path / f"current-{place.name}"
        link.symlink_to(place)
        assert Bundle.open(link).manifest.name == "tiny"


def test_replacing(folder: Path, tiny: Any) -> None:
    with pytest.raises(DataError, match="found files"):
        write_bundle(folder, tiny.draft, tiny.files)
    write_bundle(folder, dataclasses.replace(tiny.draft, name="other"), tiny.files, replace=True)
    assert Bundle.open(folder).manifest.name == "other"
    (folder / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match=r"'holiday\.jpg' is no part of a bundle"):
        write_bundle(folder, tiny.draft, tiny.files, replace=True)
    assert (folder / "holiday.jpg").exists()


def other_golden(tiny: Any, **change: Any) -> dict[str, bytes]:
    return {"golden.safetensors": dataclasses.replace(tiny.golden, **change).to_bytes()}


def other_vectors(tiny: Any, **change: Any) -> dict[str, bytes]:
    return {"class_vectors.safetensors": dataclasses.replace(tiny.vectors, **change).to_bytes()}


@pytest.mark.parametrize(
    ("draft", "files", "match"),
    [
        pytest.param(
            lambda t: {"classes": ("a", "b")}, lambda t: {}, r"logits must be \(1, 2\)", id="too-few-classes"
        ),
        pytest.param(
            lambda t: {"classes": ("a", "b", "c")},
            lambda t: {},
            "class names or its logit scale",
            id="other-names",
        ),
        pytest.param(lambda t: {"logit_scale": 21.0}, lambda t: {}, "its logit scale", id="other-scale"),
        pytest.param(lambda t: {"logit_scale": float("nan")}, lambda t: {}, "not JSON compliant", id="nan"),
        pytest.param(
            lambda t: {"name": "", "target": " "}, lambda t: {}, "name must .*; target must", id="two-blanks"
        ),
        pytest.param(lambda t: {"stand_in": ""}, lambda t: {}, "stand_in must be text", id="empty-stand-in"),
        pytest.param(
            lambda t: {"provenance": {"a": 3}}, lambda t: {}, r"provenance\.a must be text", id="provenance"
        ),
        pytest.param(
            lambda t: {"golden": GoldenTolerance(0.1, 0.1)},
            lambda t: {},
            "min_cosine must be .* 0.5 to 1",
            id="lax",
        ),
        pytest.param(
            lambda t: {"golden": GoldenTolerance(1.0, 15.0)},
            lambda t: {},
            "max_logit_gap .* 0 to 10",
            id="lax-gap",
        ),
        pytest.param(
            lambda t: {"model": dataclasses.replace(t.draft.model, opset=19)},
            lambda t: {},
            r"model\.onnx in .*expected opset 19 as in the manifest, found 20",
            id="opset",
        ),
        pytest.param(
            lambda t: {"model": dataclasses.replace(t.draft.model, embedding=(1, 5))},
            lambda t: {},
            r"embedding float32 \[1, 5\].*found .*embedding float32 \[1, 4\]",
            id="embedding-size",
        ),
        pytest.param(
            lambda t: {"model": dataclasses.replace(t.draft.model, image=(1, 9, 9, 3))},
            lambda t: {},
            "that preprocess gives",
            id="image-size",
        ),
        pytest.param(
            lambda t: {}, lambda t: {"model.onnx": b""}, "bytes must be an integer from 1", id="no-model"
        ),
        pytest.param(
            lambda t: {}, lambda t: {"model.onnx": b"\0" * 99}, "no ONNX model", id="zeros-for-model"
        ),
        pytest.param(
            lambda t: {},
            lambda t: {"model.onnx": t.files["model.onnx"][:-9]},
            "no ONNX model",
            id="half-a-model",
        ),
        pytest.param(
            lambda t: {}, lambda t: {"evidence.json": b"[]"}, "expected a JSON object", id="evidence-list"
        ),
        pytest.param(
            lambda t: {},
            lambda t: {"evidence.json": b'{"a": NaN}'},
            "NaN is no JSON number",
            id="evidence-nan",
        ),
        pytest.param(
            lambda t: {},
            lambda t: other_golden(t, logits=-t.golden.logits),
            r"head is not class_vectors\.safetensors",
            id="golden-of-another-head",
        ),
        pytest.param(
            lambda t: {},
            lambda t: other_golden(t, logits=t.golden.logits[:, :2]),
            "expected samples of the model's shapes",
            id="golden-of-fewer-classes",
        ),
        pytest.param(
            lambda t: {},
            lambda t: {"golden.safetensors": t.files["class_vectors.safetensors"]},
            "expected vlkd-golden/1 with the tensors images, embedding, logits",
            id="golden-of-another-kind",
        ),
        pytest.param(
            lambda t: {},
            lambda t: other_vectors(
                t, names=t.vectors.names[:2], vectors=t.vectors.vectors[:2], prompts=t.vectors.prompts[:2]
            ),
            r"expected \(3, 4\) for the manifest's",
            id="fewer-vectors",
        ),
    ],
)
def test_what_does_not_fit_together_is_never_written(
    draft: Any, files: Any, match: str, tiny: Any, tmp_path: Path
) -> None:
    changed = dataclasses.replace(tiny.draft, **draft(tiny))
    with pytest.raises(BundleError, match=match):
        write_bundle(tmp_path / "out", changed, {**tiny.files, **files(tiny)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("names", [["model.onnx"], ["model.onnx", "notes.txt"]], ids=["missing", "other"])
def test_the_files_must_be_the_four(names: list[str], tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"evidence\.json.* is missing or too much"):
        write_bundle(tmp_path / "out", tiny.draft, dict.fromkeys(names, b"x"))


def test_files_that_cannot_be_read(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read it for the bundle: No such file"):
        write_bundle(tmp_path / "out", tiny.draft, {**tiny.files, "model.onnx": tmp_path / "gone"})


def test_pack_wants_the_suffix(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected a name that ends in \.vlkd"):
        pack(folder, tmp_path / "x.zip")


def test_pack_checks_first(folder: Path, tmp_path: Path) -> None:
    (folder / "evidence.json").write_text("{}")
    with pytest.raises(BundleError, match=r"evidence\.json in .*expected \d+ bytes, found 2"):
        pack(folder, tmp_path / "x.vlkd")
    assert not (tmp_path / "x.vlkd").exists()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        pytest.param(
            {"images": np.zeros((4, 8, 8, 3), np.float32)}, "golden images: expected uint8", id="float"
        ),
        pytest.param({"images": np.zeros((4, 8, 8, 4), np.uint8)}, r"expected \(K, H, W, 3\)", id="rgba"),
        pytest.param({"images": np.zeros((3, 8, 8, 3), np.uint8)}, "3 images, 4 embeddings", id="count"),
        pytest.param(
            {"logits": np.full((4, 3), np.nan, np.float32)}, "golden logits: .*not finite", id="nan"
        ),
        pytest.param(
            {"embedding": np.ones((4, 4), np.float32)}, "expected unit rows, found lengths 2", id="not-unit"
        ),
        pytest.param({"images": np.zeros((0, 8, 8, 3), np.uint8)}, "not empty", id="empty"),
    ],
)
def test_impossible_golden_samples(change: dict[str, Any], match: str, tiny: Any) -> None:
    with pytest.raises(DataError, match=match):
        dataclasses.replace(tiny.golden, **change)
    assert Golden.from_bytes(tiny.golden.to_bytes(), where="x").to_bytes() == tiny.golden.to_bytes()
