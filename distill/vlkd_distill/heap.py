"""What the C library does with memory that torch frees: keep it.

Every layer of every step allocates and frees tensors of megabytes. glibc gives such blocks back to the kernel at
once and faults them in anew, which takes up to half of a training's time on a small CPU.
"""

from __future__ import annotations

import ctypes
import functools

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_MOST = 2**31 - 1


@functools.cache
def keep_freed_memory() -> bool:
    """Let the process keep what it frees, for reuse; call it before long work on tensors.

    Returns:
        Whether the C library could be told: glibc can, others keep their own ways.

    References:
        mallopt(3): M_MMAP_MAX 0 takes every block from the heap, M_TRIM_THRESHOLD says when the heap shrinks.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    mallopt.argtypes = (ctypes.c_int, ctypes.c_int)
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, _MOST))
