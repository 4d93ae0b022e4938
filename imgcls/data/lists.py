"""The names of many images, in files that all processes of a machine map: they take memory once, not in each process.

As Python's strings, ImageNet's 1.28 million names take 200 MB in every process.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import IO, overload

import numpy as np

from imgcls.data.sources import FilesIn, Source, Split
from imgcls.errors import UserError
from imgcls.system.cache import DESCRIPTIONS, find_or_build, hold

MANY = 50_000
"""Images of a split from which on its names are mapped."""
DESCRIPTION, ENDS, TEXT = DESCRIPTIONS["lists"], "ends.npy", "text.npy"
AT_A_TIME = 4096


class MappedNames(Sequence[str]):
    """Texts in the files of `folder`. Raises OSError, EOFError, ValueError or KeyError if they are incomplete."""

    def __init__(self, folder: Path) -> None:
        self._held: IO[bytes] = hold(folder / DESCRIPTION)
        count = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))["count"]
        # plain arrays, whose items are read quicker than those of np.memmap
        self._ends, self._text = (np.asarray(np.load(folder / name, mmap_mode="r")) for name in (ENDS, TEXT))
        if len(self._ends) != count + 1 or self._ends[-1] != len(self._text):
            raise ValueError(f"{folder} is incomplete")
        os.utime(folder / DESCRIPTION)  # the time of last use, for those who clear the cache

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        if isinstance(index, slice):
            return tuple(self[place] for place in range(*index.indices(len(self))))
        place = range(len(self))[index]
        return _decode(self._text[self._ends[place] : self._ends[place + 1]].tobytes())

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), AT_A_TIME):
            ends = self._ends[start : start + AT_A_TIME + 1].tolist()
            text = self._text[ends[0] : ends[-1]].tobytes()
            for first, end in pairwise(ends):
                yield _decode(text[first - ends[0] : end - ends[0]])


def map_names(source: Source, cache: Path) -> Source:
    """`source` with the names of its large splits in files in `cache`; as it is where these cannot be written."""
    mapped = {name: _with_mapped(split, cache) for name, split in source.splits().items() if len(split) >= MANY}
    return replace(source, **mapped) if mapped else source  # type: ignore[arg-type]


def _with_mapped(split: Split, cache: Path) -> Split:
    if isinstance(split.names, MappedNames):
        return split
    with suppress(OSError, UserError):
        names, pictures = _mapped(split.names, cache), split.pictures
        if isinstance(pictures, FilesIn):
            same = all(map(str.__eq__, pictures.names, split.names))
            pictures = copy.copy(pictures)
            pictures.names = names if same else _mapped(pictures.names, cache)
        return replace(split, names=names, pictures=pictures)
    return split


def _mapped(names: Sequence[str], cache: Path) -> MappedNames:
    """`names`, mapped from files that are written if they are missing. Raises OSError, UserError."""
    sizes, parts = np.zeros(len(names) + 1, dtype=np.int64), []
    for start in range(0, len(names), AT_A_TIME):
        encoded = [name.encode("utf-8", "surrogateescape") for name in names[start : start + AT_A_TIME]]
        sizes[start + 1 : start + 1 + len(encoded)] = [len(name) for name in encoded]
        parts.append(b"".join(encoded))
    ends, text = np.cumsum(sizes), b"".join(parts)
    digest = hashlib.blake2b(text, digest_size=16)
    digest.update(ends.data)
    folder = cache / "lists" / digest.hexdigest()

    def find() -> MappedNames | None:
        try:
            return MappedNames(folder)
        except (OSError, EOFError, ValueError, KeyError):
            return None

    def build(partial: Path) -> None:
        np.save(partial / ENDS, ends)
        np.save(partial / TEXT, np.frombuffer(text, dtype=np.uint8))
        (partial / DESCRIPTION).write_text(json.dumps({"count": len(names)}), encoding="utf-8")

    return find_or_build(folder, find, build)


def _decode(content: bytes) -> str:
    return content.decode("utf-8", "surrogateescape")
