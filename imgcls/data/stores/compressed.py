"""A store of JPEGs at the store's size: a tenth of the bytes, decoded again in each epoch, of training images."""

from __future__ import annotations

import contextlib
import io
import json
import mmap
import os
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from imgcls.data.sources import Split
from imgcls.data.stores.store import Recipe
from imgcls.data.threads import map_with_bar, pool
from imgcls.errors import UserError
from imgcls.pictures import BadPicture
from imgcls.system.cache import find_or_build, hold

IMAGES, INDEX, DESCRIPTION = "images.jpegs", "index.npz", "store.json"
EXPECTED_SHARE = 0.2  # of the decoded bytes; photographs of quality 90 take 0.1 to 0.15


class CompressedStore:
    """JPEGs in one mapped file, which threads decode for each batch.

    Args:
        folder: of the store.
        recipe: the size of the images.
        workers: threads.
    """

    def __init__(self, folder: Path, recipe: Recipe, workers: int) -> None:
        self.folder: Path | None = folder
        self.recipe, self.workers = recipe, workers
        self._held: IO[bytes] = hold(folder / DESCRIPTION)
        description: dict[str, Any] = json.loads((folder / DESCRIPTION).read_text())
        with np.load(folder / INDEX, allow_pickle=False) as index:
            ends, aspects = index["ends"], index["aspects"]
        with (folder / IMAGES).open("rb") as file:
            self._file = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if len(self._file) != description["bytes"] or ends[-1] != description["bytes"]:
            raise ValueError(f"{folder} is incomplete")
        self.bad = tuple((int(position), str(reason)) for position, reason in description["bad"])
        self.rows = np.delete(np.arange(len(ends)), [row for row, _ in self.bad])
        self.aspects = aspects[self.rows]
        self._starts, self._ends = np.append(0, ends[:-1]), ends

    def __len__(self) -> int:
        return len(self.rows)

    def gather(self, positions: Tensor, *, pin: bool = False) -> Tensor:
        """See `Store.gather`."""
        rows = self.rows[positions.numpy()]
        out = torch.empty(self.recipe.shape(len(rows)), dtype=torch.uint8, pin_memory=pin)
        target = out.numpy()

        def decode(place: int, start: int, end: int) -> None:
            try:
                with Image.open(io.BytesIO(self._file[start:end]), formats=("JPEG",)) as image:
                    target[place] = image
            except (OSError, ValueError, SyntaxError) as error:
                raise UserError(f"{self.folder} is damaged: {error}. Remove it.") from error

        parts = range(len(rows)), self._starts[rows].tolist(), self._ends[rows].tolist()
        for _ in pool(self.workers).map(decode, *parts):
            pass
        return out.permute(0, 3, 1, 2)


def open_compressed(folder: Path, recipe: Recipe, workers: int) -> CompressedStore | None:
    """The store in `folder`; None if it is missing or incomplete."""
    try:
        store = CompressedStore(folder, recipe, workers)
        os.utime(folder / DESCRIPTION)  # the time of last use
    except Exception:  # whatever is wrong with it, it can be built again
        return None
    return store


def build_compressed(folder: Path, split: Split, recipe: Recipe, workers: int, quality: int) -> CompressedStore:
    """Open the store in `folder`, and build it first if it is missing.

    Args:
        folder: named after everything that its content depends on.
        split, recipe: which images, and how.
        workers: threads.
        quality: of the JPEGs, 1 to 100.

    Raises:
        OSError: the disk is full.
    """

    def build(partial: Path) -> None:
        aspects = np.ones(len(split), dtype=np.float32)

        def encode(position: int) -> bytes | str:
            try:
                pixels, aspects[position] = recipe.read(split, position)
            except BadPicture as error:
                return error.reason
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, format="JPEG", quality=quality)
            return buffer.getvalue()

        ends, bad = np.zeros(len(split), dtype=np.int64), []
        encoded = map_with_bar(encode, range(len(split)), workers, f"Compressing {len(split):,} images")
        with (partial / IMAGES).open("wb") as file, contextlib.closing(encoded):  # type: ignore[type-var]
            for position, content in enumerate(encoded):
                if isinstance(content, str):
                    bad.append((position, content))
                else:
                    file.write(content)
                ends[position] = file.tell()
        np.savez(partial / INDEX, ends=ends, aspects=aspects)
        (partial / DESCRIPTION).write_text(json.dumps({"bytes": int(ends[-1]), "quality": quality, "bad": bad}))

    return find_or_build(folder, lambda: open_compressed(folder, recipe, workers), build)
