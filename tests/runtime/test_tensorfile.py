from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import safetensors.numpy

from vlkd_runtime.errors import DataError
from vlkd_runtime.tensorfile import read_tensors, write_tensors

DTYPES = ["bool", "u1", "i1", "<u2", "<i2", "<f2", "<u4", "<i4", "<f4", "<f8", "<i8", "<u8"]


def tensor(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    values = np.random.default_rng(len(dtype)).integers(0, 100, shape)
    return (values % 2 == 0) if dtype == "bool" else values.astype(dtype)


def assemble(header: object, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(dtype: str = "U8", shape: object = (4,), offsets: object = (0, 4)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    "tensors",
    [
        pytest.param({dtype.strip("<"): tensor(dtype, (3, 5)) for dtype in DTYPES}, id="all-dtypes"),
        pytest.param({"b": tensor("u1", (3,)), "a": tensor("<f4", (2, 2))}, id="padding-of-three"),
        pytest.param({"é 猫": tensor("<f4", (1,))}, id="unicode-name"),
        pytest.param(
            {"scalar": np.array(1.5, np.float32), "empty": np.zeros((0, 3), np.int64)}, id="odd-shapes"
        ),
        pytest.param({}, id="none"),
    ],
)
@pytest.mark.parametrize("metadata", [{}, {"note": 'a "quoted" \\ line\nwith ü'}], ids=["bare", "metadata"])
def test_bytes_are_those_of_the_safetensors_package(
    tensors: dict[str, np.ndarray], metadata: dict[str, str]
) -> None:
    data = write_tensors(tensors, metadata)
    assert data == safetensors.numpy.save(tensors, metadata=metadata or None)
    assert write_tensors(dict(reversed(list(tensors.items()))), metadata) == data
    read, read_metadata = read_tensors(data, where="x")
    assert read_metadata == metadata
    assert read.keys() == tensors.keys()
    for name, expected in tensors.items():
        assert read[name].dtype == expected.dtype
        assert read[name].shape == expected.shape
        assert np.array_equal(read[name], expected)
        assert not read[name].flags.writeable


@pytest.mark.parametrize(
    "array",
    [
        pytest.param(np.arange(12, dtype=np.float32).reshape(3, 4)[:, ::2], id="strided"),
        pytest.param(np.asfortranarray(np.arange(12, dtype=np.float32).reshape(3, 4)), id="fortran"),
        pytest.param(np.arange(12, dtype=">f4").reshape(3, 4), id="big-endian"),
    ],
)
def test_layout_in_memory_does_not_matter(array: np.ndarray) -> None:
    plain = np.array(array, dtype="<f4", order="C")
    assert write_tensors({"x": array}, {}) == write_tensors({"x": plain}, {})


def test_a_header_without_padding_is_read() -> None:
    data = assemble({"x": entry("F32", (1,), (0, 4))}, struct.pack("<f", 2.5))
    assert read_tensors(data, where="x")[0]["x"].tolist() == [2.5]


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        pytest.param({"x": np.zeros(2, np.complex64)}, "found complex64", id="complex"),
        pytest.param({"x": np.array(["a"])}, "found <U1", id="text"),
        pytest.param({"x": np.array([None])}, "found object", id="object"),
        pytest.param({"__metadata__": np.zeros(2, np.float32)}, "keeps that name", id="reserved"),
    ],
)
def test_what_cannot_be_written(tensors: dict[str, np.ndarray], match: str) -> None:
    with pytest.raises(DataError, match=match):
        write_tensors(tensors, {})


@pytest.mark.parametrize(
    ("data", "match"),
    [
        pytest.param(b"", "at least 8 bytes", id="empty"),
        pytest.param(b"\x01\x00\x00", "at least 8 bytes", id="short"),
        pytest.param(struct.pack("<Q", 1 << 60) + b"{}", "claims 1152921504606846976", id="huge-header"),
        pytest.param(struct.pack("<Q", 3) + b"{}", "claims 3", id="header-past-the-end"),
        pytest.param(assemble(b"[]"), "no JSON object", id="list"),
        pytest.param(assemble(b" {}"), "no JSON object", id="leading-space"),
        pytest.param(assemble(b"{\xff}"), "not UTF-8", id="not-utf8"),
        pytest.param(assemble(b'{"a"'), "not JSON", id="broken-json"),
        pytest.param(assemble(b"{" + b'"a":[' * 100000), "nested", id="deep"),
        pytest.param(
            assemble(b'{"a":%s,"a":%s}' % ((json.dumps(entry()).encode(),) * 2), b"1234"),
            "twice",
            id="duplicate",
        ),
        pytest.param(assemble({"a": 3}), "expected exactly dtype", id="entry-number"),
        pytest.param(
            assemble({"a": {**entry(), "more": 1}}, b"1234"), "expected exactly dtype", id="extra-field"
        ),
        pytest.param(assemble({"a": entry("BF16", (2,))}, b"1234"), "found 'BF16'", id="bfloat"),
        pytest.param(assemble({"a": entry("O")}, b"1234"), "found 'O'", id="object-dtype"),
        pytest.param(assemble({"a": entry(["U8"])}, b"1234"), "expected a dtype", id="dtype-list"),  # type: ignore[arg-type]
        pytest.param(assemble({"a": entry(shape=(-4,))}, b"1234"), "shape must be", id="negative-shape"),
        pytest.param(assemble({"a": entry(shape=(4.0,))}, b"1234"), "shape must be", id="float-shape"),
        pytest.param(assemble({"a": entry(shape=(True, 4))}, b"1234"), "shape must be", id="bool-shape"),
        pytest.param(assemble({"a": entry(shape=(1,) * 40 + (4,))}, b"1234"), "shape must be", id="rank-41"),
        pytest.param(
            assemble({"a": entry(shape=(0, 10**30), offsets=(0, 0))}), "larger than memory", id="absurd-empty"
        ),
        pytest.param(assemble({"a": entry(shape=(5,))}, b"1234"), "not the 4 bytes", id="shape-and-offsets"),
        pytest.param(
            assemble({"a": entry(offsets=(0, 4, 4))}, b"1234"), "data_offsets must", id="three-offsets"
        ),
        pytest.param(assemble({"a": entry(offsets=(4, 0))}, b"1234"), "data_offsets must", id="backwards"),
        pytest.param(
            assemble({"a": entry(offsets=(0, 8), shape=(8,))}, b"1234"), "within 4", id="past-the-end"
        ),
        pytest.param(assemble({"a": entry(offsets=(4, 8))}, b"12345678"), "leaves a hole", id="hole"),
        pytest.param(
            assemble({"a": entry(), "b": entry(offsets=(2, 6))}, b"123456"),
            "overlaps the one before",
            id="overlap",
        ),
        pytest.param(assemble({"a": entry()}, b"12345"), "1 bytes belong to no tensor", id="leftover"),
        pytest.param(
            assemble({"a": entry("BOOL")}, b"\x00\x01\x02\x01"), "neither 0 nor 1", id="bool-of-two"
        ),
        pytest.param(assemble({"__metadata__": {"a": 1}}), "text to text", id="metadata-number"),
        pytest.param(assemble({"__metadata__": None}), "text to text", id="metadata-null"),
        pytest.param(assemble(b'{"__metadata__":{"a":"1","a":"2"}}'), "twice", id="metadata-duplicate"),
    ],
)
def test_what_is_refused(data: bytes, match: str) -> None:
    with pytest.raises(DataError, match=match) as caught:
        read_tensors(data, where="some/file")
    assert str(caught.value).startswith("some/file")


def test_no_flipped_bit_escapes_as_another_error() -> None:
    data = write_tensors({"a": tensor("<f4", (2, 3)), "b": tensor("bool", (5,))}, {"k": "v"})
    refused = 0
    for position in range(len(data)):
        for bit in (0, 3, 7):
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit
            try:
                read_tensors(bytes(damaged), where="x")
            except DataError:
                refused += 1
    assert refused > 200
