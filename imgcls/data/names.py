"""The names of many images without a Python object for each: 14 million of these take more than a gigabyte."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import overload

import numpy as np

AT_A_TIME = 4096


class LazyNames(Sequence[str]):
    """Names that are made when they are used."""

    def __len__(self) -> int:
        raise NotImplementedError

    def _one(self, place: int) -> str:
        raise NotImplementedError

    def _some(self, first: int, end: int) -> Iterable[str]:
        """Those from `first` to before `end`."""
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        if isinstance(index, slice):
            return tuple(self[place] for place in range(*index.indices(len(self))))
        return self._one(range(len(self))[index])

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), AT_A_TIME):
            yield from self._some(start, min(start + AT_A_TIME, len(self)))


class PackedNames(LazyNames):
    """Names one after another in UTF-8.

    Args:
        text: uint8 (bytes,).
        ends: int64 (N + 1,): 0, and where each name ends.
    """

    def __init__(self, text: np.ndarray, ends: np.ndarray) -> None:
        self.text, self.ends = text, ends

    @staticmethod
    def pack(names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """`text` and `ends` of `names`."""
        sizes, parts = np.zeros(len(names) + 1, dtype=np.int64), []
        for start in range(0, len(names), AT_A_TIME):
            encoded = [name.encode("utf-8", "surrogateescape") for name in names[start : start + AT_A_TIME]]
            sizes[start + 1 : start + 1 + len(encoded)] = [len(name) for name in encoded]
            parts.append(b"".join(encoded))
        return np.frombuffer(b"".join(parts), dtype=np.uint8), np.cumsum(sizes)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def _one(self, place: int) -> str:
        return _decode(self.text[self.ends[place] : self.ends[place + 1]].tobytes())

    def _some(self, first: int, end: int) -> Iterator[str]:
        ends = self.ends[first : end + 1].tolist()
        text = self.text[ends[0] : ends[-1]].tobytes()
        for start, stop in pairwise(ends):
            yield _decode(text[start - ends[0] : stop - ends[0]])


class NamesInShards(LazyNames):
    """The name of the shard without its suffix, and the image's path in it.

    Args:
        folders: of each shard, its name without the suffix.
        shards: int64 (N,), the number of each image's shard.
        names: the paths in the shards.
        rows: of each image, its place in `names`.
    """

    def __init__(self, folders: Sequence[str], shards: np.ndarray, names: PackedNames, rows: np.ndarray) -> None:
        self._folders, self._shards, self._names, self._rows = folders, shards, names, rows

    def __len__(self) -> int:
        return len(self._rows)

    def at(self, places: Sequence[int] | np.ndarray) -> NamesInShards:
        """Those at `places`, in that order."""
        chosen = np.asarray(places, dtype=np.int64)
        return NamesInShards(self._folders, self._shards[chosen], self._names, self._rows[chosen])

    def parts(self) -> Iterator[bytes | memoryview]:
        """What the names are made of, which is hashed faster than they themselves."""
        yield "\0".join(self._folders).encode("utf-8", "surrogateescape")
        for array in (self._shards, self._names.text, self._names.ends, self._rows):
            yield np.ascontiguousarray(array).data

    def _one(self, place: int) -> str:
        return picture_name(f"{self._folders[self._shards[place]]}/{self._names[int(self._rows[place])]}")

    def _some(self, first: int, end: int) -> Iterator[str]:
        rows = self._rows[first:end]
        follow = len(rows) == rows[-1] - rows[0] + 1 and bool((np.diff(rows) == 1).all())
        names = self._names._some(int(rows[0]), int(rows[-1]) + 1) if follow else map(self._names._one, rows.tolist())
        for shard, name in zip(self._shards[first:end].tolist(), names, strict=True):
            yield picture_name(f"{self._folders[shard]}/{name}")


def names_at(names: Sequence[str], places: Sequence[int]) -> Sequence[str]:
    """The `names` at `places`, in that order."""
    return names.at(places) if isinstance(names, NamesInShards) else tuple(map(names.__getitem__, places))


def picture_name(relative: str) -> str:
    """A relative path as a stable name: with forward slashes and composed accents, and always encodable."""
    name = relative if os.sep == "/" else relative.replace(os.sep, "/")
    if name.isascii():
        return name
    name = os.fsencode(name).decode("utf-8", "backslashreplace")
    return unicodedata.normalize("NFC", name)


def _decode(content: bytes) -> str:
    return content.decode("utf-8", "surrogateescape")
