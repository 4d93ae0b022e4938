"""Stores in the cache folder: built once, by all processes that need the same pixels, which map it then."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import mmap
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO

import numpy as np
import PIL
import torch

from imgcls.data.sources import Split
from imgcls.data.stores.checksums import Checker, checksums
from imgcls.data.stores.fingerprint import fingerprint
from imgcls.data.stores.store import ArrayStore, Recipe, decode_rows
from imgcls.system.cache import find_or_build, hold
from imgcls.system.files import atomic_write_bytes, atomic_write_text, explain_os_errors, take_lock

log = logging.getLogger(__name__)

FORMAT = 3
DISK_SHARE = 0.8  # of the free space
PIXELS, ASPECTS, DESCRIPTION = "pixels.u8", "aspects.npy", "store.json"
PROGRESS = "progress.u8"  # of an unfinished store: a byte for each block, 1 when it is decoded, locked meanwhile
BAD = "bad.{}.json"  # of an unfinished store: the images of a block that cannot be read
BLOCK_ROWS = 1024

_in_this_process = threading.Lock()  # the locks of blocks are those of processes, not of threads


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
    """Open the store in `folder`, and build it first if it is missing.

    Several processes that need it, on any machines that share the folder, decode blocks of it each; a build that was
    killed is resumed. Raises OSError before anything is decoded if the disk is too small.
    """
    partial = folder.with_suffix(".partial")
    with _in_this_process:
        if open_on_disk(folder, len(split), recipe) is None:
            _begin(folder, partial, split, recipe)
            with folder.with_name(f".{folder.name}.lock").open("a") as lock:
                take_lock(lock, wait=True, shared=True)
                if (partial / PROGRESS).is_file():  # else another process has completed it meanwhile
                    _decode_blocks(partial, split, recipe, workers)

        def build(partial: Path) -> None:
            if not (partial / PROGRESS).is_file():
                _allocate(partial, split, recipe)
            _decode_blocks(partial, split, recipe, workers)  # of a process that was killed meanwhile
            found = sorted(partial.glob(BAD.format("*")))
            bad = sorted(pair for file in found for pair in json.loads(file.read_text()))
            content: dict[str, object] = {"format": FORMAT, "pictures": len(split), "bad": bad}
            content |= {"side": recipe.side, "layout": recipe.layout, "checksums": checksums(partial / PIXELS)}
            (partial / DESCRIPTION).write_text(json.dumps(content))
            for file in (*found, partial / PROGRESS):
                file.unlink()

        return find_or_build(folder, lambda: open_on_disk(folder, len(split), recipe), build, resume=True)


def _begin(folder: Path, partial: Path, split: Split, recipe: Recipe) -> None:
    """Allocate the files of a store, unless another process has done so. Raises OSError if the disk is too small."""
    with explain_os_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    while not (partial / PROGRESS).is_file() and open_on_disk(folder, len(split), recipe) is None:
        with folder.with_name(f".{folder.name}.lock").open("a") as lock:
            if not take_lock(lock, wait=False):  # another process begins; or it decodes already, and is not waited for
                take_lock(lock, wait=True, shared=True)
                continue
            if (partial / PROGRESS).is_file() or open_on_disk(folder, len(split), recipe) is not None:
                return
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            try:
                _allocate(partial, split, recipe)
            except OSError:
                shutil.rmtree(partial, ignore_errors=True)
                raise


def _allocate(partial: Path, split: Split, recipe: Recipe) -> None:
    """Create the files of a store of which nothing is decoded yet."""
    with (partial / PIXELS).open("wb") as file:
        file.truncate(recipe.nbytes(len(split)))
    reserve(partial / PIXELS)
    np.save(partial / ASPECTS, np.ones(len(split), dtype=np.float32))
    atomic_write_bytes(partial / PROGRESS, bytes(-(-len(split) // _block_rows(recipe))))


def _block_rows(recipe: Recipe) -> int:
    """Images in a block: at least BLOCK_ROWS, and whole pages, which machines write to independently."""
    whole = mmap.PAGESIZE // math.gcd(recipe.nbytes(1), mmap.PAGESIZE)
    return -(-BLOCK_ROWS // whole) * whole


def _decode_blocks(partial: Path, split: Split, recipe: Recipe, workers: int) -> None:
    """Decode the blocks that no other process is at work on."""
    count, size = len(split), _block_rows(recipe)
    names = (PIXELS, ASPECTS, PROGRESS)
    with contextlib.ExitStack() as stack:
        file, ratios, progress = (stack.enter_context((partial / name).open("r+b", buffering=0)) for name in names)
        pixels = np.memmap(file, dtype=recipe.depth.type, mode="r+", shape=recipe.shape(count))
        aspects = np.ones(count, dtype=np.float32)
        header = (partial / ASPECTS).stat().st_size - aspects.nbytes
        done = progress.read().count(1)
        left = count - min(count, done * size)
        if done and left:
            log.info("%s of %s images are decoded already.", f"{count - left:,}", f"{count:,}")

        def claim() -> Iterator[int]:
            for block in range(-(-count // size)):
                if _claim(progress, block):
                    yield from range(block * size, min(count, (block + 1) * size))

        bad = []
        for row, reason in decode_rows(split, recipe, pixels, aspects, workers, claim(), left):
            if reason is not None:
                bad.append((row, reason))
            if row + 1 == count or (row + 1) % size == 0:
                block, start = row // size, row // size * size
                pixels.flush()
                os.pwrite(ratios.fileno(), aspects[start : row + 1].tobytes(), header + start * aspects.itemsize)
                if bad:
                    atomic_write_text(partial / BAD.format(block), json.dumps(bad))
                bad = []
                os.pwrite(progress.fileno(), b"\1", block)


def _claim(progress: IO[bytes], block: int) -> bool:
    """Lock a block until `progress` is closed; False if it is decoded, or another process is at work on it."""
    try:
        import fcntl

        fcntl.lockf(progress, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, block)
    except (BlockingIOError, PermissionError):
        return False
    except (ImportError, OSError):
        pass  # Windows, or a file system without locks, of which `take_lock` has warned
    return os.pread(progress.fileno(), 1, block) == b"\0"


def reserve(file: Path) -> None:
    """Allocate the space of `file`, because a full disk kills a process that writes to a mapped file."""
    size = file.stat().st_size
    if size and hasattr(os, "posix_fallocate"):
        with file.open("r+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, size)
