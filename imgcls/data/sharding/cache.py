"""Shards on a disk that has no room for all of them: fetched ahead of their use, and the least recently used removed.

Any number of processes share the folder. A shard is locked while it is used, so that none is removed before, and while
it is fetched, so that one process fetches it and the others wait.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple

from imgcls.data.sharding.origins import Origin
from imgcls.errors import UserError
from imgcls.system.files import explain_os_errors, sha256_of, take_lock
from imgcls.system.machine import spare_disk

log = logging.getLogger(__name__)

FETCHERS = 4  # shards that are fetched at a time
LOOK_SECONDS = 0.5  # between two looks for room that another process has made
ROOM = ".room"


class Shard(NamedTuple):
    """What is known of a shard before it is fetched."""

    bytes: int
    sha256: str = ""
    """'' where it is not known."""
    key: str = ""
    """What it was written from; '' where it is not known."""
    images: int = 0


class ShardCache:
    """A part of the shards of `origin`, in `folder`.

    Args:
        origin: has all of them.
        folder: exists.
        shards: by their names.
        limit: bytes of disk that they may take together, at most; the floor of free space that every cache leaves is
            kept too. Only a shard that a training waits for is fetched even where all others are in use.
    """

    def __init__(self, origin: Origin, folder: Path, shards: Mapping[str, Shard], limit: float) -> None:
        self.origin, self.folder, self.shards, self.limit = origin, folder, shards, limit
        self._changed, self._changes = threading.Condition(), 0

    def read(self, name: str, start: int, size: int) -> bytes:
        """`size` bytes of a shard: from the folder if it is there, else these alone are fetched. Raises UserError."""
        try:
            with (self.folder / name).open("rb", buffering=0) as file:
                return os.pread(file.fileno(), size, start)
        except FileNotFoundError:
            return self.origin.read(name, start, size)

    @contextmanager
    def reading(self, uses: Mapping[str, int]) -> Iterator[Reading]:
        """Fetch the shards ahead of a sequence of images, read by the Reading.

        Args:
            uses: how many images of each shard are read, in the order in which the shards are needed.
        """
        reading = Reading(self, uses)
        try:
            yield reading
        finally:
            reading.close()

    # ---- for Reading

    def claim(
        self,
        name: str,
        is_urgent: Callable[[], bool] | None = None,
        is_over: Callable[[], bool] = lambda: False,
    ) -> IO[bytes] | None:
        """The open shard, or its locked place if this process must fetch it; None if another process is doing so.

        Waits for room until it `is_urgent`, or `is_over`: None too. Without `is_urgent` all shards are to stay, and
        none is removed to make room.
        """
        file, lock = self.folder / name, self.folder / _lock_name(name)
        while not is_over():
            before = self._changes
            with self._alone():
                lock.parent.mkdir(parents=True, exist_ok=True)
                place = lock.open("ab")
                if not take_lock(place, wait=False):
                    place.close()
                    return None
                is_here = file.is_file()  # and whole, since nobody is fetching it
                has_room = is_here or is_urgent is None or self._make_room(name) or is_urgent()
                if not is_here and has_room and not is_over():
                    return place
                lock.unlink()
                place.close()
                if is_here:
                    return self._hold(file)
            with self._changed:
                if self._changes == before:
                    self._changed.wait(LOOK_SECONDS)
        return None

    def fetch(self, name: str, place: IO[bytes]) -> IO[bytes]:
        """Fetch a shard whose `place` was claimed, and open it. Raises UserError."""
        shard, file = self.shards[name], self.folder / name
        with place:
            for attempt in (1, 2):
                self.origin.fetch(name, file, shard.bytes)
                if _is_intact(file, shard.sha256):
                    break
                file.unlink()
                if attempt == 2:
                    raise UserError(
                        f"{self.origin.address}/{name} is damaged: it is not what its index says. Write it again."
                    )
            with self._alone():
                (self.folder / _lock_name(name)).unlink(missing_ok=True)
                return self._hold(file)

    def wait_for_other(self, name: str) -> None:
        """Wait until the process that fetches a shard has it, or has ended."""
        with suppress(FileNotFoundError), (self.folder / _lock_name(name)).open("rb") as place:
            take_lock(place, wait=True)

    def release(self, file: IO[bytes]) -> None:
        """Close a shard, which may be removed now."""
        with suppress(OSError):
            os.utime(file.name)
        file.close()
        self.wake()

    def wake(self) -> None:
        """Let those that wait for room look again."""
        with self._changed:
            self._changes += 1
            self._changed.notify_all()

    # ---- inside

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One thread of one process at a time decides what is fetched and removed."""
        with explain_os_errors(self.folder):
            lock = (self.folder / ROOM).open("ab")
        with lock:
            take_lock(lock, wait=True)
            yield

    def _hold(self, file: Path) -> IO[bytes]:
        opened = file.open("rb", buffering=0)
        take_lock(opened, wait=False, shared=True)
        os.utime(file)
        return opened

    def _make_room(self, name: str) -> bool:
        """Whether there is room for a shard, after those that nobody uses have been removed as far as necessary."""
        files = [path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*")]
        locked = {shard for file in files if (shard := _shard_of_lock(file)) in self.shards and shard != name}
        fetched = {shard for shard in locked if self._is_coming(shard)}  # asked first: it may be there a moment later
        present, coming = [], sum(self.shards[other].bytes for other in fetched)
        for other in {file for file in files if file in self.shards} - fetched:
            with suppress(FileNotFoundError):
                status = (self.folder / other).stat()
                present.append((status.st_mtime_ns, other, status.st_size))
        size = self.shards[name].bytes
        used = coming + sum(size for _, _, size in present)
        for _, other, freed in sorted(present):
            if used + size <= self.limit and coming + size <= spare_disk(self.folder):
                break
            if self._remove(other):
                used -= freed
        return used + size <= self.limit and coming + size <= spare_disk(self.folder)

    def _is_coming(self, name: str) -> bool:
        try:
            place = (self.folder / _lock_name(name)).open("rb")
        except FileNotFoundError:
            return False
        with place:
            return not take_lock(place, wait=False)

    def _remove(self, name: str) -> bool:
        """Remove a shard; False if it is used."""
        file = self.folder / name
        with file.open("rb") as opened:
            if not take_lock(opened, wait=False):
                return False
            file.unlink()
        return True


class Reading:
    """Reads images in a known order, whose shards are fetched in threads before.

    A shard is held from when it is there until its last image has been read.
    """

    def __init__(self, cache: ShardCache, uses: Mapping[str, int]) -> None:
        self._cache = cache
        self._left = Counter(uses)
        """Images of each shard that have not been read, in the order of the shards."""
        self._order: Sequence[str] = list(self._left)
        self._place = {name: place for place, name in enumerate(self._order)}
        self._next, self._turn = 0, threading.Lock()
        self._held: dict[str, IO[bytes]] = {}
        self._wanted: Counter[str] = Counter()
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._over = False
        for number in range(min(FETCHERS, len(self._order))):
            threading.Thread(target=self._fetch_all, name=f"imgcls-shards-{number}", daemon=True).start()

    def read(self, name: str, start: int, size: int) -> bytes:
        """`size` bytes of a shard, as soon as it is there. Raises UserError where it cannot be fetched."""
        with self._changed:
            if self._left[name] < 1:  # not one of those that were announced
                return self._cache.read(name, start, size)
            self._wanted[name] += 1
            while name not in self._held and self._error is None and not self._over:
                self._cache.wake()
                self._changed.wait()
            self._wanted[name] -= 1
            if self._error is not None:
                raise self._error
            if self._over:
                raise UserError("The images are not read any more.")
            file = self._held[name]
        content = os.pread(file.fileno(), size, start)
        with self._changed:
            self._left[name] -= 1
            if not self._left[name]:
                self._cache.release(self._held.pop(name))
        return content

    def stop(self) -> None:
        """End the fetching, and every `read`; what is being fetched is completed in the background."""
        with self._changed:
            self._over = True
            self._changed.notify_all()
        self._cache.wake()

    def close(self) -> None:
        """Release all shards; nothing may be read meanwhile or later."""
        self.stop()
        with self._changed:
            for file in self._held.values():
                self._cache.release(file)
            self._held.clear()

    def _fetch_all(self) -> None:
        try:
            while not self._over:
                with self._turn:  # room is for the shards that are needed first
                    if self._next == len(self._order):
                        return
                    name = self._order[self._next]
                    claimed = self._cache.claim(name, partial(self._is_urgent, name), lambda: self._over)
                    self._next += 1
                while claimed is None and not self._over:
                    self._cache.wait_for_other(name)
                    claimed = self._cache.claim(name, lambda: True, lambda: self._over)
                if claimed is None:
                    return
                self._keep(name, claimed if claimed.readable() else self._cache.fetch(name, claimed))
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _keep(self, name: str, file: IO[bytes]) -> None:
        with self._changed:
            if self._over:
                self._cache.release(file)
                return
            self._held[name] = file
            self._changed.notify_all()

    def _is_urgent(self, name: str) -> bool:
        """Whether an image of this shard or of a later one is waited for."""
        with self._changed:
            return any(count and self._place[wanted] >= self._place[name] for wanted, count in self._wanted.items())


def _lock_name(name: str) -> str:
    folder, slash, file = name.rpartition("/")
    return f"{folder}{slash}.{file}.lock"


def _shard_of_lock(file: str) -> str:
    folder, slash, lock = file.rpartition("/")
    return f"{folder}{slash}{lock.removeprefix('.').removesuffix('.lock')}" if lock.endswith(".lock") else ""


def _is_intact(file: Path, sha256: str) -> bool:
    return not sha256 or sha256_of(file) == sha256
