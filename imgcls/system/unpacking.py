"""Archives are unpacked here and nowhere else: plain files and folders only, within the folder, up to a size."""

from __future__ import annotations

import errno
import math
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from imgcls.errors import UserError
from imgcls.system.bars import with_bar
from imgcls.system.files import explain_os_errors
from imgcls.system.text import format_bytes

MAX_FILES = 5_000_000
MAX_BYTES = 1 << 40
MAX_RATIO = 100  # of what is unpacked to the archive; deflate reaches 1,000, and images hardly 2
UNCOUNTED_BYTES = 64 << 20  # for which no ratio is too large
ENTRY_BYTES = 4096  # that an empty file is counted as
DAMAGE = (None, errno.EINVAL, errno.ENAMETOOLONG, errno.EILSEQ, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOENT)
"""Errors of the system that names in an archive cause, not the disk."""


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    kind: str
    """'file', 'folder', or another."""
    open: Callable[[], AbstractContextManager[IO[bytes]]]


def extract(archive: Path, folder: Path, *, room: float = math.inf) -> None:
    """Unpack a tar or zip file into `folder`, which must hold no links, within `room` bytes.

    Raises UserError for a damaged archive, and for one with links, devices, paths outside the folder, or more than
    there is room for or the limits of this module.
    """
    with explain_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        _extract(archive, folder, room)
    except (MemoryError, UserError):
        raise
    except Exception as error:  # the decompressors raise zlib.error, LZMAError, RuntimeError and others
        if isinstance(error, OSError) and error.errno not in DAMAGE:
            with explain_os_errors(folder):
                raise
        raise UserError(f"{archive} cannot be unpacked: {error}. Remove it and try again.") from error


def _extract(archive: Path, folder: Path, room: float) -> None:
    size, total = archive.stat().st_size, 0
    limit = min(MAX_BYTES, max(UNCOUNTED_BYTES, MAX_RATIO * size))
    packed, members = _open(archive)
    with packed:
        for count, member in enumerate(with_bar(members, None, f"unpacking {archive.name}"), start=1):
            path = PurePosixPath(member.name)
            if path.is_absolute() or ".." in path.parts:
                raise ValueError(f"{member.name} is outside of the archive's folder")
            if member.kind not in ("file", "folder"):
                raise ValueError(f"{member.name} is no plain file or folder")
            total += member.size + ENTRY_BYTES
            if total > limit or count > MAX_FILES:
                raise ValueError(
                    f"its content is larger than {limit >> 20} MB or {MAX_FILES:,} files, "
                    f"or {MAX_RATIO} times the archive. If you trust it, unpack it yourself"
                )
            if max(size, total) > room:  # what is packed is hardly ever smaller, so that this is known at once
                raise UserError(
                    f"{archive} needs more than the {format_bytes(room)} of disk that it may take in {folder.parent}. "
                    "Set IMGCLS_CACHE to a folder on another disk."
                )
            target = folder / path
            if member.kind == "folder":
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with member.open() as content, target.open("wb") as file:
                shutil.copyfileobj(content, file, 1 << 20)
                if file.tell() != member.size:
                    raise EOFError(f"{member.name} is cut off")


def _open(archive: Path) -> tuple[AbstractContextManager[Any], Iterator[_Member]]:
    # A tar whose last member is a zip, such as numpy's .npz, ends like a zip: so tar is asked for first.
    if not tarfile.is_tarfile(archive) and zipfile.is_zipfile(archive):
        zipped = zipfile.ZipFile(archive)
        return zipped, (_of_zip(zipped, member) for member in zipped.infolist())
    tarred = tarfile.open(archive)  # noqa: SIM115 - closed by the caller
    return tarred, (_of_tar(tarred, member) for member in tarred)


def _of_zip(packed: zipfile.ZipFile, member: zipfile.ZipInfo) -> _Member:
    is_link = stat.S_ISLNK(member.external_attr >> 16)
    kind = "link" if is_link else "folder" if member.is_dir() else "file"
    return _Member(member.filename, member.file_size, kind, lambda: packed.open(member))


def _of_tar(packed: tarfile.TarFile, member: tarfile.TarInfo) -> _Member:
    def content() -> IO[bytes]:
        file = packed.extractfile(member)
        assert file is not None
        return file

    kind = "folder" if member.isdir() else "file" if member.isreg() else "other"
    return _Member(member.name, member.size, kind, content)
