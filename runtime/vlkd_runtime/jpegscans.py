"""Counts the scans of a JPEG: each goes over the whole image, and an empty one costs a dozen bytes.

A progressive photograph has ten. With a thousand empty ones, a file of 11 KB decodes for many seconds, whatever limit
on pixels it keeps to.

References:
    ITU-T T.81, annex B (markers); libtiff, which refuses more than 100 scans, too.
"""

from __future__ import annotations

import re
from typing import BinaryIO

MOST_SCANS = 100

# In entropy-coded data FF is followed by 00 or by a restart marker, which has no content.
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")
_SOI, _EOI, _SOS, _TEM = 0xD8, 0xD9, 0xDA, 0x01
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Enough for the header of most; the rest is read where it matters.
_HEAD = 1 << 16


def count_scans(file: BinaryIO) -> int:
    """Count until there are more than `MOST_SCANS`; where one scan holds all components, no other can follow.

    Args:
        file: A JPEG, at its beginning.
    """
    data = file.read(_HEAD)
    count, complete = _walk(data)
    return count if complete else _walk(data + file.read())[0]


def _walk(data: bytes) -> tuple[int, bool]:
    """Give the number of scans, and whether more data could not change it."""
    place = components = count = 0
    progressive = False
    while (found := _MARKER.search(data, place)) is not None:
        code, place = found[1][0], found.end()
        if code in (_SOI, _TEM):
            continue
        if code == _EOI:
            return count, True
        length = int.from_bytes(data[place : place + 2], "big")
        content = data[place + 2 : place + length]
        place += max(length, 2)
        if code in _FRAMES:
            components, progressive = int.from_bytes(content[5:6], "big"), code in _PROGRESSIVE
        elif code == _SOS:
            count += 1
            if count > MOST_SCANS or (not progressive and content[:1] == bytes([components])):
                return count, True
    return count, False
