"""A store that several processes build together, each some blocks of its images; a killed build is resumed."""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TypeVar

from imgcls.system.cache import find_or_build
from imgcls.system.files import atomic_write_bytes, atomic_write_text, explain_os_errors, take_lock

log = logging.getLogger(__name__)

T = TypeVar("T")
Bad = list[tuple[int, str]]
"""Positions of images that cannot be read, and why."""
PROGRESS = "blocks.u8"  # of an unfinished store: a byte for each block, 1 when it is done, locked meanwhile
BAD = "bad.{}.json"  # of an unfinished store: the images of a block that cannot be read

_in_this_process = threading.Lock()  # the locks of blocks are those of processes, not of threads


def build_together(
    folder: Path,
    *,
    find: Callable[[], T | None],
    allocate: Callable[[Path], None],
    fill: Callable[[Path], None],
    complete: Callable[[Path, Bad], None],
) -> T:
    """Open the store in `folder`, and build it first if it is missing.

    Any processes that need it, on any machines that share the folder, take a part of its blocks.

    Args:
        folder: named after everything that its content depends on.
        find: opens the store; None where it is missing, incomplete or damaged.
        allocate: creates the files of a store of which no block is done, last those of `allocate_blocks`.
        fill: does the `Blocks` that no other process is at work on.
        complete: makes a store of the files when all blocks are done, given the images that cannot be read.

    Raises:
        OSError: the disk is too small, or full.
    """
    partial = folder.with_suffix(".partial")
    with _in_this_process:
        if find() is None:
            _begin(folder, find, allocate)
            try:
                with folder.with_name(f".{folder.name}.lock").open("a") as lock:
                    take_lock(lock, wait=True, shared=True)
                    if (partial / PROGRESS).is_file():  # else another process has completed it meanwhile
                        fill(partial)
            except OSError:  # the disk is full, and others need it
                with folder.with_name(f".{folder.name}.lock").open("a") as lock:
                    if take_lock(lock, wait=False):  # no other process is at work
                        shutil.rmtree(partial, ignore_errors=True)
                raise

        def build(partial: Path) -> None:
            if not (partial / PROGRESS).is_file():
                allocate(partial)
            fill(partial)  # of a process that was killed meanwhile
            found = sorted(partial.glob(BAD.format("*")))
            complete(partial, sorted(pair for file in found for pair in json.loads(file.read_text())))
            for file in (*found, partial / PROGRESS):
                file.unlink()

        return find_or_build(folder, find, build, resume=True)


def _begin(folder: Path, find: Callable[[], object], allocate: Callable[[Path], None]) -> None:
    """Allocate the files of a store, unless another process has done so. Raises OSError if the disk is too small."""
    partial = folder.with_suffix(".partial")
    with explain_os_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    while not (partial / PROGRESS).is_file() and find() is None:
        with folder.with_name(f".{folder.name}.lock").open("a") as lock:
            if not take_lock(lock, wait=False):  # another process begins; or it is at work already, and not waited for
                take_lock(lock, wait=True, shared=True)
                continue
            if (partial / PROGRESS).is_file() or find() is not None:
                return
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            try:
                allocate(partial)
            except OSError:
                shutil.rmtree(partial, ignore_errors=True)
                raise


def allocate_blocks(partial: Path, count: int, rows: int) -> None:
    """Note that no block of `rows` of the `count` images is done."""
    atomic_write_bytes(partial / PROGRESS, bytes(-(-count // rows)))


class Blocks:
    """The blocks of an unfinished store, of which this process does those that it can claim, in order.

    Args:
        partial: folder of the unfinished store.
        count: images.
        rows: images in a block, which a kill loses.
        together: number of blocks that only one process writes to.
    """

    def __init__(self, partial: Path, count: int, rows: int, together: int = 1) -> None:
        self.partial, self.count, self.rows, self.together = partial, count, rows, together
        self._progress = (partial / PROGRESS).open("r+b", buffering=0)
        done = self._progress.read().count(1)
        self.left = count - min(count, done * rows)
        """Images in blocks that are not done yet."""
        self._bad: Bad = []
        if done and self.left:
            log.info("%s of %s images are decoded already.", f"{count - self.left:,}", f"{count:,}")

    def __enter__(self) -> Blocks:
        return self

    def __exit__(self, *args: object) -> None:
        self._progress.close()

    def claim(self) -> Iterator[int]:
        """The positions of the images in all blocks that this process claims, some when the first one is taken."""
        for first in range(0, -(-self.count // self.rows), self.together):
            for block in _claim(self._progress, first, self.together):
                yield from range(block * self.rows, min(self.count, (block + 1) * self.rows))

    def completed_by(self, row: int, reason: str | None) -> slice | None:
        """The images of the block that ends with the image at `row`; None where others of its block are to come.

        Must be called for each image, in order, with the `reason` if it cannot be read.
        """
        if reason is not None:
            self._bad.append((row, reason))
        whole = row + 1 == self.count or (row + 1) % self.rows == 0
        return slice(row // self.rows * self.rows, row + 1) if whole else None

    def record(self, rows: slice) -> None:
        """Note that a block is done, whose images are on the disk."""
        block = rows.start // self.rows
        if self._bad:
            atomic_write_text(self.partial / BAD.format(block), json.dumps(self._bad))
        self._bad = []
        os.pwrite(self._progress.fileno(), b"\1", block)


def _claim(progress: IO[bytes], first: int, count: int) -> list[int]:
    """Lock some blocks until `progress` is closed; those of them to be done, none if another process is at work."""
    try:
        import fcntl

        fcntl.lockf(progress, fcntl.LOCK_EX | fcntl.LOCK_NB, count, first)
    except (BlockingIOError, PermissionError):
        return []
    except (ImportError, OSError):
        pass  # Windows, or a file system without locks, of which `take_lock` has warned
    done = os.pread(progress.fileno(), count, first)
    return [first + place for place, byte in enumerate(done) if not byte]
