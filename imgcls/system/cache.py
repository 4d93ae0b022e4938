"""The folder for what can be computed or downloaded again."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

from imgcls.errors import UserError
from imgcls.system.files import atomic_write_text, disk_use, explain_os_errors, flush_folder, take_lock

log = logging.getLogger(__name__)

T = TypeVar("T")
DESCRIPTIONS = {
    "stores": "store.json",
    "features": "features.json",
    "streams": "stream.json",
    "unpacked": ".unpacked.json",
    "lists": "list.json",
}
"""The file in each folder of a kind whose time is that of the last use, and which is locked meanwhile."""
FILES = ("arithmetic", "checks", "duplicates", "fingerprints", "graphs", "shards")
"""Kinds of small files, which are read at once and not held."""
MOUNTS = Path("/proc/self/mounts")
LAYERED = ("overlay", "fuse-overlayfs", "fuse.fuse-overlayfs", "aufs")
"""File systems of a container's root."""


def cache_folder() -> Path:
    """Where downloads and stores are kept: $IMGCLS_CACHE, or imgcls in $XDG_CACHE_HOME, or in ~/.cache.

    A user without a home (a service, some containers) has it in the folder for temporary files.
    """
    if folder := os.environ.get("IMGCLS_CACHE"):
        return Path(folder).expanduser()
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "imgcls"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"imgcls-{os.getuid()}"


def data_folder(class_name: str) -> Path:
    """The folder of a data set that was downloaded by the data module `class_name`."""
    return cache_folder() / "data" / class_name.lower()


def hold(file: Path) -> IO[bytes]:
    """Open the description of something in the cache, which is used now: `remove` leaves that alone until it is closed.

    Raises OSError if there is none, or it is being removed.
    """
    opened = file.open("rb")
    try:
        if not take_lock(opened, wait=False, shared=True) or not os.path.samestat(
            os.fstat(opened.fileno()), file.stat()
        ):
            raise FileNotFoundError(errno.ENOENT, "Removed from the cache", str(file))
    except OSError:
        opened.close()
        raise
    with contextlib.suppress(OSError):  # of another user
        os.utime(file)
    return opened


@dataclass(frozen=True)
class Entry:
    """Something in the cache that can be built again, or what a killed build has left of it."""

    path: Path
    """A folder; a file of the kinds in FILES."""
    kind: str
    """Of DESCRIPTIONS or FILES."""
    nbytes: int
    """Bytes on disk."""
    used: float
    """When it was used last, seconds since 1970."""

    @property
    def is_partial(self) -> bool:
        """Whether it is incomplete."""
        return self.path.suffix == ".partial"


def entries(cache: Path) -> list[Entry]:
    """What can be removed from the cache, the least recently used first."""
    found = []
    for kind, description in DESCRIPTIONS.items():
        for folder in (cache / kind).glob("*"):
            if folder.is_dir():
                latest = folder / description
                used = (latest if latest.is_file() else folder).stat().st_mtime
                found.append(Entry(folder, kind, disk_use(folder), used))
    for kind in FILES:
        for file in (cache / kind).glob("[!.]*"):
            with contextlib.suppress(FileNotFoundError):
                status = file.stat()
                found.append(Entry(file, kind, status.st_blocks * 512, max(status.st_mtime, status.st_atime)))
    return sorted(found, key=lambda entry: (entry.used, entry.path))


def remove(entry: Entry) -> bool:
    """Remove an entry; False, and it stays, while a process builds or uses it."""
    if entry.kind in FILES:
        entry.path.unlink(missing_ok=True)
        return True
    lock = entry.path.with_name(f".{entry.path.stem}.lock")
    with contextlib.ExitStack() as locks:
        for file in (lock, entry.path / DESCRIPTIONS[entry.kind]):
            if file.is_file() and not take_lock(locks.enter_context(file.open("rb")), wait=False):
                return False
        gone = entry.path.with_name(f"{entry.path.stem}.partial")
        if not entry.is_partial:  # a kill in the middle leaves what is known to be incomplete
            shutil.rmtree(gone, ignore_errors=True)
            entry.path.replace(gone)
        shutil.rmtree(gone)
        lock.unlink(missing_ok=True)
    return True


def cache_identity() -> str | None:
    """A random text that belongs to this cache, made once: it tells apart users whose machines are all called alike.

    None where it would not be found again: the cache cannot be written, or is removed with its container.
    """
    file = cache_folder() / "identity"
    try:
        if not file.is_file():
            with alone(file):
                if not file.is_file():
                    atomic_write_text(file, secrets.token_hex(16))
        return None if _goes_with_container(file) else file.read_text(encoding="utf-8").strip()
    except (OSError, UserError):
        return None


def _goes_with_container(file: Path) -> bool:
    """Whether a file is in the layer that a container writes to, which is removed with it, and not on a volume."""
    try:
        mounts = [line.split() for line in MOUNTS.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return False  # no Linux
    root = [kind for _, place, kind, *_ in mounts if place == "/"]
    return bool(root) and root[-1] in LAYERED and file.stat().st_dev == Path("/").stat().st_dev


@contextmanager
def alone(target: Path) -> Iterator[None]:
    """Wait until no other process is creating `target`; a process that is killed releases it."""
    lock = target.with_name(f".{target.name}.lock")
    with explain_os_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("a")
    with file:
        if not take_lock(file, wait=False):
            log.info("Another process is creating %s; waiting for it.", target)
            take_lock(file, wait=True)
        yield


def find_or_build(
    folder: Path, find: Callable[[], T | None], build: Callable[[Path], None], *, resume: bool = False
) -> T:
    """What `find` reads from `folder`, built first where it finds nothing.

    Of several processes one builds and the others wait. It is written to another folder and renamed when complete, so
    that a kill leaves nothing that looks complete.

    Args:
        folder: named after everything that its content depends on.
        find: reads the content of `folder`; None where there is none, or it is incomplete.
        build: writes the content into the folder it is given, which is empty unless it can `resume`.
        resume: whether `build` continues what a killed or interrupted one has left.

    Raises:
        OSError: what was built cannot be written or read back.
    """
    with alone(folder):
        found = find()
        if found is None:
            partial = folder.with_suffix(".partial")
            if not resume:
                shutil.rmtree(partial, ignore_errors=True)  # what a killed process left
            partial.mkdir(exist_ok=resume)
            try:
                build(partial)
                flush_folder(partial)
                shutil.rmtree(folder, ignore_errors=True)  # an incomplete one
                partial.replace(folder)
            except BaseException as error:
                if not resume or isinstance(error, OSError):
                    shutil.rmtree(partial, ignore_errors=True)
                raise
            found = find()
    if found is None:
        raise OSError(f"what was built in {folder} cannot be read back")
    return found
