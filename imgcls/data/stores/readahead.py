"""Read the rows of a mapped file at once: touched one after the other, each would wait for the disk by itself."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np


def read_ahead(array: np.ndarray, rows: np.ndarray) -> None:
    """Let the system begin to read `rows` of `array`, if that is mapped from a file; they are read in parallel.

    Args:
        array: (N, …), contiguous.
        rows: int64 (n,).
    """
    mapping: Any = getattr(array, "_mmap", None)
    if mapping is None or not hasattr(mapping, "madvise"):
        return
    begin = array.ctypes.data - np.frombuffer(mapping, dtype=np.uint8).ctypes.data
    starts = begin + rows * array.strides[0]
    pages = starts - starts % mmap.PAGESIZE
    for page, length in zip(pages.tolist(), (starts - pages + array.strides[0]).tolist(), strict=True):
        mapping.madvise(mmap.MADV_WILLNEED, page, length)
