"""Makes the golden vectors of the bundle format: what a reader in another language is held to.

Example:
    python runtime/spec/make.py            # writes beside itself

- ``preprocess.safetensors``: for each case ``input.<n>`` and ``output.<n>``, U8 (H, W, 3), and in the metadata
  ``spec.<n>``, the ``preprocess`` object as JSON;
- ``decode/<name>.png`` with ``decode.safetensors``: the pixels that decoding gives, by name;
- ``scaled/<name>.jpg`` with ``scaled.safetensors``: ``spec.<name>``, what decoding at a fraction of the size gives as
  ``reduced.<name>``, and the end as ``output.<name>``;
- ``example.vlkd`` and ``example.pub``: a small signed bundle, and the key that signed it.

The first two are the same bytes wherever they are made. The JPEG files are written where they are missing only, as
encoders may differ. The example holds what the network answered on the machine that made it, and is signed with a
key that was thrown away.
"""

from __future__ import annotations

import io
import struct
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from vlkd_runtime.atomic import write_bytes
from vlkd_runtime.decoding import decode_shared
from vlkd_runtime.preprocess import PreprocessSpec, decode, jpeg_denominator, prepare
from vlkd_runtime.strictjson import compact
from vlkd_runtime.tensorfile import write_tensors

HERE = Path(__file__).parent
# Width and height of the input, and what to do with it: enlarge, shrink, both, keep, and odd crops.
CASES = (
    (16, 12, PreprocessSpec(8, 8)),
    (16, 12, PreprocessSpec(8, 8, interpolation="bicubic")),
    (5, 7, PreprocessSpec(16, 16)),
    (5, 7, PreprocessSpec(16, 11, interpolation="bicubic")),
    (40, 9, PreprocessSpec(16, 16, "crop", 0.875, "bilinear")),
    (9, 40, PreprocessSpec(16, 16, "crop", 0.875, "bicubic")),
    (33, 31, PreprocessSpec(12, 20, "crop", 1.0, "bicubic")),
    (8, 8, PreprocessSpec(8, 8)),
    (8, 8, PreprocessSpec(8, 8, "crop", 0.5, "bilinear")),
    (1, 1, PreprocessSpec(3, 4, interpolation="bicubic")),
    (97, 3, PreprocessSpec(7, 5)),
)
# Name, Pillow's mode, width and height of the JPEG, its orientation, and what to do with it. What it is decoded at is
# in the name; `turned` would be decoded at a quarter by who looks at its sides before turning it.
SCALED = (
    ("whole", "RGB", 31, 40, 1, PreprocessSpec(16, 16, jpeg_scale=1)),
    ("half", "RGB", 70, 50, 1, PreprocessSpec(12, 16, jpeg_scale=2)),
    ("half-ink-crop", "CMYK", 100, 61, 1, PreprocessSpec(12, 12, "crop", 0.875, "bicubic", 2)),
    ("quarter-gray-progressive", "L", 131, 67, 3, PreprocessSpec(16, 16, jpeg_scale=1)),
    ("eighth-turned", "RGB", 141, 99, 6, PreprocessSpec(17, 12, jpeg_scale=1)),
)
# Depth, colour type and bytes a pixel.
GRAY, GRAY_16, RGB, RGB_16, PALETTE = (8, 0, 1), (16, 0, 2), (8, 2, 3), (16, 2, 6), (8, 3, 1)
GRAY_ALPHA, RGBA, RGBA_16 = (8, 4, 2), (8, 6, 4), (16, 6, 8)


def pixels(seed: int, *shape: int) -> np.ndarray:
    """Draw bytes with a generator anyone can write again: x becomes 69069 x + 1 modulo 2^32, the top byte counts."""
    values = np.empty(int(np.prod(shape)), np.uint8)
    state = seed
    for index in range(values.size):
        state = (state * 69069 + 1) & 0xFFFFFFFF
        values[index] = state >> 24
    return values.reshape(shape)


def png(data: np.ndarray, kind: tuple[int, int, int], orientation: int = 1, **more: bytes) -> bytes:
    """Write rows of raw bytes as a PNG that is stored, not compressed, so that every writer gives these bytes.

    Args:
        data: (height, width times bytes a pixel), U8.
        kind: One of the kinds above.
        orientation: In an EXIF block, if it is not 1.
        more: Further chunks, by name.
    """
    depth, colour, step = kind
    height, width = data.shape[0], data.shape[1] // step
    raw = b"".join(b"\0" + row.tobytes() for row in data)
    stored = b"\x78\x01\x01" + struct.pack("<HH", len(raw), len(raw) ^ 0xFFFF) + raw
    body = stored + struct.pack(">I", zlib.adler32(raw))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))]
    if orientation != 1:
        tag = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
        chunks.append((b"eXIf", b"MM\0\x2a" + struct.pack(">IH", 8, 1) + tag + bytes(4)))
    chunks += [(name.encode(), content) for name, content in more.items()]
    chunks += [(b"IDAT", body), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part)) + name + part + struct.pack(">I", zlib.crc32(name + part))
        for name, part in chunks
    )


def images() -> dict[str, bytes]:
    """Small PNG files, one for each rule of decoding."""
    colour, gray, wide = pixels(7, 6, 5 * 3), pixels(9, 6, 5), pixels(3, 6, 5 * 2)
    palette = {"PLTE": pixels(11, 4 * 3).tobytes(), "tRNS": bytes((255, 0, 130))}
    # The colour of the second pixel is the one that is transparent.
    clear = {
        "transparent-gray": png(gray, GRAY, tRNS=b"\0" + gray[0, 1:2].tobytes()),
        "transparent-gray-16": png(wide, GRAY_16, tRNS=wide[0, 2:4].tobytes()),
        "transparent-colour": png(colour, RGB, tRNS=b"".join(b"\0" + bytes([c]) for c in colour[0, 3:6])),
    }
    return {
        "gray-16": png(wide, GRAY_16),
        "alpha": png(pixels(5, 6, 5 * 4), RGBA),
        "alpha-16": png(pixels(13, 6, 5 * 8), RGBA_16),
        "colour-16": png(pixels(15, 6, 5 * 6), RGB_16),
        "gray-alpha": png(pixels(17, 6, 5 * 2), GRAY_ALPHA),
        "palette": png(gray % 4, PALETTE, **palette),
        **clear,
        **{f"orientation-{number}": png(colour, RGB, number) for number in range(1, 9)},
    }


def preprocess_vectors() -> bytes:
    """Serialise the cases."""
    tensors, metadata = {}, {}
    for index, (width, height, spec) in enumerate(CASES):
        source = pixels(index + 1, height, width, 3)
        name = f"{index:02d}"
        tensors[f"input.{name}"], tensors[f"output.{name}"] = source, prepare(source, spec)
        metadata[f"spec.{name}"] = compact(spec.to_json())
    return write_tensors(tensors, metadata)


def decode_vectors(folder: Path) -> bytes:
    """Serialise what decoding the files of a folder gives."""
    return write_tensors({path.stem: np.asarray(decode(path)) for path in sorted(folder.glob("*.png"))}, {})


def jpegs() -> dict[str, bytes]:
    """Small JPEG files, one for each case of decoding at a fraction."""
    files = {}
    for seed, (name, mode, width, height, orientation, _) in enumerate(SCALED):
        exif = Image.Exif()
        exif[0x0112] = orientation
        rough = pixels(seed + 20, height // 5, width // 5, len(Image.new(mode, (1, 1)).getbands()))
        image = Image.frombytes(mode, rough.shape[1::-1], rough.tobytes()).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        held = io.BytesIO()
        image.save(held, "JPEG", quality=85, exif=exif, progressive="progressive" in name)
        files[name] = held.getvalue()
    return files


def scaled_vectors(folder: Path) -> bytes:
    """Serialise what the JPEG files of a folder become."""
    tensors, metadata = {}, {}
    for name, *_, spec in SCALED:
        path = folder / f"{name}.jpg"
        small = decode_shared(
            path, denominator=lambda width, height, spec=spec: jpeg_denominator(width, height, spec)
        )
        tensors[f"reduced.{name}"], tensors[f"output.{name}"] = np.asarray(small), prepare(path, spec)
        metadata[f"spec.{name}"] = compact(spec.to_json())
    return write_tensors(tensors, metadata)


def example(archive: Path, public: Path) -> None:
    """Write a signed bundle and its key."""
    sys.path.insert(0, str(HERE.parents[1] / "benchmarks"))
    from tinymodel import tiny_bundle
    from vlkd_runtime.bundle import pack, sign_bundle
    from vlkd_runtime.signing import generate_keys

    private_key, public_key = generate_keys()
    with tempfile.TemporaryDirectory() as folder:
        place = tiny_bundle(Path(folder) / "example")
        sign_bundle(place, private_key)
        pack(place, archive)
    write_bytes(public, public_key)


def main(place: Path = HERE) -> None:
    """Write everything."""
    (place / "decode").mkdir(parents=True, exist_ok=True)
    for name, data in images().items():
        write_bytes(place / "decode" / f"{name}.png", data)
    write_bytes(place / "preprocess.safetensors", preprocess_vectors())
    write_bytes(place / "decode.safetensors", decode_vectors(place / "decode"))
    (place / "scaled").mkdir(exist_ok=True)
    for name, data in jpegs().items():
        if not (place / "scaled" / f"{name}.jpg").exists():
            write_bytes(place / "scaled" / f"{name}.jpg", data)
    write_bytes(place / "scaled.safetensors", scaled_vectors(place / "scaled"))
    example(place / "example.vlkd", place / "example.pub")


if __name__ == "__main__":
    main()
