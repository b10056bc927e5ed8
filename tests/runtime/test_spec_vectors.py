"""A second reader, written from runtime/README.md alone with the standard library, against the golden vectors.

Only the JPEGs are decoded by Pillow, whose libjpeg-turbo is what that file names.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlkd_runtime import Classifier
from vlkd_runtime.preprocess import PreprocessSpec, prepare

SPEC = Path(__file__).parents[2] / "runtime" / "spec"
Pixels = list[list[tuple[int, int, int]]]


def read_safetensors(data: bytes) -> tuple[dict[str, tuple[list[int], bytes]], dict[str, str]]:
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    metadata = header.pop("__metadata__", {})
    body = data[8 + size :]
    return {
        name: (entry["shape"], body[slice(*entry["data_offsets"])]) for name, entry in header.items()
    }, metadata


def as_pixels(shape: list[int], data: bytes) -> Pixels:
    height, width, _ = shape
    rows = [data[row * width * 3 : (row + 1) * width * 3] for row in range(height)]
    return [[(row[3 * x], row[3 * x + 1], row[3 * x + 2]) for x in range(width)] for row in rows]


def filter_value(name: str, x: float) -> float:
    x = abs(x)
    if name == "bilinear":
        return max(0.0, 1 - x)
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1
    return -0.5 * (((x - 5) * x + 8) * x - 4) if x < 2 else 0.0


def resize_line(line: list[tuple[int, int, int]], m: int, name: str) -> list[tuple[int, ...]]:
    n = len(line)
    if n == m:
        return list(line)
    scale = n / m
    stretch, r = max(scale, 1.0), 1 if name == "bilinear" else 2
    out = []
    for i in range(m):
        centre = (i + 0.5) * scale
        first = max(0, math.trunc(centre - r * stretch + 0.5))
        last = min(n, math.trunc(centre + r * stretch + 0.5))
        weights = [filter_value(name, (j - centre + 0.5) * (1 / stretch)) for j in range(first, last)]
        total = 0.0  # added in order: newer versions of sum() round otherwise
        for w in weights:
            total += w
        fixed = [math.trunc(w / total * 2**22 + math.copysign(0.5, w)) for w in weights]
        sums = [
            2**21 + sum(f * line[j][channel] for f, j in zip(fixed, range(first, last), strict=True))
            for channel in range(3)
        ]
        out.append(tuple(min(255, max(0, value >> 22)) for value in sums))
    return out


def transposed(pixels: Any) -> Any:
    return [list(column) for column in zip(*pixels, strict=True)]


def preprocessed(pixels: Pixels, spec: dict[str, Any]) -> Any:
    height, width, name = spec["height"], spec["width"], spec["interpolation"]
    h, w = len(pixels), len(pixels[0])
    rows, columns = height, width
    if spec["resize"] == "crop":
        w1, h1 = math.floor(width / spec["crop_fraction"]), math.floor(height / spec["crop_fraction"])
        rows, columns = (h1, w * h1 // h) if h1 * w >= w1 * h else (h * w1 // w, w1)
    wide: Any = [resize_line(row, columns, name) for row in pixels]
    resized = transposed([resize_line(column, rows, name) for column in transposed(wide)])
    top, left = (rows - height) // 2, (columns - width) // 2
    return [row[left : left + width] for row in resized[top : top + height]]


def cases() -> list[str]:
    return sorted(read_safetensors((SPEC / "preprocess.safetensors").read_bytes())[1])


@pytest.mark.parametrize("case", cases())
def test_preprocessing(case: str) -> None:
    tensors, metadata = read_safetensors((SPEC / "preprocess.safetensors").read_bytes())
    spec, name = json.loads(metadata[case]), case.partition(".")[2]
    expected = as_pixels(*tensors[f"output.{name}"])
    assert preprocessed(as_pixels(*tensors[f"input.{name}"]), spec) == expected


def test_there_are_as_many_cases_as_were_made() -> None:
    assert len(cases()) == 11
    assert len(list((SPEC / "decode").glob("*.png"))) == 17


def read_png(data: bytes) -> tuple[list[bytes], int, int, int, dict[bytes, bytes]]:
    """Rows of raw bytes (no filters are in use), colour type, depth, EXIF orientation, palette and transparency."""
    position, body, orientation, more = 8, b"", 1, {b"PLTE": b"", b"tRNS": b""}
    width = height = depth = colour = 0
    while position < len(data):
        length, kind = struct.unpack(">I4s", data[position : position + 8])
        content = data[position + 8 : position + 8 + length]
        if kind == b"IHDR":
            width, height, depth, colour = struct.unpack(">IIBB", content[:10])
        elif kind == b"eXIf":
            orientation = struct.unpack(">H", content[18:20])[0]
        elif kind == b"IDAT":
            body += content
        elif kind in more:
            more[kind] = content
        position += 12 + length
    raw = zlib.decompress(body)
    size = width * depth // 8 * CHANNELS[colour] + 1
    assert all(raw[row * size] == 0 for row in range(height))
    return [raw[row * size + 1 : (row + 1) * size] for row in range(height)], colour, depth, orientation, more


CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def over_white(colour: tuple[int, ...], alpha: int) -> tuple[int, ...]:
    return tuple((c * alpha + 255 * (255 - alpha) + 127) // 255 for c in colour)


def pixel(part: bytes, colour: int, depth: int, more: dict[bytes, bytes]) -> tuple[int, ...]:
    clear = more[b"tRNS"]
    if colour == 3:
        index = part[0]
        alpha = clear[index] if index < len(clear) else 255
        return over_white(tuple(more[b"PLTE"][3 * index : 3 * index + 3]), alpha)
    if clear and clear == (part if depth == 16 else b"".join(b"\0" + bytes([c]) for c in part)):
        return (255, 255, 255)
    if depth == 16 and colour == 0:
        return (((part[0] << 8 | part[1]) + 128) // 257,) * 3
    values = tuple(part[::2]) if depth == 16 else tuple(part)
    if colour in (4, 6):
        *values, alpha = values  # type: ignore[assignment]
        values = over_white(tuple(values), alpha)
    return values * 3 if len(values) == 1 else values


def decoded(data: bytes) -> Any:
    rows, colour, depth, orientation, more = read_png(data)
    step = depth // 8 * CHANNELS[colour]
    pixels: Any = [
        [pixel(row[x : x + step], colour, depth, more) for x in range(0, len(row), step)] for row in rows
    ]
    mirrored = lambda p: [row[::-1] for row in p]  # noqa: E731
    flipped = lambda p: p[::-1]  # noqa: E731
    turn = {
        1: lambda p: p,
        2: mirrored,
        3: lambda p: mirrored(flipped(p)),
        4: flipped,
        5: transposed,
        6: lambda p: mirrored(transposed(p)),
        7: lambda p: mirrored(flipped(transposed(p))),
        8: lambda p: flipped(transposed(p)),
    }
    return turn[orientation](pixels)


@pytest.mark.parametrize("path", sorted((SPEC / "decode").glob("*.png")), ids=lambda path: path.stem)
def test_decoding(path: Path) -> None:
    tensors, _ = read_safetensors((SPEC / "decode.safetensors").read_bytes())
    assert decoded(path.read_bytes()) == as_pixels(*tensors[path.stem])


def read_jpeg(data: bytes) -> tuple[int, int, int]:
    """Columns, rows and orientation, as stored."""
    position, orientation = 2, 1
    while True:
        marker, length = struct.unpack(">HH", data[position : position + 4])
        content = data[position + 4 : position + 2 + length]
        if marker == 0xFFE1 and content.startswith(b"Exif"):  # one big-endian entry, as the script writes it
            orientation = struct.unpack(">H", content[24:26])[0]
        if marker in (0xFFC0, 0xFFC2):
            rows, columns = struct.unpack(">HH", content[1:5])
            return columns, rows, orientation
        position += 2 + length


@pytest.mark.parametrize(
    ("name", "denominator"),
    [("whole", 1), ("half", 2), ("half-ink-crop", 2), ("quarter-gray-progressive", 4), ("eighth-turned", 8)],
)
def test_decoding_at_a_fraction(name: str, denominator: int) -> None:
    tensors, metadata = read_safetensors((SPEC / "scaled.safetensors").read_bytes())
    assert len(metadata) == len(list((SPEC / "scaled").glob("*.jpg"))) == 5
    path, spec = SPEC / "scaled" / f"{name}.jpg", json.loads(metadata[f"spec.{name}"])
    columns, rows, orientation = read_jpeg(path.read_bytes())
    w, h = (rows, columns) if orientation >= 5 else (columns, rows)
    rw, rh = spec["width"], spec["height"]
    if spec["resize"] == "crop":
        w1, h1 = math.floor(rw / spec["crop_fraction"]), math.floor(rh / spec["crop_fraction"])
        rw, rh = (w * h1 // h, h1) if h1 * w >= w1 * h else (w1, h * w1 // w)
    k = spec["jpeg_scale"]
    assert next((d for d in (8, 4, 2) if d * k * rw <= w and d * k * rh <= h), 1) == denominator
    with Image.open(path) as image:
        image.draft(None, (columns // denominator, rows // denominator))
        reduced: Any = [list(row) for row in np.asarray(image.convert("RGB")).tolist()]
    assert (len(reduced[0]), len(reduced)) == (-(-columns // denominator), -(-rows // denominator))
    pixels: Any = [[tuple(pixel) for pixel in row] for row in reduced]
    if orientation == 6:
        pixels = [row[::-1] for row in transposed(pixels)]
    elif orientation == 3:
        pixels = [row[::-1] for row in pixels[::-1]]
    assert pixels == as_pixels(*tensors[f"reduced.{name}"])
    assert preprocessed(pixels, spec) == as_pixels(*tensors[f"output.{name}"])


def read_archive(data: bytes) -> dict[str, bytes]:
    comment = data[-76:].decode()
    assert comment.startswith("vlkd-sha256:")
    assert comment[12:] == hashlib.sha256(data[:-76]).hexdigest()
    end = struct.unpack("<IHHHHIIH", data[-98:-76])
    files, at = {}, end[6]
    for _ in range(end[3]):
        fields = struct.unpack("<IHHHHHHIIIHHHHHII", data[at : at + 46])
        name = data[at + 46 : at + 46 + fields[10]].decode("ascii")
        start = fields[16] + 30 + len(name)
        files[name] = data[start : start + fields[9]]
        assert (fields[0], fields[4], fields[15] >> 16) == (0x02014B50, 0, 0o100644)
        assert zlib.crc32(files[name]) == fields[7]
        at += 46 + len(name)
    assert list(files) == sorted(files)
    return files


def test_the_example_is_a_whole_signed_bundle() -> None:
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    files = read_archive((SPEC / "example.vlkd").read_bytes())
    manifest = files["manifest.json"]
    key: Any = load_pem_public_key((SPEC / "example.pub").read_bytes())
    key.verify(files["manifest.sig"], b"vlkd-bundle manifest\n" + manifest)
    lines = re.findall(rb'^  "digest": "([0-9a-f]{64})",\n', manifest, re.MULTILINE)
    rest = re.sub(rb'^  "digest": "[0-9a-f]{64}",\n', b"", manifest, flags=re.MULTILINE)
    assert lines == [hashlib.sha256(rest).hexdigest().encode()]
    value = json.loads(manifest)
    assert value["schema_version"] == 2
    for name, entry in value["files"].items():
        assert (len(files[name]), hashlib.sha256(files[name]).hexdigest()) == (
            entry["bytes"],
            entry["sha256"],
        )
    assert set(files) == {"manifest.json", "manifest.sig", *value["files"]}
    assert set(value["variants"]) == {"twin"}
    golden, _ = read_safetensors(files["golden.safetensors"])
    assert {"embedding.twin", "logits.twin"} < set(golden)


def test_the_library_takes_the_example() -> None:
    with Classifier.load(
        SPEC / "example.vlkd", public_keys=[SPEC / "example.pub"], require_signature=True, threads=1
    ) as classifier:
        assert classifier.names == ("cat", "dog", "houseplant")


def test_the_script_makes_these_bytes(tmp_path: Path) -> None:
    found = importlib.util.spec_from_file_location("make_vectors", SPEC / "make.py")
    assert found is not None
    assert found.loader is not None
    make = importlib.util.module_from_spec(found)
    found.loader.exec_module(make)
    assert make.preprocess_vectors() == (SPEC / "preprocess.safetensors").read_bytes()
    for name, data in make.images().items():
        assert (SPEC / "decode" / f"{name}.png").read_bytes() == data
    assert make.scaled_vectors(SPEC / "scaled") == (SPEC / "scaled.safetensors").read_bytes()
    assert make.decode_vectors(SPEC / "decode") == (SPEC / "decode.safetensors").read_bytes()


def test_a_pixel_off_would_show() -> None:
    """The second reader is held to the library on an input that is in no file, so that both cannot be stale."""
    make = [[(x * 37 % 256, y * 91 % 256, (x * y) % 256) for x in range(23)] for y in range(17)]
    spec = PreprocessSpec(10, 14, "crop", 0.8, "bicubic")
    ours = prepare(np.array(make, np.uint8), spec)
    assert preprocessed(make, dict(spec.to_json())) == [[tuple(p) for p in row] for row in ours.tolist()]
