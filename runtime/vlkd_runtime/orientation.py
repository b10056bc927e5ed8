"""Which way up an image was taken, read from its EXIF block.

Pillow can read it, too, but warns where the block is damaged, and what a warning does is the application's
to say: under ``-W error`` the same file would have been turned another way.

References:
    CIPA DC-008 (Exif 3.0), 4.6.2 and 4.6.5.1: header, directory and the tag ``Orientation``.
"""

from __future__ import annotations

import re
import struct

_TAG, _SHORT = 0x0112, 3
_ENTRY_BYTES = 12


def read_orientation(exif: bytes) -> int:
    """Give the orientation, 1 to 8; 1 where the block has none, or is damaged before it.

    Args:
        exif: The block, with or without the ``Exif`` mark in front.
    """
    data = re.sub(rb"^(Exif\0\0){1,2}", b"", exif)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", data, 4)
        (count,) = struct.unpack_from(f"{order}H", data, start)
        for entry in range(count):
            place = start + 2 + entry * _ENTRY_BYTES
            tag, kind, values, value = struct.unpack_from(f"{order}HHIH", data, place)
            if tag == _TAG and kind == _SHORT and values == 1:
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1
