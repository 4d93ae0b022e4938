"""Checksums of a large file, a chunk each: all of a small file are compared when it is opened, some of a large one."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

CHUNK_BYTES = 16 << 20
CHECKED_AT_ONCE = 32
"""Chunks that are compared when a file is opened: 512 MB, a fifth of a second. The others are while it is read."""


def checksums(file: Path) -> list[int]:
    """The CRC-32 of each chunk of `file`."""
    sums = []
    with file.open("rb") as opened:
        while chunk := opened.read(CHUNK_BYTES):
            sums.append(zlib.crc32(chunk))
    return sums


class Checker:
    """Compares a file with its checksums, some chunks at a time.

    Args:
        file: what is read.
        sums: what `checksums` gave when it was written.
    """

    def __init__(self, file: Path, sums: Sequence[int]) -> None:
        self.file, self.sums = file, tuple(sums)
        stride = max(1, len(self.sums) // CHECKED_AT_ONCE)
        first = list(range(0, len(self.sums), stride))[:CHECKED_AT_ONCE]
        self._first, self._rest = first, sorted(set(range(len(self.sums))) - set(first))

    def is_sound(self) -> bool:
        """Whether the chunks that are compared at once are as they were written, spread over the whole file."""
        size = self.file.stat().st_size
        return -(-size // CHUNK_BYTES) == len(self.sums) and all(map(self._holds, self._first))

    def holds_next(self) -> bool:
        """Compare one more chunk, if any is left; whether it is as it was written."""
        return self._holds(self._rest.pop(0)) if self._rest else True

    def _holds(self, number: int) -> bool:
        with self.file.open("rb") as opened:
            opened.seek(number * CHUNK_BYTES)
            return zlib.crc32(opened.read(CHUNK_BYTES)) == self.sums[number]
