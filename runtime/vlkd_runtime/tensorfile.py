"""Reads and writes safetensors with numpy alone, stricter than the format asks and always the same bytes.

The layout: eight bytes, little endian, with the length of the header; the header, a JSON object from tensor
names to ``dtype``, ``shape`` and ``data_offsets`` plus an optional ``__metadata__`` of strings, padded with
spaces to a multiple of eight; the tensors' bytes, row by row, little endian, without holes.

References:
    https://github.com/huggingface/safetensors (section "Format").
"""

from __future__ import annotations

import math
import mmap
import sys
from collections.abc import Mapping
from typing import Any, NoReturn, TypeAlias

import numpy as np
import numpy.typing as npt

from .errors import DataError
from .strictjson import JsonProblems, JsonValue, compact, parse

Tensor: TypeAlias = npt.NDArray[Any]

# In the order in which tensors are laid out, so that each starts at a multiple of its item size.
_DTYPES: dict[str, np.dtype[Any]] = {
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "F16": np.dtype("<f2"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_NAMES = {dtype.newbyteorder("="): name for name, dtype in _DTYPES.items()}
_RANK = {name: rank for rank, name in enumerate(_DTYPES)}
_LONGEST_HEADER = 100_000_000
_METADATA = "__metadata__"


def write_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Serialise tensors; the same content always gives the same bytes.

    Args:
        tensors: Arrays by name; strides and byte order do not matter.
        metadata: Strings to keep beside them.

    Raises:
        DataError: A dtype the format has no name for, or a reserved name.
    """
    chosen: list[tuple[int, str, str]] = []
    for name, tensor in tensors.items():
        dtype = _NAMES.get(tensor.dtype.newbyteorder("="))
        if dtype is None:
            msg = (
                f"tensor {name!r}: expected one of {', '.join(_DTYPES)}, found {tensor.dtype}; "
                "convert it first"
            )
            raise DataError(msg)
        if name == _METADATA:
            msg = f"a tensor cannot be named {_METADATA}: the format keeps that name; choose another"
            raise DataError(msg)
        chosen.append((_RANK[dtype], name, dtype))
    header: dict[str, JsonValue] = {}
    if metadata:
        header[_METADATA] = dict(sorted(metadata.items()))
    blocks: list[bytes] = []
    start = 0
    for _, name, dtype in sorted(chosen):
        # Asked of the array itself: ascontiguousarray would turn a scalar into a vector.
        shape = list(tensors[name].shape)
        block = np.ascontiguousarray(tensors[name], dtype=_DTYPES[dtype]).tobytes()
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, start + len(block)]}
        start += len(block)
        blocks.append(block)
    text = compact(header, sort_keys=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *blocks])


def read_tensors(data: bytes | mmap.mmap, *, where: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Parse safetensors bytes; the arrays are read-only.

    Args:
        data: The whole file; of a mapped one, the arrays are views.
        where: What to call it in messages.

    Returns:
        Tensors by name, and the metadata.

    Raises:
        DataError: The bytes break the format anywhere: header, dtypes, shapes, offsets, holes, overlaps,
            leftovers, booleans other than 0 and 1.
    """
    if len(data) < 8:
        _refuse(where, f"expected at least 8 bytes, found {len(data)}")
    size = int.from_bytes(data[:8], "little")
    if size > min(_LONGEST_HEADER, len(data) - 8):
        _refuse(where, f"the header claims {size} bytes, but {len(data) - 8} follow")
    try:
        header = parse(data[8 : 8 + size])
    except JsonProblems as error:
        msg = f"{where}: not a safetensors file: its header is broken: {error}; get the file again"
        raise DataError(msg) from error
    if not isinstance(header, dict) or data[8:9] != b"{":
        _refuse(where, "the header is no JSON object")
    metadata = header.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _refuse(where, f"{_METADATA} must map text to text")
    body = memoryview(data)[8 + size :]
    spans: list[tuple[int, int, str]] = []
    tensors: dict[str, Tensor] = {}
    for name, entry in header.items():
        start, stop, dtype, shape = _entry(entry, f"{where}: tensor {name!r}", len(body))
        spans.append((start, stop, name))
        tensors[name] = _view(body[start:stop], dtype, shape, f"{where}: tensor {name!r}")
    _check_spans(sorted(spans), len(body), where)
    return tensors, metadata


def _entry(entry: object, where: str, available: int) -> tuple[int, int, np.dtype[Any], tuple[int, ...]]:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        _refuse(where, "expected exactly dtype, shape and data_offsets")
    name, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    dtype = _DTYPES.get(name) if isinstance(name, str) else None
    if dtype is None:
        msg = (
            f"{where}: expected a dtype of {', '.join(_DTYPES)}, found {name!r}; "
            "convert the tensor and write it again"
        )
        raise DataError(msg)
    if not _naturals(shape) or len(shape) > 32:
        _refuse(where, f"shape must be at most 32 sizes, found {str(shape)[:80]}")
    if not _naturals(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= available:
        _refuse(where, f"data_offsets must lie within {available} bytes, found {str(offsets)[:80]}")
    if offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
        _refuse(
            where,
            f"shape {shape} of {name} is not the {offsets[1] - offsets[0]} bytes that data_offsets give",
        )
    return offsets[0], offsets[1], dtype, tuple(shape)


def _naturals(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _view(block: memoryview, dtype: np.dtype[Any], shape: tuple[int, ...], where: str) -> Tensor:
    # A size of zero hides any other size from the byte count, however absurd.
    if math.prod(size for size in shape if size) > np.iinfo(np.int64).max // 8:
        _refuse(where, f"shape {shape} is larger than memory can be")
    tensor: Tensor = np.frombuffer(block, dtype).reshape(shape) if block else np.zeros(shape, dtype)
    if dtype == np.bool_ and tensor.view(np.uint8).max(initial=0) > 1:
        _refuse(where, "a boolean is neither 0 nor 1")
    if not tensor.flags.aligned or sys.byteorder != "little":
        tensor = tensor.astype(dtype.newbyteorder("="))
    tensor.flags.writeable = False
    return tensor


def _check_spans(spans: list[tuple[int, int, str]], available: int, where: str) -> None:
    reached = 0
    for start, stop, name in spans:
        if start != reached:
            kind = "overlaps the one before it" if start < reached else "leaves a hole before it"
            _refuse(where, f"tensor {name!r} starts at byte {start} and {kind}, which ends at {reached}")
        reached = stop
    if reached != available:
        _refuse(where, f"{available - reached} bytes belong to no tensor")


def _refuse(where: str, problem: str) -> NoReturn:
    msg = f"{where}: not a whole safetensors file: {problem}; get the file again"
    raise DataError(msg)
