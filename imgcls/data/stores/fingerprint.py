"""A digest of the names and contents of the images of a split, independent of paths and times."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from imgcls.data.sources import FilesIn, Split
from imgcls.errors import UserError
from imgcls.images.decoding import locate
from imgcls.system.files import atomic_write_text

END_BYTES = 4096
"""Read at each end of a file, where every recompression is visible; under 1 % of the time to decode a photo."""


def fingerprint(split: Split, cache: Path) -> str:
    """32 hexadecimal digits, equal for equal names and contents wherever the files are.

    Arrays are read completely. The digest of files is kept in `cache` by the state of each file (size, times of change
    of content and status, inode), which cannot be reset, so that a second call reads no file. Shards that are not on
    this machine are identified by their index.
    """
    if isinstance(split.pictures, np.ndarray):
        pixels = np.ascontiguousarray(split.pictures)
        return _digest([str(split.pictures.shape).encode(), pixels.data])
    if isinstance(split.pictures, FilesIn) and (known := split.pictures.digest()) is not None:
        return known.hex()
    memory = cache / "fingerprints" / _digest(_states(split))
    try:
        remembered = memory.read_text()
    except OSError:
        remembered = ""
    if len(remembered) == 32:
        return remembered
    content = _digest(_contents(split.names, split.pictures))
    with contextlib.suppress(OSError, UserError):  # without the cache it only takes longer
        atomic_write_text(memory, content)
    return content


def file_state(path: Path) -> tuple[int, int, int, int]:
    """Size, times of change of content and status (ns), and inode; -1 each if there is no file.

    Of an image in a shard they are those of the shard, but for its size.
    """
    file, start, end = locate(str(path))
    try:
        status = os.stat(file)  # noqa: PTH116 - for millions of files
    except OSError:
        return (-1, -1, -1, -1)
    return status.st_size if end is None else end - start, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _states(split: Split) -> Iterable[bytes]:
    for name, path in zip(split.names, split.files, strict=True):
        yield f"{name}\0{path}\0{file_state(path)}\0".encode("utf-8", "surrogateescape")


def _contents(names: Sequence[str], paths: Sequence[Path]) -> Iterable[bytes]:
    for name, path in zip(names, paths, strict=True):
        yield f"{name}\0".encode("utf-8", "surrogateescape")
        file, start, end = locate(str(path))
        try:
            descriptor = os.open(file, os.O_RDONLY)
        except OSError:
            continue
        try:
            size = os.fstat(descriptor).st_size if end is None else end - start
            yield b"%d\0" % size
            yield os.pread(descriptor, min(size, END_BYTES), start)
            if size > END_BYTES:
                tail = max(END_BYTES, size - END_BYTES)
                yield os.pread(descriptor, size - tail, start + tail)
        except OSError:
            continue
        finally:
            os.close(descriptor)


def _digest(parts: Iterable[bytes | memoryview]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
