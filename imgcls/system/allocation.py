"""How the C library keeps memory between the steps of a network."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # M_… of malloc.h
LARGEST = (1 << 30, 1 << 25)
"""Bytes of the largest block that is kept; an older glibc takes no more than the second."""


@functools.cache
def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, for its next tensors; with another C library nothing happens.

    By default glibc gives large blocks back to the system, which clears each page when it is used again. Of several
    arenas only the first can hold large blocks, so that threads that start later share it: call this early. Nothing is
    changed where the environment has variables for malloc (MALLOC_…, GLIBC_TUNABLES).
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return
    with suppress(AttributeError, OSError, TypeError):  # another C library, or none
        set_policy(ctypes.CDLL(None).mallopt)


def set_policy(mallopt: Callable[[int, int], int]) -> bool:
    """Set it with glibc's `mallopt`; False, and all stays as it is, where that takes no size of LARGEST."""
    if not any(mallopt(_MMAP_THRESHOLD, size) for size in LARGEST):
        return False  # the other options alone would give back all blocks from 128 kB on
    mallopt(_TRIM_THRESHOLD, -1)  # never
    mallopt(_ARENA_MAX, 1)
    return True
