"""Ways to damage a bundle or an image that aim at what reads it; the same seed gives the same damage.

References:
    APPNOTE.TXT (zip), https://www.w3.org/TR/png/, ITU-T T.81 (JPEG), https://www.w3.org/Graphics/GIF/spec-gif89a.txt.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from vlkd_runtime.archive import COMMENT_LENGTH, COMMENT_PREFIX, read_archive, write_archive
from vlkd_runtime.signing import generate_keys, sign
from vlkd_runtime.strictjson import canonical

_PRIVATE, _PUBLIC = generate_keys()
_ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 1 << 31, 1 << 63, 1 << 70, 1e308, 0.5, "", "x", "../x", "/etc/passwd", "a\u0000b"),
    *("\u202e", "x" * 70000, [], {}, [[]], {"a": {"b": {}}}, ["x"] * 300, [-1], [1 << 40] * 4),
)


@dataclass(frozen=True, slots=True)
class Case:
    """One damaged file.

    Attributes:
        data: Its bytes.
        resealed: Whether hashes were made to fit again, as a careful attacker would.
        suffix: Ending of the file's name.
        public_keys: Keys that must have signed a bundle.
    """

    data: bytes
    resealed: bool = False
    suffix: str = ".vlkd"
    public_keys: tuple[bytes, ...] = ()


def flip(rng: np.random.Generator, data: bytes, most: int = 8) -> bytes:
    """Change up to so many bits."""
    changed = bytearray(data)
    for position in rng.integers(0, len(data), rng.integers(1, most + 1)):
        changed[position] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def splice(rng: np.random.Generator, data: bytes) -> bytes:
    """Cut out, double, swap or overwrite a piece."""
    start, end = sorted(int(x) for x in rng.integers(0, len(data), 2))
    end = min(end, start + int(rng.integers(1, 200)))
    piece = data[start:end]
    match int(rng.integers(5)):
        case 0:
            return data[:start] + data[end:]
        case 1:
            return data[:end] + piece + data[end:]
        case 2:
            return data[:start] + bytes(len(piece)) + data[end:]
        case 3:
            return data[:start] + b"\xff" * len(piece) + data[end:]
        case _:
            return data[:start] + rng.bytes(len(piece)) + data[end:]


def truncate(rng: np.random.Generator, data: bytes) -> bytes:
    """Cut the end off, or put something behind it."""
    cut = data[: int(rng.integers(0, len(data)))]
    return cut if rng.random() < 0.7 else data + rng.bytes(int(rng.integers(1, 50)))


def number(rng: np.random.Generator, data: bytes) -> bytes:
    """Replace a two- or four-byte number by an extreme one; lengths and offsets are such numbers."""
    value = int(rng.choice([0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF]))
    size = int(rng.choice([2, 4]))
    position = int(rng.integers(0, max(1, len(data) - size)))
    order: Literal["little", "big"] = "little" if rng.random() < 0.5 else "big"
    packed = (value & (256**size - 1)).to_bytes(size, order)
    return data[:position] + packed + data[position + size :]


def _seal(body: bytes) -> bytes:
    """Put a comment that fits behind a zip, as a careful attacker would."""
    ended = body[:-2] + COMMENT_LENGTH.to_bytes(2, "little")
    return ended + COMMENT_PREFIX + hashlib.sha256(ended).hexdigest().encode()


def _files(whole: bytes) -> dict[str, bytes]:
    return {name: bytes(data) for name, data in read_archive(whole, where="base").items()}


def _resealed(files: dict[str, bytes], change: Callable[[dict[str, Any]], object] | None = None) -> bytes:
    """Give the manifest the hashes of the files and a digest that fits."""
    value = json.loads(files["manifest.json"])
    value.pop("digest")
    for name, data in files.items():
        if name in value["files"]:
            value["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    if change is not None:
        change(value)
    try:
        value["digest"] = hashlib.sha256(canonical(value)).hexdigest()
        manifest = canonical(value)
    except (ValueError, UnicodeEncodeError):
        manifest = json.dumps(value).encode("utf-8", "surrogatepass")
    return write_archive({**files, "manifest.json": manifest})


def _bits(rng: np.random.Generator, whole: bytes) -> Case:
    return Case(flip(rng, whole))


def _splice(rng: np.random.Generator, whole: bytes) -> Case:
    return Case(splice(rng, whole))


def _truncate(rng: np.random.Generator, whole: bytes) -> Case:
    return Case(truncate(rng, whole))


def _container(rng: np.random.Generator, whole: bytes) -> Case:
    """Damage headers and directory, and seal the result again."""
    body = whole[:-COMMENT_LENGTH]
    head = body[: body.rindex(b"PK\x01\x02")]
    damaged = number(rng, body[len(head) :]) if rng.random() < 0.5 else flip(rng, body[len(head) :], 3)
    return Case(_seal(head + damaged))


def _members(rng: np.random.Generator, whole: bytes) -> Case:
    """Rename, double, drop or compress members, by another writer of zips."""
    files = list(_files(whole).items())
    names = [
        "../x",
        "/x",
        "a/b",
        "model.onnx",
        "model.x.onnx",
        "manifest.sig",
        "x\\y",
        "MODEL.ONNX",
        "engine.a.bin",
    ]
    which, kind = int(rng.integers(len(files))), int(rng.integers(4))
    if kind == 0:
        files[which] = (str(rng.choice(names)), files[which][1])
    elif kind == 1:
        files.append((str(rng.choice(names)), rng.bytes(int(rng.integers(0, 99)))))
    elif kind == 2:
        del files[which]
    stream = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if kind == 3 else zipfile.ZIP_STORED
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(stream, "w", method) as opened:
            for name, data in files:
                opened.writestr(name, data)
    return Case(_seal(stream.getvalue()))


def _json(rng: np.random.Generator, whole: bytes) -> Case:
    """Put an odd value somewhere into the manifest, under a digest that fits."""

    def change(value: dict[str, Any]) -> None:
        place: Any = value
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = keys[int(rng.integers(len(keys)))]
            if isinstance(place[key], (dict, list)) and place[key] and rng.random() < 0.7:
                place = place[key]
                continue
            break
        odd = _ODD[int(rng.integers(len(_ODD)))]
        if rng.random() < 0.2 and isinstance(place, dict):
            place[str(odd)[:100]] = place.pop(key)
        else:
            place[key] = odd

    return Case(_resealed(_files(whole), change), resealed=True)


def _text(rng: np.random.Generator, whole: bytes) -> Case:
    """Damage the manifest's text, and pack it as it is."""
    files = _files(whole)
    return Case(write_archive({**files, "manifest.json": splice(rng, files["manifest.json"])}))


def _inside(name: str) -> Callable[[np.random.Generator, bytes], Case]:
    """Damage one file, and make all hashes fit."""

    def make(rng: np.random.Generator, whole: bytes) -> Case:
        files = _files(whole)
        way = (flip, splice, truncate, number)[int(rng.integers(4))]
        files[name] = way(rng, files[name]) or b"\0"
        return Case(_resealed(files), resealed=True)

    return make


def _signed(rng: np.random.Generator, whole: bytes) -> Case:
    """Sign, then damage a file or the signature; hashes fit, the signature does not."""
    files = _files(whole)
    signature = sign(files["manifest.json"], _PRIVATE)
    if rng.random() < 0.3:
        return Case(write_archive({**files, "manifest.sig": flip(rng, signature)}), public_keys=(_PUBLIC,))
    name = sorted(files)[int(rng.integers(len(files)))]
    if name == "manifest.json":
        name = "evidence.json"
    files[name] = splice(rng, files[name]) if name != "evidence.json" else b'{"accuracy": 1.0}\n'
    again = _files_of(_resealed(files))
    data = write_archive({**again, "manifest.sig": signature})
    return Case(data, resealed=True, public_keys=(_PUBLIC,))


def _files_of(archive: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


BUNDLE_MUTATIONS: dict[str, Callable[[np.random.Generator, bytes], Case]] = {
    "bits": _bits,
    "splice": _splice,
    "truncate": _truncate,
    "container": _container,
    "members": _members,
    "manifest value": _json,
    "manifest text": _text,
    "graph": _inside("model.onnx"),
    "class vectors": _inside("class_vectors.safetensors"),
    "golden samples": _inside("golden.safetensors"),
    "evidence": _inside("evidence.json"),
    "signature": _signed,
}


def seed_images() -> list[tuple[str, bytes]]:
    """Small images of every format and many modes, as suffix and bytes."""
    rng = np.random.default_rng(3)
    base = Image.fromarray(rng.integers(0, 256, (40, 56, 3)).astype(np.uint8)).resize((112, 80))
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = Image.fromarray(rng.integers(0, 65536, (40, 56)).astype(np.uint16))
    made: list[tuple[str, Image.Image, dict[str, Any]]] = [
        ("JPEG", base, {"quality": 80, "exif": exif}),
        ("JPEG", base, {"progressive": True}),
        ("JPEG", base.convert("CMYK"), {}),
        ("JPEG", base.convert("L"), {}),
        ("PNG", base, {}),
        ("PNG", base.convert("P"), {"transparency": 3}),
        ("PNG", base.convert("RGBA"), {}),
        ("PNG", wide, {}),
        ("PNG", base.convert("1"), {}),
        ("BMP", base, {}),
        ("GIF", base.convert("P"), {"save_all": True, "append_images": [base.convert("P").rotate(90)]}),
        ("PPM", base, {}),
        ("WEBP", base, {"quality": 60}),
        ("WEBP", base.convert("RGBA"), {"lossless": True}),
        ("TIFF", base, {"compression": "tiff_lzw"}),
        ("TIFF", base, {"compression": "tiff_adobe_deflate"}),
        ("TIFF", wide, {}),
    ]
    found = []
    for kind, image, options in made:
        stream = io.BytesIO()
        image.save(stream, kind, **options)
        found.append((f".{kind.lower()}", stream.getvalue()))
    return found


def _any(rng: np.random.Generator, images: list[tuple[str, bytes]]) -> tuple[str, bytes]:
    return images[int(rng.integers(len(images)))]


def _image(way: Callable[[np.random.Generator, bytes], bytes]) -> Callable[..., Case]:
    def make(rng: np.random.Generator, images: list[tuple[str, bytes]]) -> Case:
        suffix, data = _any(rng, images)
        return Case(way(rng, data), suffix=suffix)

    return make


def _header(rng: np.random.Generator, images: list[tuple[str, bytes]]) -> Case:
    """Damage only the first bytes, where sizes and counts are."""
    suffix, data = _any(rng, images)
    return Case(number(rng, data[:200]) + data[200:], suffix=suffix)


def _png_chunk(rng: np.random.Generator, images: list[tuple[str, bytes]]) -> Case:
    """Damage one chunk of a PNG and give it the checksum that fits; sizes become bombs that way."""
    data = [data for suffix, data in images if suffix == ".png"][int(rng.integers(5))]
    chunks, position = [], 8
    while position < len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        chunks.append((data[position + 4 : position + 8], data[position + 8 : position + 8 + length]))
        position += 12 + length
    which = int(rng.integers(len(chunks)))
    kind, body = chunks[which]
    if kind == b"IHDR" and rng.random() < 0.5:
        size = [int(x) for x in rng.choice([0, 1, 60000, 0x7FFFFFFF], 2)]
        body = struct.pack(">II", *size) + body[8:]
    elif body:
        body = flip(rng, body) if rng.random() < 0.5 else splice(rng, body)
    chunks[which] = (kind, body)
    if rng.random() < 0.2:
        chunks.insert(which, chunks[int(rng.integers(len(chunks)))])
    packed = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    ]
    return Case(data[:8] + b"".join(packed), suffix=".png")


def _jpeg_segment(rng: np.random.Generator, images: list[tuple[str, bytes]]) -> Case:
    """Damage the inside of one of a JPEG's segments, and leave its frame whole."""
    data = [data for suffix, data in images if suffix == ".jpeg"][int(rng.integers(4))]
    starts, position = [], 2
    while position + 4 <= len(data) and data[position] == 0xFF and data[position + 1] != 0xDA:
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        starts.append((position + 4, position + 2 + length))
        position += 2 + length
    start, end = starts[int(rng.integers(len(starts)))]
    changed = flip(rng, data[start:end], 4) if end > start else b""
    return Case(data[:start] + changed + data[end:], suffix=".jpeg")


def _crossed(rng: np.random.Generator, images: list[tuple[str, bytes]]) -> Case:
    """Put the head of one file before the tail of another."""
    (suffix, first), (_, second) = _any(rng, images), _any(rng, images)
    return Case(
        first[: int(rng.integers(len(first)))] + second[int(rng.integers(len(second))) :], suffix=suffix
    )


def _noise(rng: np.random.Generator, images: list[tuple[str, bytes]]) -> Case:
    """A format's first bytes with noise behind."""
    suffix, data = _any(rng, images)
    return Case(data[: int(rng.integers(2, 40))] + rng.bytes(int(rng.integers(0, 2000))), suffix=suffix)


def _side(rng: np.random.Generator) -> int:
    """Up to 8000, each doubling as likely as the next: few are slow to make."""
    return int(64 * 125 ** rng.random())


def _scans(rng: np.random.Generator, images: list[tuple[str, bytes]]) -> Case:
    """Say that a progressive JPEG is large, and repeat its last scan up to two thousand times."""
    data = next(data for _, data in images if b"\xff\xc2" in data[:1000])
    frame, last, end = data.index(b"\xff\xc2"), data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    size = _side(rng).to_bytes(2, "big") + _side(rng).to_bytes(2, "big")
    repeated = data[last:end] * int(2000 ** rng.random())
    return Case(data[: frame + 5] + size + data[frame + 9 : end] + repeated + data[end:], suffix=".jpeg")


def _canvas(rng: np.random.Generator, images: list[tuple[str, bytes]]) -> Case:
    """A large image of one colour: little to read, much to keep."""
    del images
    mode = ("RGB", "RGBA", "LA", "L", "P", "I;16", "1")[int(rng.integers(7))]
    kinds = ("PNG", "TIFF") if mode in ("I;16", "1", "LA") else ("PNG", "TIFF", "GIF", "WEBP")
    kind = kinds[int(rng.integers(len(kinds)))]
    stream = io.BytesIO()
    Image.new(mode, (_side(rng), _side(rng))).save(stream, kind, **_CANVAS_OPTIONS[kind])
    return Case(stream.getvalue(), suffix=f".{kind.lower()}")


_CANVAS_OPTIONS: dict[str, dict[str, Any]] = {
    "PNG": {"compress_level": 1},
    "TIFF": {"compression": "tiff_lzw"},
    "GIF": {},
    "WEBP": {"lossless": True, "method": 0, "quality": 0},
}

IMAGE_MUTATIONS: dict[str, Callable[..., Case]] = {
    "bits": _image(flip),
    "splice": _image(splice),
    "truncate": _image(truncate),
    "number": _image(number),
    "header": _header,
    "png chunk": _png_chunk,
    "jpeg segment": _jpeg_segment,
    "crossed": _crossed,
    "noise": _noise,
    "scans": _scans,
    "canvas": _canvas,
}
