"""The little of ELF that the preflight needs: read what a library asks for, write one that answers.

TensorRT's Python module links against a plugin library that TensorRT for RTX does not have, and of which a
parse and a build call no more than the initialisation. People who run the preflight have no compiler, so the
library is written here byte by byte: one exported function that returns true.

References:
    System V ABI, chapters 4 and 5 (object files, dynamic linking); AMD64 supplement for the relocation-free
    subset used here.
"""

from __future__ import annotations

import struct
from pathlib import Path

from vlkd_runtime.errors import UnavailableError

PAGE = 0x1000
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_DYNAMIC = struct.Struct("<qQ")

_IDENT = b"\x7fELF\x02\x01\x01" + bytes(9)  # 64 bit, little endian, version 1, System V
_SHARED, _X86_64 = 3, 62
_PT_LOAD, _PT_DYNAMIC, _PT_GNU_STACK = 1, 2, 0x6474E551
_READ, _WRITE, _EXECUTE = 4, 2, 1
_DT_NULL, _DT_NEEDED, _DT_HASH, _DT_STRTAB, _DT_SYMTAB = 0, 1, 4, 5, 6
_DT_STRSZ, _DT_SYMENT, _DT_SONAME = 10, 11, 14
_GLOBAL_FUNCTION = 1 << 4 | 2

# mov eax, 1; ret. A C++ bool is returned in al.
_RETURN_TRUE = b"\xb8\x01\x00\x00\x00\xc3"


def library_returning_true(soname: str, function: str) -> bytes:
    """Return an x86-64 Linux shared library whose one function ignores its arguments and returns true.

    The file has two loaded parts: a page that is read and executed (headers, tables, code), and the dynamic
    section in a page of its own that the loader may write to, as glibc before 2.35 does.

    Args:
        soname: the name the library goes by, such as ``libnvinfer_plugin.so.11``.
        function: name of the exported function.
    """
    strings = b"\0" + soname.encode() + b"\0" + function.encode() + b"\0"
    # One bucket that holds symbol 1; symbol 0 is the reserved empty one.
    buckets = struct.pack("<5I", 1, 2, 1, 0, 0)
    at_hash = _HEADER.size + 4 * _SEGMENT.size
    at_symbols = _aligned(at_hash + len(buckets), 8)
    at_strings = at_symbols + 2 * _SYMBOL.size
    at_code = _aligned(at_strings + len(strings), 16)
    end = at_code + len(_RETURN_TRUE)
    symbols = bytes(_SYMBOL.size) + _SYMBOL.pack(
        2 + len(soname), _GLOBAL_FUNCTION, 0, 1, at_code, len(_RETURN_TRUE)
    )
    entries = (
        (_DT_SONAME, 1),
        (_DT_HASH, at_hash),
        (_DT_STRTAB, at_strings),
        (_DT_SYMTAB, at_symbols),
        (_DT_STRSZ, len(strings)),
        (_DT_SYMENT, _SYMBOL.size),
        (_DT_NULL, 0),
    )
    dynamic = b"".join(_DYNAMIC.pack(*entry) for entry in entries)
    at_dynamic = _aligned(end, PAGE)
    header = _HEADER.pack(
        *(_IDENT, _SHARED, _X86_64, 1, 0, _HEADER.size, 0, 0, _HEADER.size, _SEGMENT.size, 4, 64, 0, 0)
    )
    segments = (
        _segment(_PT_LOAD, _READ | _EXECUTE, 0, end, PAGE)
        + _segment(_PT_LOAD, _READ | _WRITE, at_dynamic, len(dynamic), PAGE)
        + _segment(_PT_DYNAMIC, _READ | _WRITE, at_dynamic, len(dynamic), 8)
        # Without this entry the loader would ask for an executable stack, which newer systems refuse.
        + _segment(_PT_GNU_STACK, _READ | _WRITE, 0, 0, 16)
    )
    image = bytearray(at_dynamic + len(dynamic))
    parts = ((0, header + segments), (at_hash, buckets), (at_symbols, symbols), (at_strings, strings))
    for offset, part in (*parts, (at_code, _RETURN_TRUE), (at_dynamic, dynamic)):
        image[offset : offset + len(part)] = part
    return bytes(image)


def needed_libraries(path: Path) -> tuple[str, ...]:
    """Return the names of the libraries that a shared library links against.

    Raises:
        UnavailableError: the file is no 64-bit little-endian ELF library.
    """
    return _dynamic_strings(path, _DT_NEEDED)


def soname(path: Path) -> str:
    """Return the name a shared library goes by, its file name when it states none.

    Raises:
        UnavailableError: the file is no 64-bit little-endian ELF library.
    """
    return next(iter(_dynamic_strings(path, _DT_SONAME)), path.name)


def _dynamic_strings(path: Path, wanted: int) -> tuple[str, ...]:
    """Return the strings of one kind from a library's dynamic section, reading only the bytes it needs."""
    try:
        with path.open("rb") as file:
            header = _HEADER.unpack(file.read(_HEADER.size))
            if header[0][:6] != _IDENT[:6]:
                msg = "it is no 64-bit little-endian ELF file"
                raise ValueError(msg)
            file.seek(header[5])
            segments = [_SEGMENT.unpack(file.read(_SEGMENT.size)) for _ in range(header[10])]
            place = next(segment for segment in segments if segment[0] == _PT_DYNAMIC)
            file.seek(place[2])
            table = file.read(place[5])
            entries = list(_DYNAMIC.iter_unpack(table[: len(table) // _DYNAMIC.size * _DYNAMIC.size]))
            values = {tag: value for tag, value in entries if tag in (_DT_STRTAB, _DT_STRSZ)}
            address = values[_DT_STRTAB]
            home = next(s for s in segments if s[0] == _PT_LOAD and s[3] <= address < s[3] + s[6])
            file.seek(home[2] + address - home[3])
            strings = file.read(values[_DT_STRSZ])
    except (OSError, ValueError, KeyError, StopIteration, struct.error) as error:
        msg = (
            f"Expected a 64-bit ELF library at {path}, found: {error!r}. Reinstall the package it came with."
        )
        raise UnavailableError(msg) from error
    starts = [value for tag, value in entries if tag == wanted]
    return tuple(strings[start : strings.index(b"\0", start)].decode() for start in starts)


def _segment(kind: int, flags: int, offset: int, size: int, alignment: int) -> bytes:
    return _SEGMENT.pack(kind, flags, offset, offset, offset, size, size, alignment)


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment
