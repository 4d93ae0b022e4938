"""Stores in the cache folder: built once, under a lock, and mapped by every process that wants the same pixels."""

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
DISK_SHARE = 0.8  # of what is free on the disk
PIXELS, ASPECTS, DESCRIPTION = "pixels.u8", "aspects.npy", "store.json"


def store_key(split: Split, recipe: Recipe) -> str:
    """A name made from what the store holds: 32 hexadecimal digits.

    Of files the names, sizes and times of change, of arrays the pixels; and the recipe, and the versions of Pillow and
    torch, because others may decode and resize otherwise.
    """
    content = hashlib.blake2b(digest_size=16)
    content.update(json.dumps([FORMAT, PIL.__version__, torch.__version__, asdict(recipe)]).encode())
    if isinstance(split.pictures, np.ndarray):
        content.update(json.dumps(split.pictures.shape).encode())
        content.update(np.ascontiguousarray(split.pictures).data)
        return content.hexdigest()
    for name, path in zip(split.names, split.pictures, strict=True):
        try:
            stat = path.stat()
            seen = (stat.st_size, stat.st_mtime_ns)
        except OSError:
            seen = (-1, -1)
        content.update(f"{name}\0{seen[0]}\0{seen[1]}\0".encode())
    return content.hexdigest()


def open_on_disk(folder: Path, count: int, recipe: Recipe) -> ArrayStore | None:
    """The store in `folder`; None where there is none, or it is not whole."""
    try:
        described = json.loads((folder / DESCRIPTION).read_text())
        if (folder / PIXELS).stat().st_size != recipe.nbytes(count):
            return None
        aspects = np.load(folder / ASPECTS)
        pixels = np.memmap(folder / PIXELS, dtype=np.uint8, mode="r", shape=recipe.shape(count))
        os.utime(folder / DESCRIPTION)  # when it was last used, for whoever clears the cache
    except (OSError, ValueError):
        return None
    bad = [(int(position), str(reason)) for position, reason in described["bad"]]
    return ArrayStore(pixels, aspects, bad, folder)


def build_on_disk(folder: Path, split: Split, recipe: Recipe, workers: int) -> ArrayStore:
    """Open the store in `folder`, building it first where need be.

    Raises OSError where the disk is too small, before anything is decoded.
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
        described = {"format": FORMAT, "pictures": len(split), "side": recipe.side, "layout": recipe.layout, "bad": bad}
        (partial / DESCRIPTION).write_text(json.dumps(described))

    return find_or_build(folder, lambda: open_on_disk(folder, len(split), recipe), build)


def reserve(file: Path) -> None:
    """Take the space of `file` now: a mapped file on a disk that fills up later ends the process without a word."""
    size = file.stat().st_size
    if size and hasattr(os, "posix_fallocate"):
        with file.open("r+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, size)
