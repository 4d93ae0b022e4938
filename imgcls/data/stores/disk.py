"""Stores in the cache folder: built once, under a lock, and mapped by every process that needs the same pixels."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import time
import zipfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import PIL
import torch

from imgcls.data.sources import Split
from imgcls.data.stores.checksums import Checker, checksums
from imgcls.data.stores.fingerprint import fingerprint
from imgcls.data.stores.store import ArrayStore, Recipe, decode_all
from imgcls.errors import UserError
from imgcls.system.cache import find_or_build, hold
from imgcls.system.files import atomic_path

log = logging.getLogger(__name__)

FORMAT = 3
DISK_SHARE = 0.8  # of the free space
PIXELS, ASPECTS, DESCRIPTION, PROGRESS = "pixels.u8", "aspects.npy", "store.json", "progress.npz"
PROGRESS_SECONDS = 30.0  # of decoding that a kill may lose


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
        os.utime(folder / DESCRIPTION)  # the time of last use, for those who clear the cache
        return ArrayStore(pixels, aspects, bad, folder, checker, held)
    except Exception:  # whatever is wrong with it, it can be rebuilt
        return None


def build_on_disk(folder: Path, split: Split, recipe: Recipe, workers: int) -> ArrayStore:
    """Open the store in `folder`, and build it first if it is missing; a build that was killed is resumed.

    Raises OSError before anything is decoded if the disk is too small.
    """

    def build(partial: Path) -> None:
        progress = _Progress(partial, len(split))
        with (partial / PIXELS).open("r+b" if progress.done else "w+b") as file:
            file.truncate(recipe.nbytes(len(split)))
            reserve(partial / PIXELS)
            pixels = np.memmap(file, dtype=recipe.depth.type, mode="r+", shape=recipe.shape(len(split)))
            start, known = progress.done, progress.bad
            advance = functools.partial(progress.advance, pixels)
            bad = decode_all(split, recipe, pixels, progress.aspects, workers, known, start, advance)
            pixels.flush()
            os.fsync(file.fileno())
        np.save(partial / ASPECTS, progress.aspects)
        content: dict[str, object] = {"format": FORMAT, "pictures": len(split), "bad": bad}
        content |= {"side": recipe.side, "layout": recipe.layout, "checksums": checksums(partial / PIXELS)}
        (partial / DESCRIPTION).write_text(json.dumps(content))
        (partial / PROGRESS).unlink(missing_ok=True)

    return find_or_build(folder, lambda: open_on_disk(folder, len(split), recipe), build, resume=True)


class _Progress:
    """How far a store is built, written beside it every half minute for whoever resumes it after a kill.

    Args:
        folder: of the unfinished store.
        count: number of images, N.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self.file = folder / PROGRESS
        self.done, self.bad = 0, []
        self.aspects = np.ones(count, dtype=np.float32)
        self._written = time.monotonic()
        with (
            contextlib.suppress(OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile),
            np.load(self.file) as kept,
        ):
            done, aspects = int(kept["done"]), kept["aspects"]
            if (folder / PIXELS).is_file() and aspects.shape == (count,):
                self.done, self.aspects = done, aspects
                self.bad = [(int(position), str(reason)) for position, reason in json.loads(str(kept["bad"]))]
                log.info("%s of %s images are decoded already.", f"{done:,}", f"{count:,}")

    def advance(self, pixels: np.memmap, done: int, bad: list[tuple[int, str]]) -> None:
        """The first `done` images are decoded."""
        if time.monotonic() - self._written < PROGRESS_SECONDS:
            return
        pixels.flush()
        with contextlib.suppress(OSError, UserError), atomic_path(self.file) as temporary, temporary.open("wb") as file:
            np.savez(file, done=done, aspects=self.aspects, bad=json.dumps(bad))
        self._written = time.monotonic()


def reserve(file: Path) -> None:
    """Allocate the space of `file`, because a full disk kills a process that writes to a mapped file."""
    size = file.stat().st_size
    if size and hasattr(os, "posix_fallocate"):
        with file.open("r+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, size)
