"""Shards at an address, or in a folder that is slow: their list is fetched at once, they themselves in turn.

Beside the shards, `imgcls.prepare shards=DIR` writes the list of them and of their images (see
`imgcls.data.sharding.listing`), so that images, labels and sizes of a data set are known before any shard is fetched.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import IO

from imgcls.data.download import MissingFileError
from imgcls.data.sharding.cache import ShardCache
from imgcls.data.sharding.index import CLASS_NAMES
from imgcls.data.sharding.listing import LIST, Listed, ShardList, are_in, read_list, read_shards, remove_other_arrays
from imgcls.data.sharding.origins import Bucket, Folder, Hub, Origin
from imgcls.data.threads import map_with_bar
from imgcls.errors import UserError, first_line
from imgcls.system.cache import DESCRIPTIONS, alone, hold
from imgcls.system.checks import parse_bytes
from imgcls.system.files import atomic_write_text, sha256_of, size_of
from imgcls.system.machine import DISK_SHARE, spare_disk
from imgcls.system.text import format_bytes

log = logging.getLogger(__name__)

DESCRIPTION = DESCRIPTIONS["streams"]
"""Says whose shards they are. Written once: a lock on a file that has been replaced would protect nothing."""
MODE = "mode.json"
"""Says whether they are fetched in turn, as the last process has decided."""
FETCHED = "fetched.json"
"""Says which version of each file has been fetched, or will be."""


class Streams:
    """The shards of an origin, and the folder of those that have been fetched.

    Args:
        origin: has all shards.
        cache: folder of all caches.
        stream: whether shards are fetched in turn: True, False, or `auto`: where the disk has no room for all.
        disk: bytes that fetched shards take at most, or `auto`.
    """

    cache: ShardCache

    def __init__(self, origin: Origin, cache: Path, stream: bool | str, disk: str | int) -> None:
        self.origin, self.stream, self._disk = origin, stream, disk
        key = hashlib.blake2b(origin.address.encode("utf-8", "surrogateescape"), digest_size=16)
        self.folder = cache / "streams" / key.hexdigest()
        self._held: IO[bytes] | None = None
        self._prepared = False
        self._active = True if isinstance(origin, Folder) else None

    @property
    def index_folder(self) -> Path:
        """The folder of what is beside the shards."""
        return self.origin.folder if isinstance(self.origin, Folder) else self.folder

    @property
    def active(self) -> bool:
        """Whether shards are fetched in turn, as `prepare` has decided, in this or another process of this machine."""
        if self._active is None:
            with suppress(OSError, ValueError):
                self._active = bool(json.loads((self.folder / MODE).read_text(encoding="utf-8"))["stream"])
        return bool(self._active)

    def images(self, workers: int) -> ShardList:
        """The images of all shards. Raises UserError where the list is damaged."""
        if isinstance(self.origin, Folder) and not self._has_list():
            return read_shards(self.origin.folder, self.folder.parents[1], workers, measured=True)
        try:
            return ShardList.read(self.folder)
        except (OSError, ValueError) as error:
            raise self._explain(f"has no {LIST} that imgcls.prepare wrote: {first_line(error)}.") from error

    def prepare(self) -> bool:
        """Fetch the list, and decide whether the shards are fetched in turn. Raises UserError where there is none."""
        if not self._prepared:  # Lightning asks before each of training, validation and test
            with alone(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                self._active = self._decide()
                atomic_write_text(self.folder / MODE, json.dumps({"stream": self._active}))
                self._describe()
            self._prepared = True
        return self.active

    def fetch_all(self, workers: int) -> None:
        """Fetch the shards that are missing."""
        if isinstance(self.origin, Hub) and not (self.folder / LIST).is_file():
            with alone(self.folder):
                self._fetch_parquet(self.origin, workers)
            return
        listed = self.images(workers)
        self.open(listed, together=0)
        names = list(listed.shards)

        def fetch(number: int) -> None:
            claimed = None
            while claimed is None:
                claimed = self.cache.claim(names[number])
                if claimed is None:
                    self.cache.wait_for_other(names[number])
            self.cache.release(claimed if claimed.readable() else self.cache.fetch(names[number], claimed))

        for _ in map_with_bar(fetch, range(len(names)), workers, f"Fetching {len(names):,} shards"):
            pass

    def open(self, listed: ShardList, together: int) -> None:
        """Make the cache of the shards of `listed`, of which `together` are used at a time.

        Raises UserError where it has no room for them.
        """
        shards = listed.shards
        self._keys = {name: shard.sha256 or f"{shard.key} {shard.bytes}" for name, shard in shards.items()}
        limit = self._limit
        largest = sorted((shard.bytes for shard in shards.values()), reverse=True)
        needed = sum(largest[: together + 1]) if together else 0
        if needed > limit:
            raise UserError(
                f"Shuffling data.shuffle_shards={together} shards together needs {format_bytes(needed)} of disk, but "
                f"they may take {format_bytes(limit)}. Set data.stream_disk higher or data.shuffle_shards lower."
            )
        with alone(self.folder):
            self._describe()
            self._keep({name: list(shard) for name, shard in shards.items()})
        self.cache = ShardCache(self.origin, self.folder, shards, limit)

    def keys(self, shards: Sequence[str]) -> list[str]:
        """What identifies the contents of `shards`."""
        return [self._keys[shard] for shard in shards]

    # ---- inside

    def _decide(self) -> bool:
        """Fetch the list; return whether the shards are fetched in turn."""
        try:
            total = self._fetch_list()
        except MissingFileError as error:
            (self.folder / LIST).unlink(missing_ok=True)
            if isinstance(self.origin, Folder):
                return True
            if isinstance(self.origin, Bucket | Hub) and self.stream is not True:
                return False
            raise self._explain(f"has no {LIST}, which imgcls.prepare shards=DIR writes beside shards.") from error
        room = self._limit
        if total > room and self.stream is False:
            raise self._explain(
                f"has {format_bytes(total)} of shards, but they may take {format_bytes(room)} of disk. "
                "Set data.stream_disk higher, or data.stream=auto to fetch them in turn."
            )
        stream = total > room if self.stream == "auto" else bool(self.stream)
        if stream:
            log.info(
                "%s: %s of shards are fetched in turn, up to %s are kept in %s%s.",
                *(self.origin.address, format_bytes(total), format_bytes(room), self.folder),
                " (data.stream_disk)" if total > room else "",
            )
        return stream

    def _keep(self, files: Mapping[str, list[object]]) -> None:
        """Remove what was fetched and is not one of `files`, in its version; note these. To be called `alone`."""
        before: object = None
        with suppress(OSError, ValueError):
            before = json.loads((self.folder / FETCHED).read_text(encoding="utf-8"))
        known = before if isinstance(before, dict) else {}
        for file in [file for file in self.folder.rglob("*") if file.suffix in (".tar", ".parquet")]:
            name = file.relative_to(self.folder).as_posix()
            if file.is_file() and (name not in files or known.get(name) != files[name]):
                file.unlink()
        if before != files:
            atomic_write_text(self.folder / FETCHED, json.dumps(files))

    def _has_list(self) -> bool:
        """Whether the list of a folder has been fetched, and is that of the shards in it."""
        with suppress(OSError, ValueError):
            return are_in(self.index_folder, read_list(self.folder / LIST).shards)
        return False

    def _fetch_list(self) -> int:
        """Fetch the list and the arrays; return the bytes of all shards."""
        fetched = self.folder / f"new-{LIST}"
        self.origin.fetch(LIST, fetched)
        try:
            now = read_list(fetched)
        except (OSError, ValueError) as error:
            if isinstance(self.origin, Folder):  # whose shards can be looked at
                raise MissingFileError(str(error)) from error
            explained = f"has a {LIST} of another version of imgcls. Run imgcls.prepare shards=DIR again."
            raise self._explain(explained) from error
        if not self._has_arrays(now):
            arrays = self.folder / "new-images.safetensors"
            self.origin.fetch(now.arrays, arrays, now.bytes)
            if sha256_of(arrays) != now.sha256:
                arrays.unlink()
                raise self._explain(f"has a damaged {now.arrays}. Run imgcls.prepare shards=DIR again.")
            arrays.replace(self.folder / now.arrays)
        with suppress(MissingFileError):
            self.origin.fetch(CLASS_NAMES, self.folder / CLASS_NAMES)
        fetched.replace(self.folder / LIST)
        remove_other_arrays(self.folder, now.arrays)
        return sum(shard.bytes for shard in now.shards.values())

    def _has_arrays(self, listed: Listed) -> bool:
        """Whether the arrays of a list have been fetched before; they are hashed where no fetched list says so."""
        arrays = self.folder / listed.arrays
        if not arrays.is_file() or arrays.stat().st_size != listed.bytes:
            return False
        with suppress(OSError, ValueError):
            before = read_list(self.folder / LIST)
            if (before.arrays, before.sha256) == (listed.arrays, listed.sha256):
                return True
        return sha256_of(arrays) == listed.sha256

    def _fetch_parquet(self, hub: Hub, workers: int) -> None:
        """Fetch the Parquet files that are missing; to be called `alone`."""
        files = hub.parquet_files()
        if not files:
            raise self._explain(f"has neither Parquet files nor a {LIST}, which imgcls.prepare shards=DIR writes.")
        self._keep({name: [file.bytes, file.version] for name, file in files.items()})
        missing = [name for name, file in files.items() if size_of(self.folder / name) != file.bytes]
        needed, free = sum(files[name].bytes for name in missing), spare_disk(self.folder)
        if needed > free:
            needs = f"needs {format_bytes(needed)} of disk for its Parquet files, and as much again for tar files"
            raise self._explain(f"{needs}, but {format_bytes(free)} are free. Set IMGCLS_CACHE to another disk.")

        def fetch(number: int) -> None:
            name = missing[number]
            hub.fetch(name, self.folder / name, files[name].bytes, files[name].sha256)

        for _ in map_with_bar(fetch, range(len(missing)), workers, f"Fetching {len(missing):,} Parquet files"):
            pass

    def _explain(self, what: str) -> UserError:
        return UserError(f"data.root={self.origin.address} {what}")

    @cached_property
    def _limit(self) -> float:
        """Bytes that the shards may take: a share of the disk that is free or theirs already."""
        if self._disk != "auto":
            return parse_bytes(str(self._disk))
        present = 0
        for file in self.folder.rglob("*.tar"):
            with suppress(FileNotFoundError):  # removed by another process
                present += file.stat().st_size
        return max(present, DISK_SHARE * (spare_disk(self.folder) + present))

    def _describe(self) -> None:
        """Write whose shards are in the folder, and hold it; to be called `alone`."""
        file = self.folder / DESCRIPTION
        if not file.is_file():
            atomic_write_text(file, json.dumps({"address": self.origin.address}))
        if self._held is None:
            self._held = hold(file)
