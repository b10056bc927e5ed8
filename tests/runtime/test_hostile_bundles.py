from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import re
import stat
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from vlkd_runtime import contents
from vlkd_runtime.archive import COMMENT_LENGTH, read_archive, write_archive
from vlkd_runtime.bundle import Bundle, write_bundle
from vlkd_runtime.errors import BundleError, DataError
from vlkd_runtime.manifest import LIMITS
from vlkd_runtime.manifestfile import parse_manifest
from vlkd_runtime.onnxfile import check_model

NAMES = sorted(LIMITS)


def seal(body: bytes) -> bytes:
    """Put a comment of the right form and hash behind a zip, as a careful attacker would."""
    end = bytearray(body)
    end[-2:] = COMMENT_LENGTH.to_bytes(2, "little")
    return bytes(end) + b"vlkd-sha256:" + hashlib.sha256(end).hexdigest().encode()


def zipped(members: list[tuple[zipfile.ZipInfo | str, bytes]], kind: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of the duplicates that are meant here
        with zipfile.ZipFile(file, "w", kind) as opened:
            for info, data in members:
                opened.writestr(info, data)
    return seal(file.getvalue())


def info(name: str, mode: int = stat.S_IFREG | 0o644) -> zipfile.ZipInfo:
    made = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    made.external_attr = mode << 16
    made.create_system = 3
    return made


def assert_refused(path: Path, match: str, *, names: str | None = None) -> None:
    with pytest.raises(BundleError, match=match) as caught:
        Bundle.open(path)
    assert str(path) in str(caught.value) or (names and names in str(caught.value))


def test_every_byte_of_the_manifest_counts(folder: Path) -> None:
    path = folder / "manifest.json"
    whole = path.read_bytes()
    assert len(whole) > 1000
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        with pytest.raises(BundleError, match=r"^manifest\.json: "):
            parse_manifest(bytes(damaged), where="manifest.json")
        # The other case of a letter; a blank becomes NUL.
        damaged[position] ^= 1 | 1 << 5
        path.write_bytes(bytes(damaged))
        with pytest.raises(BundleError, match=r"manifest\.json in "):
            Bundle.open(folder)
    path.write_bytes(whole)
    Bundle.open(folder)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "manifest.json"])
def test_bytes_of_every_other_file_count(folder: Path, name: str) -> None:
    path = folder / name
    whole = path.read_bytes()
    for position in sorted({*range(0, len(whole), max(1, len(whole) // 60)), len(whole) - 1}):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(bytes(damaged))
        with pytest.raises(BundleError, match=rf"{re.escape(name)} in .*expected SHA-256"):
            Bundle.open(folder)
    for other in (whole[:-1], whole + b"\0", b""):
        path.write_bytes(other)
        with pytest.raises(BundleError, match=rf"{re.escape(name)} in .*expected {len(whole)} bytes"):
            Bundle.open(folder)


def header_positions(data: bytes) -> set[int]:
    """Every byte that is no member's content: local headers, names, the directory, the end, the comment."""
    positions = set(range(len(data)))
    with zipfile.ZipFile(io.BytesIO(data)) as opened:
        for member in opened.infolist():
            start = member.header_offset + 30 + len(member.filename)
            positions -= set(range(start, start + member.file_size))
    return positions


def test_every_byte_of_the_archive_counts(packed: bytes, archive: Path) -> None:
    positions = sorted(header_positions(packed) | set(range(0, len(packed), 7)))
    assert len(positions) > 1000
    for position in positions:
        damaged = bytearray(packed)
        damaged[position] ^= 1 << (position % 8)
        with pytest.raises(BundleError, match=r"tiny\.vlkd"):
            read_archive(bytes(damaged), where=str(archive))
    archive.write_bytes(packed)
    Bundle.open(archive)


def test_damage_in_an_archive_names_the_member(packed: bytes, archive: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(packed)) as opened:
        members = opened.infolist()
    for member in members:
        damaged = bytearray(packed)
        damaged[member.header_offset + 30 + len(member.filename) + 3] ^= 1
        archive.write_bytes(bytes(damaged))
        assert_refused(archive, f"the damage is in '{re.escape(member.filename)}'")


def test_truncated_archives(packed: bytes, archive: Path) -> None:
    for length in [*range(0, 200, 3), *range(200, len(packed), 97), *range(len(packed) - 200, len(packed))]:
        with pytest.raises(BundleError, match=r"no zip archive at all|truncated"):
            read_archive(packed[:length], where=str(archive))
    archive.write_bytes(packed + b"\0")
    assert_refused(archive, "truncated, altered")


def with_directory_changed(packed: bytes) -> bytes:
    """Let the directory promise a terabyte-like size where the file has a few bytes."""
    body = bytearray(packed[:-COMMENT_LENGTH])
    at = body.rindex(b"PK\x01\x02")
    body[at + 20 : at + 28] = b"\xff\xff\xff\x7f" * 2
    return seal(bytes(body))


ARCHIVES: dict[str, tuple[Callable[[dict[str, bytes], bytes], bytes], str]] = {
    "plain-zip": (
        lambda files, _: zipped(list(files.items()))[:-COMMENT_LENGTH],
        "instead of zip",
    ),
    "zip-of-the-files": (lambda files, _: zipped(list(files.items())), "not .*in the form that `pack` gives"),
    "compressed": (lambda files, _: zipped(list(files.items()), zipfile.ZIP_DEFLATED), "is compressed"),
    "bomb": (
        lambda files, _: zipped([*files.items(), ("model.onnx", bytes(50_000_000))], zipfile.ZIP_DEFLATED),
        "is compressed",
    ),
    "parent": (lambda files, _: zipped([*files.items(), ("../evil", b"x")]), "'../evil' points outside"),
    "deep-parent": (lambda files, _: zipped([*files.items(), ("a/../../evil", b"x")]), "points outside"),
    "absolute": (lambda files, _: zipped([*files.items(), ("/etc/cron.d/evil", b"x")]), "points outside"),
    "backslash-parent": (lambda files, _: zipped([*files.items(), ("..\\evil", b"x")]), "points outside"),
    "backslash": (lambda files, _: zipped([*files.items(), ("a\\evil", b"x")]), "has a folder in its name"),
    "drive": (lambda files, _: zipped([*files.items(), ("C:evil", b"x")]), "points outside"),
    "folder": (
        lambda files, _: zipped([*files.items(), ("sub/model.onnx", b"x")]),
        "has a folder in its name",
    ),
    "extra": (lambda files, _: zipped([*files.items(), ("run.sh", b"x")]), "'run.sh' does not belong"),
    "other-case": (lambda files, _: zipped([*files.items(), ("MODEL.ONNX", b"x")]), "does not belong"),
    "duplicate": (
        lambda files, _: zipped([*files.items(), ("model.onnx", b"x")]),
        "'model.onnx' is there more",
    ),
    "missing": (
        lambda files, _: zipped([item for item in files.items() if item[0] != "evidence.json"]),
        "evidence.json is missing",
    ),
    "nothing": (lambda files, _: zipped([]), "no zip archive|is missing"),
    "symlink": (
        lambda files, _: zipped(
            [
                *((n, d) for n, d in files.items() if n != "evidence.json"),
                (info("evidence.json", stat.S_IFLNK), b"/x"),
            ]
        ),
        "'evidence.json' is a symbolic link",
    ),
    "size-claimed": (
        lambda _, packed: with_directory_changed(packed),
        r"'model.onnx' claims 2147483647 bytes",
    ),
    "prefix": (lambda _, packed: seal(b"PK" + packed[:-COMMENT_LENGTH]), "directory is not where"),
    "between": (
        lambda files, _: seal(write_archive({"evidence.json": b"{}"})[:-COMMENT_LENGTH] + b"junk" * 6),
        "truncated|directory",
    ),
    "no-zip": (lambda _, __: b"\x7fELF" + bytes(300), "no zip archive at all"),
    "empty": (lambda _, __: b"", "no zip archive at all"),
    "json": (lambda files, _: files["manifest.json"], "no zip archive at all"),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_made_to_harm(name: str, folder: Path, packed: bytes, archive: Path) -> None:
    make, match = ARCHIVES[name]
    files = {member: (folder / member).read_bytes() for member in NAMES}
    archive.write_bytes(make(files, packed))
    before = sorted(archive.parent.rglob("*"))
    assert_refused(archive, match)
    assert sorted(archive.parent.rglob("*")) == before


def test_a_sealed_archive_of_a_damaged_bundle_is_refused(folder: Path, archive: Path) -> None:
    files = {name: (folder / name).read_bytes() for name in NAMES}
    archive.write_bytes(write_archive({**files, "evidence.json": b"{}"}))
    assert_refused(archive, r"evidence\.json in .*expected \d+ bytes, found 2")


def test_sizes_are_refused_before_reading(
    folder: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "golden.safetensors"
    with path.open("r+b") as file:
        file.truncate(LIMITS["golden.safetensors"] + 1)  # sparse: no disk is used

    def never(*_: object, **__: object) -> bytes:
        pytest.fail("nothing may be read")

    monkeypatch.setattr(contents, "_read_file", never)
    assert_refused(folder, r"'golden\.safetensors' has \d+ bytes, at most")


def test_a_file_that_grows_while_it_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = contents._read_file

    def late(path: Path, limit: int, *, follow: bool) -> bytes:
        with path.open("ab") as file:
            file.write(b"x")
        return read(path, limit, follow=follow)

    monkeypatch.setattr(contents, "_read_file", late)
    assert_refused(folder, r"expected a plain file of at most|changed while")


def replace_by_link(folder: Path) -> None:
    target = folder.parent / "elsewhere"
    (folder / "model.onnx").rename(target)
    (folder / "model.onnx").symlink_to(target)


def replace_by_pipe(folder: Path) -> None:
    (folder / "model.onnx").unlink()
    os.mkfifo(folder / "model.onnx")


def replace_by_folder(folder: Path) -> None:
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").mkdir()


@pytest.mark.parametrize(
    ("harm", "match"),
    [
        pytest.param(replace_by_link, "'model.onnx' is a link", id="symlink"),
        pytest.param(replace_by_pipe, "'model.onnx' is a link, a folder or a device", id="pipe"),
        pytest.param(replace_by_folder, "'model.onnx' is a link, a folder", id="folder"),
        pytest.param(lambda f: (f / ".DS_Store").write_text("x"), "'.DS_Store' does not belong", id="extra"),
        pytest.param(
            lambda f: (f / "golden.safetensors").unlink(), "golden.safetensors is missing", id="missing"
        ),
        pytest.param(lambda f: [p.unlink() for p in f.iterdir()], "class_vectors.* is missing", id="empty"),
    ],
)
def test_folders(harm: Callable[[Path], object], match: str, folder: Path) -> None:
    harm(folder)
    assert_refused(folder, match)


def test_a_link_put_in_after_the_look(folder: Path) -> None:
    opened = contents.open_contents(folder)
    replace_by_link(folder)
    with pytest.raises(BundleError, match=r"model\.onnx in .*cannot read it"):
        opened.read("model.onnx")


@pytest.mark.parametrize(
    ("path", "match"),
    [
        pytest.param("nowhere.vlkd", "cannot read the bundle: No such file", id="missing"),
        pytest.param("a\0b", "null", id="nul"),
    ],
)
def test_nothing_there(path: str, match: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=match):
        Bundle.open(f"{tmp_path}/{path}")


def test_a_device_is_no_bundle() -> None:
    with pytest.raises(BundleError, match="found neither"):
        Bundle.open("/dev/null")


def resealed(folder: Path, change: Callable[[dict[str, Any]], object]) -> bytes:
    """Change the manifest and give it the digest that fits."""
    value = json.loads((folder / "manifest.json").read_bytes())
    value.pop("digest")
    change(value)
    render = lambda: (json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False) + "\n").encode()  # noqa: E731
    value["digest"] = hashlib.sha256(render()).hexdigest()
    return render()


def text_change(old: str, new: str) -> Callable[[Path], bytes]:
    def change(folder: Path) -> bytes:
        data = (folder / "manifest.json").read_bytes()
        assert old.encode() in data
        return data.replace(old.encode(), new.encode(), 1)

    return change


def value_change(*keys: str, to: Any = ..., **more: Any) -> Callable[[Path], bytes]:
    def change(value: dict[str, Any]) -> None:
        for key in keys[:-1]:
            value = value[key]
        if to is ...:
            del value[keys[-1]]
        else:
            value[keys[-1]] = to

    return lambda folder: resealed(folder, change)


MANIFESTS: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "empty": (lambda _: b"", "not JSON"),
    "not-utf8": (lambda f: b"\xff" + (f / "manifest.json").read_bytes(), "not UTF-8 at byte 0"),
    "utf16": (lambda f: (f / "manifest.json").read_text().encode("utf-16"), "not UTF-8"),
    "byte-order-mark": (lambda f: b"\xef\xbb\xbf" + (f / "manifest.json").read_bytes(), "not JSON"),
    "list": (lambda _: b"[]", "the whole must be an object, found a list"),
    "deep": (lambda _: b"[" * 200_000, "nested"),
    "long-number": (lambda _: b'{"a": ' + b"1" * 6000 + b"}", "not JSON that can be read|format must"),
    "nan": (text_change('"logit_scale": 20.0', '"logit_scale": NaN'), "NaN is no JSON number"),
    "infinity": (text_change('"logit_scale": 20.0', '"logit_scale": 1e999'), "out of range"),
    "duplicate": (
        text_change('"name": "tiny"', '"name": "tiny",\n  "name": "evil"'),
        "'name' is there twice",
    ),
    "surrogate": (text_change('"name": "tiny"', '"name": "\\ud800"'), "surrogate"),
    "reformatted": (text_change('"name": "tiny"', '"name":  "tiny"'), "not in canonical form"),
    "escaped": (text_change('"name": "tiny"', '"name": "\\u0074iny"'), "not in canonical form"),
    "number-form": (text_change('"logit_scale": 20.0', '"logit_scale": 2.00e1'), "not in canonical form"),
    "no-newline": (lambda f: (f / "manifest.json").read_bytes()[:-1], "not in canonical form"),
    "windows-newlines": (
        lambda f: (f / "manifest.json").read_bytes().replace(b"\n", b"\r\n"),
        "not in canonical form",
    ),
    "edited": (text_change('"name": "tiny"', '"name": "evil"'), "its digest says .* so it was altered"),
    "newer-schema": (
        value_change("schema_version", to=3),
        "found schema version 3, this reader knows 1 and 2; update",
    ),
    "text-schema": (value_change("schema_version", to="1"), "found schema version '1'"),
    "bool-schema": (value_change("schema_version", to=True), "found schema version True"),
    "float-schema": (value_change("schema_version", to=1.0), "found schema version 1.0"),
    "other-format": (value_change("format", to="zoo"), "format must be 'vlkd-bundle', found 'zoo'"),
    "no-digest": (
        lambda f: re.sub(rb'  "digest".*\n', b"", (f / "manifest.json").read_bytes()),
        "digest is missing",
    ),
    "unknown-field": (value_change("colour", to="BGR"), "colour is not known"),
    "unknown-inner": (value_change("model", "layout", to="NCHW"), "model.layout is not known"),
    "missing-field": (value_change("target"), "target is missing"),
    "null": (value_change("name", to=None), "name must be text, found null"),
    "object-for-text": (value_change("name", to={}), "name must be text, found an object"),
    "text-for-object": (value_change("model", to="x"), "model must be an object, found 'x'"),
    "bool-for-int": (value_change("model", "opset", to=True), "model.opset must be an integer"),
    "opset-zero": (value_change("model", "opset", to=0), "model.opset must be an integer from 1"),
    "dtype": (
        value_change("model", "inputs", "image", "dtype", to="float32"),
        "model.inputs.image.dtype must be 'uint8', found 'float32'",
    ),
    "shape": (
        value_change("model", "inputs", "image", "shape", to=[1, -1, 8, 3]),
        "model.inputs.image.shape must be 4 sizes above 0",
    ),
    "second-input": (value_change("model", "inputs", "mask", to={}), "model.inputs.mask is not known"),
    "preprocess": (value_change("preprocess", "resize", to="pad"), "resize must be 'squash' or 'crop'"),
    "preprocess-null": (value_change("preprocess", to=None), "preprocess"),
    "classes-text": (value_change("classes", to="cat"), "classes must be a list of text"),
    "classes-twice": (value_change("classes", to=["a", "a", "b"]), "'a' repeated"),
    "scale-zero": (value_change("logit_scale", to=0), "logit_scale must be a number from"),
    "file-missing": (value_change("files", "model.onnx"), "files.model.onnx is missing"),
    "file-extra": (value_change("files", "../x", to={}), r"files\.\.\./x is not known"),
    "file-hash": (
        value_change("files", "model.onnx", "sha256", to="AB" * 32),
        "files.model.onnx.sha256 must be 64 hex digits in lower case",
    ),
    "file-size": (
        value_change("files", "model.onnx", "bytes", to=1 << 40),
        "files.model.onnx.bytes must be an integer",
    ),
    "three-at-once": (
        lambda f: resealed(f, lambda v: v.update(name=3, target=None, logit_scale="x")),
        "logit_scale must .*; name must .*; target must",
    ),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests(name: str, folder: Path) -> None:
    make, match = MANIFESTS[name]
    (folder / "manifest.json").write_bytes(make(folder))
    assert_refused(folder, rf"(?s)manifest\.json in .*{match}")


def test_resealing_alone_changes_nothing(folder: Path) -> None:
    """The helper above must give what the reader takes, or the table would prove nothing."""
    data = resealed(folder, lambda value: value.update(name="other"))
    (folder / "manifest.json").write_bytes(data)
    assert Bundle.open(folder).manifest.name == "other"


def hide_weights(tensor: onnx.TensorProto) -> None:
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    tensor.ClearField("raw_data")


def outside_in_constant(model: onnx.ModelProto) -> None:
    tensor = onnx.numpy_helper.from_array(model_weight(model))
    hide_weights(tensor)
    model.graph.node.append(onnx.helper.make_node("Constant", [], ["unused"], value=tensor))


def outside_in_subgraph(model: onnx.ModelProto) -> None:
    tensor = onnx.numpy_helper.from_array(model_weight(model), "inner")
    hide_weights(tensor)
    inner = onnx.helper.make_graph([], "inner", [], [], [tensor])
    model.graph.node.append(onnx.helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner))


def outside_in_function(model: onnx.ModelProto) -> None:
    tensor = onnx.numpy_helper.from_array(model_weight(model))
    hide_weights(tensor)
    node = onnx.helper.make_node("Constant", [], ["y"], value=tensor)
    model.functions.append(onnx.helper.make_function("d", "f", [], ["y"], [node], []))


def model_weight(model: onnx.ModelProto) -> Any:
    return onnx.numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == "weight"))


def two_graphs(model: onnx.ModelProto) -> bytes:
    data = model.SerializeToString()
    return data + onnx.ModelProto(graph=onnx.GraphProto(name="second")).SerializeToString()


def field(number: int, content: bytes) -> bytes:
    """Write one length-delimited protobuf field."""
    size, length = len(content), b""
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


def nested(model: onnx.ModelProto) -> bytes:
    graph = b""
    for _ in range(5000):
        graph = field(1, field(5, field(6, graph)))
    return model.SerializeToString() + field(7, graph)


@pytest.mark.parametrize(
    ("harm", "match"),
    [
        pytest.param(
            lambda m: hide_weights(m.graph.initializer[2]), "weights in other files", id="initializer"
        ),
        pytest.param(outside_in_constant, "weights in other files", id="constant"),
        pytest.param(outside_in_subgraph, "weights in other files", id="subgraph"),
        pytest.param(outside_in_function, "weights in other files", id="function"),
        pytest.param(two_graphs, "expected one graph, found 2", id="two-graphs"),
        pytest.param(nested, "nested too deeply", id="nested"),
        pytest.param(
            lambda m: m.graph.ClearField("input"), "expected the inputs image .*found none", id="no-input"
        ),
        pytest.param(lambda m: m.opset_import.pop(), "expected opset 20 .*found 0", id="no-opset"),
    ],
)
def test_models(harm: Callable[[onnx.ModelProto], Any], match: str, tiny: Any, tmp_path: Path) -> None:
    model = onnx.load_from_string(tiny.files["model.onnx"])
    data = harm(model)
    data = data if isinstance(data, bytes) else model.SerializeToString()
    with pytest.raises(BundleError, match=match) as caught:
        write_bundle(tmp_path / "out", tiny.draft, {**tiny.files, "model.onnx": data})
    assert "model.onnx" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_random_damage_to_models_gives_a_bundle_error_or_none(tiny: Any) -> None:
    rng = np.random.default_rng(13)
    whole = tiny.files["model.onnx"]
    refused = 0
    for _ in range(1500):
        damaged = bytearray(whole)
        for position in rng.integers(0, len(whole), rng.integers(1, 6)):
            damaged[position] = rng.integers(0, 256)
        try:
            check_model(bytes(damaged[: rng.integers(1, len(whole) + 300)]), tiny.draft.model, where="m.onnx")
        except BundleError as error:
            refused += 1
            assert str(error).startswith("m.onnx: ")
    assert refused > 1000


def test_names_of_classes_cannot_steer_a_terminal(tiny: Any, tmp_path: Path) -> None:
    draft = dataclasses.replace(tiny.draft, classes=("cat", "dog\x1b[2J", "houseplant"))
    with pytest.raises(BundleError, match="printable text"):
        write_bundle(tmp_path / "out", draft, tiny.files)
