"""Stores in the cache folder: built once, under a lock, and mapped by every process that needs the same pixels."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import PIL
import torch

from imgcls.data.sources import Split
from imgcls.data.stores.store import ArrayStore, Recipe, decode_all
from imgcls.system.cache import find_or_build

FORMAT = 1
DISK_SHARE = 0.8  # of the free space
PIXELS, ASPECTS, DESCRIPTION = "pixels.u8", "aspects.npy", "store.json"


def store_key(split: Split, recipe: Recipe) -> str:
    """A hash of everything that the store depends on: 32 hexadecimal digits.

    Names, sizes and modification times of files, or the pixels of arrays; the recipe; and the versions of Pillow and
    torch, because others may decode and resize differently.
    """
    content = hashlib.blake2b(digest_size=16)
    content.update(json.dumps([FORMAT, PIL.__version__, torch.__version__, asdict(recipe)]).encode())
    if isinstance(split.pictures, np.ndarray):
        content.update(json.dumps(split.pictures.shape).encode())
        content.update(np.ascontiguousarray(split.pictures).data)
        return content.hexdigest()
    for name, path in zip(split.names, split.pictures, strict=True):
        try:
            status = path.stat()
            stamp = (status.st_size, status.st_mtime_ns)
        except OSError:
            stamp = (-1, -1)
        content.update(f"{name}\0{stamp[0]}\0{stamp[1]}\0".encode())
    return content.hexdigest()


def open_on_disk(folder: Path, count: int, recipe: Recipe) -> ArrayStore | None:
    """The store in `folder`; None if it is missing or incomplete."""
    try:
        description = json.loads((folder / DESCRIPTION).read_text())
        if (folder / PIXELS).stat().st_size != recipe.nbytes(count):
            return None
        aspects = np.load(folder / ASPECTS)
        pixels = np.memmap(folder / PIXELS, dtype=np.uint8, mode="r", shape=recipe.shape(count))
        os.utime(folder / DESCRIPTION)  # the time of last use, for those who clear the cache
    except (OSError, ValueError):
        return None
    bad = [(int(position), str(reason)) for position, reason in description["bad"]]
    return ArrayStore(pixels, aspects, bad, folder)


def build_on_disk(folder: Path, split: Split, recipe: Recipe, workers: int) -> ArrayStore:
    """Open the store in `folder`, and build it first if it is missing.

    Raises OSError before anything is decoded if the disk is too small.
    """

    def build(partial: Path) -> None:
        with (partial / PIXELS).open("w+b") as file:
            file.truncate(recipe.nbytes(len(split)))
            reserve(partial / PIXELS)
            pixels = np.memmap(file, dtype=np.uint8, mode="r+", shape=recipe.shape(len(split)))
            aspects = np.ones(len(split), dtype=np.float32)
            bad = decode_all(split, recipe, pixels, aspects, workers)
            pixels.flush()
            os.fsync(file.fileno())
        np.save(partial / ASPECTS, aspects)
        content = {"format": FORMAT, "pictures": len(split), "side": recipe.side, "layout": recipe.layout, "bad": bad}
        (partial / DESCRIPTION).write_text(json.dumps(content))

    return find_or_build(folder, lambda: open_on_disk(folder, len(split), recipe), build)


def reserve(file: Path) -> None:
    """Allocate the space of `file`, because a full disk kills a process that writes to a mapped file."""
    size = file.stat().st_size
    if size and hasattr(os, "posix_fallocate"):
        with file.open("r+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, size)
