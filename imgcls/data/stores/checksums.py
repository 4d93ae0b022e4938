"""Checksums of the chunks of a file: all are compared when a small file is opened, and some for a large one."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

CHUNK_BYTES = 16 << 20
OPENING_CHUNKS = 32
"""Chunks compared when a file is opened: 512 MB, in 0.2 s. The others are compared while it is read."""


def checksums(file: Path) -> list[int]:
    """The CRC-32 of each chunk of `file`."""
    sums = []
    with file.open("rb") as opened:
        while chunk := opened.read(CHUNK_BYTES):
            sums.append(zlib.crc32(chunk))
    return sums


class Checker:
    """Compares a file with the `checksums` of when it was written, some chunks at a time."""

    def __init__(self, file: Path, sums: Sequence[int]) -> None:
        self.file, self.sums = file, tuple(sums)
        stride = max(1, len(self.sums) // OPENING_CHUNKS)
        first = list(range(0, len(self.sums), stride))[:OPENING_CHUNKS]
        self._first, self._rest = first, sorted(set(range(len(self.sums))) - set(first))

    def is_sound(self) -> bool:
        """Whether the chunks to compare at opening, spread over the whole file, have not changed."""
        size = self.file.stat().st_size
        return -(-size // CHUNK_BYTES) == len(self.sums) and all(map(self._matches, self._first))

    def next_matches(self) -> bool:
        """Compare the next chunk, if any is left; whether it has not changed."""
        return self._matches(self._rest.pop(0)) if self._rest else True

    def _matches(self, number: int) -> bool:
        with self.file.open("rb") as opened:
            opened.seek(number * CHUNK_BYTES)
            return zlib.crc32(opened.read(CHUNK_BYTES)) == self.sums[number]
