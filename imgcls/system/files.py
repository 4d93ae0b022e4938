"""Files that are whole or absent: written beside their target, flushed to disk, renamed."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from imgcls.errors import UserError
from imgcls.system.machine import free_inodes

log = logging.getLogger(__name__)


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """A temporary path beside `target` to write to; it replaces `target` when the block ends without an error.

    A kill at any moment leaves the old file or the new one. The file has the permissions of the umask, whatever writes
    it: safetensors gives its files to their owner alone. Raises UserError where the disk is full, the folder cannot be
    written to, or `target` is no file that another one may replace.
    """
    target = Path(target)
    check_replaceable(target)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with explain_os_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary.touch()  # the only way to know the umask that does not change it for other threads
            mode = stat.S_IMODE(temporary.stat().st_mode)
            temporary.unlink()  # a block that writes nothing must not leave an empty file
            yield temporary
            temporary.chmod(mode)
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.replace(target)
    finally:
        with suppress(OSError):  # of a read-only mount, which must not hide the message
            temporary.unlink(missing_ok=True)


def check_replaceable(target: Path) -> None:
    """Raise UserError where no file may take the place of `target`: a folder, a device, a pipe, or /dev/stdout."""
    if target.is_dir():
        raise UserError(f"{target} is a folder: give the name of a file.")
    is_open_file = target.is_symlink() and target.readlink().is_relative_to("/proc")  # what stdout is redirected to
    if is_open_file or (target.exists() and not target.is_file()):
        raise UserError(f"{target} is a device or a pipe, which a file would replace: give the name of a file.")


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A new folder beside `target` to fill; it replaces `target` whole when the block ends without an error.

    A kill at any moment leaves the old folder or the new one: between the two renames the old one stands beside its
    place, and the next call puts it back. Raises UserError where it cannot be written.
    """
    old, new = target.with_name(f".{target.name}.old"), target.with_name(f".{target.name}.new")
    with explain_os_errors(target):
        if old.is_dir() and not target.exists():
            old.replace(target)
        for leftover in (old, new):
            shutil.rmtree(leftover, ignore_errors=True)
        new.mkdir(parents=True)
    try:
        with explain_os_errors(target):
            yield new
            flush_folder(new)
            if target.exists():
                target.replace(old)
            new.replace(target)
    finally:
        if target.exists() or not old.exists():  # else the next call puts the old one back
            for leftover in (old, new):
                shutil.rmtree(leftover, ignore_errors=True)


def flush_folder(folder: Path) -> None:
    """Flush all files in `folder` to the disk, before it is renamed."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as written:
                os.fsync(written.fileno())


def take_lock(file: IO[Any], *, wait: bool, shared: bool = False) -> bool:
    """Lock an open file against other processes until it is closed; False where another one has it and `wait` is not.

    Any number may hold it `shared` at a time.

    Where the file system knows no locks (some network mounts), or the platform has none, nothing is locked.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
            raise
        log.warning("%s cannot be locked (%s): do not use it from two processes at once.", file.name, error.strerror)
    return True


def sha256_of(file: Path) -> str:
    """SHA-256 of the content of `file`, in hexadecimal."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.lstat().st_size for file in files if file.is_file())


def disk_use(folder: Path) -> int:
    """Bytes that the files below a folder take on the disk; 0 if there is none."""
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())


def read_yaml(file: Path) -> Any:
    """The content of a YAML file, of plain values, read by libyaml where there is one: in a tenth of the time.

    Raises OSError, or ValueError for what is no YAML.
    """
    import yaml

    try:
        return yaml.load(file.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def overwrite_text(target: Path, content: str) -> None:
    """Replace the content of the existing `target` where no new file can be created: by a single write.

    Shorter content is padded with blanks to the old length. A power failure may leave half of it, unlike `atomic_path`.
    """
    with target.open("r+b") as file:
        os.write(file.fileno(), content.encode().ljust(target.stat().st_size))


def atomic_write_bytes(target: Path, content: bytes) -> None:
    """Write `content` to `target`, whole or not at all."""
    with atomic_path(target) as temporary:
        temporary.write_bytes(content)


def atomic_write_text(target: Path, content: str) -> None:
    """Write `content` to `target` as UTF-8, whole or not at all."""
    atomic_write_bytes(target, content.encode())


@contextmanager
def explain_os_errors(path: Path) -> Iterator[None]:
    """Turn a full disk and a missing permission into one line that names `path`."""
    try:
        yield
    except Exception as error:
        code = _error_code(error)
        if code in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"{_describe_full_disk(path)}, then run the same command again.") from error
        if code in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOENT):
            raise UserError(f"Cannot write {path}: {os.strerror(code)}. Choose a writable folder.") from error
        raise


def _error_code(error: Exception) -> int | None:
    """The number of the operating system's error; libraries in Rust, such as safetensors, have it in their text."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)$", str(error))
    return int(found[1]) if found and not isinstance(error, UserError) else None


def _describe_full_disk(path: Path) -> str:
    """A full disk often has space left, but no inodes, of which each file needs one."""
    try:
        inodes = free_inodes(path)
    except OSError:
        inodes = None
    if inodes == 0:
        return f"No inodes left on the disk of {path}: it has too many files (df -i). Remove some files"
    return f"No space left on the disk of {path}. Free some"
