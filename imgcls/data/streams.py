"""Shards at an address, or in a folder that is slow: their index is fetched at once, they themselves in turn.

Beside the shards, `imgcls.prepare shards=DIR` writes `shards.json` with their names, and an index for each: so the
images, labels and sizes of a data set are known before any shard is fetched.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from imgcls.data.download import MissingFileError
from imgcls.data.origins import Bucket, Folder, Origin
from imgcls.data.shard_cache import Shard, ShardCache
from imgcls.data.shard_index import CLASS_NAMES, INDEX_SUFFIX, Index, list_shards, load_index, read_index
from imgcls.data.stores.disk import DISK_SHARE
from imgcls.data.threads import map_with_bar
from imgcls.errors import UserError
from imgcls.system.cache import DESCRIPTIONS, alone, hold
from imgcls.system.checks import parse_bytes
from imgcls.system.files import atomic_write_text
from imgcls.system.machine import spare_disk
from imgcls.system.text import format_bytes

log = logging.getLogger(__name__)

LIST = "shards.json"
FETCHERS = 16  # index files at a time; they are small
DESCRIPTION = DESCRIPTIONS["streams"]


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
        self._indices: dict[str, Index] = {}  # that `prepare` has read, until they are asked for
        self._prepared = False

    @property
    def index_folder(self) -> Path:
        """The folder of the index files."""
        return self.origin.folder if isinstance(self.origin, Folder) else self.folder

    @property
    def active(self) -> bool:
        """Whether shards are fetched in turn, as `prepare` has decided, on this machine."""
        if isinstance(self.origin, Folder):
            return True
        with suppress(OSError, ValueError):
            return bool(json.loads((self.folder / DESCRIPTION).read_text(encoding="utf-8"))["stream"])
        return False

    def names(self) -> list[str]:
        """The paths of the shards, sorted."""
        if isinstance(self.origin, Folder):
            return list_shards(self.index_folder)
        return sorted(self._list())

    def index(self, name: str) -> Index:
        """The index of a shard, with the sizes of the images."""
        if isinstance(self.origin, Folder):
            return read_index(self.origin.folder / name, self.folder.parents[1], measured=True)
        return self._indices.pop(name, None) or load_index(self.folder / f"{name}{INDEX_SUFFIX}")

    def prepare(self) -> bool:
        """Fetch the index, and decide whether the shards are fetched in turn. Raises UserError where there is none."""
        if isinstance(self.origin, Folder):
            return True
        if self._prepared:  # Lightning asks before each of training, validation and test
            return self.active
        with alone(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                self.origin.fetch(LIST, self.folder / LIST)
            except MissingFileError as error:
                if isinstance(self.origin, Bucket) and self.stream is not True:
                    return self._decide(False)
                raise self._explain(f"has no {LIST}, which imgcls.prepare shards=DIR writes beside shards.") from error
            with suppress(MissingFileError):
                self.origin.fetch(CLASS_NAMES, self.folder / CLASS_NAMES)
            indices = self._fetch_indices()
            total, room = sum(index.bytes for index in indices.values()), self._limit()
            self._indices = indices
            stream = total > room if self.stream == "auto" else bool(self.stream)
            if stream:
                log.info(
                    "%s: %s of shards are fetched in turn, up to %s are kept in %s%s.",
                    *(self.origin.address, format_bytes(total), format_bytes(room), self.folder),
                    " (data.stream_disk)" if total > room else "",
                )
            return self._decide(stream)

    def fetch_all(self, workers: int) -> None:
        """Fetch the shards that are missing."""
        names = self.names()
        self.open({name: self.index(name) for name in names}, together=0)

        def fetch(number: int) -> None:
            claimed = None
            while claimed is None:
                claimed = self.cache.claim(names[number], lambda: True, lambda: False)
                if claimed is None:
                    self.cache.wait_for_other(names[number])
            self.cache.release(claimed if claimed.readable() else self.cache.fetch(names[number], claimed))

        for _ in map_with_bar(fetch, range(len(names)), workers, f"Fetching {len(names):,} shards"):
            pass

    def open(self, indices: Mapping[str, Index], together: int) -> None:
        """Make the cache of the shards in `indices`, of which `together` are used at a time.

        Raises UserError where it has no room for them.
        """
        if missing := [name for name, index in indices.items() if not index.measured]:
            raise self._explain(f"has an index of an earlier version, {missing[0]}{INDEX_SUFFIX}. Write it again.")
        shards = {name: Shard(index.bytes, index.sha256) for name, index in indices.items()}
        self._keys = {name: index.sha256 or f"{index.key} {index.bytes}" for name, index in indices.items()}
        limit = self._limit()
        largest = sorted((shard.bytes for shard in shards.values()), reverse=True)
        needed = sum(largest[: together + 1]) if together else 0
        if needed > limit:
            raise UserError(
                f"Shuffling data.shuffle_shards={together} shards together needs {format_bytes(needed)} of disk, but "
                f"they may take {format_bytes(limit)}. Set data.stream_disk higher or data.shuffle_shards lower."
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        description = self.folder / DESCRIPTION
        if not description.is_file():
            self._decide(True)
        if self._held is None:
            self._held = hold(description)
        os.utime(description)
        self.cache = ShardCache(self.origin, self.folder, shards, limit)

    def keys(self, shards: Sequence[str]) -> list[str]:
        """What identifies the contents of `shards`."""
        return [self._keys[shard] for shard in shards]

    # ---- inside

    def _list(self) -> dict[str, str]:
        """The name and the key of each shard."""
        try:
            content = json.loads((self.folder / LIST).read_text(encoding="utf-8"))
            return {str(name): str(key) for name, key in content["shards"].items()}
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise self._explain(f"has a {LIST} that imgcls.prepare did not write.") from error

    def _fetch_indices(self) -> dict[str, Index]:
        listed = self._list()
        names = list(listed)
        if any(part in ("", ".", "..") for name in names for part in name.split("/")):
            raise self._explain(f"has a {LIST} with names that are no paths.")

        def fetch(number: int) -> Index:
            name = names[number]
            file = self.folder / f"{name}{INDEX_SUFFIX}"
            with suppress(OSError, ValueError, TypeError):
                index = load_index(file)
                if index.key == listed[name]:
                    return index
            file.unlink(missing_ok=True)
            (self.folder / name).unlink(missing_ok=True)  # of an earlier version of the data set
            self.origin.fetch(file.relative_to(self.folder).as_posix(), file)
            try:
                return load_index(file)
            except (OSError, ValueError, TypeError) as error:
                raise self._explain(f"has a {name}{INDEX_SUFFIX} that imgcls.prepare did not write.") from error

        found = map_with_bar(fetch, range(len(names)), FETCHERS, f"Fetching the index of {len(names):,} shards")
        return dict(zip(names, found, strict=True))

    def _explain(self, what: str) -> UserError:
        return UserError(f"data.root={self.origin.address} {what}")

    def _limit(self) -> float:
        """Bytes that the shards may take."""
        if self._disk != "auto":
            return parse_bytes(str(self._disk))
        present = sum(file.stat().st_size for file in self.folder.rglob("*.tar"))
        return DISK_SHARE * (spare_disk(self.folder) + present)

    def _decide(self, stream: bool) -> bool:
        self._prepared = True
        content = json.dumps({"address": self.origin.address, "stream": stream})
        file = self.folder / DESCRIPTION
        if not file.is_file() or file.read_text(encoding="utf-8") != content:
            self.folder.mkdir(parents=True, exist_ok=True)
            atomic_write_text(file, content)
        return stream
