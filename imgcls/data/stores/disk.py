"""Stores in the cache folder: built once, by all processes that need the same pixels, which map it then."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import mmap
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import PIL
import torch

from imgcls.data.sources import Split
from imgcls.data.stores.checksums import Checker, checksums
from imgcls.data.stores.fingerprint import fingerprint
from imgcls.data.stores.store import ArrayStore, Recipe, decode_rows
from imgcls.data.stores.together import Bad, Blocks, allocate_blocks, build_together
from imgcls.system.cache import hold

FORMAT = 3
PIXELS, ASPECTS, DESCRIPTION = "pixels.u8", "aspects.npy", "store.json"
BLOCK_ROWS = 512  # images that a kill loses, and those that are decoded ahead of them


def store_key(split: Split, recipe: Recipe, cache: Path) -> str:
    """A hash of everything that the store depends on: 32 hexadecimal digits.

    The names and contents of the images; the recipe; and the versions of Pillow and torch, because others may decode
    and resize differently. The digests of contents are kept in `cache`.
    """
    parts = [FORMAT, PIL.__version__, torch.__version__, asdict(recipe), fingerprint(split, cache)]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def open_on_disk(folder: Path, count: int, recipe: Recipe) -> ArrayStore | None:
    """The store in `folder`; None if it is missing, incomplete or damaged."""
    try:
        description = json.loads((folder / DESCRIPTION).read_text())
        held = hold(folder / DESCRIPTION)
        checker = Checker(folder / PIXELS, description["checksums"])
        if (folder / PIXELS).stat().st_size != recipe.nbytes(count) or not checker.is_sound():
            return None
        bad = [(int(position), str(reason)) for position, reason in description["bad"]]
        aspects = np.load(folder / ASPECTS)
        pixels = np.memmap(folder / PIXELS, dtype=recipe.depth.type, mode="r", shape=recipe.shape(count))
        return ArrayStore(pixels, aspects, bad, folder, checker, held)
    except Exception:  # whatever is wrong with it, it can be rebuilt
        return None


def build_on_disk(folder: Path, split: Split, recipe: Recipe, workers: int) -> ArrayStore:
    """Open the store in `folder`; build it first, together with the other processes that need it, if it is missing.

    Raises OSError before anything is decoded if the disk is too small.
    """

    def complete(partial: Path, bad: Bad) -> None:
        content: dict[str, object] = {"format": FORMAT, "pictures": len(split), "bad": bad}
        content |= {"side": recipe.side, "layout": recipe.layout, "checksums": checksums(partial / PIXELS)}
        (partial / DESCRIPTION).write_text(json.dumps(content))

    return build_together(
        folder,
        find=lambda: open_on_disk(folder, len(split), recipe),
        allocate=lambda partial: _allocate(partial, split, recipe),
        fill=lambda partial: _decode_blocks(partial, split, recipe, workers),
        complete=complete,
    )


def _allocate(partial: Path, split: Split, recipe: Recipe) -> None:
    """Create the files of a store of which nothing is decoded yet."""
    with (partial / PIXELS).open("wb") as file:
        file.truncate(recipe.nbytes(len(split)))
    reserve(partial / PIXELS)
    np.save(partial / ASPECTS, np.ones(len(split), dtype=np.float32))
    allocate_blocks(partial, len(split), BLOCK_ROWS)


def _blocks_together(recipe: Recipe) -> int:
    """Number of blocks that are whole pages, which machines write to independently."""
    return mmap.PAGESIZE // math.gcd(recipe.nbytes(BLOCK_ROWS), mmap.PAGESIZE)


def _decode_blocks(partial: Path, split: Split, recipe: Recipe, workers: int) -> None:
    """Decode the blocks that no other process is at work on."""
    count = len(split)
    with contextlib.ExitStack() as stack:
        file, ratios = (stack.enter_context((partial / name).open("r+b", buffering=0)) for name in (PIXELS, ASPECTS))
        pixels = np.memmap(file, dtype=recipe.depth.type, mode="r+", shape=recipe.shape(count))
        aspects = np.ones(count, dtype=np.float32)
        header = (partial / ASPECTS).stat().st_size - aspects.nbytes
        blocks = stack.enter_context(Blocks(partial, count, BLOCK_ROWS, _blocks_together(recipe)))
        for row, reason in decode_rows(split, recipe, pixels, aspects, workers, blocks.claim(), blocks.left):
            if (rows := blocks.completed_by(row, reason)) is not None:
                pixels.flush()
                os.pwrite(ratios.fileno(), aspects[rows].tobytes(), header + rows.start * aspects.itemsize)
                blocks.record(rows)


def reserve(file: Path) -> None:
    """Allocate the space of `file`, because a full disk kills a process that writes to a mapped file."""
    size = file.stat().st_size
    if size and hasattr(os, "posix_fallocate"):
        with file.open("r+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, size)
