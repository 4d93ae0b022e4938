"""The names of many images, in files that all processes of a machine map: they take memory once, not in each process.

As Python's strings, ImageNet's 1.28 million names take 200 MB in every process.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np

from imgcls.data.names import LazyNames, PackedNames
from imgcls.data.sources import FilesIn, Source, Split
from imgcls.errors import UserError
from imgcls.system.cache import DESCRIPTIONS, find_or_build, hold

MANY = 50_000
"""Images of a split from which on its names are mapped."""
DESCRIPTION, ENDS, TEXT = DESCRIPTIONS["lists"], "ends.npy", "text.npy"


class MappedNames(PackedNames):
    """Names in the files of `folder`. Raises OSError, EOFError, ValueError or KeyError if they are incomplete."""

    def __init__(self, folder: Path) -> None:
        self._held: IO[bytes] = hold(folder / DESCRIPTION)
        count = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))["count"]
        # plain arrays, whose items are read quicker than those of np.memmap
        super().__init__(*(np.asarray(np.load(folder / name, mmap_mode="r")) for name in (TEXT, ENDS)))
        if len(self.ends) != count + 1 or self.ends[-1] != len(self.text):
            raise ValueError(f"{folder} is incomplete")


def map_names(source: Source, cache: Path) -> Source:
    """`source` with the names of its large splits in files in `cache`; as it is where these cannot be written."""
    mapped = {name: _with_mapped(split, cache) for name, split in source.splits().items() if len(split) >= MANY}
    return replace(source, **mapped) if mapped else source  # type: ignore[arg-type]


def _with_mapped(split: Split, cache: Path) -> Split:
    if isinstance(split.names, LazyNames):
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
    text, ends = PackedNames.pack(names)
    digest = hashlib.blake2b(text.data, digest_size=16)
    digest.update(ends.data)
    folder = cache / "lists" / digest.hexdigest()

    def find() -> MappedNames | None:
        try:
            return MappedNames(folder)
        except (OSError, EOFError, ValueError, KeyError):
            return None

    def build(partial: Path) -> None:
        np.save(partial / ENDS, ends)
        np.save(partial / TEXT, text)
        (partial / DESCRIPTION).write_text(json.dumps({"count": len(names)}), encoding="utf-8")

    return find_or_build(folder, find, build)
