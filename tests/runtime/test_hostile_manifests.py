"""Manifests that were altered or made to harm."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlkd_runtime.bundle import Bundle
from vlkd_runtime.errors import BundleError
from vlkd_runtime.manifestfile import parse_manifest


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
    with pytest.raises(BundleError, match=rf"(?s)manifest\.json in .*{match}") as caught:
        Bundle.open(folder)
    assert str(folder) in str(caught.value)


def test_resealing_alone_changes_nothing(folder: Path) -> None:
    """The helper above must give what the reader takes, or the table would prove nothing."""
    data = resealed(folder, lambda value: value.update(name="other"))
    (folder / "manifest.json").write_bytes(data)
    assert Bundle.open(folder).manifest.name == "other"
