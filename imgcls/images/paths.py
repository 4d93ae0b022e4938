"""Paths of images: of a file, or of a place in an uncompressed tar, where one image is read like a file."""

from __future__ import annotations

import os
import re
from pathlib import Path

MEMBER = re.compile(r"(.+\.tar)[/\\](\d+)-(\d+)[/\\][^/\\]+", re.DOTALL)


def member_path(shard: str, start: int, size: int, name: str) -> str:
    """The path under which a member of an uncompressed tar can be opened as an image, from the folder of the tar."""
    return f"{shard}/{start}-{start + size}/{name.rpartition('/')[2]}"


def locate(file: str) -> tuple[str, int, int | None]:
    """The file that holds `file`, and where it begins and ends there: a `member_path` is in a tar, others are whole."""
    found = MEMBER.fullmatch(file) if ".tar" in file else None
    return (found[1], int(found[2]), int(found[3])) if found else (file, 0, None)


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


def read_member(file: str) -> bytes | None:
    """The content of a `member_path`; None for other files. Raises OSError."""
    shard, start, end = locate(file)
    if end is None:
        return None
    with Path(shard).open("rb", buffering=0) as opened:
        opened.seek(start)
        return opened.read(end - start)
